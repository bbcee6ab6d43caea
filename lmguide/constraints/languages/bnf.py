"""A Lark grammar as flat rules and regular expressions. Lark reads the text; nothing here knows a language."""

from __future__ import annotations

import dataclasses
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lmguide.constraints.extras import grammar_extra

if TYPE_CHECKING:
    from collections.abc import Mapping


class Symbol(NamedTuple):
    """A name in the body of a rule."""

    name: str
    is_terminal: bool


@dataclasses.dataclass(frozen=True)
class Terminal:
    """What a terminal matches: a regular expression, and the text itself where it is one fixed text."""

    regex: str
    literal: str | None


@dataclasses.dataclass(frozen=True)
class Rules:
    """Alternatives of each nonterminal, without brackets, repetition and templates.

    Args:
        start: The nonterminal that derives the language.
        bodies: For each nonterminal its alternatives, each a sequence of symbols.
        terminals: By name. Declared ones (`%declare`) are not among them.
        ignored: The regular expressions of `%ignore`.
    """

    start: str
    bodies: Mapping[str, tuple[tuple[Symbol, ...], ...]]
    terminals: Mapping[str, Terminal]
    ignored: tuple[str, ...]


class _EnoughCollisions:
    """Tells Lark that it has looked for collisions of terminals already."""

    def count_marked_pairs(self) -> int:
        """More than it would ever show."""
        return sys.maxsize


@lru_cache
def _reader() -> Any:
    """Lark, which does not look for terminals that collide.

    It does so where the package interegular happens to be installed, for minutes and in gigabytes on grammars of whole
    languages, and only to log what it finds.
    """
    lark: Any = grammar_extra("lark")
    base: Any = lark.Lark

    class Reader(base):  # type: ignore[misc]
        def _build_lexer(self, dont_ignore: bool = False) -> Any:
            return lark.lexer.BasicLexer(self.lexer_conf, _EnoughCollisions())

    return Reader


def read_lark(text: str, start: str = "start", ascii_case: bool = False) -> Rules:
    r"""The rules of a Lark grammar.

    Args:
        text: The grammar in Lark's notation.
        start: The nonterminal that derives the language.
        ascii_case: Whether `"text"i` means letters of either case in ASCII alone: Python's case folding, which Lark
            means, takes `ſ` for `s`.

    Raises:
        ValueError: Lark refuses the text; the message has the position.

    Example:
        >>> rules = read_lark('start: "a" start?')
        >>> [[symbol.name for symbol in body] for body in rules.bodies["start"]]
        [['A', 'start'], ['A']]
    """
    lark = grammar_extra("lark")
    try:
        # No parser: Lark's would refuse what is ambiguous. The rules are all that is wanted.
        grammar = _reader()(text, parser=None, lexer="basic", start=start, maybe_placeholders=False)
    except lark.exceptions.LarkError as error:
        raise ValueError(f"text: expected Lark's notation, got {error}. Correct it there.") from error
    bodies: dict[str, list[tuple[Symbol, ...]]] = {}
    for rule in grammar.rules:
        body = tuple(Symbol(str(symbol.name), symbol.is_term) for symbol in rule.expansion)
        bodies.setdefault(str(rule.origin.name), []).append(body)
    terminals = {}
    for terminal in grammar.terminals:
        literal = terminal.pattern.value if isinstance(terminal.pattern, lark.lexer.PatternStr) else None
        regex = terminal.pattern.to_regexp()
        terminals[str(terminal.name)] = Terminal(regex.replace("(?i:", "(?ai:") if ascii_case else regex, literal)
    ignored = tuple(terminals[name].regex for name in grammar.ignore_tokens)
    return Rules(start, {name: tuple(those) for name, those in bodies.items()}, terminals, ignored)
