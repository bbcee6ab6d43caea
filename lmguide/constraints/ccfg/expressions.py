"""Arithmetic on whole numbers: exact values, ranges of values, and sums of terms.

Expressions are small trees. A range is a pair `(low, high)`, both ends inclusive.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Range: TypeAlias = tuple[int, int]
WIDE = 10**40
"""The end of a range that has none."""
_SIGNS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
}


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: int


@dataclass(frozen=True)
class Variable:
    """A number of the text, by the name under which it is read."""

    name: str


@dataclass(frozen=True)
class Operation:
    """`left sign right`; the sign is one of `+ - * //`."""

    sign: str
    left: Expression
    right: Expression


Expression: TypeAlias = Number | Variable | Operation


def variables(expression: Expression) -> frozenset[str]:
    """The names in an expression."""
    if isinstance(expression, Operation):
        return variables(expression.left) | variables(expression.right)
    return frozenset({expression.name} if isinstance(expression, Variable) else ())


def divisors(expression: Expression) -> list[Expression]:
    """What stands behind `//` in an expression."""
    if not isinstance(expression, Operation):
        return []
    own = [expression.right] if expression.sign == "//" else []
    return [*own, *divisors(expression.left), *divisors(expression.right)]


def shown(expression: Expression, inner: bool = False) -> str:
    """An expression as it is written."""
    if isinstance(expression, Operation):
        text = f"{shown(expression.left, True)} {expression.sign} {shown(expression.right, True)}"
        return f"({text})" if inner else text
    return str(expression.value if isinstance(expression, Number) else expression.name)


def folded(sign: str, left: Expression, right: Expression) -> Expression:
    """An operation, worked out where both sides are constants."""
    if isinstance(left, Number) and isinstance(right, Number) and not (sign == "//" and right.value == 0):
        return Number(_SIGNS[sign](left.value, right.value))
    return Operation(sign, left, right)


def value_of(expression: Expression, values: Mapping[str, int]) -> int:
    """The value of an expression, given those of its variables."""
    if isinstance(expression, Number):
        return expression.value
    if isinstance(expression, Variable):
        return values[expression.name]
    return _SIGNS[expression.sign](value_of(expression.left, values), value_of(expression.right, values))


def range_of(expression: Expression, ranges: Mapping[str, Range]) -> Range:
    """A range that holds every value of an expression; what stands behind `//` is positive."""
    if isinstance(expression, Number):
        return expression.value, expression.value
    if isinstance(expression, Variable):
        return ranges[expression.name]
    left, right = range_of(expression.left, ranges), range_of(expression.right, ranges)
    if expression.sign == "+":
        return left[0] + right[0], left[1] + right[1]
    if expression.sign == "-":
        return left[0] - right[1], left[1] - right[0]
    if expression.sign == "//":
        right = max(1, right[0]), max(1, right[1])
    corners = [_SIGNS[expression.sign](one, other) for one in left for other in right]
    return min(corners), max(corners)


@dataclass(frozen=True)
class Terms:
    """A sum `constant + sum of factor * part`, no part twice and none a sum itself.

    Args:
        factors: By part, a variable or a product or quotient of such; none is 0.
        constant: A whole number.
    """

    factors: Mapping[Expression, int]
    constant: int

    def range(self, ranges: Mapping[str, Range]) -> Range:
        """A range that holds every value."""
        low = high = self.constant
        for part, factor in self.factors.items():
            ends = [factor * end for end in range_of(part, ranges)]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def variables(self) -> frozenset[str]:
        """The names in it."""
        return frozenset().union(*map(variables, self.factors))

    def expression(self, without: Expression | None = None) -> Expression:
        """The sum as a tree, one part left out if asked for."""
        found: Expression = Number(self.constant)
        for part, factor in self.factors.items():
            if part != without:
                whole = part if abs(factor) == 1 else Operation("*", Number(abs(factor)), part)
                is_first = found == Number(0) and factor > 0
                found = whole if is_first else Operation("+" if factor > 0 else "-", found, whole)
        return found


def terms(expression: Expression) -> Terms:
    """An expression as a sum of terms.

    A product is multiplied out where its sides share no variable; one such as `n*(n-1)` stays whole, since its range is
    told better so.
    """
    if isinstance(expression, Number):
        return Terms({}, expression.value)
    if isinstance(expression, Variable):
        return Terms({expression: 1}, 0)
    left, right = terms(expression.left), terms(expression.right)
    if expression.sign in "+-":
        sign = 1 if expression.sign == "+" else -1
        return _sum([(left, 1), (right, sign)])
    if expression.sign == "*" and not left.factors:
        return _sum([(right, left.constant)])
    if expression.sign == "*" and not right.factors:
        return _sum([(left, right.constant)])
    if expression.sign == "*" and not left.variables() & right.variables():
        products = [
            (Terms({_product(one, other): 1}, 0), factor * others)
            for one, factor in left.factors.items()
            for other, others in right.factors.items()
        ]
        ours = (Terms(left.factors, 0), right.constant), (Terms(right.factors, 0), left.constant)
        return _sum([*products, *ours, (Terms({}, left.constant * right.constant), 1)])
    return Terms({expression: 1}, 0)


def _product(one: Expression, other: Expression) -> Expression:
    """A product in one order, whichever way it was written."""
    first, second = sorted((one, other), key=repr)
    return Operation("*", first, second)


def _sum(parts: list[tuple[Terms, int]]) -> Terms:
    factors: dict[Expression, int] = {}
    for each, times in parts:
        for part, factor in each.factors.items():
            factors[part] = factors.get(part, 0) + factor * times
    kept = {part: factor for part, factor in factors.items() if factor}
    return Terms(kept, sum(each.constant * times for each, times in parts))


def solved(sum_: Terms, name: str, ranges: Mapping[str, Range]) -> tuple[str, Expression] | None:
    """`0 <= sum` as a bound of a variable: `("low", bound)`, `("high", bound)`, or `None` where it is not of that form.

    The variable stands in one part, alone or times something positive.
    """
    holding = [part for part in sum_.factors if name in variables(part)]
    if len(holding) != 1:
        return None
    (part,), rest = holding, sum_.expression(without=holding[0])
    times: Expression = Number(abs(sum_.factors[part]))
    if isinstance(part, Operation):
        sides = (part.left, part.right)
        least = negative(rest)
        if part.sign == "//" and sum_.factors[part] == 1 and part.right == Variable(name):
            # A // x >= k is x <= A // k, where x and k are positive.
            fits = name not in variables(part.left) and min(ranges[name][0], range_of(least, ranges)[0]) > 0
            return ("high", folded("//", part.left, least)) if fits else None
        if part.sign != "*" or Variable(name) not in sides:
            return None
        other = sides[1] if sides[0] == Variable(name) else sides[0]
        if name in variables(other) or range_of(other, ranges)[0] <= 0:
            return None
        times = folded("*", times, other) if times != Number(1) else other
    if sum_.factors[part] < 0:
        return "high", rest if times == Number(1) else folded("//", rest, times)
    if times == Number(1):
        return "low", negative(rest)
    return "low", negative(folded("//", rest, times))


def negative(expression: Expression) -> Expression:
    """An expression times -1, in its plainest form."""
    return _sum([(terms(expression), -1)]).expression()
