"""Whether whole numbers in given ranges can meet some relations: by narrowing ranges and halving them.

The answer is exact: a "yes" has found numbers, a "no" has ruled out every range. What takes too many halvings is
refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmguide.constraints.ccfg.expressions import (
    Expression,
    Range,
    Variable,
    narrowed,
    range_of,
    renamed,
    value_of,
    variables,
)

_MOST_HALVINGS = 2000
_MOST_ROUNDS = 100


class UndecidedError(Exception):
    """Relations too hard to decide."""


@dataclass(frozen=True)
class Relation:
    """`left sign right`, with one of the signs `<= == !=`.

    Args:
        left: An expression.
        sign: How they compare; `<`, `>=` and `>` are written with these.
        right: An expression.
        text: As its author wrote it.
    """

    left: Expression
    sign: str
    right: Expression
    text: str = ""

    def keys(self) -> set[str]:
        """The variables in it."""
        return {variable.key for side in (self.left, self.right) for variable in variables(side)}

    def renamed(self, names: Mapping[str, str]) -> Relation:
        """The relation between other variables."""
        return Relation(renamed(self.left, names), self.sign, renamed(self.right, names), self.text)

    def holds(self, values: Mapping[str, int]) -> bool:
        """Whether it does, for known values."""
        left, right = value_of(self.left, values), value_of(self.right, values)
        return left <= right if self.sign == "<=" else (left == right) == (self.sign == "==")

    def narrow(self, ranges: dict[str, Range]) -> bool:
        """Take away values with which it cannot hold; whether one may be left."""
        left, right = range_of(self.left, ranges), range_of(self.right, ranges)
        if self.sign == "!=":
            return _parted(self.left, right, ranges) and _parted(self.right, left, ranges)
        if self.sign == "==":
            shared = max(left[0], right[0]), min(left[1], right[1])
        else:
            shared = left[0], right[1]
        return narrowed(self.left, shared, ranges) and narrowed(self.right, shared, ranges)


def _parted(expression: Expression, other: Range, ranges: dict[str, Range]) -> bool:
    """Narrow an expression that is to differ from `other`, if that is one number."""
    if other[0] < other[1]:
        return True
    low, high = range_of(expression, ranges)
    if low == high:
        return low != other[0]
    if isinstance(expression, Variable) and other[0] in (low, high):
        ranges[expression.key] = (low + 1, high) if low == other[0] else (low, high - 1)
    return True


def propagated(ranges: Mapping[str, Range], relations: Sequence[Relation]) -> dict[str, Range] | None:
    """The ranges, narrowed until nothing more can be taken away, or `None` if one of them is empty."""
    narrow = dict(ranges)
    for _ in range(_MOST_ROUNDS):
        before = dict(narrow)
        if not all(relation.narrow(narrow) for relation in relations):
            return None
        if narrow == before:
            break
    return narrow


def solvable(ranges: Mapping[str, Range], relations: Sequence[Relation]) -> bool:
    """Whether there are numbers in the ranges that meet all relations.

    Raises:
        UndecidedError: The search was given up.
    """
    waiting = [dict(ranges)]
    for _ in range(_MOST_HALVINGS):
        if not waiting:
            return False
        narrow = propagated(waiting.pop(), relations)
        if narrow is None:
            continue
        # For differences of two variables, the lower ends are a solution once nothing can be narrowed.
        for end in (0, 1):
            values = {key: span[end] for key, span in narrow.items()}
            if all(relation.holds(values) for relation in relations):
                return True
        widest = max(narrow, key=lambda key: narrow[key][1] - narrow[key][0], default="")
        low, high = narrow.get(widest, (0, 0))
        if low < high:
            middle = (low + high) // 2
            waiting += [{**narrow, widest: (middle + 1, high)}, {**narrow, widest: (low, middle)}]
    raise UndecidedError(", ".join(relation.text or "a bound" for relation in relations))
