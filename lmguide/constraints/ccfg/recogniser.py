"""Reads a text byte by byte and says after each one whether it can still become valid.

A state is a set of places in the graph, each with what has been read on the way to it. It holds no place from which
the text could not be finished, so a text is dead as soon as it is, and every other one can be finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from lmguide.constraints.ccfg.expressions import Range, value_of, variables
from lmguide.constraints.ccfg.numerals import completions, digits_of, overlap
from lmguide.constraints.ccfg.pending import Pending
from lmguide.constraints.ccfg.program import (
    ROOT,
    Back,
    CallNode,
    ChoiceNode,
    End,
    LettersNode,
    LoopNode,
    Node,
    Program,
    ReadNode,
    Return,
    RunNode,
    Skip,
    TextNode,
)
from lmguide.constraints.ccfg.relations import Relations, is_one_sided
from lmguide.constraints.ccfg.solver import propagated, solvable

_MOST_PLACES = 10_000


class Used:
    """The values of a variable in a repetition, in order; passes that part share what they have in common."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.at: dict[int, int] = {}

    def holds(self, value: int, count: int) -> bool:
        """Whether a value is one of the first `count`."""
        return self.at.get(value, count) < count

    def with_value(self, value: int, count: int) -> Used:
        """The first `count` values and one more."""
        used = self
        if len(self.order) != count:
            used = Used()
            used.order = self.order[:count]
            used.at = {old: at for at, old in enumerate(used.order)}
        used.at[value] = count
        used.order.append(value)
        return used


@dataclass(frozen=True)
class Pass:
    """One pass of a repetition, or the whole text: what has been read in it.

    Args:
        scope: The repetition's scope.
        parent: The pass that the repetition stands in.
        left: How many passes come after this one; -1 if that is open.
        done: How many came before.
        values: Variables read in this pass, and sums over repetitions in it that have ended.
        totals: Sums over the passes before.
        last: Values of ordered variables in the pass before.
        used: Values of distinct variables in the passes before.
    """

    scope: int = ROOT
    parent: Pass | None = None
    left: int = 0
    done: int = 0
    values: Mapping[str, int] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)
    last: Mapping[str, int] = field(default_factory=dict)
    used: Mapping[str, Used] = field(default_factory=dict)

    def get(self, key: str) -> int | None:
        """The value of a variable, here or further out."""
        here: Pass | None = self
        while here is not None:
            if key in here.values:
                return here.values[key]
            here = here.parent
        return None

    def with_value(self, key: str, value: int) -> Pass:
        """The pass with one more variable read."""
        return Pass(
            self.scope, self.parent, self.left, self.done, {**self.values, key: value}, self.totals, self.last, self.used
        )


class Reading(NamedTuple):
    """A number of which some digits have been read.

    Args:
        spans: The numbers that it can be.
        exact: Whether it can be each of them; else one has to be tried.
        text: What has been read.
    """

    spans: tuple[Range, ...]
    exact: bool
    text: bytes = b""


Calls: TypeAlias = "tuple[Node, Calls] | None"
"""Where to go on after rules that call themselves, the innermost first."""


class Place(NamedTuple):
    """A place in the graph.

    Args:
        node: What is being read.
        at: How far: bytes of a text, characters of a run, or a `Reading`.
        here: What has been read before.
        calls: Where to go on after rules that call themselves.
    """

    node: Node
    at: int | Reading
    here: Pass
    calls: Calls


State = tuple[Place, ...]


