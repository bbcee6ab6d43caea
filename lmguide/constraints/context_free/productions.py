"""Context-free grammars as plain rules over terminals, and as rules with two symbols at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from lmguide.constraints.automaton.dfa import difference
from lmguide.constraints.automaton.nfa import of_tree, union
from lmguide.constraints.regex import Cat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmguide.constraints.automaton.dfa import Dfa

Body: TypeAlias = "tuple[str, ...]"


@dataclass(frozen=True, eq=False)
class Productions:
    """A context-free grammar.

    Attributes:
        start: The symbol that derives its texts.
        bodies: The alternatives of each nonterminal, rows of names.
        terminals: What each terminal matches. Each name in a body is a key of one of the two.
        ignored: What may stand behind any terminal, any number of times.
        reach: How many terminals are looked for in a row of open columns, beside one that fills the rest of the row.
            `None` is any number: what a grammar needs that has no terminal of any length nearly everywhere.
    """

    start: str
    bodies: Mapping[str, Sequence[Body]]
    terminals: Mapping[str, Dfa]
    ignored: Sequence[Dfa] = ()
    reach: int | None = None


@dataclass(frozen=True, eq=False)
class Normal:
    """The same grammar with bodies of one symbol or two, none of which derives the empty text. Symbols are numbers.

    Attributes:
        names: Of the symbols.
        terminals: What symbols match that are terminals; never the empty text.
        heads: For each symbol X all A that derive it alone, `A => ... => X`, itself among them.
        inner: The other way round: for each A all X.
        joins: For each X the pairs (A, Y) of rules `A -> X Y`.
        pairs: For each A the pairs (X, Y) of the same rules.
        start: The symbol that derives the texts.
        empty: Whether the empty text is one of them.
    """

    names: tuple[str, ...]
    terminals: Mapping[int, Dfa]
    heads: tuple[tuple[int, ...], ...]
    inner: tuple[tuple[int, ...], ...]
    joins: tuple[tuple[tuple[int, int], ...], ...]
    pairs: tuple[tuple[tuple[int, int], ...], ...]
    start: int
    empty: bool


def normal(productions: Productions) -> Normal:
    """A grammar with what is ignored written into its rules, in rules of one or two symbols.

    What is ignored is a terminal of its own behind each other one, so that what may follow it is known.

    Example:
        >>> from lmguide.constraints.automaton.json_values import text
        >>> nested = Productions("s", {"s": [("a", "s", "b"), ()]}, {"a": text("a"), "b": text("b")})
        >>> found = normal(nested)
        >>> found.empty, [found.names[symbol] for symbol in found.terminals]
        (True, ['a', 'b'])
    """
    productions = _without_empty_terminals(with_ignored(productions))
    terminals, short = productions.terminals, _shortened(productions.bodies)
    nullable: set[str] = set()
    while more := {name for name, rows in short.items() for row in rows if set(row) <= nullable} - nullable:
        nullable |= more
    singles: set[tuple[str, str]] = set()
    doubles: dict[tuple[str, str, str], None] = {}
    for name, rows in short.items():
        for row in rows:
            singles |= {(name, row[0])} if len(row) == 1 else set()
            if len(row) == 2:
                doubles[name, row[0], row[1]] = None
                singles |= {(name, row[place]) for place in (0, 1) if row[1 - place] in nullable}
    names = [*terminals, *short]
    number = {name: place for place, name in enumerate(names)}
    below: list[set[int]] = [{place} for place in range(len(names))]
    direct = [(number[head], number[body]) for head, body in singles]
    while any(not below[inner] <= below[outer] for outer, inner in direct):
        for outer, inner in direct:
            below[outer] |= below[inner]
    joins: list[list[tuple[int, int]]] = [[] for _ in names]
    pairs: list[list[tuple[int, int]]] = [[] for _ in names]
    for head, left, right in doubles:
        joins[number[left]].append((number[head], number[right]))
        pairs[number[head]].append((number[left], number[right]))
    return Normal(
        tuple(names),
        {number[name]: dfa for name, dfa in terminals.items()},
        tuple(tuple(at for at in range(len(names)) if place in below[at]) for place in range(len(names))),
        tuple(tuple(sorted(inner)) for inner in below),
        tuple(map(tuple, joins)),
        tuple(map(tuple, pairs)),
        number[productions.start],
        productions.start in nullable,
    )


def with_ignored(productions: Productions) -> Productions:
    """The same grammar in which each terminal is followed by what is ignored, as engines have it: nothing before."""
    if not productions.ignored:
        return productions
    terminals = dict(productions.terminals)
    ignored = _without_empty(union(list(productions.ignored)))
    bodies: dict[str, Sequence[Body]] = {
        name: [tuple(f"<{part}>" if part in terminals else part for part in row) for row in rows]
        for name, rows in productions.bodies.items()
    }
    for name in productions.terminals:
        gap, gaps = f"<gap {name}>", f"<gaps {name}>"
        terminals[gap] = ignored
        bodies[gaps] = [(gap,), (gap, gaps)]
        bodies[f"<{name}>"] = [(name,), (name, gaps)]
    start = f"<{productions.start}>" if productions.start in productions.terminals else productions.start
    return Productions(start, bodies, terminals)


def _without_empty(dfa: Dfa) -> Dfa:
    return difference(dfa, of_tree(Cat(()))) if dfa.accepts("") else dfa


def _without_empty_terminals(productions: Productions) -> Productions:
    """Terminals that match the empty text become a choice of that and of one that does not."""
    bodies, found = dict(productions.bodies), {}
    for name, dfa in productions.terminals.items():
        if dfa.accepts(""):
            found[f"<some {name}>"] = _without_empty(dfa)
            bodies[name] = [(f"<some {name}>",), ()]
        else:
            found[name] = dfa
    return Productions(productions.start, bodies, found)


def _shortened(bodies: Mapping[str, Sequence[Body]]) -> dict[str, list[Body]]:
    """Rules of at most two symbols: the rest of a longer one is a symbol of its own, the same for equal rests."""
    found: dict[str, list[Body]] = {name: [] for name in bodies}

    def rest(row: Body) -> str:
        name = f"<{' '.join(row)}>"
        if name not in found:
            found[name] = [row if len(row) == 2 else (row[0], rest(row[1:]))]
        return name

    for name, rows in bodies.items():
        found[name] += [row if len(row) <= 2 else (row[0], rest(row[1:])) for row in rows]
    return found
