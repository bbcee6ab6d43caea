"""A specification as a graph: what is read, and what is read next.

Rules are written out where they are used, so that a place in the graph is a place in the text and knows which
repetition it stands in. Only rules that call themselves stay apart, as subroutines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from lmguide.constraints.ccfg.expressions import Expression, Number, variables
from lmguide.constraints.ccfg.specification import Choice, Item, Letters, Name, Repetition, Specification, Text

ROOT = 0
"""The scope outside of all repetitions."""


@dataclass(eq=False)
class End:
    """The end of the text."""


@dataclass(eq=False)
class Return:
    """The end of a rule that calls itself."""


@dataclass(eq=False)
class Skip:
    """Nothing."""

    next: Node = field(default_factory=End)


@dataclass(eq=False)
class TextNode:
    """A fixed text, not empty."""

    text: bytes
    next: Node = field(default_factory=End)


@dataclass(eq=False)
class LettersNode:
    """One character out of a set."""

    letters: frozenset[int]
    next: Node = field(default_factory=End)


@dataclass(eq=False)
class RunNode:
    """As many characters out of a set as `count` says; a `free` count is a variable that is set by how many come."""

    letters: frozenset[int]
    count: Expression
    free: bool
    next: Node = field(default_factory=End)


@dataclass(eq=False)
class ReadNode:
    """A number, set as the value of a variable; `known` are the variables that have one before."""

    name: str
    known: frozenset[str]
    next: Node = field(default_factory=End)


@dataclass(eq=False)
class ChoiceNode:
    """Any one of the branches; each of them goes on with `next`."""

    branches: tuple[Node, ...]
    next: Node = field(default_factory=End)


@dataclass(eq=False)
class LoopNode:
    """A body as often as `count` says.

    Args:
        count: How often.
        free: Whether the count is a variable that is set by how often the body comes.
        scope: The number of the scope of what is read in the body.
        outside: The scope that the loop stands in.
        body: What is repeated; it ends in a `Back`.
        between: The same with the separator in front.
        next: What comes after.
    """

    count: Expression
    free: bool
    scope: int
    outside: int
    body: Node = field(default_factory=End)
    between: Node = field(default_factory=End)
    next: Node = field(default_factory=End)


@dataclass(eq=False)
class Back:
    """The end of a loop's body."""

    loop: LoopNode


@dataclass(eq=False)
class CallNode:
    """A rule that calls itself."""

    rule: str
    next: Node = field(default_factory=End)


Following: TypeAlias = Skip | TextNode | LettersNode | RunNode | ReadNode | ChoiceNode | LoopNode | CallNode
Node: TypeAlias = Following | End | Return | Back


@dataclass(frozen=True, eq=False)
class Program:
    """The graph, and what is known of its variables.

    Args:
        start: The first node.
        subroutines: Rules that call themselves.
        scopes: The scope of each variable that is read or counted.
        loops: By scope; the root has none.
        runs: Runs of characters.
        known: For each scope, the variables of the scopes around it that have a value when its loop begins.
        always: For each scope, the variables that are read in every pass of its loop.
    """

    start: Node
    subroutines: dict[str, Node]
    scopes: dict[str, int]
    loops: dict[int, LoopNode]
    runs: list[RunNode]
    known: dict[int, frozenset[str]]
    always: dict[int, frozenset[str]]

    def within(self, scope: int) -> Iterator[int]:
        """A scope and those around it, from the inside out."""
        yield scope
        while scope != ROOT:
            scope = self.loops[scope].outside
            yield scope


def compile_program(specification: Specification) -> Program:
    """The graph of a specification.

    Raises:
        ValueError: A rule that begins with itself or never ends, a variable that is read twice or counts before it is
            known, a repetition of nothing.
    """
    return _Compiler(specification).program()


