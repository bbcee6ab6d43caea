"""A specification in llguidance's parametric rules, where it fits: counters are fields of a rule's 64-bit parameter.

Every node of the graph becomes a rule that ends in a call of the next one. So a rule is waited for with one parameter
only, which the engine relies on. A number that is counted by is read by an alternative for each of its values, which
sets the fields of the repetitions it counts; each pass takes one off. The rule of
nothing stands in front of a call that changes the parameter by itself: llguidance 1.7.6 fails on some of those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmguide.constraints.ccfg.expressions import Number, Variable, terms, variables
from lmguide.constraints.ccfg.numerals import numerals
from lmguide.constraints.ccfg.program import (
    Back,
    CallNode,
    ChoiceNode,
    End,
    LoopNode,
    Node,
    ReadNode,
    Return,
    RunNode,
    TextNode,
)
from lmguide.constraints.regex import Chars, Rep, literal, merged, render

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmguide.constraints.ccfg.bounds import Bounds
    from lmguide.constraints.ccfg.expressions import Expression
    from lmguide.constraints.ccfg.program import Program

_MOST_VALUES = 2000
"""Alternatives for the values of a counter; a grammar of some thousand rules still compiles in a tenth of a second."""

_MOST_PASSES = 1000
"""Passes of repetitions altogether: the engine's work grows with their square."""

_BITS = 64
_NOTHING = "nothing"
_GOES_ON = "a repetition is followed by what it may go on with"
_DIGITS = frozenset(b"0123456789")

Counted = LoopNode | RunNode


class UnfitError(Exception):
    """A specification that parametric rules cannot say; the message is the reason, as a part of a sentence."""


def parametric(program: Program, bounds: Mapping[str, Bounds]) -> str:
    """The specification in llguidance's dialect of Lark.

    Raises:
        UnfitError: It does not fit.
    """
    return _Writer(program, bounds).text()


