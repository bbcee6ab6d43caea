"""Which values a number may have, given the numbers before it, so that every number after it can have one.

A number is read when all others in its relations are known, so each relation is a bound of the number that is read last
in it. Where a lower bound of a number could exceed an upper one, an earlier number has to be bounded too: Fourier and
Motzkin's elimination, from the last number to the first. It is exact: between its bounds a number may have any value,
and whatever is read, the rest of the text can be finished. What cannot be told exactly is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from lmguide.constraints.ccfg.expressions import (
    WIDE,
    Expression,
    Number,
    Operation,
    Range,
    Variable,
    divisors,
    negative,
    range_of,
    shown,
    solved,
    terms,
    variables,
)
from lmguide.constraints.ccfg.specification import Relation, Specification, wrong

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmguide.constraints.ccfg.program import Program, Spot

_ZERO = Number(0)
_MOST_ROUNDS = 50


@dataclass(frozen=True)
class Bounds:
    """What a number may be: at least all of `lows`, at most all of `highs`, none of `others`.

    Args:
        lows: Expressions of numbers that are known before.
        highs: The same.
        others: The same.
        kind: `distinct`, `increasing`, `nondecreasing` or "" : how the values of a repetition relate.
        sums: Bounds of the sum of the values of a repetition, `(lows, highs)`, or `None`.
    """

    lows: tuple[Expression, ...]
    highs: tuple[Expression, ...]
    others: tuple[Expression, ...] = ()
    kind: str = ""
    sums: tuple[tuple[Expression, ...], tuple[Expression, ...]] | None = None


def compile_bounds(specification: Specification, program: Program) -> dict[str, Bounds]:
    """The bounds of each number.

    Raises:
        ValueError: A number that is nowhere read or has no bounds, a relation that cannot be solved for the number that
            is read last in it, or one that leaves a number without a value for some values of those before.
    """
    return _Compiler(specification, program).bounds()


class _Compiler:
    def __init__(self, specification: Specification, program: Program) -> None:
        self.spots = program.spots
        self.counts = program.counts
        self.properties = specification.properties
        # By number or repetition: sums that are 0 or more, each with the relation it comes from.
        self.needs: dict[str, dict[Expression, Relation]] = {name: {} for name in self.spots}
        self.apart: dict[str, list[tuple[Expression, Relation]]] = {name: [] for name in self.spots}
        self.sums: dict[str, tuple[list[Expression], list[Expression]]] = {}
        self.relations = [*specification.relations]
        for relation in specification.relations:
            self.take(relation)
        for loop, (least, most) in self.counts.items():
            for low, high in ((_ZERO, least), (least, most)):
                if variables(low) | variables(high):
                    text = f"{shown(low)} <= {shown(high)}"
                    relation = Relation(low, "<=", high, text, self.spots[loop].line)
                    self.relations.append(relation)
                    self.require(loop, Operation("-", high, low), relation)

    def take(self, relation: Relation) -> None:
        """Give a relation to the number that is read last in it."""
        names = variables(relation.left) | variables(relation.right)
        if any(name.startswith("sum(") for name in names):
            self.take_sum(relation, names)
            return
        for name in sorted(names):
            if name not in self.spots:
                raise wrong(f"expected numbers that are read, got {name!r} in a relation", "Read it.", relation.line)
        last = self.last(names)
        if last is None:
            raise wrong(
                f"expected a relation between numbers of which one is read when all others are known, got "
                f"{relation.text!r}",
                "Relate each to a number that comes before both.",
                relation.line,
            )
        difference = Operation("-", relation.right, relation.left)
        if relation.sign == "!=":
            self.apart[last].append((difference, relation))
        else:
            self.require(last, difference, relation)
        if relation.sign == "==":
            self.require(last, negative(difference), relation)

    def require(self, name: str, sum_: Expression, relation: Relation) -> bool:
        """Note that a sum is 0 or more when a number is read; whether that is news."""
        plain = terms(sum_).expression()
        if plain in self.needs[name]:
            return False
        self.needs[name][plain] = relation
        return True

    def take_sum(self, relation: Relation, names: frozenset[str]) -> None:
        """A bound of the sum of the values of a number."""
        total = next(name for name in sorted(names) if name.startswith("sum("))
        name, whole = total[4:-1], terms(Operation("-", relation.right, relation.left))
        loop = self.loop(name, relation.line)
        factor = whole.factors.get(Variable(total))
        rest = names - {total}
        if factor not in (1, -1) or not rest <= self.spots[loop].known or relation.sign == "!=":
            raise wrong(
                f"expected bounds of {total} by numbers that are read before the repetition, got {relation.text!r}",
                f"Write for example {total} <= 1000.",
                relation.line,
            )
        bound = whole.expression(without=Variable(total))
        lows, highs = self.sums.setdefault(name, ([], []))
        if factor == -1 or relation.sign == "==":
            highs.append(bound if factor == -1 else negative(bound))
        if factor == 1 or relation.sign == "==":
            lows.append(negative(bound) if factor == 1 else bound)

    def loop(self, name: str, line: int) -> str:
        """The repetition of whose passes each reads the number."""
        path = self.spots[name].path if name in self.spots else ()
        loop = path[-1] if path else None
        if not isinstance(loop, str):
            raise wrong(
                f"expected a number that is read in every pass of a repetition, got {name!r}",
                "Read it in a repetition, outside of alternatives.",
                line,
            )
        return loop

    def last(self, names: frozenset[str]) -> str | None:
        """The number that is read when all others are known."""
        return next((name for name in sorted(names) if names - {name} <= self.spots[name].known), None)

    def bounds(self) -> dict[str, Bounds]:
        for name, (_, line) in self.properties.items():
            self.loop(name, line)
        for _ in range(_MOST_ROUNDS):
            self.ranges: dict[str, Range] = {}
            self.found: dict[str, Bounds] = {}
            for name in self.spots:
                self.solve(name)
            self.problems: list[ValueError] = []
            if not any([self.eliminate(name) for name in reversed(self.spots)]):
                break
        else:
            raise wrong(f"expected relations that are told in {_MOST_ROUNDS} rounds, got others", "Use fewer.")
        for name in self.found:
            low, high = self.ranges[name]
            if low <= -WIDE // 2 or high >= WIDE // 2:
                raise wrong(
                    f"expected bounds for {name!r}, got none on one side",
                    f"Add a line such as '1 <= {name} <= 100'.",
                    self.spots[name].line,
                )
        self.check_divisors()
        if self.problems:
            raise self.problems[-1]
        return {name: self.with_property(name, bounds) for name, bounds in self.found.items()}

    def check_divisors(self) -> None:
        """Refuse a division by what may not be positive."""
        for relation in self.relations:
            for divisor in (*divisors(relation.left), *divisors(relation.right)):
                if variables(divisor) <= self.ranges.keys() and range_of(divisor, self.ranges)[0] <= 0:
                    raise wrong(
                        f"expected a positive number behind //, got {shown(divisor)} in {relation.text!r}",
                        f"Add '{shown(divisor)} >= 1'.",
                        relation.line,
                    )

    def solve(self, name: str) -> None:
        """The bounds of a number from what it needs, and its range."""
        lows: list[Expression] = []
        highs: list[Expression] = []
        self.ranges[name] = (-WIDE, WIDE)
        if name in self.counts:
            return
        for need, relation in self.needs[name].items():
            bound = solved(terms(need), name, self.ranges)
            if bound is None:
                raise wrong(
                    f"expected a relation that can be solved for {name!r}, got {relation.text!r}",
                    f"Let {name!r} stand alone on one side, or times something positive.",
                    relation.line,
                )
            low, high = self.ranges[name]
            if bound[0] == "low":
                lows.append(bound[1])
                low = max(low, range_of(bound[1], self.ranges)[0])
            else:
                highs.append(bound[1])
                high = min(high, range_of(bound[1], self.ranges)[1])
            self.ranges[name] = (low, high)
        low, high = self.ranges[name]
        if low > high:
            line = self.spots[name].line
            raise wrong(f"expected a value for {name!r}, got none from {low} to {high}", "Mend it.", line)
        others = []
        for difference, relation in self.apart[name]:
            whole = terms(difference)
            if whole.factors.get(Variable(name)) not in (1, -1) or name in variables(
                other := whole.expression(without=Variable(name))
            ):
                raise wrong(
                    f"expected a relation that can be solved for {name!r}, got {relation.text!r}",
                    f"Let {name!r} stand alone on one side.",
                    relation.line,
                )
            others.append(negative(other) if whole.factors[Variable(name)] == 1 else other)
        self.found[name] = Bounds(_plainest(lows, max), _plainest(highs, min), tuple(others))

    def eliminate(self, name: str) -> bool:
        """Bound earlier numbers so that a value is left for this one; whether that needed a new bound."""
        if name in self.counts:
            sums = [(need, f"{relation.text} passes") for need, relation in self.needs[name].items()]
            return any([self.ensure(name, need, f"a count with {text}") for need, text in sums])
        bounds, new = self.found[name], False
        for low, high in product(bounds.lows, bounds.highs):
            gap = terms(Operation("-", high, low))
            text = f"a value for {name!r} between {shown(low)} and {shown(high)}"
            if not bounds.others:
                new |= self.ensure(name, gap.expression(), text)
            elif gap.range(self.ranges)[0] < len(bounds.others):
                self.problems.append(
                    wrong(
                        f"expected more values for {name!r} than the {len(bounds.others)} that != takes away, got "
                        f"{shown(low)} to {shown(high)}",
                        f"Add '{shown(low)} + {len(bounds.others)} <= {shown(high)}', or a bound like it.",
                        self.spots[name].line,
                    )
                )
        return new

    def ensure(self, name: str, need: Expression, text: str) -> bool:
        """See to it that a sum of numbers before `name` is 0 or more there; whether that needed a new bound."""
        whole = terms(need)
        if whole.range(self.ranges)[0] >= 0:
            return False
        line = self.spots[name].line
        last = self.last(whole.variables()) if whole.factors else None
        if (
            last is not None
            and self.certain(self.spots[name], self.spots[last])
            and solved(whole, last, self.ranges) is not None
        ):
            return self.require(last, need, Relation(_ZERO, "<=", need, f"0 <= {shown(need)}", line))
        cure = f"Add '{shown(need)} >= 0', or a bound like it." if whole.factors else "Mend it."
        self.problems.append(wrong(f"expected {text} whatever is read before, got none for some numbers", cure, line))
        return False

    def certain(self, later: Spot, earlier: Spot) -> bool:
        """Whether what is read later is always read once the earlier one is."""
        around, within = later.path[: len(earlier.path)], later.path[len(earlier.path) :]
        return around == earlier.path and all(
            isinstance(step, str) and range_of(self.counts[step][0], self.ranges)[0] > 0 for step in within
        )

    def with_property(self, name: str, bounds: Bounds) -> Bounds:
        """The bounds with what holds for the values of a repetition."""
        kind, line = self.properties.get(name, ("", self.spots[name].line))
        if not kind and name not in self.sums:
            return bounds
        loop = self.loop(name, line)
        least, most = self.counts[loop]
        outer = all(variables(bound) <= self.spots[loop].known for bound in (*bounds.lows, *bounds.highs))
        if not outer or bounds.others or least != most or (kind and name in self.sums):
            raise wrong(
                f"expected bounds of {name!r} by numbers that are read before its repetition, and one count, beside "
                f"{kind or 'a sum'}, got others",
                "Leave the property out, or the bounds.",
                line,
            )
        for low, high in product(bounds.lows, bounds.highs):
            room = Operation("-", Operation("+", Operation("-", high, low), Number(1)), most)
            if kind != "nondecreasing" and kind and terms(room).range(self.ranges)[0] < 0:
                raise wrong(
                    f"expected as many values for {name!r} as there are, got {shown(low)} to {shown(high)} for "
                    f"{shown(most)} of them",
                    f"Add '{shown(terms(room).expression())} >= 0', or a bound like it.",
                    line,
                )
        if name not in self.sums:
            return Bounds(bounds.lows, bounds.highs, kind=kind)
        lows, highs = self.sums[name]
        gaps = [Operation("-", high, Operation("*", most, low)) for low in bounds.lows for high in highs]
        gaps += [Operation("-", Operation("*", most, high), low) for high in bounds.highs for low in lows]
        gaps += [Operation("-", high, low) for low in lows for high in highs]
        for gap in gaps:
            if terms(gap).range(self.ranges)[0] < 0:
                raise wrong(
                    f"expected a sum of {name!r} that can be met whatever is read before, got one that cannot",
                    f"Add '{shown(terms(gap).expression())} >= 0', or a bound like it.",
                    line,
                )
        return Bounds(bounds.lows, bounds.highs, sums=(tuple(lows), tuple(highs)))


def _plainest(bounds: list[Expression], choose: Callable[[list[int]], int]) -> tuple[Expression, ...]:
    """The bounds, constant ones as one, none twice."""
    constants = [bound.value for bound in bounds if isinstance(bound, Number)]
    others = tuple(dict.fromkeys(bound for bound in bounds if not isinstance(bound, Number)))
    return (Number(choose(constants)), *others) if constants else others
