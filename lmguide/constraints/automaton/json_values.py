r"""The texts of JSON values, each spelled in one way, as automata over characters.

Strings are as `json.dumps(..., ensure_ascii=False)` writes them: escapes where they must be. Numbers are plain
decimals without exponent, needless zeros or a minus before 0. So two scalars are the same value only if they are the
same text, and sets of values can be intersected and subtracted as sets of texts.
"""

from __future__ import annotations

import json
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lmguide.constraints.automaton.dfa import Dfa, difference, intersection, smallest
from lmguide.constraints.automaton.nfa import graph, of_tree, respelled, sequence, union
from lmguide.constraints.regex import EVERY, Chars, Rep, literal, translate

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPECIAL = {chr(code): json.dumps(chr(code))[1:-1] for code in (*range(32), ord('"'), ord("\\"))}
"""Characters that stand in a string under another spelling."""

_MOST_DIGITS = 400
"""Of a number in a schema; doubles reach 308."""


def text(value: str) -> Dfa:
    """One text, as it is."""
    return of_tree(literal(value))


@cache
def pattern(expression: str) -> Dfa:
    """The texts of a pattern."""
    return of_tree(translate(expression))


def quoted(content: Dfa) -> Dfa:
    """The spellings of the strings that an automaton accepts."""
    return sequence([text('"'), respelled(content, _SPECIAL), text('"')])


@cache
def strings() -> Dfa:
    """All strings."""
    return quoted(of_tree(Rep(Chars(EVERY), 0, None)))


@cache
def integers() -> Dfa:
    """All integers."""
    return pattern("0|-?[1-9][0-9]*")


@cache
def numbers() -> Dfa:
    """All numbers."""
    return pattern(r"0|-?[1-9][0-9]*|-?(0|[1-9][0-9]*)\.[0-9]*[1-9]")


def above(bound: Decimal, inclusive: bool) -> Dfa:
    """The numbers above a bound, or at least as large.

    A negative number is above a negative bound unless its digits are those of a number above the bound's.
    """
    if bound < 0:
        return difference(numbers(), sequence([text("-"), above(-bound, not inclusive)]))
    whole, _, fraction = plain(bound).partition(".")
    ways = [rf"[1-9][0-9]{{{len(whole)},}}(\.[0-9]+)?", rf"{whole}\.{fraction}[0-9]*[1-9]"]
    for place, digit in enumerate(whole):
        if digit != "9":
            rest = len(whole) - place - 1
            ways.append(rf"{whole[:place]}[{int(digit) + 1}-9][0-9]{{{rest}}}(\.[0-9]+)?")
    for place, digit in enumerate(fraction):
        if digit != "9":
            ways.append(rf"{whole}\.{fraction[:place]}[{int(digit) + 1}-9][0-9]*")
    if inclusive:
        ways.append(plain(bound).replace(".", r"\."))
    return intersection(numbers(), pattern("|".join(ways)))


def below(bound: Decimal, inclusive: bool) -> Dfa:
    """The numbers below a bound, or at most as large."""
    return difference(numbers(), above(bound, not inclusive))


def multiples(divisor: int) -> Dfa:
    """The integers that a positive integer divides: a state for each remainder of the digits read so far."""
    begin, zero, first = 1, 2, 3
    table = np.zeros((first + divisor, 12), np.int32)  # symbols: the digits from 1 on, 11 is the minus
    digits = np.arange(10)
    table[first:, 1:11] = first + (np.arange(divisor)[:, None] * 10 + digits) % divisor
    table[begin, 2:11] = first + digits[1:] % divisor
    table[begin, 1], table[begin, 11] = zero, begin
    accept = np.isin(np.arange(len(table)), [zero, first])
    bounds = np.array([0, ord("-"), ord("-") + 1, *range(ord("0"), ord("9") + 2)], np.int32)
    symbols = np.array([0, 11, 0, *range(1, 11), 0], np.int32)
    return intersection(integers(), smallest(bounds, symbols, table, accept, begin))


def plain(number: Decimal | int) -> str:
    """A number as a plain decimal in its one spelling.

    Raises:
        ValueError: It has more than 400 digits before or behind the point.
    """
    if abs(Decimal(number).adjusted()) > _MOST_DIGITS:
        raise ValueError(f"schema: expected numbers of at most {_MOST_DIGITS} digits, got {number}. Leave it out.")
    digits = format(Decimal(number), "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits in {"-0", ""} else digits


def array(prefix: Sequence[Dfa], rest: Dfa | None, least: int, most: int | None, space: bool) -> Dfa:
    """Arrays of items.

    Args:
        prefix: The first items, as far as there are any.
        rest: Items behind them; `None` is none.
        least: Items at least.
        most: Items at most; `None` is no bound.
        space: Whether a space may stand behind a comma.
    """
    comma = separator(",", space)
    count = max(len(prefix), least, 1) if most is None else most
    edges: list[tuple[int, Dfa | None, int]] = []
    written = 0
    while written < count and (item := prefix[written] if written < len(prefix) else rest) is not None:
        edges.append((written, item if written == 0 else sequence([comma, item]), written + 1))
        written += 1
    if most is None and rest is not None:
        edges.append((written, sequence([comma, rest]), written))
    items = graph(edges, 0, range(least, written + 1))
    return sequence([text("["), items, text("]")])


def members(named: Sequence[tuple[str, Dfa, bool]], rest: Dfa | None, space: bool) -> Dfa:
    """Objects.

    Args:
        named: Name, value and whether it must be there, in the order in which they are written.
        rest: Values of members with other names, behind those; `None` is none.
        space: Whether a space may stand behind a comma and a colon.
    """
    comma, colon = separator(",", space), separator(":", space)
    # nodes: 3 i is before member i with nothing written yet, 3 i + 1 with something, 3 i + 2 at its name
    edges: list[tuple[int, Dfa | None, int]] = []
    for place, (name, value, needed) in enumerate(named):
        first = 3 * place
        edges += [(first, None, first + 2), (first + 1, comma, first + 2)]
        edges.append((first + 2, sequence([quoted(text(name)), colon, value]), first + 4))
        if not needed:
            edges += [(first, None, first + 3), (first + 1, None, first + 4)]
    last = 3 * len(named)
    if rest is not None:
        names = difference(strings(), union([quoted(text(name)) for name, _, _ in named])) if named else strings()
        edges += [(last, None, last + 2), (last + 1, comma, last + 2)]
        edges.append((last + 2, sequence([names, colon, rest]), last + 1))
    return sequence([text("{"), graph(edges, 0, [last, last + 1]), text("}")])


def separator(sign: str, space: bool) -> Dfa:
    """A comma or a colon."""
    return pattern(f"{sign} ?" if space else sign)


def value(given: Any, space: bool) -> Dfa:
    """One JSON value, with floats as `Decimal`; members in its own order."""
    if isinstance(given, str):
        return quoted(text(given))
    if given is None or isinstance(given, bool):
        return text(json.dumps(given))
    if isinstance(given, list):
        return array([value(item, space) for item in given], None, len(given), len(given), space)
    if isinstance(given, dict):
        return members([(name, value(item, space), True) for name, item in given.items()], None, space)
    return text(plain(given))


@cache
def anything(depth: int, space: bool) -> Dfa:
    """All values in which arrays and objects stand at most so many deep in each other."""
    kinds = [strings(), numbers(), pattern("true|false|null")]
    if depth:
        inner = anything(depth - 1, space)
        kinds += [array([], inner, 0, None, space), members([], inner, space)]
    return union(kinds)
