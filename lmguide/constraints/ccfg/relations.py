"""The relations of a specification on its graph: who relates to whom, and in which range each variable lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmguide.constraints.ccfg.expressions import (
    WIDEST,
    Expression,
    Operation,
    Range,
    Variable,
    range_of,
    variables,
)
from lmguide.constraints.ccfg.program import LoopNode, Program
from lmguide.constraints.ccfg.solver import Relation
from lmguide.constraints.ccfg.specification import Specification

_OPEN = WIDEST // 2  # an end beyond it comes from an end that is open


@dataclass(frozen=True, eq=False)
class Relations:
    """What holds for the numbers of a text.

    Args:
        of: The relations of each scope: between its variables, and to those of scopes around it.
        ranges: The range of each variable, from constants.
        summed: For each scope, the variables whose sum over the repetition is in a relation.
        properties: For each scope, pairs of property and variable.
        coupled: Variables whose value bears on others, or on how many come.
        counting: Those among them that bear on a count.
    """

    of: Mapping[int, tuple[Relation, ...]]
    ranges: Mapping[str, Range]
    summed: Mapping[int, tuple[str, ...]]
    properties: Mapping[int, tuple[tuple[str, str], ...]]
    coupled: frozenset[str]
    counting: frozenset[str]


def compile_relations(specification: Specification, program: Program) -> Relations:
    """The relations of a specification.

    Raises:
        ValueError: A variable that is nowhere read or has no bounds; a relation between variables of which the outer
            one is read after the inner one, or between different repetitions; a sum that could not be told exactly.
    """
    return _Compiler(specification, program).relations()


class _Compiler:
    def __init__(self, specification: Specification, program: Program) -> None:
        self.specification = specification
        self.program = program

    def relations(self) -> Relations:
        self.found = ranges = self.ranges()
        of: dict[int, list[Relation]] = {}
        summed: dict[int, dict[str, None]] = {}
        properties: dict[int, list[tuple[str, str]]] = {}
        for relation in self.specification.relations:
            of.setdefault(self.scope(relation), []).append(relation)
            for variable in _variables(relation):
                if variable.total:
                    summed.setdefault(self.program.scopes[variable.name], {})[variable.name] = None
        for name, variable in self.specification.properties:
            self.check_repeated(variable, f"{name}({variable})")
            properties.setdefault(self.program.scopes[variable], []).append((name, variable))
        for scope, totals in summed.items():
            for name in totals:
                self.check_sum(name, properties.get(scope, []), of)
        tied = {key for relation in self.specification.relations for key in relation.keys() if len(relation.keys()) > 1}
        tied |= {name for those in properties.values() for _, name in those}
        tied |= {name for those in summed.values() for name in those}
        tracked = set(summed) | set(properties)
        counting = self.counting(tied, tracked)
        return Relations(
            {scope: tuple(those) for scope, those in of.items()},
            ranges,
            {scope: tuple(those) for scope, those in summed.items()},
            {scope: tuple(those) for scope, those in properties.items()},
            frozenset(tied | counting),
            frozenset(counting),
        )

    def counting(self, tied: set[str], tracked: set[int]) -> set[str]:
        """Variables in counts that cannot be any number of their range: for the count, or for what is counted."""
        found: set[str] = set()
        size = -1
        while size < (size := len(found)):
            matters = {self.program.scopes[name] for name in (tied | found) & set(self.program.scopes)} | tracked
            for node in (*self.program.runs, *self.program.loops.values()):
                plain = isinstance(node.count, Variable) and self.found[node.count.key][0] >= 0
                inner = isinstance(node, LoopNode) and any(node.scope in self.program.within(scope) for scope in matters)
                found |= set() if plain and not inner else {variable.key for variable in variables(node.count)}
        return found

    def scope(self, relation: Relation) -> int:
        """The innermost scope of a relation's variables."""
        if not relation.keys():
            raise ValueError(f"specification: expected a variable in {relation.text!r}, got none. Take it out.")
        scopes = {variable.key: self.scope_of(variable, relation.text) for variable in _variables(relation)}
        inner = max(scopes.values(), key=lambda scope: len(list(self.program.within(scope))))
        around = list(self.program.within(inner))
        for key, scope in scopes.items():
            if scope not in around:
                raise ValueError(
                    f"specification: expected {relation.text!r} to relate what is read in one repetition, got {key!r} "
                    "from another one. Compare with a number that is read before both."
                )
            if scope != inner and key not in self.program.known[around[around.index(scope) - 1]]:
                raise ValueError(
                    f"specification: expected {key!r} before the repetition that {relation.text!r} is about, got it "
                    "behind. Read it first."
                )
        return inner

    def scope_of(self, variable: Variable, text: str) -> int:
        if variable.name not in self.program.scopes:
            raise ValueError(
                f"specification: expected variables that a rule reads, got {variable.name!r} in {text!r}. "
                "Write it into a rule, or mend the name."
            )
        if not variable.total:
            return self.program.scopes[variable.name]
        self.check_repeated(variable.name, text)
        return self.program.loops[self.program.scopes[variable.name]].outside

    def check_repeated(self, name: str, text: str) -> None:
        scope = self.program.scopes.get(name, 0)
        if scope not in self.program.loops or name not in self.program.always[scope]:
            raise ValueError(
                f"specification: expected {name!r} in {text!r} to be read in every pass of a repetition, got "
                "one that is not. Put it into a repetition, outside of alternatives."
            )

    def check_sum(self, name: str, properties: list[tuple[str, str]], of: Mapping[int, list[Relation]]) -> None:
        """A sum is told exactly where the values of one pass can be any between a least and a greatest one."""
        if any(variable == name for _, variable in properties):
            raise ValueError(
                f"specification: expected either sum({name}) or a property of {name!r}, got both. Leave one out."
            )
        for relation in of.get(self.program.scopes[name], ()):
            if not is_one_sided(relation, name, self.found):
                raise ValueError(
                    f"specification: expected values of {name!r}, which is summed, without gaps, got {relation.text!r}. "
                    "Use <= with sides that grow or fall with it."
                )

    def ranges(self) -> dict[str, Range]:
        """Ranges from constants; and ends that are open still, from the ranges of other variables."""
        named = {name: (-WIDEST, WIDEST) for name in self.program.scopes}
        ranges = named | {f"sum({name})": (-WIDEST, WIDEST) for name in self.program.scopes}
        single = [relation for relation in self.specification.relations if len(relation.keys()) == 1]
        for relation in single:
            if not relation.narrow(ranges):
                raise ValueError(f"specification: expected a number that meets {relation.text!r}, got none. Mend it.")
        for _ in named:
            for relation in self.specification.relations:
                narrow = dict(ranges)
                relation.narrow(narrow)
                for name, (low, high) in ranges.items():
                    closer = narrow[name]
                    ranges[name] = (closer[0] if low <= -_OPEN else low, closer[1] if high >= _OPEN else high)
        for name in named:
            low, high = ranges[name]
            if low <= -_OPEN or high >= _OPEN:
                raise ValueError(
                    f"specification: expected bounds for {name!r}, got none on one side. "
                    f"Add a line such as '1 <= {name} <= 100'."
                )
            if low > high:
                raise ValueError(f"specification: expected a value for {name!r}, got none from {low} to {high}. Mend it.")
        return ranges


