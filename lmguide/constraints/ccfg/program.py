"""A specification as a graph: what is read, and what is read next; and which numbers are known where.

Rules are written out where they are used, so that a place in the graph is a place in the text and knows which
repetition it stands in. Only rules that call themselves stay apart, as subroutines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lmguide.constraints.ccfg.expressions import Expression, Number, variables
from lmguide.constraints.ccfg.specification import (
    Choice,
    Item,
    Letters,
    Name,
    Repetition,
    Specification,
    Text,
    wrong,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, eq=False)
class End:
    """The end of the text."""


@dataclass(frozen=True, eq=False)
class Return:
    """The end of a rule that calls itself."""


@dataclass(frozen=True, eq=False)
class TextNode:
    """A fixed text, not empty."""

    text: bytes
    next: Node


@dataclass(frozen=True, eq=False)
class RunNode:
    """Characters out of a set, from `least` to `most` of them."""

    letters: frozenset[int]
    least: Expression
    most: Expression
    next: Node


@dataclass(frozen=True, eq=False)
class ReadNode:
    """A number."""

    name: str
    next: Node


@dataclass(frozen=True, eq=False)
class ChoiceNode:
    """Any one of the branches; `shallow` is the one with the least calls within calls."""

    branches: tuple[Node, ...]
    shallow: int


@dataclass(eq=False)
class LoopNode:
    """A body from `least` to `most` times.

    Args:
        least: How often at least.
        most: How often at most.
        next: What comes after.
        body: What is repeated; it ends in a `Back`.
        between: The same with the separator in front.
    """

    least: Expression
    most: Expression
    next: Node
    body: Node = field(default_factory=End)
    between: Node = field(default_factory=End)


@dataclass(frozen=True, eq=False)
class Back:
    """The end of a loop's body."""

    loop: LoopNode


@dataclass(frozen=True, eq=False)
class CallNode:
    """A rule that calls itself."""

    rule: str
    next: Node


Node: TypeAlias = End | Return | TextNode | RunNode | ReadNode | ChoiceNode | LoopNode | Back | CallNode


class Spot(NamedTuple):
    """Where a number is read, or a repetition counted.

    Args:
        line: The line of the specification.
        known: The numbers that are known there.
        path: The repetitions and branches around it, from the outside in; a repetition as its own name, a branch as a
            number.
    """

    line: int
    known: frozenset[str]
    path: tuple[str | int, ...]


@dataclass(frozen=True)
class Program:
    """The graph, and what is known of its numbers.

    Args:
        start: The first node.
        subroutines: Rules that call themselves.
        spots: By name, in the order of reading: numbers, and repetitions as `#1`, `#2` and so on.
        counts: The counts of each repetition, by its name, `(least, most)`.
    """

    start: Node
    subroutines: dict[str, Node]
    spots: dict[str, Spot]
    counts: dict[str, tuple[Expression, Expression]]


def compile_program(specification: Specification) -> Program:
    """The graph of a specification.

    Raises:
        ValueError: A rule that begins with itself or never ends, a number that is read twice or counts before it is
            known, a repetition of nothing.
    """
    return _Compiler(specification).program()