class Recogniser:
    """Reads texts of a specification.

    Args:
        program: Its graph.
        relations: Its relations.
    """

    def __init__(self, program: Program, relations: Relations) -> None:
        self.program = program
        self.relations = relations
        self.pending = Pending(program, relations)
        self._spans: dict[tuple[str, tuple[int | None, ...]], tuple[Range, ...]] = {}

    def start(self) -> State:
        """The state before the first byte; empty if no text is valid."""
        here = Pass()
        if not self.pending.possible(self.program.start, here):
            return ()
        return self._limited(self._settled(self.program.start, here, None))

    def advance(self, state: State, byte: int) -> State:
        """The state after one more byte; empty if the text can no longer be finished."""
        return self._limited(place for old in state for place in self._stepped(old, byte))

    def read(self, text: bytes) -> tuple[State, int]:
        """The state after a text, or the last one that is not empty, and how many bytes were read up to it."""
        state = self.start()
        for count, byte in enumerate(text):
            after = self.advance(state, byte)
            if not after:
                return state, count
            state = after
        return state, len(text)

    def accepts(self, state: State) -> bool:
        """Whether the text may end here."""
        return any(isinstance(end.node, End) for place in state for end in (place, *self._ended(place)))

    def _limited(self, places: Iterator[Place]) -> State:
        found: dict[tuple[object, ...], Place] = {}
        for place in places:
            found.setdefault((id(place.node), place.at, id(place.here), id(place.calls)), place)
            if len(found) > _MOST_PLACES:
                raise RecursionError(f"more than {_MOST_PLACES} ways to read the text")
        return tuple(found.values())

    def _stepped(self, place: Place, byte: int) -> Iterator[Place]:
        """The places after one more byte."""
        node, at, here, calls = place
        if isinstance(node, TextNode) and isinstance(at, int):
            if node.text[at] == byte:
                if at + 1 < len(node.text):
                    yield Place(node, at + 1, here, calls)
                else:
                    yield from self._settled(node.next, here, calls)
        elif isinstance(node, LettersNode):
            if byte in node.letters:
                yield from self._settled(node.next, here, calls)
        elif isinstance(node, RunNode) and isinstance(at, int):
            if byte in node.letters:
                yield from self._run(node, at + 1, here, calls)
        elif isinstance(node, ReadNode) and isinstance(at, Reading):
            text = at.text + bytes((byte,))
            if (48 <= byte <= 57 or text == b"-") and self._can_become(node, at._replace(text=text), here):
                yield Place(node, at._replace(text=text), here, calls)
        for ended in self._ended(place):
            yield from self._stepped(ended, byte)

    def _ended(self, place: Place) -> Iterator[Place]:
        """Where to go on if a number, or a run of open length, ends here."""
        node, at, here, calls = place
        if isinstance(node, ReadNode) and isinstance(at, Reading) and at.text not in (b"", b"-"):
            value = int(at.text)
            if self._can_be(node, at, value, here):
                yield from self._settled(node.next, here.with_value(node.name, value), calls)
        elif isinstance(node, RunNode) and node.free and isinstance(at, int) and at > 0:
            yield from self._free(node, node.next, at, here, calls)

    def _settled(self, node: Node, here: Pass, calls: Calls) -> Iterator[Place]:
        """The places at which a byte is read, from a node on."""
        while isinstance(node, Skip):
            node = node.next
        if isinstance(node, TextNode | LettersNode | End):
            yield Place(node, 0, here, calls)
        elif isinstance(node, ReadNode):
            reading = self._reading(node, here)
            if reading.spans:
                yield Place(node, reading, here, calls)
        elif isinstance(node, RunNode):
            if node.free:
                yield from self._free(node, node.next, 0, here, calls)
            yield from self._run(node, 0, here, calls)
        elif isinstance(node, ChoiceNode):
            for branch in node.branches:
                if self.pending.plain(branch, node.next) or self.pending.possible(branch, here):
                    yield from self._settled(branch, here, calls)
        elif isinstance(node, LoopNode):
            yield from self._entered(node, here, calls)
        elif isinstance(node, Back):
            yield from self._again(node.loop, here, calls)
        elif isinstance(node, CallNode):
            yield from self._settled(self.program.subroutines[node.rule], here, (node.next, calls))
        elif isinstance(node, Return) and calls is not None:
            yield from self._settled(calls[0], here, calls[1])

    def _run(self, node: RunNode, at: int, here: Pass, calls: Calls) -> Iterator[Place]:
        """A run of which `at` characters have been read."""
        if node.free:
            # One more has to be possible, or the end, which is asked for when the next byte comes.
            name = next(variables(node.count)).name
            if self._possible_from(node, name, max(at, 1), here):
                yield Place(node, at, here, calls)
        else:
            count = self._count(node, here)
            if at == count:
                yield from self._settled(node.next, here, calls)
            elif at < count:
                yield Place(node, at, here, calls)

    def _free(
        self, node: RunNode | LoopNode, following: Node, count: int, here: Pass, calls: Calls
    ) -> Iterator[Place]:
        """The end of a repetition of open length after `count` times."""
        name = next(variables(node.count)).name
        low, high = self.relations.ranges[name]
        if low <= count <= high:
            after = here.with_value(name, count)
            if name not in self.relations.coupled or self.pending.possible(following, after):
                yield from self._settled(following, after, calls)

    def _possible_from(self, node: Node, name: str, least: int, here: Pass) -> bool:
        """Whether a count can be `least` or more."""
        high = self.relations.ranges[name][1]
        if least > high or name not in self.relations.coupled:
            return least <= high
        return self.pending.possible(node, here, {name: (least, high)})

    def _count(self, node: RunNode | LoopNode, here: Pass) -> int:
        return value_of(node.count, {v.key: here.get(v.key) or 0 for v in variables(node.count)})

    def _entered(self, loop: LoopNode, here: Pass, calls: Calls) -> Iterator[Place]:
        """The first pass of a loop, or what is behind it."""
        sums = {f"sum({name})": 0 for name in self.relations.summed.get(loop.scope, ())}
        count = 1 if loop.free else self._count(loop, here)
        if loop.free:
            yield from self._free(loop, loop.next, 0, _with_all(here, sums), calls)
            if not self._possible_from(loop, next(variables(loop.count)).name, 1, here):
                return
        if count > 0:
            first = Pass(loop.scope, here, -1 if loop.free else count - 1)
            yield from self._settled(loop.body, first, calls)
        elif count == 0:
            yield from self._settled(loop.next, _with_all(here, sums), calls)

    def _again(self, loop: LoopNode, here: Pass, calls: Calls) -> Iterator[Place]:
        """The next pass of a loop, or what is behind it."""
        around = here.parent
        assert around is not None  # only loops have a Back
        totals = {
            name: here.totals.get(name, 0) + here.values[name] for name in self.relations.summed.get(loop.scope, ())
        }
        done = here.done + 1
        sums = {f"sum({name})": total for name, total in totals.items()}
        if loop.free:
            yield from self._free(loop, loop.next, done, _with_all(around, sums), calls)
        elif here.left == 0:
            yield from self._settled(loop.next, _with_all(around, sums), calls)
            return
        last, used = dict(here.last), dict(here.used)
        for kind, name in self.relations.properties.get(loop.scope, ()):
            value = here.values[name]
            if kind == "distinct":
                used[name] = here.used.get(name, Used()).with_value(value, here.done)
            else:
                last[name] = value
        if loop.free and not self._can_go_on(loop, here, done + 1):
            return
        left = -1 if loop.free else here.left - 1
        yield from self._settled(loop.between, Pass(loop.scope, around, left, done, {}, totals, last, used), calls)

    def _can_go_on(self, loop: LoopNode, here: Pass, least: int) -> bool:
        """Whether a loop of open length can have `least` passes or more, from the end of a pass."""
        name = next(variables(loop.count)).name
        high = self.relations.ranges[name][1]
        if least > high or name not in self.relations.coupled:
            return least <= high
        return self.pending.possible(Back(loop), here, {name: (least, high)})

    def _reading(self, node: ReadNode, here: Pass) -> Reading:
        """A number before its first digit."""
        if node.name not in self.relations.coupled:
            return Reading((self.relations.ranges[node.name],), True)
        spans, exact = self._light(node, here), True
        if spans is None:
            spans, exact = self._heavy(node, here)
        for kind, name in self.relations.properties.get(here.scope, ()):
            if name == node.name and name in here.last:
                least = here.last[name] + (kind == "increasing")
                spans = tuple((max(low, least), high) for low, high in spans if high >= least)
        return Reading(spans, exact)

    def _light(self, node: ReadNode, here: Pass) -> tuple[Range, ...] | None:
        """The numbers that it can be, if that depends on nothing that is still to come."""
        name = node.name
        if not self._depends_on_known(node, here):
            return None
        relations = [r for r in self.relations.of.get(here.scope, ()) if name in r.keys()]
        keys = sorted({key for relation in relations for key in relation.keys()} - {name})
        values = tuple(here.get(key) for key in keys)
        if (name, values) not in self._spans:
            ranges = {key: (value, value) for key, value in zip(keys, values, strict=True) if value is not None}
            narrow = propagated({**ranges, name: self.relations.ranges[name]}, relations)
            self._spans[name, values] = () if narrow is None else (narrow[name],)
        return self._spans[name, values]

    def _depends_on_known(self, node: ReadNode, here: Pass) -> bool:
        if node.name in self.relations.summed.get(here.scope, ()):
            return False
        if any(kind == "increasing" and name == node.name for kind, name in self.relations.properties.get(here.scope, ())):
            return False
        for scope, relations in self.relations.of.items():
            for relation in relations:
                if node.name in relation.keys() and (
                    scope != here.scope
                    or not relation.keys() <= node.known | {node.name}
                    or not is_one_sided(relation, node.name, self.relations.ranges)
                ):
                    return False
        return node.name not in self.relations.counting

    def _heavy(self, node: ReadNode, here: Pass) -> tuple[tuple[Range, ...], bool]:
        """The numbers that it can be, by what is still to come; and whether it can be each of them."""
        spans: list[Range] = []
        exact = True
        for system in self.pending.systems(node, here):
            low, high = system.ranges[node.name]
            if not solvable(system.ranges, system.relations):
                continue
            least = _first(low, high, lambda end, s=system, b=low: solvable({**s.ranges, node.name: (b, end)}, s.relations))
            most = _first(
                -high, -least, lambda end, s=system, b=high: solvable({**s.ranges, node.name: (-end, b)}, s.relations)
            )
            spans.append((least, -most))
            exact = exact and all(
                is_one_sided(relation, node.name, {**self.relations.ranges, **system.ranges})
                for relation in system.relations
                if node.name in relation.keys()
            )
        return tuple(sorted(set(spans))), exact

    def _can_become(self, node: ReadNode, reading: Reading, here: Pass) -> bool:
        """Whether a number that begins like this can be read."""
        ways = overlap(reading.spans, completions(reading.text, digits_of(reading.spans)))
        if not reading.exact:
            return any(self.pending.possible(node, here, {node.name: way}) for way in ways)
        used = here.used.get(node.name)
        return any(used is None or _has_unused(way, used, here.done) for way in ways)

    def _can_be(self, node: ReadNode, reading: Reading, value: int, here: Pass) -> bool:
        """Whether a number can be this one."""
        used = here.used.get(node.name)
        if used is not None and used.holds(value, here.done):
            return False
        if not any(low <= value <= high for low, high in reading.spans):
            return False
        return reading.exact or self.pending.possible(node, here, {node.name: (value, value)})


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least number from `low` to `high` for which something holds that holds for all above it, and for `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _with_all(here: Pass, values: Mapping[str, int]) -> Pass:
    for key, value in values.items():
        here = here.with_value(key, value)
    return here


def _has_unused(span: Range, used: Used, count: int) -> bool:
    low, high = span
    return high - low >= count or any(not used.holds(value, count) for value in range(low, high + 1))