class _Writer:
    def __init__(self, program: Program, bounds: Mapping[str, Bounds]) -> None:
        if program.subroutines:
            raise UnfitError("a rule calls itself")
        self.ranges = {name: _constant(name, each) for name, each in bounds.items()}
        self.start = program.start
        self.names: dict[Node, str] = {}
        self.loops: dict[Node, tuple[LoopNode, ...]] = {}
        self.fields: dict[Counted, tuple[int, int]] = {}
        self.counters: dict[str, list[tuple[Counted, int]]] = {}
        self.read_in: dict[str, tuple[LoopNode, ...]] = {}
        self.number(program.start, ())
        self.lay_fields()

    def number(self, node: Node, around: tuple[LoopNode, ...]) -> None:
        """Name the nodes from one on, and note which loops stand around each."""
        waiting = [(node, around)]
        while waiting:
            node, around = waiting.pop()
            if node in self.names:
                continue
            self.names[node] = f"n{len(self.names)}"
            self.loops[node] = around
            if isinstance(node, ReadNode):
                self.read_in[node.name] = around
            if isinstance(node, LoopNode):
                waiting += [(node.body, (*around, node)), (node.between, (*around, node)), (node.next, around)]
            elif not isinstance(node, Back):
                waiting += [(following, around) for following in _following(node)]

    def lay_fields(self) -> None:
        """Give each repetition its field, and each counter those it sets."""
        used, passes = 0, 0
        most: dict[Node, int] = {}
        for node in sorted(
            (n for n in self.names if isinstance(n, LoopNode | RunNode)), key=lambda n: len(self.loops[n])
        ):
            names = variables(node.most) | variables(node.least)
            largest = self.count(node, names)
            inner = [most[loop] for loop in self.loops[node][-1:]]
            most[node] = largest * (inner[0] if inner else 1)
            if isinstance(node, LoopNode) or names:
                passes += most[node]
                width = max(1, largest.bit_length())
                self.fields[node] = (used, used + width)
                used += width
        if used > _BITS:
            raise UnfitError(f"its counters need {used} bits, more than {_BITS}")
        if passes > _MOST_PASSES:
            raise UnfitError(f"its repetitions have up to {passes} passes, more than {_MOST_PASSES}")

    def count(self, node: Counted, names: frozenset[str]) -> int:
        """How often a repetition comes at most; its counter is noted."""
        if not names:
            return _value(node.most)
        whole = terms(node.most)
        if node.least != node.most and node.least not in (Number(0), Number(1)):
            raise UnfitError("a count's lower end is a number that is read")
        (name, *others), factors = sorted(names), list(whole.factors.items())
        if others or factors != [(Variable(name), 1)]:
            raise UnfitError("a count is more than a number that is read, and a constant")
        if self.read_in[name] != self.loops[node]:
            raise UnfitError(f"{name!r} counts in every pass of a repetition that it is read before")
        low, high = self.ranges[name]
        if high - low >= _MOST_VALUES:
            raise UnfitError(f"{name!r}, which counts, has more than {_MOST_VALUES} values")
        self.counters.setdefault(name, []).append((node, whole.constant))
        return high + whole.constant

    def text(self) -> str:
        """The grammar."""
        self.note_parametric()
        lines = [f"start: {self.call(self.start, '0')}"]
        for node, name in self.names.items():
            lines.append(f"{self.call(node)}: " + "\n  | ".join(self.alternatives(node, name)))
            if isinstance(node, ReadNode) and node.name in self.counters:
                lines.append(f"{name}_value::_: " + "\n  | ".join(self.values(node)))
            if isinstance(node, RunNode) and node in self.fields and node.least == Number(1):
                lines.append(f"{name}_more::_: " + "\n  | ".join(self.letters(node, name, is_first=False)))
        if self.parametric:
            lines.append(f'{_NOTHING}::_: "" %if ge([0:1], 0)')
        return "\n".join(lines) + "\n"

    def note_parametric(self) -> None:
        """Note which rules have the parameter: those that read or change it, and whoever calls them."""
        callers: dict[Node, list[Node]] = {}
        for node in self.names:
            for following in _following(node):
                callers.setdefault(following, []).append(node)
        waiting: list[Node] = [
            node
            for node in self.names
            if node in self.fields
            or (isinstance(node, Back) and node.loop in self.fields)
            or (isinstance(node, ReadNode) and node.name in self.counters)
        ]
        self.parametric = set(waiting)
        while waiting:
            more = [caller for caller in callers.get(waiting.pop(), []) if caller not in self.parametric]
            self.parametric.update(more)
            waiting += more

    def call(self, node: Node, change: str = "_") -> str:
        """The name of a node's rule, with its parameter if it has one."""
        return f"{self.names[node]}::{change}" if node in self.parametric else self.names[node]

    def step(self, node: Node, change: str) -> str:
        """A call that changes the parameter, where nothing is read."""
        return f"{_NOTHING}::_ {self.call(node, change)}" if node in self.parametric else self.call(node)

    def alternatives(self, node: Node, name: str) -> Iterator[str]:
        if isinstance(node, End):
            yield '""'
        elif isinstance(node, TextNode):
            yield f"/{render(literal(node.text.decode()))}/ {self.call(node.next)}"
        elif isinstance(node, ReadNode):
            self.check_apart(_DIGITS, self.starts(node.next), "a number is followed by what may be a digit")
            if node.name in self.counters:
                kept = ~sum(_bits(self.fields[loop]) for loop, _ in self.counters[node.name]) & (1 << _BITS) - 1
                yield f"{_NOTHING}::_ {name}_value::bit_and({kept:#x})"
            else:
                yield f"/{numerals(*self.ranges[node.name])}/ {self.call(node.next)}"
        elif isinstance(node, ChoiceNode):
            seen: frozenset[int] = frozenset()
            for branch in node.branches:
                self.check_apart(seen, self.starts(branch), "two alternatives begin alike")
                seen |= self.starts(branch)
                yield self.call(branch)
        elif isinstance(node, RunNode) and node not in self.fields:
            least, most = _value(node.least), _value(node.most)
            if least < most:
                self.check_apart(node.letters, self.starts(node.next), "characters are followed by one of them")
            pattern = render(Rep(Chars(merged((byte, byte) for byte in node.letters)), least, most))
            yield f"/{pattern}/ {self.call(node.next)}" if most else self.call(node.next)
        elif isinstance(node, RunNode):
            yield from self.letters(node, name)
        elif isinstance(node, LoopNode):
            yield from self.passes(node)
        elif isinstance(node, Back):
            yield from self.further(node.loop)

    def values(self, node: ReadNode) -> Iterator[str]:
        """An alternative for each value of a counter."""
        low, high = self.ranges[node.name]
        for value in range(low, high + 1):
            fields = [(self.fields[loop], value + more) for loop, more in self.counters[node.name]]
            yield f'"{value}" {self.call(node.next, f"bit_or({sum(count << field[0] for field, count in fields):#x})")}'

    def letters(self, node: RunNode, name: str, is_first: bool = True) -> Iterator[str]:
        """One more character of a run that is counted, and what is behind it; the field has how many may come."""
        field = self.field(node)
        following = f"{name}_more::decr({field})" if node.least == Number(1) else self.call(node, f"decr({field})")
        letter = render(Chars(merged((byte, byte) for byte in node.letters)))
        yield f"/{letter}/ {following} %if gt({field}, 0)"
        if node.least == node.most:
            yield f"{self.call(node.next)} %if eq({field}, 0)"
            return
        self.check_apart(node.letters, self.starts(node.next), "characters are followed by one of them")
        if node.least == Number(0) or not is_first:
            yield self.step(node.next, self.cleared(node))

    def passes(self, loop: LoopNode) -> Iterator[str]:
        """The first pass, and what comes without any; the field has how many there may be, if a number says so."""
        field, body = self.field(loop), self.call(loop.body)
        if loop.least != loop.most:
            self.check_apart(self.starts(loop.body), self.starts(loop.next), _GOES_ON)
        if variables(loop.most):
            yield f"{body} %if gt({field}, 0)"
        elif _value(loop.most):
            yield body
        if loop.least == loop.most and variables(loop.most):
            yield f"{self.call(loop.next)} %if eq({field}, 0)"
        elif loop.least == Number(0):
            yield self.step(loop.next, self.cleared(loop))

    def further(self, loop: LoopNode) -> Iterator[str]:
        """What comes behind a pass: the next one, and what is behind the loop, with the field cleared."""
        field = self.field(loop)
        if loop.least != loop.most:
            self.check_apart(self.starts(loop.between), self.starts(loop.next), _GOES_ON)
        behind = self.step(loop.next, self.cleared(loop))
        if not variables(loop.most):
            if _value(loop.most) > 1:
                yield f"{self.step(loop.between, f'incr({field})')} %if lt({field}, {_value(loop.most) - 1})"
            yield f"{behind} %if ge({field}, {max(0, _value(loop.least) - 1)})"
            return
        yield f"{self.step(loop.between, f'decr({field})')} %if gt({field}, 1)"
        yield f"{behind} %if eq({field}, 1)" if loop.least == loop.most else behind

    def field(self, node: Counted) -> str:
        """The bits of a repetition's field."""
        return "[{}:{}]".format(*self.fields[node])

    def cleared(self, node: Counted) -> str:
        return f"bit_and({~_bits(self.fields[node]) & (1 << _BITS) - 1:#x})"

    def check_apart(self, one: frozenset[int], other: frozenset[int], problem: str) -> None:
        """The engine reads the longest text it can; so what may follow has to tell."""
        if one & other:
            raise UnfitError(problem)

    def starts(self, node: Node) -> frozenset[int]:
        """The bytes that may come next at a node."""
        found: set[int] = set()
        seen, waiting = {node}, [node]
        while waiting:
            here = waiting.pop()
            following: tuple[Node, ...] = ()
            if isinstance(here, TextNode):
                found.add(here.text[0])
            elif isinstance(here, ReadNode):
                found |= _DIGITS | set(b"-")
            elif isinstance(here, RunNode):
                found |= here.letters
                following = _following(here) if here.least != Number(1) else ()
            else:
                following = _following(here)
            waiting += [each for each in following if each not in seen]
            seen |= set(following)
        return frozenset(found)


def _following(node: Node) -> tuple[Node, ...]:
    """The nodes that a node's rule calls."""
    if isinstance(node, ChoiceNode):
        return node.branches
    if isinstance(node, LoopNode):
        return (node.body, node.next)
    if isinstance(node, Back):
        return (node.loop.between, node.loop.next)
    return () if isinstance(node, End | Return | CallNode) else (node.next,)


def _constant(name: str, bounds: Bounds) -> tuple[int, int]:
    """The bounds of a number that depends on no other."""
    ends = (*bounds.lows, *bounds.highs)
    if bounds.kind or bounds.sums or bounds.others or not all(isinstance(end, Number) for end in ends):
        raise UnfitError(f"{name!r} has a relation to other numbers")
    return _value(bounds.lows[0]), _value(bounds.highs[0])


def _value(expression: Expression) -> int:
    return expression.value if isinstance(expression, Number) else 0


def _bits(field: tuple[int, int]) -> int:
    return (1 << field[1]) - (1 << field[0])
