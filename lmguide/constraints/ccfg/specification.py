"""What a specification says: rules, and relations between the numbers in a text. And its notation, read by Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from lmguide.constraints.ccfg.expressions import Expression, Number, Operation, Variable, value_of
from lmguide.constraints.ccfg.solver import Relation
from lmguide.constraints.extras import grammar_extra
from lmguide.constraints.regex import Chars, translate

PROPERTIES = ("distinct", "increasing", "nondecreasing")
_LONGEST_POWER = 63


@dataclass(frozen=True)
class Text:
    """A fixed text."""

    text: str


@dataclass(frozen=True)
class Letters:
    """One character out of a set, all of them ASCII."""

    letters: tuple[str, ...]


@dataclass(frozen=True)
class Name:
    """A rule, or a number that is read."""

    name: str


@dataclass(frozen=True)
class Choice:
    """One of several sequences."""

    sequences: tuple[tuple[Item, ...], ...]


@dataclass(frozen=True)
class Repetition:
    """An item several times, with a text in between."""

    item: Item
    count: Expression
    separator: str


Item: TypeAlias = Text | Letters | Name | Choice | Repetition


@dataclass(frozen=True)
class Specification:
    """Rules by name, the first one being the whole text, and what holds for the numbers.

    Args:
        rules: By name, in order.
        relations: Between variables.
        properties: Of the values of a variable in a repetition: pairs of property and variable.
    """

    rules: Mapping[str, Choice]
    relations: tuple[Relation, ...]
    properties: tuple[tuple[str, str], ...]


def read(text: str) -> Specification:
    """The specification that a text notates.

    Raises:
        ValueError: The text is none, with line and column.
    """
    lark = grammar_extra("lark")
    try:
        tree = _parser().parse(text)
    except lark.exceptions.UnexpectedInput as error:
        shown = error.get_context(text, span=60).rstrip()
        raise ValueError(
            f"specification: expected rules and relations, got something else at line {error.line}, column "
            f"{error.column}:\n{shown}\nSee docs/ccfg.md for the notation."
        ) from None
    rules: dict[str, Choice] = {}
    relations: list[Relation] = []
    properties: list[tuple[str, str]] = []
    for line in tree.children:
        if line.data == "rule":
            name = str(line.children[0])
            if name in rules:
                raise _refusal(line.children[0], f"expected one rule for {name!r}, got another one", "Use |.")
            rules[name] = _choice(line.children[1])
        elif len(line.children) == 1:
            properties.append(_property(line))
        else:
            relations += _chain(line, text)
    if not rules:
        raise ValueError("specification: expected at least one rule, got none. Begin with 'start: ...'.")
    return Specification(rules, tuple(relations), tuple(properties))


@lru_cache
def _parser() -> Any:
    grammar = Path(__file__).with_name("notation.lark").read_text(encoding="utf-8")
    return grammar_extra("lark").Lark(grammar, parser="lalr", propagate_positions=True)


def _refusal(place: Any, problem: str, cure: str) -> ValueError:
    line = getattr(place, "line", None) or place.meta.line
    return ValueError(f"specification: {problem} (line {line}). {cure}")


def _choice(tree: Any) -> Choice:
    return Choice(tuple(tuple(_item(item) for item in sequence.children) for sequence in tree.children))


def _item(tree: Any) -> Item:
    unit, *rest = tree.children
    inner: Item
    if unit.data == "text":
        inner = Text(_string(unit.children[0]))
    elif unit.data == "chars":
        inner = Letters(_letters(unit.children[0]))
    elif unit.data == "name":
        inner = Name(str(unit.children[0]))
    else:
        inner = _choice(unit.children[0])
    if not rest:
        return inner
    return Repetition(inner, _expression(rest[0]), _string(rest[1]) if len(rest) > 1 else "")


def _string(token: Any) -> str:
    try:
        return str(json.loads(token))
    except json.JSONDecodeError as error:
        raise _refusal(token, f"expected a string as in JSON, got {token}: {error.msg}", "Mend it.") from None


def _letters(token: Any) -> tuple[str, ...]:
    try:
        tree = translate(str(token)[1:-1])
    except ValueError as error:
        raise _refusal(token, f"expected a set of characters, got {token}: {error}", "Mend it.") from None
    if not isinstance(tree, Chars) or tree.ranges[-1][1] > 127:
        raise _refusal(token, f"expected a set of ASCII characters, got {token}", "Name each one.")
    return tuple(chr(code) for low, high in tree.ranges for code in range(low, high + 1))


def _expression(tree: Any) -> Expression:
    if tree.data == "number":
        return Number(int(tree.children[0].replace("_", "")))
    if tree.data == "variable":
        return Variable(str(tree.children[0]))
    if tree.data == "negative":
        return _folded("-", Number(0), _expression(tree.children[0]))
    if tree.data == "power":
        return _power(tree)
    if tree.data == "call":
        return _call(tree)
    left, sign, right = tree.children
    if str(sign) == "//" and not (isinstance(_expression(right), Number) and _expression(right) != Number(0)):
        raise _refusal(sign, "expected a number behind //", "Multiply the other side instead.")
    return _folded(str(sign), _expression(left), _expression(right))


def _folded(sign: str, left: Expression, right: Expression) -> Expression:
    if isinstance(left, Number) and isinstance(right, Number):
        return Number(value_of(Operation(sign, left, right), {}))
    return Operation(sign, left, right)


def _power(tree: Any) -> Expression:
    base, exponent = _expression(tree.children[0]), int(tree.children[1])
    if exponent > _LONGEST_POWER:
        raise _refusal(tree.children[1], f"expected an exponent up to {_LONGEST_POWER}, got {exponent}", "Lower it.")
    found: Expression = Number(1)
    for at in range(exponent):
        found = base if at == 0 else _folded("*", found, base)
    return found


def _call(tree: Any) -> Expression:
    name, *arguments = tree.children
    given = [_expression(argument) for argument in arguments]
    if str(name) == "sum" and len(given) == 1 and isinstance(given[0], Variable):
        return Variable(given[0].name, total=True)
    if str(name) in ("min", "max") and len(given) == 2:
        return Operation(str(name), given[0], given[1])
    raise _refusal(name, f"expected sum(x), min(x, y) or max(x, y), got {name}(...)", "Use one of these.")


def _property(line: Any) -> tuple[str, str]:
    operands = line.children[0].children
    tree = operands[0]
    if len(operands) == 1 and tree.data == "call" and str(tree.children[0]) in PROPERTIES and len(tree.children) == 2:
        variable = tree.children[1]
        if variable.data == "variable":
            return str(tree.children[0]), str(variable.children[0])
    raise _refusal(line, f"expected a relation or {', '.join(f'{p}(x)' for p in PROPERTIES)}, got neither", "Add one.")


def _chain(line: Any, text: str) -> list[Relation]:
    """`a, b <= c < d` is a relation between each two neighbours."""
    shown = text[line.meta.start_pos : line.meta.end_pos]
    found = []
    sides, signs = line.children[::2], line.children[1::2]
    for (left, right), sign in zip(pairwise(sides), map(str, signs), strict=True):
        for one in map(_expression, left.children):
            for other in map(_expression, right.children):
                found.append(_relation(one, sign, other, shown))
    return found


def _relation(left: Expression, sign: str, right: Expression, text: str) -> Relation:
    if sign in ("==", "!="):
        return Relation(left, sign, right, text)
    if sign[0] == ">":
        left, right = right, left
    return Relation(left if sign[-1] == "=" else _folded("+", left, Number(1)), "<=", right, text)
