"""What is still to come in a text, as systems of ranges and relations: can they be met, and by which next number?

From a place in the graph the rest of the text is walked through. Numbers that are still to be read are unknowns. Passes
of a repetition that are still to come are all alike, so one pass stands for all of them; two, where a sum or the order
of the values matters: one with the least value, one with the greatest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from lmguide.constraints.ccfg.expressions import (
    WIDEST,
    Expression,
    Number,
    Operation,
    Range,
    Variable,
    renamed,
    value_of,
    variables,
)
from lmguide.constraints.ccfg.program import (
    Back,
    CallNode,
    ChoiceNode,
    LettersNode,
    LoopNode,
    Node,
    Program,
    ReadNode,
    RunNode,
    Skip,
    TextNode,
)
from lmguide.constraints.ccfg.relations import Relations
from lmguide.constraints.ccfg.solver import Relation, solvable


class Known(Protocol):
    """What has been read so far: one pass of a repetition, in one of the passes around it."""

    scope: int
    parent: Known | None
    left: int
    done: int
    totals: Mapping[str, int]

    def get(self, key: str) -> int | None:
        """The value of a variable here or further out."""


@dataclass
class System:
    """Unknowns with their ranges, and what relates them to each other and to what is known.

    Args:
        ranges: By key.
        relations: Between unknowns and known variables.
        scopes: The scopes that were walked through, from the inside out.
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    relations: list[Relation] = field(default_factory=list)
    scopes: list[int] = field(default_factory=list)

    def copy(self) -> System:
        """The same, on its own."""
        return System(dict(self.ranges), list(self.relations), list(self.scopes))


_Names = dict[str, str]


