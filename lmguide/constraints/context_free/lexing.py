"""Where terminals end: each takes the longest text that it can, as lexers do.

A terminal that stands where another one may stand too must not end before a character with which either could go on:
`if` is no keyword in `iffy`. What may not follow is worked out once for a grammar. A terminal then falls apart into
*pieces*, by what must not follow them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmguide.constraints.automaton.dfa import LAST, Dfa, check_size, difference, smallest
from lmguide.constraints.automaton.nfa import of_tree
from lmguide.constraints.regex import EVERY, Cat, Chars, Ranges, Rep, merged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lmguide.constraints.context_free.productions import Normal


@dataclass(frozen=True, eq=False)
class Piece:
    """Texts of one terminal in one place.

    Attributes:
        symbol: The terminal.
        behind: Number of the set of characters with which it must not begin, as the terminal before could go on.
        dfa: Its texts; never the empty one.
        ahead: Number of the set of characters that must not follow.
    """

    symbol: int
    behind: int
    dfa: Dfa
    ahead: int


@dataclass(frozen=True, eq=False)
class Lexing:
    """The terminals of a grammar, by what may stand before them.

    Attributes:
        pieces: All of them.
        first: Pieces that may begin a text.
        after: Which pieces may stand behind each one.
    """

    pieces: tuple[Piece, ...]
    first: tuple[int, ...]
    after: tuple[tuple[int, ...], ...]


def lexing(grammar: Normal) -> Lexing:
    """How the terminals of a grammar follow each other.

    Example:
        >>> from lmguide.constraints.automaton.json_values import pattern
        >>> from lmguide.constraints.context_free.productions import Productions, normal
        >>> words = Productions("s", {"s": [("w",), ("w", "s")]}, {"w": pattern("[ab]+|,")})
        >>> [(piece.dfa.accepts("a"), piece.dfa.accepts(",")) for piece in lexing(normal(words)).pieces]
        [(False, True), (True, False), (False, True)]
    """
    begin, follow = _begins(grammar), _follows(grammar)
    beside = {each: {each} for each in grammar.terminals}
    for place in (begin[grammar.start], *follow.values()):
        for each in place:
            beside[each] |= place
    sets: dict[Ranges, int] = {(): 0}
    ends: dict[int, list[tuple[int, Dfa]]] = {}
    for each, dfa in grammar.terminals.items():
        ahead = merged(run for other in follow[each] for run in _first_characters(grammar.terminals[other]))
        others = [grammar.terminals[other] for other in beside[each] - {each} if grammar.terminals[other] is not dfa]
        ends[each] = [(sets.setdefault(never, len(sets)), part) for never, part in _by_end([dfa, *others], ahead)]
    pieces: list[Piece] = []
    known: dict[tuple[int, int, int], int | None] = {}

    def piece(symbol: int, behind: int, ahead: int, dfa: Dfa) -> int | None:
        if (symbol, behind, ahead) not in known:
            never = next(ranges for ranges, number in sets.items() if number == behind)
            part = _not_beginning(dfa, never)
            known[symbol, behind, ahead] = None if part.empty else len(pieces)
            if not part.empty:
                pieces.append(Piece(symbol, behind, part, ahead))
        return known[symbol, behind, ahead]

    def pieces_of(symbols: set[int], behind: int) -> tuple[int, ...]:
        found = [piece(each, behind, ahead, dfa) for each in sorted(symbols) for ahead, dfa in ends[each]]
        return tuple(each for each in found if each is not None)

    first = pieces_of(begin[grammar.start], 0)
    after = []
    for known_piece in pieces:  # grows as it is read
        after.append(pieces_of(follow[known_piece.symbol], known_piece.ahead))
    return Lexing(tuple(pieces), first, tuple(after))


def _begins(grammar: Normal) -> list[set[int]]:
    """The terminals with which the texts of each symbol begin."""
    return _edges(grammar, 0)


def _edges(grammar: Normal, side: int) -> list[set[int]]:
    found: list[set[int]] = [{each} & set(grammar.terminals) for each in range(len(grammar.names))]
    changed = True
    while changed:
        changed = False
        for head, inner in enumerate(grammar.inner):
            wanted = set().union(*(found[each] for each in inner), *(found[p[side]] for p in grammar.pairs[head]))
            if not wanted <= found[head]:
                found[head] |= wanted
                changed = True
    return found


def _follows(grammar: Normal) -> dict[int, set[int]]:
    """The terminals that may stand behind each terminal."""
    begin, end = _edges(grammar, 0), _edges(grammar, 1)
    found: dict[int, set[int]] = {each: set() for each in grammar.terminals}
    for rules in grammar.pairs:
        for left, right in rules:
            for each in end[left]:
                found[each] |= begin[right]
    return found


def _first_characters(dfa: Dfa) -> Ranges:
    symbols = np.flatnonzero(dfa.table[dfa.start]).tolist()
    ranges = dfa.ranges()
    return merged(run for symbol in symbols for run in ranges[symbol])


def _not_beginning(dfa: Dfa, characters: Ranges) -> Dfa:
    """The texts that do not begin with some characters."""
    if not characters:
        return dfa
    return difference(dfa, of_tree(Cat((Chars(characters), Rep(Chars(EVERY), 0, None)))))


def _by_end(dfas: Sequence[Dfa], ahead: Ranges) -> list[tuple[Ranges, Dfa]]:
    """The texts of the first automaton by what must not follow them: what may come, and goes on with any of all."""
    points = np.concatenate([*(dfa.bounds for dfa in dfas), *([low, high + 1] for low, high in ahead), [0]])
    bounds = np.unique(points[points <= LAST]).astype(np.int32)
    comes = np.zeros(len(bounds), np.bool_)
    for low, high in ahead:
        comes[np.searchsorted(bounds, low) : np.searchsorted(bounds, high, "right")] = True
    rows = [dfa.symbols[np.searchsorted(dfa.bounds, bounds, "right") - 1] for dfa in dfas]
    letters, symbols = np.unique(np.stack([*rows, comes], 1), axis=0, return_inverse=True)
    begin = tuple(dfa.start for dfa in dfas)
    number: dict[tuple[int, ...], int] = {begin: 1}
    entries: list[tuple[int, int, int]] = []
    ends: dict[frozenset[int], list[int]] = {}
    worklist = [begin]
    for states in worklist:  # grows as it is read
        moved = np.stack(
            [dfa.table[q, letters[:, at]] for at, (dfa, q) in enumerate(zip(dfas, states, strict=True))], 1
        )
        if dfas[0].accept[states[0]]:
            never = frozenset(np.flatnonzero(moved.any(1) & letters[:, -1].astype(bool)).tolist())
            ends.setdefault(never, []).append(number[states])
        for letter in np.flatnonzero(moved[:, 0]).tolist():
            there = tuple(moved[letter].tolist())
            if there not in number:
                number[there] = len(number) + 1
                worklist.append(there)
                check_size(len(number))
            entries.append((number[states], letter + 1, number[there]))
    table = np.zeros((len(number) + 1, len(letters) + 1), np.int32)
    for source, letter, target in entries:
        table[source, letter] = target
    found = []
    for never, accepting in ends.items():
        accept = np.zeros(len(table), np.bool_)
        accept[accepting] = True
        part = smallest(bounds, symbols.ravel().astype(np.int32) + 1, table, accept, 1)
        found.append((_runs(bounds, np.isin(symbols.ravel(), list(never))), part))
    return found


def _runs(bounds: NDArray[np.int32], inside: NDArray[np.bool_]) -> Ranges:
    """The characters of some runs."""
    ends = np.append(bounds[1:], LAST + 1) - 1
    chosen = zip(bounds[inside].tolist(), ends[inside].tolist(), strict=True)
    return merged((low, high) for low, high in chosen)
