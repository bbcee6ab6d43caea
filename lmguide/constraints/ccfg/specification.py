"""What a specification says: rules, and what holds for the numbers in a text. Its notation is read by Lark."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lmguide.constraints.ccfg.expressions import Expression, Number, Operation, Variable, folded
from lmguide.constraints.extras import grammar_extra
from lmguide.constraints.regex import Chars, translate

if TYPE_CHECKING:
    from collections.abc import Mapping

PROPERTIES = ("distinct", "increasing", "nondecreasing")
_LARGEST_POWER = 63


@dataclass(frozen=True)
class Text:
    """A fixed text."""

    text: str


@dataclass(frozen=True)
class Letters:
    """One character out of a set, all of them ASCII."""

    letters: frozenset[int]


@dataclass(frozen=True)
class Name:
    """A rule, or a number that is read."""

    name: str
    line: int


@dataclass(frozen=True)
class Choice:
    """One of several sequences."""

    sequences: tuple[tuple[Item, ...], ...]


@dataclass(frozen=True)
class Repetition:
    """An item from `least` to `most` times, with a text in between."""

    item: Item
    least: Expression
    most: Expression
    separator: str
    line: int


Item: TypeAlias = Text | Letters | Name | Choice | Repetition


@dataclass(frozen=True)
class Relation:
    """`left sign right`, the sign being `<=`, `==` or `!=`.

    Args:
        left: An expression.
        sign: How they compare.
        right: An expression.
        text: As its author wrote it.
        line: Where it stands.
    """

    left: Expression
    sign: str
    right: Expression
    text: str
    line: int


@dataclass(frozen=True)
class Specification:
    """Rules by name, the first one being the whole text, and what holds for the numbers.

    Args:
        rules: By name, in order.
        relations: Between numbers; the sum of one over its repetition is a variable `sum(x)`.
        properties: Of the values of a number in a repetition: by number, `distinct` and the like, with the line.
    """

    rules: Mapping[str, Choice]
    relations: tuple[Relation, ...]
    properties: Mapping[str, tuple[str, int]]


def wrong(problem: str, cure: str, line: int | None = None) -> ValueError:
    """The error of a specification."""
    where = "" if line is None else f" (line {line})"
    return ValueError(f"specification: {problem}{where}. {cure}")


def read(text: str) -> Specification:
    """The specification that a text notates.

    Raises:
        ValueError: The text is none, with line and column.
    """
    lark = grammar_extra("lark")
    try:
        tree = _parser().parse(text)
    except lark.exceptions.UnexpectedInput as error:
        line, column = (error.line, error.column) if error.line and error.line > 0 else (text.count("\n") + 1, 1)
        shown = (text.splitlines() or [""])[min(line, len(text.splitlines()) or 1) - 1].strip()
        raise wrong(
            f"expected a rule such as 'start: n' or a relation such as '1 <= n <= 9', got something else at line "
            f"{line}, column {column}, in {shown!r}",
            "See docs/ccfg.md for the notation.",
        ) from None
    rules: dict[str, Choice] = {}
    relations: list[Relation] = []
    properties: dict[str, tuple[str, int]] = {}
    for line in tree.children:
        if line.data == "rule":
            name = line.children[0]
            if str(name) in rules:
                raise wrong(f"expected one rule for {str(name)!r}, got another one", "Use |.", name.line)
            rules[str(name)] = _choice(line.children[1])
        elif line.data == "property":
            kind, name = line.children
            if str(kind) not in PROPERTIES:
                raise wrong(
                    f"expected one of {', '.join(PROPERTIES)}, got {str(kind)!r}", "Use one of them.", kind.line
                )
            if str(name) in properties:
                raise wrong(f"expected one property of {str(name)!r}, got another one", "Take it out.", name.line)
            properties[str(name)] = (str(kind), name.line)
        else:
            relations += _chain(line, text)
    if not rules:
        raise wrong("expected at least one rule, got none", "Begin with 'start: ...'.")
    return Specification(rules, tuple(relations), properties)


@lru_cache
def _parser() -> Any:
    grammar = Path(__file__).with_name("notation.lark").read_text(encoding="utf-8")
    return grammar_extra("lark").Lark(grammar, parser="lalr", propagate_positions=True)


def _choice(tree: Any) -> Choice:
    return Choice(tuple(tuple(_item(item) for item in sequence.children) for sequence in tree.children))


def _item(tree: Any) -> Item:
    unit, *rest = tree.children
    inner: Item
    if unit.data == "text":
        inner = Text(_string(unit.children[0]))
    elif unit.data == "letters":
        inner = Letters(_letters(unit.children[0]))
    elif unit.data == "name":
        inner = Name(str(unit.children[0]), unit.children[0].line)
    else:
        inner = _choice(unit.children[0])
    if not rest:
        return inner
    counts = [_expression(each) for each in rest[0].children]
    separator = _string(rest[1]) if len(rest) > 1 else ""
    return Repetition(inner, counts[0], counts[-1], separator, tree.meta.line)


def _string(token: Any) -> str:
    try:
        return str(json.loads(token, strict=False))  # line breaks may stand for themselves
    except json.JSONDecodeError as error:
        raise wrong(f"expected a string as in JSON, got {token}: {error.msg}", "Mend it.", token.line) from None


def _letters(token: Any) -> frozenset[int]:
    try:
        tree = translate(str(token)[1:-1])
    except ValueError as error:
        reason = str(error).partition("got ")[2].partition(". ")[0]
        raise wrong(f"expected a set of characters, got {token}: {reason}", "Mend it.", token.line) from None
    if not isinstance(tree, Chars) or tree.ranges[-1][1] > 127:
        raise wrong(f"expected a set of ASCII characters, got {token}", "Name each one.", token.line)
    return frozenset(code for low, high in tree.ranges for code in range(low, high + 1))


def _expression(tree: Any) -> Expression:
    if tree.data == "number":
        return Number(int(tree.children[0].replace("_", "")))
    if tree.data == "variable":
        return Variable(str(tree.children[0]))
    if tree.data == "negative":
        return folded("-", Number(0), _expression(tree.children[0]))
    if tree.data == "power":
        return _power(tree)
    if tree.data == "total":
        kind, name = tree.children
        if str(kind) != "sum":
            raise wrong(f"expected sum({name}), got {kind}({name})", "Use sum, or a relation.", kind.line)
        return Variable(f"sum({name})")
    left, sign, right = tree.children
    return folded(str(sign), _expression(left), _expression(right))


def _power(tree: Any) -> Expression:
    base, exponent = _expression(tree.children[0]), int(tree.children[1])
    if exponent > _LARGEST_POWER:
        raise wrong(f"expected an exponent up to {_LARGEST_POWER}, got {exponent}", "Lower it.", tree.children[1].line)
    found: Expression = Number(1)
    for _ in range(exponent):
        found = base if found == Number(1) else folded("*", found, base)
    return found


def _chain(line: Any, text: str) -> list[Relation]:
    """`a, b <= c < d` is a relation between each two neighbours."""
    shown = text[line.meta.start_pos : line.meta.end_pos]
    found = []
    sides, signs = line.children[::2], line.children[1::2]
    for (left, right), sign in zip(pairwise(sides), map(str, signs), strict=True):
        for one in map(_expression, left.children):
            for other in map(_expression, right.children):
                found.append(_relation(one, sign, other, shown, line.meta.line))
    return found


def _relation(left: Expression, sign: str, right: Expression, text: str, line: int) -> Relation:
    if sign in ("==", "!="):
        return Relation(left, sign, right, text, line)
    if sign[0] == ">":
        left, right = right, left
    return Relation(left if sign[-1] == "=" else Operation("+", left, Number(1)), "<=", right, text, line)