class _Compiler:
    def __init__(self, specification: Specification) -> None:
        self.rules = specification.rules
        self.calls = {name: set(_names(rule)) & set(self.rules) for name, rule in self.rules.items()}
        self.recursive = {name for name in self.rules if name in self.reached(self.calls[name])}
        self.scopes: dict[str, int] = {}
        self.loops: dict[int, LoopNode] = {}
        self.runs: list[RunNode] = []
        self.known: dict[int, frozenset[str]] = {}
        self.always: dict[int, frozenset[str]] = {}

    def reached(self, names: set[str]) -> set[str]:
        found, waiting = set(names), list(names)
        while waiting:
            more = self.calls[waiting.pop()] - found
            found |= more
            waiting += more
        return found

    def program(self) -> Program:
        first = next(iter(self.rules))
        used = self.reached({first})
        if unused := [name for name in self.rules if name not in used]:
            raise ValueError(f"specification: expected a use of the rule {unused[0]!r}, got none. Take it out.")
        self.check_recursion()
        for name in self.recursive:
            if named := [n for n in _names(self.rules[name], counts=True) if n not in self.rules]:
                raise ValueError(
                    f"specification: expected no numbers in a rule that calls itself, got {named[0]!r} in {name!r}. "
                    "Read it in a repetition."
                )
        body = Name(first) if first in self.recursive else self.rules[first]
        part = self.part(body, frozenset(), ROOT)
        subroutines = {name: self.part(self.rules[name], frozenset(), ROOT) for name in sorted(self.recursive)}
        for routine in subroutines.values():
            _join(routine, Return())
        starts = {name: routine.entry for name, routine in subroutines.items()}
        return Program(part.entry, starts, self.scopes, self.loops, self.runs, self.known, self.always)

    def check_recursion(self) -> None:
        """Refuse rules that begin with themselves, and rules that never end."""
        ending: set[str] = set()
        while more := {n for n in self.rules if n not in ending and self.can(self.rules[n], ending, empty=False)}:
            ending |= more
        empty: set[str] = set()
        while more := {n for n in self.rules if n not in empty and self.can(self.rules[n], empty, empty=True)}:
            empty |= more
        self.empty = empty
        for name in self.rules:
            if name not in ending:
                raise ValueError(
                    f"specification: expected rules that end, got {name!r}, which always needs more. "
                    "Add an alternative without it."
                )
            seen: set[str] = set()
            waiting = [name]
            while waiting:
                firsts = set(self.firsts(self.rules[waiting.pop()])) - seen
                seen |= firsts
                waiting += firsts
            if name in seen:
                raise ValueError(
                    f"specification: expected a rule that begins with something of its own, got {name!r}, which begins "
                    "with itself. Turn it around."
                )

    def can(self, item: Item, names: set[str], empty: bool) -> bool:
        """Whether an item can end, or be empty, given which rules can."""
        if isinstance(item, Name):
            return item.name in names or (not empty and item.name not in self.rules)
        if isinstance(item, Choice):
            return any(all(self.can(part, names, empty) for part in sequence) for sequence in item.sequences)
        if isinstance(item, Repetition):
            return empty or self.can(item.item, names, empty) or not isinstance(item.count, Number)
        return not empty or (isinstance(item, Text) and not item.text)

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
                    if not self.can(part, self.empty, empty=True):
                        break

    def part(self, item: Item, known: frozenset[str], scope: int) -> _Part:
        """The nodes of an item, given what is known before it."""
        if isinstance(item, Name):
            return self.named(item.name, known, scope)
        if isinstance(item, Text):
            return _one(TextNode(item.text.encode()) if item.text else Skip(), known)
        if isinstance(item, Letters):
            return _one(LettersNode(_bytes(item)), known)
        if isinstance(item, Repetition):
            return self.repeated(item, known, scope)
        ways = [self.sequence(sequence, known, scope) for sequence in item.sequences]
        if len(ways) == 1:
            return ways[0]
        choice = ChoiceNode(tuple(way.entry for way in ways))
        ends = [end for way in ways for end in way.ends]
        return _Part(choice, [choice, *ends], frozenset.intersection(*(way.known for way in ways)))

    def sequence(self, items: tuple[Item, ...], known: frozenset[str], scope: int) -> _Part:
        whole = _one(Skip(), known)
        for item in items:
            part = self.part(item, whole.known, scope)
            _join(whole, part.entry)
            whole = _Part(whole.entry, part.ends, part.known)
        return whole

    def named(self, name: str, known: frozenset[str], scope: int) -> _Part:
        if name in self.recursive:
            return _one(CallNode(name), known)
        if name in self.rules:
            return self.part(self.rules[name], known, scope)
        return _one(ReadNode(name, known), self.set(name, known, scope))

    def repeated(self, item: Repetition, known: frozenset[str], scope: int) -> _Part:
        after = self.counted(item, known, scope)
        free = after != known
        if isinstance(item.item, Letters) and not item.separator:
            run = RunNode(_bytes(item.item), item.count, free)
            self.runs.append(run)
            return _one(run, after)
        if self.can(item.item, self.empty, empty=True):
            raise ValueError("specification: expected a repetition of something, got one of the empty text. Mend it.")
        loop = LoopNode(item.count, free, len(self.loops) + 1, scope)
        self.loops[loop.scope], self.known[loop.scope] = loop, known
        body = self.part(item.item, known, loop.scope)
        self.always[loop.scope] = body.known - known
        _join(body, Back(loop))
        loop.body = body.entry
        loop.between = TextNode(item.separator.encode(), body.entry) if item.separator else body.entry
        return _one(loop, after)

    def counted(self, item: Repetition, known: frozenset[str], scope: int) -> frozenset[str]:
        """What is known once the count of a repetition is."""
        for variable in variables(item.count):
            if variable.key not in known:
                if item.count == variable and variable.name not in self.scopes and not variable.total:
                    return self.set(variable.name, known, scope)
                raise ValueError(
                    f"specification: expected a count that is known, got {variable.key!r} before it is read. "
                    "Read it further to the left."
                )
        return known

    def set(self, name: str, known: frozenset[str], scope: int) -> frozenset[str]:
        if name in known or self.scopes.get(name, scope) != scope:
            raise ValueError(
                f"specification: expected {name!r} to be read once, got it twice. Give the second one a name of its own."
            )
        self.scopes[name] = scope
        return known | {name}


class _Part(NamedTuple):
    """Nodes with loose ends."""

    entry: Node
    ends: list[Following]
    known: frozenset[str]


def _one(node: Following, known: frozenset[str]) -> _Part:
    return _Part(node, [node], known)


def _join(part: _Part, following: Node) -> None:
    for end in part.ends:
        end.next = following


def _bytes(item: Letters) -> frozenset[int]:
    return frozenset(map(ord, item.letters))


def _names(item: Item, counts: bool = False) -> Iterator[str]:
    """Names in an item, with `counts` also those that repetitions count by."""
    if isinstance(item, Name):
        yield item.name
    elif isinstance(item, Repetition):
        yield from _names(item.item, counts)
        yield from (variable.name for variable in variables(item.count) if counts)
    elif isinstance(item, Choice):
        for sequence in item.sequences:
            for part in sequence:
                yield from _names(part, counts)