class Pending:
    """What is still to come.

    Args:
        program: The graph of a specification.
        relations: Its relations.
    """

    def __init__(self, program: Program, relations: Relations) -> None:
        self.program = program
        self.relations = relations
        self.plain = lru_cache(maxsize=None)(self._plain)
        self._passes = 0

    def systems(self, node: Node, known: Known) -> Iterator[System]:
        """One system for each choice of alternatives in the rest of the text; it can go on if one can be met."""
        for system in self._walk(node, known, System(scopes=[known.scope]), {}, None):
            for scope in system.scopes:
                self._relate(system, scope, {}, known)
            for relation in system.relations:
                for key in relation.keys() - set(system.ranges):
                    value = known.get(key)
                    if value is not None:
                        system.ranges[key] = (value, value)
            yield system

    def possible(self, node: Node, known: Known, ranges: Mapping[str, Range] | None = None) -> bool:
        """Whether the text can be finished from here, with unknowns in narrower ranges if some are given."""
        for system in self.systems(node, known):
            narrow = dict(system.ranges)
            for key, (low, high) in (ranges or {}).items():
                narrow[key] = (max(low, narrow[key][0]), min(high, narrow[key][1])) if key in narrow else (low, high)
            if all(low <= high for low, high in narrow.values()) and solvable(narrow, system.relations):
                return True
        return False

    def _plain(self, node: Node, end: Node) -> bool:
        """Whether nothing from a node up to another one bears on other numbers."""
        while node is not end:
            if isinstance(node, Back) or not hasattr(node, "next"):
                return True
            if isinstance(node, ReadNode) and node.name in self.relations.coupled:
                return False
            if isinstance(node, RunNode | LoopNode) and self._counts(node):
                return False
            if isinstance(node, LoopNode) and (self._tracked(node.scope) or not self.plain(node.body, node.next)):
                return False
            if isinstance(node, ChoiceNode) and not all(self.plain(branch, node.next) for branch in node.branches):
                return False
            node = node.next
        return True

    def _counts(self, node: RunNode | LoopNode) -> bool:
        return any(variable.key in self.relations.coupled for variable in variables(node.count))

    def _tracked(self, scope: int) -> bool:
        return bool(self.relations.summed.get(scope) or self.relations.properties.get(scope))

    def _add(self, system: System, name: str, names: _Names) -> str:
        key = names.get(name, name)
        system.ranges.setdefault(key, self.relations.ranges[name])
        return key

    def _relate(self, system: System, scope: int, names: _Names, known: Known) -> None:
        """Add the relations of a scope that have an unknown, and no variable that will not be there."""
        for relation in self.relations.of.get(scope, ()):
            there = relation.renamed(names)
            keys = there.keys()
            if keys & set(system.ranges) and all(key in system.ranges or known.get(key) is not None for key in keys):
                system.relations.append(there)

    def _walk(self, node: Node, known: Known, system: System, names: _Names, stop: LoopNode | None) -> Iterator[System]:
        """The systems of what comes from a node on, up to the end of the text or of a pass of `stop`."""
        while True:
            if isinstance(node, ReadNode):
                if node.name in self.relations.coupled:
                    self._add(system, node.name, names)
            elif isinstance(node, RunNode):
                self._count(node, known, system, names)
            elif isinstance(node, ChoiceNode):
                if not all(self.plain(branch, node.next) for branch in node.branches):
                    for branch in node.branches:
                        yield from self._walk(branch, known, system.copy(), names, stop)
                    return
            elif isinstance(node, LoopNode):
                for after in self._loop(node, known, system, names):
                    yield from self._walk(node.next, known, after, names, stop)
                return
            elif isinstance(node, Back) and node.loop is not stop:
                yield from self._rest(node.loop, known, system, names, stop)
                return
            elif not isinstance(node, TextNode | LettersNode | Skip | CallNode):
                yield system
                return
            node = node.next

    def _count(self, node: RunNode | LoopNode, known: Known, system: System, names: _Names) -> Expression:
        """The count of a repetition, known as a number or related to 0 if it is an unknown."""
        if node.free:
            for variable in variables(node.count):
                self._add(system, variable.name, names)
        count = renamed(node.count, names)
        values = {key: known.get(key) for key in (variable.key for variable in variables(count))}
        exact = {key: value for key, value in values.items() if value is not None and key not in system.ranges}
        if len(exact) == len(values):
            return Number(value_of(count, exact))
        for variable in variables(node.count):
            if variable.key not in exact:
                self._add(system, variable.name, names)
        system.relations.append(Relation(Number(0), "<=", count, "a count"))
        return count

    def _loop(self, loop: LoopNode, known: Known, system: System, names: _Names) -> Iterator[System]:
        """The systems with all passes of a loop."""
        count = self._count(loop, known, system, names)
        if isinstance(count, Number) and count.value < 0:
            return
        if not self._tracked(loop.scope) and self.plain(loop.body, loop.next):
            yield system
            return
        if not isinstance(count, Number) or count.value == 0:
            empty = system.copy()
            empty.relations.append(Relation(count, "==", Number(0), "a count"))
            for name in self.relations.summed.get(loop.scope, ()):
                empty.ranges[self._total(name, names)] = (0, 0)
            yield empty
        if not isinstance(count, Number) or count.value > 0:
            system.relations.append(Relation(Number(1), "<=", count, "a count"))
            zero: dict[str, Expression] = dict.fromkeys(self.relations.summed.get(loop.scope, ()), Number(0))
            yield from self._passes_of(loop, count, zero, known, system, names)

    def _total(self, name: str, names: _Names) -> str:
        return names.get(f"sum({name})", f"sum({name})")

    def _passes_of(
        self,
        loop: LoopNode,
        count: Expression,
        so_far: Mapping[str, Expression],
        known: Known,
        system: System,
        names: _Names,
        begun: bool = False,
    ) -> Iterator[System]:
        """The systems with `count` more passes, one at least, of which the sums are `so_far`."""
        for least_names, one in self._pass(loop, known, system, names):
            if not self._tracked(loop.scope):
                yield one
                continue
            for greatest_names, both in self._pass(loop, known, one, names):
                for name, total in so_far.items():
                    key = self._total(name, names)
                    both.ranges.setdefault(key, (-WIDEST, WIDEST))
                    low, high = (
                        Operation("+", total, Operation("*", count, Variable(some[name])))
                        for some in (least_names, greatest_names)
                    )
                    both.relations.append(Relation(low, "<=", Variable(key), f"sum({name})"))
                    both.relations.append(Relation(Variable(key), "<=", high, f"sum({name})"))
                for kind, name in self.relations.properties.get(loop.scope, ()):
                    if kind != "nondecreasing" and not begun:
                        room = Operation("-", Variable(greatest_names[name]), Variable(least_names[name]))
                        both.relations.append(
                            Relation(count, "<=", Operation("+", room, Number(1)), f"{kind}({name})")
                        )
                    elif kind == "increasing":
                        current = Operation("+", Variable(names.get(name, name)), count)
                        both.relations.append(
                            Relation(current, "<=", Variable(greatest_names[name]), f"{kind}({name})")
                        )
                yield both

    def _pass(self, loop: LoopNode, known: Known, system: System, names: _Names) -> Iterator[tuple[_Names, System]]:
        """One more pass, with variables of its own."""
        self._passes += 1
        inner = set(self.program.within(loop.scope))
        own = {
            key: f"{key}@{self._passes}"
            for name, scope in self.program.scopes.items()
            if loop.scope in self.program.within(scope)
            for key in (name, *([f"sum({name})"] if scope not in inner else []))
        }
        for after in self._walk(loop.body, known, system.copy(), {**names, **own}, loop):
            self._relate(after, loop.scope, {**names, **own}, known)
            yield own, after

    def _rest(
        self, loop: LoopNode, known: Known, system: System, names: _Names, stop: LoopNode | None
    ) -> Iterator[System]:
        """The systems with the passes after the current one, and what comes behind the loop."""
        if known.parent is None or not (self._tracked(loop.scope) or loop.free):
            yield system
            return
        more: Expression = Number(known.left)
        if loop.free:
            for variable in variables(loop.count):
                self._add(system, variable.name, names)
            more = Operation("-", loop.count, Number(known.done + 1))
            system.relations.append(Relation(Number(0), "<=", more, "a count"))
        so_far: dict[str, Expression] = {}
        for name in self.relations.summed.get(loop.scope, ()):
            so_far[name] = Operation("+", Number(known.totals.get(name, 0)), Variable(name))
            if known.get(name) is None:
                self._add(system, name, names)
            system.ranges.setdefault(f"sum({name})", (-WIDEST, WIDEST))
        around = known.parent
        if not isinstance(more, Number) or more.value == 0:
            last = system.copy()
            last.relations.append(Relation(more, "==", Number(0), "a count"))
            for name, total in so_far.items():
                last.relations.append(Relation(Variable(f"sum({name})"), "==", total, f"sum({name})"))
            last.scopes.append(around.scope)
            yield from self._walk(loop.next, around, last, names, stop)
        if not isinstance(more, Number) or more.value > 0:
            system.relations.append(Relation(Number(1), "<=", more, "a count"))
            for after in self._passes_of(loop, more, so_far, known, system, names, begun=True):
                after.scopes.append(around.scope)
                yield from self._walk(loop.next, around, after, names, stop)