def _variables(relation: Relation) -> list[Variable]:
    return [variable for side in (relation.left, relation.right) for variable in variables(side)]


def leaning(expression: Expression, key: str, ranges: Mapping[str, Range]) -> int | None:
    """Whether an expression grows (1), falls (-1) or stays (0) as a variable grows; `None` if that is not plain to see."""
    if not isinstance(expression, Operation):
        return int(isinstance(expression, Variable) and expression.key == key)
    left, right = leaning(expression.left, key, ranges), leaning(expression.right, key, ranges)
    if left is None or right is None:
        return None
    if expression.sign == "-":
        right = -right
    elif expression.sign == "*":
        # A factor turns the other around if it is negative, and must not change its sign.
        (left_low, left_high), (right_low, right_high) = (
            range_of(side, ranges) for side in (expression.left, expression.right)
        )
        signs = [0 if low < 0 < high else 1 if low >= 0 else -1 for low, high in ((right_low, right_high), (left_low, left_high))]
        if (left and not signs[0]) or (right and not signs[1]):
            return None
        left, right = left * signs[0], right * signs[1]
    return None if left * right < 0 else left or right


def is_one_sided(relation: Relation, key: str, ranges: Mapping[str, Range]) -> bool:
    """Whether the values of a variable that meet a relation, the others being given, have no gap."""
    left, right = leaning(relation.left, key, ranges), leaning(relation.right, key, ranges)
    if left is None or right is None or relation.sign == "!=":
        return left == right == 0
    return left * right <= 0 if relation.sign == "<=" else Variable(key) in (relation.left, relation.right)
