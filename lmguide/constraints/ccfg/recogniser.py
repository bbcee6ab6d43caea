"""Reads a text byte by byte and knows after each one what may follow.

A state is a set of places in the graph, each with the numbers that were read on the way to it. Every place can be
finished, whatever was read: `bounds` sees to it. So a text is dead as soon as no place is left, and not before.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lmguide.constraints.base import ConstraintError
from lmguide.constraints.ccfg.expressions import Range, value_of
from lmguide.constraints.ccfg.program import (
    Back,
    CallNode,
    ChoiceNode,
    End,
    LoopNode,
    Node,
    Program,
    ReadNode,
    RunNode,
    TextNode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmguide.constraints.ccfg.bounds import Bounds

_MOST_PLACES = 10_000
_SIGNS = (b"-", *(b"%d" % digit for digit in range(10)))


class Used:
    """The values of a number in a repetition, in order; texts that begin alike share what they have in common."""

    def __init__(self, order: list[int] | None = None) -> None:
        self.order = order or []
        self.at = {value: at for at, value in enumerate(self.order)}

    def holds(self, value: int, count: int) -> bool:
        """Whether a value is one of the first `count`."""
        return self.at.get(value, count) < count

    def with_value(self, value: int, count: int) -> Used:
        """The first `count` values and one more."""
        used = self if len(self.order) == count else Used(self.order[:count])
        used.at[value] = count
        used.order.append(value)
        return used


@dataclass(frozen=True, eq=False)
class Frame:
    """One pass of a repetition, or the whole text.

    Args:
        values: The numbers that are known, those of the passes around this one too.
        parent: The pass that the repetition stands in.
        done: How many passes came before.
        least: How many there are at least.
        most: How many there are at most.
        last: For numbers in order, the value before.
        used: For distinct numbers, the values before.
        totals: For numbers whose sum is bounded, the sum so far.
    """

    values: Mapping[str, int] = field(default_factory=dict)
    parent: Frame | None = None
    done: int = 0
    least: int = 1
    most: int = 1
    last: Mapping[str, int] = field(default_factory=dict)
    used: Mapping[str, Used] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)


class Reading(NamedTuple):
    """A number of which some digits were read: its text, and where its value lies."""

    text: bytes
    low: int
    high: int
    others: frozenset[int]


Calls: TypeAlias = "tuple[Node, Calls] | None"
"""Where to go on after rules that call themselves, the innermost first."""


class Place(NamedTuple):
    """A place in the graph.

    Args:
        node: What is being read.
        at: How far: bytes of a text; characters of a run, with how many there are; digits of a number.
        frame: What was read before.
        calls: Where to go on after rules that call themselves.
    """

    node: Node
    at: int | Range | Reading
    frame: Frame
    calls: Calls


Step: TypeAlias = "tuple[frozenset[int] | bytes, tuple[Place, ...]]"
"""Bytes that may follow at a place, and the places after them."""


class State:
    """What may follow a text.

    Args:
        recogniser: Of which specification.
        places: Where the text may be; none if it is no beginning of a valid one.
    """

    def __init__(self, recogniser: Recogniser, places: tuple[Place, ...]) -> None:
        self.recogniser = recogniser
        self.places = places

    @cached_property
    def moves(self) -> dict[int, State]:
        """The state after each byte that may follow; bytes that lead to the same places share one."""
        found: dict[int, list[tuple[Place, ...]]] = {}
        for place in self.places:
            for byte_set, after in self.recogniser.steps(place):
                for byte in byte_set:
                    found.setdefault(byte, []).append(after)
        states: dict[tuple[int, ...], State] = {}
        moves = {}
        for byte, ways in found.items():
            key = tuple(map(id, ways))
            if key not in states:
                states[key] = self.recogniser.state(place for way in ways for place in way)
            moves[byte] = states[key]
        return moves

    @cached_property
    def accepting(self) -> bool:
        """Whether the text may end here."""
        return any(isinstance(end.node, End) for place in self.places for end in (place, *self.recogniser.ended(place)))

    def read(self, text: bytes) -> tuple[State, int]:
        """The last state along a text that is one, and how many bytes were read up to it."""
        state = self
        for count, byte in enumerate(text):
            after = state.after(byte)
            if after is None:
                return state, count
            state = after
        return state, len(text)

    def after(self, byte: int) -> State | None:
        """The state after one more byte, if it may follow."""
        if "moves" in self.__dict__:
            return self.moves.get(byte)
        ways = [after for place in self.places for _, after in self.recogniser.steps(place, byte)]
        return self.recogniser.state(place for way in ways for place in way) if ways else None


class Recogniser:
    """Reads texts of a specification.

    Args:
        program: Its graph.
        bounds: The bounds of its numbers.
    """

    def __init__(self, program: Program, bounds: Mapping[str, Bounds]) -> None:
        self.program = program
        self.bounds = bounds

    def start(self) -> State:
        """The state before the first byte."""
        return self.state(self.entered(self.program.start, Frame(), None))

    def state(self, places: Iterator[Place]) -> State:
        """The state at some places.

        Raises:
            ConstraintError: There are too many of them.
        """
        found: dict[Place, None] = {}
        for place in places:
            found[place] = None
            if len(found) > _MOST_PLACES:
                raise ConstraintError(
                    f"the specification reads this text in more than {_MOST_PLACES} ways. Make it less ambiguous."
                )
        return State(self, tuple(found))

    def entered(self, node: Node, frame: Frame, calls: Calls) -> Iterator[Place]:
        """The places at which a byte is read, or the text ends, from a node on."""
        if isinstance(node, TextNode | End):
            yield Place(node, 0, frame, calls)
        elif isinstance(node, ReadNode):
            yield Place(node, self.reading(node.name, frame), frame, calls)
        elif isinstance(node, RunNode):
            least, most = value_of(node.least, frame.values), value_of(node.most, frame.values)
            yield from self.run(node, (least, most), frame, calls)
        elif isinstance(node, ChoiceNode):
            for branch in node.branches:
                yield from self.entered(branch, frame, calls)
        elif isinstance(node, LoopNode):
            least, most = value_of(node.least, frame.values), value_of(node.most, frame.values)
            if least <= 0:
                yield from self.entered(node.next, frame, calls)
            if most > 0:
                yield from self.entered(node.body, Frame(frame.values, frame, 0, least, most), calls)
        elif isinstance(node, Back):
            yield from self.again(node.loop, frame, calls)
        elif isinstance(node, CallNode):
            yield from self.entered(self.program.subroutines[node.rule], frame, (node.next, calls))
        elif calls is not None:
            yield from self.entered(calls[0], frame, calls[1])

    def again(self, loop: LoopNode, frame: Frame, calls: Calls) -> Iterator[Place]:
        """The next pass of a loop, and what is behind it."""
        done = frame.done + 1
        around = frame.parent or frame
        if done >= frame.least:
            yield from self.entered(loop.next, around, calls)
        if done < frame.most:
            yield from self.entered(loop.between, replace(frame, values=around.values, done=done), calls)

    def run(self, node: RunNode, left: Range, frame: Frame, calls: Calls) -> Iterator[Place]:
        """A run of which so many characters, at least and at most, are still to come."""
        if left[0] <= 0:
            yield from self.entered(node.next, frame, calls)
        if left[1] > 0:
            yield Place(node, left, frame, calls)

    def reading(self, name: str, frame: Frame) -> Reading:
        """A number before its first digit."""
        bounds, values = self.bounds[name], frame.values
        low = max(value_of(bound, values) for bound in bounds.lows)
        high = min(value_of(bound, values) for bound in bounds.highs)
        left = frame.most - frame.done - 1
        if name in frame.last:
            low = max(low, frame.last[name] + (bounds.kind == "increasing"))
        if bounds.kind == "increasing":
            high -= left
        if bounds.sums is not None:
            total = frame.totals.get(name, 0)
            least = [value_of(bound, values) - total - left * high for bound in bounds.sums[0]]
            most = [value_of(bound, values) - total - left * low for bound in bounds.sums[1]]
            low, high = max([low, *least]), min([high, *most])
        return Reading(b"", low, high, frozenset(value_of(bound, values) for bound in bounds.others))

    def taken(self, name: str, value: int, frame: Frame) -> Frame:
        """What is known once a number was read."""
        bounds = self.bounds[name]
        frame = replace(frame, values={**frame.values, name: value})
        if bounds.kind == "distinct":
            used = frame.used.get(name, Used()).with_value(value, frame.done)
            return replace(frame, used={**frame.used, name: used})
        if bounds.kind:
            return replace(frame, last={**frame.last, name: value})
        if bounds.sums is not None:
            return replace(frame, totals={**frame.totals, name: frame.totals.get(name, 0) + value})
        return frame

    def steps(self, place: Place, only: int | None = None) -> Iterator[Step]:
        """Bytes that may follow at a place, each set with the places after it; of one byte alone, if it is given."""
        node, at, frame, calls = place
        if isinstance(node, TextNode) and isinstance(at, int):
            if only is None or node.text[at] == only:
                last = at + 1 == len(node.text)
                after = self.entered(node.next, frame, calls) if last else [Place(node, at + 1, frame, calls)]
                yield node.text[at : at + 1], tuple(after)
        elif isinstance(node, RunNode) and not isinstance(at, int | Reading):
            if only is None or only in node.letters:
                yield node.letters, tuple(self.run(node, (at[0] - 1, at[1] - 1), frame, calls))
        elif isinstance(at, Reading):
            for sign in _SIGNS:
                if (only is None or sign[0] == only) and (grown := self.grown(place, sign)) is not None:
                    yield sign, (grown,)
        for ended in self.ended(place):
            yield from self.steps(ended, only)

    def grown(self, place: Place, sign: bytes) -> Place | None:
        """The place after one more digit of a number, if it may follow."""
        node, at, frame, calls = place
        if not (isinstance(node, ReadNode) and isinstance(at, Reading)):
            return None
        more = at._replace(text=at.text + sign)
        return Place(node, more, frame, calls) if self.can_become(node.name, more, frame) else None

    def pending(self, state: State) -> Iterator[Place]:
        """The places of a state from which a byte may follow, those behind a number that ends among them."""
        for place in state.places:
            if not isinstance(place.at, Reading) or any(self.grown(place, sign) for sign in _SIGNS):
                yield place
            yield from self.ended(place)

    def ended(self, place: Place) -> tuple[Place, ...]:
        """Where to go on if a number ends here."""
        node, at, frame, calls = place
        if not (isinstance(node, ReadNode) and isinstance(at, Reading)) or at.text in (b"", b"-"):
            return ()
        value = int(at.text)
        if not at.low <= value <= at.high or self.is_taken(node.name, value, at, frame):
            return ()
        return tuple(self.entered(node.next, self.taken(node.name, value, frame), calls))

    def is_taken(self, name: str, value: int, reading: Reading, frame: Frame) -> bool:
        """Whether a number may not have a value within its bounds."""
        used = frame.used.get(name)
        return value in reading.others or (used is not None and used.holds(value, frame.done))

    def can_become(self, name: str, reading: Reading, frame: Frame) -> bool:
        """Whether the digits so far begin a number that may be read."""
        barred = len(reading.others) + (frame.done if name in frame.used else 0)
        for first, last in completions(reading.text, max(len(str(abs(reading.low))), len(str(abs(reading.high))))):
            low, high = max(first, reading.low), min(last, reading.high)
            if high - low >= barred:
                return True
            if any(not self.is_taken(name, value, reading, frame) for value in range(low, high + 1)):
                return True
        return False


def completions(text: bytes, longest: int) -> Iterator[Range]:
    """The ranges of numbers whose numerals begin with `text`, not empty, and have up to `longest` digits.

    A numeral is `0`, or a digit from 1 to 9 and any digits, with `-` in front of a negative one.

    Example:
        >>> list(completions(b"-7", 2))
        [(-7, -7), (-79, -70)]
    """
    sign, digits = (-1, text[1:]) if text[:1] == b"-" else (1, text)
    if not digits:
        yield -(10**longest) + 1, -1
    elif not digits.isdigit():
        return
    elif digits[:1] == b"0":
        if digits == b"0" and sign > 0:
            yield 0, 0
    else:
        low = high = int(digits)
        for _ in range(longest - len(digits) + 1):
            yield (low, high) if sign > 0 else (-high, -low)
            low, high = low * 10, high * 10 + 9
