"""Arithmetic on whole numbers: exactly, and on ranges of them.

Expressions are small trees. A range is a pair `(low, high)`, both inclusive; an empty one has `low > high`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]
WIDEST = 10**18
"""Beyond it a range counts as unbounded."""


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: int


@dataclass(frozen=True)
class Variable:
    """A variable, or with `total` the sum of its values over a repetition."""

    name: str
    total: bool = False

    @property
    def key(self) -> str:
        """The name under which its value is found."""
        return f"sum({self.name})" if self.total else self.name


@dataclass(frozen=True)
class Operation:
    """`left sign right`; the sign is one of `+ - * // min max`."""

    sign: str
    left: Expression
    right: Expression


Expression: TypeAlias = Number | Variable | Operation

_EXACT: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "min": min,
    "max": max,
}


def variables(expression: Expression) -> Iterator[Variable]:
    """The variables of an expression, from left to right."""
    if isinstance(expression, Variable):
        yield expression
    elif isinstance(expression, Operation):
        yield from variables(expression.left)
        yield from variables(expression.right)


def renamed(expression: Expression, names: Mapping[str, str]) -> Expression:
    """The expression with other variables: `names` has the new name of each key, for those that get one."""
    if isinstance(expression, Variable):
        return Variable(names[expression.key]) if expression.key in names else expression
    if isinstance(expression, Operation):
        return Operation(expression.sign, renamed(expression.left, names), renamed(expression.right, names))
    return expression


def value_of(expression: Expression, values: Mapping[str, int]) -> int:
    """The value of an expression.

    Raises:
        KeyError: A variable without a value.
    """
    if isinstance(expression, Number):
        return expression.value
    if isinstance(expression, Variable):
        return values[expression.key]
    return _EXACT[expression.sign](value_of(expression.left, values), value_of(expression.right, values))


def range_of(expression: Expression, ranges: Mapping[str, Range]) -> Range:
    """A range that holds every value of an expression: the tightest where no variable comes twice.

    Args:
        expression: A tree; what stands behind `//` is a positive number.
        ranges: The range of each variable.
    """
    if isinstance(expression, Number):
        return expression.value, expression.value
    if isinstance(expression, Variable):
        return ranges[expression.key]
    left, right = range_of(expression.left, ranges), range_of(expression.right, ranges)
    if expression.sign == "-":
        return left[0] - right[1], left[1] - right[0]
    if expression.sign == "*":
        corners = [one * other for one in left for other in right]
        return min(corners), max(corners)
    exact = _EXACT[expression.sign]
    return exact(left[0], right[0]), exact(left[1], right[1])


def narrowed(expression: Expression, wanted: Range, ranges: dict[str, Range]) -> bool:
    """Take from `ranges` values with which the expression cannot lie in `wanted`.

    Returns:
        Whether a value may be left.
    """
    low, high = wanted
    if isinstance(expression, Number):
        return low <= expression.value <= high
    if isinstance(expression, Variable):
        before = ranges[expression.key]
        ranges[expression.key] = after = (max(before[0], low), min(before[1], high))
        return after[0] <= after[1]
    sign, left, right = expression.sign, expression.left, expression.right
    (left_low, left_high), (right_low, right_high) = range_of(left, ranges), range_of(right, ranges)
    if sign == "+":
        return narrowed(left, (low - right_high, high - right_low), ranges) and narrowed(
            right, (low - left_high, high - left_low), ranges
        )
    if sign == "-":
        return narrowed(left, (low + right_low, high + right_high), ranges) and narrowed(
            right, (left_low - high, left_high - low), ranges
        )
    if sign == "*":
        return narrowed(left, _factor((low, high), (right_low, right_high)), ranges) and narrowed(
            right, _factor((low, high), (left_low, left_high)), ranges
        )
    if sign == "//":
        return narrowed(left, (low * right_low, high * right_low + right_low - 1), ranges)
    # One side may reach the wanted end alone; where the other cannot, it has to.
    if sign == "min":
        left_high, right_high = high if right_low > high else WIDEST, high if left_low > high else WIDEST
        return narrowed(left, (low, left_high), ranges) and narrowed(right, (low, right_high), ranges)
    left_low, right_low = low if right_high < low else -WIDEST, low if left_high < low else -WIDEST
    return narrowed(left, (left_low, high), ranges) and narrowed(right, (right_low, high), ranges)


def _factor(product: Range, other: Range) -> Range:
    """Where a factor lies whose product with one in `other` lies in `product`; anywhere, if that may be 0."""
    if other[0] <= 0 <= other[1]:
        return -WIDEST, WIDEST
    if other[1] < 0:
        product, other = (-product[1], -product[0]), (-other[1], -other[0])
    low, high = product
    return -(-low // (other[1] if low > 0 else other[0])), high // (other[0] if high >= 0 else other[1])
