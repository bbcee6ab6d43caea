"""A look into a grammar in llguidance's dialect of Lark, before the engine gets it.

The engine reads the grammar itself. What is found here is what it would not say: rules that no text ever finishes, on
which it may loop for ever, and options for the engine within a schema.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from lmguide.constraints.json_schema import check_options

_TOKEN = re.compile(
    r"""(?P<skip>(?:\#|//)[^\n]*|[ \t\r]+)
    |(?P<newline>\n)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\])+/[imslux]*|<[^<>\s]+>|@[\w-]+)
    |(?P<name>!?[_?]?[a-zA-Z][\w-]*|_(?!\w))
    |(?P<keyword>%[a-z]+)
    |(?P<number>0x[0-9a-fA-F]+|[+-]?[0-9]+(?:\.[0-9]+)?)
    |(?P<sign>::|->|\.\.|.)""",
    re.VERBOSE,
)
_WITH_JSON = {"%json", "%regex", "%llguidance"}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


@dataclass
class Outline:
    """What a grammar defines.

    Attributes:
        rules: The body of each rule: alternatives, each a row of names and of groups, which are bodies again. Text is
            left out of its row.
        lines: Where each rule stands, from 1.
        ignores: Whether a `%ignore` stands in it or in a grammar within it.
        excludes: Whether it may have terminals that exclude texts, with `&` or `~`.
    """

    rules: dict[str, list[list[Any]]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    ignores: bool = False
    excludes: bool = False

    def endless(self, start: str = "start") -> list[str]:
        """The rules that `start` can reach and no text ever finishes, in the order of the grammar."""
        ending: set[str] = set()
        while more := {name for name, body in self.rules.items() if name not in ending and _ends(body, self, ending)}:
            ending |= more
        reached, waiting = {start}, [start]
        while waiting:
            for name in _names(self.rules.get(waiting.pop(), [])) - reached:
                reached.add(name)
                waiting.append(name)
        return [name for name in self.rules if name in reached and name not in ending]


def outline(text: str) -> Outline:
    """What a grammar defines; what the engine would not read is left to the engine.

    Raises:
        ValueError: A rule without end, or options for the engine in a schema; with the line.
    """
    return _Reader(text).grammar(nested=False)


def check_lark(text: str) -> Outline:
    r"""Refuse a grammar with a rule that no text finishes.

    Raises:
        ValueError: There is one; with its line.

    Example:
        >>> check_lark('start: "a" more?\nmore: "b" start').endless()
        []
    """
    found = outline(text)
    if endless := found.endless():
        where = ", ".join(f"{name!r} (line {found.lines[name]})" for name in endless)
        raise ValueError(
            f"text: expected rules that some text finishes, got {where}, of which every text needs more. "
            "Add an alternative that ends."
        )
    return found


def in_larks_words(text: str) -> str:
    """A grammar as Lark's own reader takes it: nothing where `""` stands, and no line that sets no option."""
    found, place = [], 0
    text = re.sub(r"^%llguidance[ \t]*\{\s*\}", "", text, flags=re.MULTILINE)
    while place < len(text) and (match := _TOKEN.match(text, place)) is not None:
        found.append("" if match[0] == '""' else match[0])
        place = match.end()
    return "".join(found) + text[place:]


def _ends(body: list[list[Any]], grammar: Outline, ending: set[str]) -> bool:
    return any(all(_item_ends(item, grammar, ending) for item in row) for row in body)


def _item_ends(item: Any, grammar: Outline, ending: set[str]) -> bool:
    if isinstance(item, str):
        return item in ending or item not in grammar.rules
    return _ends(item, grammar, ending)


def _names(body: list[list[Any]]) -> set[str]:
    found: set[str] = set()
    for row in body:
        for item in row:
            found |= {item} if isinstance(item, str) else _names(item)
    return found