class _Compiler:
    def __init__(self, specification: Specification) -> None:
        self.rules = specification.rules
        calls = {name: {each.name for each in _names(rule)} & set(self.rules) for name, rule in self.rules.items()}
        self.reached = {name: _closure(calls, calls[name]) for name in self.rules}
        self.recursive = {name for name in self.rules if name in self.reached[name]}
        self.depths = self._depths()
        self.empty: set[str] = set()
        self._note_empty()
        self.spots: dict[str, Spot] = {}
        self.counts: dict[str, tuple[Expression, Expression]] = {}
        self.branches = 0

    def program(self) -> Program:
        first = next(iter(self.rules))
        for name in self.rules:
            if name != first and name not in self.reached[first]:
                raise wrong(f"expected a use of the rule {name!r}, got none", "Take it out.")
        self.check_recursion()
        whole = Name(first, 1)
        self.read(whole, frozenset(), ())
        subroutines = {name: self.node(self.rules[name], Return()) for name in sorted(self.recursive)}
        return Program(self.node(whole, End()), subroutines, self.spots, self.counts)

    def _depths(self) -> dict[str, int]:
        """How deep the calls within calls of each rule are at least; rules that never end have none."""
        found: dict[str, int] = {}
        while True:
            more = {}
            for name, rule in self.rules.items():
                depths = [depth for sequence in rule.sequences if (depth := self.depth(sequence, found)) is not None]
                if name not in found and depths:
                    more[name] = min(depths) + 1
            if not more:
                return found
            found |= more

    def depth(self, items: tuple[Item, ...], depths: dict[str, int]) -> int | None:
        """How deep the calls within calls of items in a row are at least."""
        deepest = 0
        for item in items:
            found: int | None = 0
            if isinstance(item, Name) and item.name in self.rules:
                found = depths.get(item.name)
            elif isinstance(item, Choice):
                ways = [depth for sequence in item.sequences if (depth := self.depth(sequence, depths)) is not None]
                found = min(ways, default=None)
            elif isinstance(item, Repetition) and item.least != Number(0):
                found = self.depth((item.item,), depths)
            if found is None:
                return None
            deepest = max(deepest, found)
        return deepest

    def _note_empty(self) -> None:
        """Note which rules have the empty text."""
        while more := {name for name in self.rules if name not in self.empty and self.may_be_empty(self.rules[name])}:
            self.empty |= more

    def may_be_empty(self, item: Item) -> bool:
        if isinstance(item, Name):
            return item.name in self.empty
        if isinstance(item, Choice):
            return any(all(map(self.may_be_empty, sequence)) for sequence in item.sequences)
        if isinstance(item, Repetition):
            return not isinstance(item.least, Number) or item.least.value <= 0 or self.may_be_empty(item.item)
        return isinstance(item, Text) and not item.text

    def check_recursion(self) -> None:
        """Refuse rules that begin with themselves, that never end, or that call themselves and read numbers."""
        firsts = {name: set(self.firsts(rule)) for name, rule in self.rules.items()}
        for name, rule in self.rules.items():
            if name not in self.depths:
                raise wrong(
                    f"expected rules that end, got {name!r}, which always needs more", "Add an alternative without it."
                )
            if name in _closure(firsts, firsts[name]):
                raise wrong(
                    f"expected a rule that begins with something of its own, got {name!r}, which begins with itself",
                    "Turn it around.",
                )
            for each in _names(rule):
                if name in self.recursive and each.name not in self.rules:
                    raise wrong(
                        f"expected no numbers in a rule that calls itself, got {each.name!r} in {name!r}",
                        "Read it in a repetition.",
                        each.line,
                    )

    def firsts(self, item: Item) -> Iterator[str]:
        """Rules that an item can begin with."""
        if isinstance(item, Name) and item.name in self.rules:
            yield item.name
        elif isinstance(item, Repetition):
            yield from self.firsts(item.item)
        elif isinstance(item, Choice):
            for sequence in item.sequences:
                for part in sequence:
                    yield from self.firsts(part)
                    if not self.may_be_empty(part):
                        break

    def read(self, item: Item, known: frozenset[str], path: tuple[str | int, ...]) -> frozenset[str]:
        """Note the numbers of an item, and return what is known behind it."""
        if isinstance(item, Name):
            if item.name in self.recursive:
                return known
            if item.name in self.rules:
                return self.read(self.rules[item.name], known, path)
            if item.name in self.spots:
                raise wrong(
                    f"expected {item.name!r} to be read in one place, got another one",
                    "Give the second one a name of its own.",
                    item.line,
                )
            self.spots[item.name] = Spot(item.line, known, path)
            return known | {item.name}
        if isinstance(item, Repetition):
            self.count(item, known, path)
        elif isinstance(item, Choice):
            ways = []
            for sequence in item.sequences:
                way, inner = known, path
                if len(item.sequences) > 1:
                    self.branches += 1
                    inner = (*path, self.branches)
                for part in sequence:
                    way = self.read(part, way, inner)
                ways.append(way)
            return frozenset.intersection(*ways)
        return known

    def count(self, item: Repetition, known: frozenset[str], path: tuple[str | int, ...]) -> None:
        for name in sorted(variables(item.least) | variables(item.most)):
            if name not in known:
                raise wrong(
                    f"expected a count that is known, got {name!r}, which is not read before",
                    "Read it further to the left.",
                    item.line,
                )
        if self.may_be_empty(item.item) and not item.separator:
            raise wrong("expected a part with some text to repeat, got one that may be empty", "Mend it.", item.line)
        loop = f"#{len(self.counts) + 1}"
        self.spots[loop] = Spot(item.line, known, path)
        self.counts[loop] = (item.least, item.most)
        self.read(item.item, known, (*path, loop))

    def node(self, item: Item, following: Node) -> Node:
        """The nodes of an item, in front of others."""
        if isinstance(item, Text):
            return TextNode(item.text.encode(), following) if item.text else following
        if isinstance(item, Letters):
            return RunNode(item.letters, Number(1), Number(1), following)
        if isinstance(item, Name):
            if item.name in self.recursive:
                return CallNode(item.name, following)
            if item.name not in self.rules:
                return ReadNode(item.name, following)
            return self.node(self.rules[item.name], following)
        if isinstance(item, Choice):
            branches = []
            for sequence in item.sequences:
                node = following
                for part in reversed(sequence):
                    node = self.node(part, node)
                branches.append(node)
            depths = [self.depth(sequence, self.depths) for sequence in item.sequences]
            shallow = min(range(len(branches)), key=lambda at: (depths[at] is None, depths[at]))
            return branches[0] if len(branches) == 1 else ChoiceNode(tuple(branches), shallow)
        least, most = item.least, item.most
        if isinstance(least, Number) and isinstance(most, Number) and not 0 <= least.value <= most.value:
            raise wrong("expected counts from 0 on, the lesser first, got others", "Correct them.", item.line)
        if isinstance(item.item, Letters) and not item.separator:
            return RunNode(item.item.letters, item.least, item.most, following)
        loop = LoopNode(item.least, item.most, following)
        loop.body = self.node(item.item, Back(loop))
        loop.between = TextNode(item.separator.encode(), loop.body) if item.separator else loop.body
        return loop


def _closure(edges: dict[str, set[str]], names: set[str]) -> set[str]:
    found, waiting = set(names), list(names)
    while waiting:
        more = edges[waiting.pop()] - found
        found |= more
        waiting += more
    return found


def _names(item: Item) -> Iterator[Name]:
    """The names in an item, those that it counts by among them."""
    if isinstance(item, Name):
        yield item
    elif isinstance(item, Repetition):
        yield from _names(item.item)
        yield from (Name(name, item.line) for name in sorted(variables(item.least) | variables(item.most)))
    elif isinstance(item, Choice):
        for sequence in item.sequences:
            for part in sequence:
                yield from _names(part)