class _Reader:
    """Reads definitions one by one; a sign it does not know is passed over, since the engine reads it too."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.place = 0

    def grammar(self, nested: bool) -> Outline:
        """Definitions up to the end, or up to the brace that closes a nested grammar."""
        found = Outline(excludes=any(token.text in {"&", "~"} for token in self.tokens))
        while (token := self._peek()) is not None:
            if nested and token.text == "}":
                self.place += 1
                break
            if token.text == "%ignore":
                found.ignores = True
            if token.kind == "name" and self._defines():
                self._definition(found)
            else:
                self.place += 1
        return found

    def _definition(self, found: Outline) -> None:
        name = self._next()
        while self._next().text != ":":
            pass
        rule = name.text.lstrip("!?")
        found.lines[rule] = name.line
        found.rules[rule] = self._alternatives(found)

    def _alternatives(self, found: Outline, grouped: bool = False) -> list[list[Any]]:
        """Alternatives up to a closing sign or the end of the definition, which are left standing."""
        rows: list[list[Any]] = [[]]
        while (token := self._peek()) is not None and token.text not in {")", "]", "}"}:
            if token.kind == "newline":
                if not grouped and not self._goes_on():
                    break
                self.place += 1
            elif token.text == "|":
                self.place += 1
                rows.append([])
            elif token.text == "%if":
                self._condition()
            elif token.text == "->":
                self.place += 2
            elif token.kind == "keyword" and token.text not in {"%lark", *_WITH_JSON}:
                break
            else:
                rows[-1] += self._item(found)
        return rows

    def _item(self, found: Outline) -> list[Any]:
        """One part of a row: nothing for text, an alternative to nothing for what may be left out."""
        token = self._next()
        inner: list[Any] = []
        if token.text in {"(", "["}:
            rows = self._alternatives(found, grouped=True)
            self._skip(")" if token.text == "(" else "]")
            inner = [[*rows, []] if token.text == "[" else rows]
        elif token.text == "%lark":
            self._skip("{")
            nested = self.grammar(nested=True)
            found.ignores |= nested.ignores
            if endless := nested.endless():
                raise ValueError(
                    f"text: expected rules that some text finishes, got {endless[0]!r} (line "
                    f"{nested.lines[endless[0]]}), of which every text needs more. Add an alternative that ends."
                )
        elif token.kind == "name" and token.text != "_":
            inner = [token.text.lstrip("!?")]
        if (follows := self._peek()) is not None and follows.text == "::":
            self._parameter()
        return [[inner, []]] if self._may_be_left_out() and inner else inner

    def _may_be_left_out(self) -> bool:
        """Whether a quantifier follows that allows none; it is read."""
        token = self._peek()
        if token is None or token.text not in {"?", "*", "+", "{", "~"}:
            return False
        self.place += 1
        if token.text in {"?", "*", "+"}:
            return token.text != "+"
        least = self._peek()
        if token.text == "{":
            while self._peek() is not None and self._next().text != "}":
                pass
        else:
            while (part := self._peek()) is not None and (part.kind == "number" or part.text == ".."):
                self.place += 1
        return least is not None and (least.text == "," or (least.kind == "number" and float(least.text) == 0))

    def _parameter(self) -> None:
        self.place += 2
        self._arguments()

    def _condition(self) -> None:
        self.place += 2
        self._arguments()

    def _arguments(self) -> None:
        """Whatever stands between brackets that open here."""
        depth = 0
        while (token := self._peek()) is not None:
            depth += (token.text in {"(", "["}) - (token.text in {")", "]"})
            if depth <= 0 and token.text not in {")", "]"}:
                return
            self.place += 1
            if depth == 0:
                return

    def _defines(self) -> bool:
        """Whether the name here begins a definition: it is the first of its line, and a colon follows."""
        if self.place and self.tokens[self.place - 1].kind != "newline" and self.tokens[self.place - 1].text != "{":
            return False
        after, depth = self.place + 1, 0
        while after < len(self.tokens):
            token = self.tokens[after]
            if token.text == ":" and depth == 0:
                return True
            depth += (token.text == "[") - (token.text == "]")
            if depth == 0 and token.text not in {"]", "::", "_", "."} and token.kind != "number":
                return False
            after += 1
        return False

    def _goes_on(self) -> bool:
        """Whether the definition goes on behind the line break here, with an alternative."""
        after = self.place
        while after < len(self.tokens) and self.tokens[after].kind == "newline":
            after += 1
        return after < len(self.tokens) and self.tokens[after].text == "|"

    def _peek(self) -> _Token | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def _next(self) -> _Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def _skip(self, text: str) -> None:
        if (token := self._peek()) is not None and token.text == text:
            self.place += 1


def _tokens(text: str) -> list[_Token]:
    """The signs of a grammar; what follows `%json` and its like is read as JSON, and checked."""
    found: list[_Token] = []
    place, line = 0, 1
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            break
        kind = str(match.lastgroup)
        if kind != "skip":
            found.append(_Token(kind, match[0], line))
        line += match[0].count("\n")
        place = match.end()
        if match[0] in _WITH_JSON:
            start = place + len(text[place:]) - len(text[place:].lstrip())
            try:
                value, end = json.JSONDecoder().raw_decode(text, start)
            except json.JSONDecodeError:
                continue  # the engine says where
            if match[0] == "%json":
                check_options(value, f"text (line {line})")
            line += text.count("\n", place, end)
            place = end
    return found
