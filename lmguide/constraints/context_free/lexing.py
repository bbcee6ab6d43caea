"""Where terminals end: each takes the longest text that it can, as lexers do.

A terminal that stands where another one may stand too must not end before a character with which either could go on:
`if` is no keyword in `iffy`. What may not follow is worked out once for a grammar, as sets of characters. Each terminal
is then one automaton that knows, at its beginning, with which characters it must not begin, and at each of its ends,
which must not follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmguide.constraints.automaton.dfa import LAST, Dfa, check_size, smallest
from lmguide.constraints.regex import Ranges, merged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lmguide.constraints.automaton.reduction import Flags, Ints, Table
    from lmguide.constraints.context_free.productions import Normal

BEGIN, END, BEHIND = 0xD800, 0xDC00, 0xE000
"""Surrogates mark the sets of characters. UTF-8 has none, so no text contains one."""


@dataclass(frozen=True, eq=False)
class Lexing:
    """The terminals of a grammar, and how they follow each other.

    Attributes:
        sets: The sets of characters that must not follow somewhere; number 0 is empty.
        words: The texts of each terminal, each between two marks: `BEGIN` + number of a set with which it does not
            begin, and `END` + number of the set that must not follow.
        first: Terminals that may begin a text.
        after: By number of a set, the terminals that may stand behind one that it must not follow.
    """

    sets: tuple[Ranges, ...]
    words: Mapping[int, Dfa]
    first: frozenset[int]
    after: tuple[frozenset[int], ...]


def lexing(grammar: Normal) -> Lexing:
    r"""How the terminals of a grammar follow each other.

    Raises:
        ValueError: A terminal is too large an automaton, or too many sets of characters must not follow.

    Example:
        >>> from lmguide.constraints.automaton.json_values import pattern
        >>> from lmguide.constraints.context_free.productions import Productions, normal
        >>> letters = Productions("s", {"s": [("w",), ("w", "s")]}, {"w": pattern("[ab]+|,")})
        >>> found = lexing(normal(letters))
        >>> found.sets
        ((), ((97, 98),))
        >>> [found.words[0].accepts(f"\ud800{text}") for text in ("a\udc01", "a\udc00", ",\udc00")]
        [True, False, True]
    """
    begin, follow = _edges(grammar, 0), _follows(grammar)
    beside = {each: {each} for each in grammar.terminals}
    for place in (begin[grammar.start], *follow.values()):
        for each in place:
            beside[each] |= place
    first_characters = {each: _first_characters(dfa) for each, dfa in grammar.terminals.items()}
    sets: dict[Ranges, int] = {(): 0}
    scans = {}
    for each, dfa in grammar.terminals.items():
        ahead = merged(run for other in follow[each] for run in first_characters[other])
        others = [grammar.terminals[other] for other in sorted(beside[each] - {each})]
        scans[each] = _scanned([dfa, *(other for other in others if other is not dfa)], ahead, sets)
    after: list[set[int]] = [set() for _ in sets]
    for each, scan in scans.items():
        for number in scan.ends:
            after[number] |= follow[each]
    if len(sets) > END - BEGIN:
        raise ValueError(
            f"constraint: expected terminals that may be followed by at most {END - BEGIN} sets of characters, got "
            f"{len(sets)}. Use fewer terminals."
        )
    ranges = tuple(sets)
    behind = {each: {number for number, those in enumerate(after) if each in those} for each in grammar.terminals}
    for each in begin[grammar.start]:
        behind[each].add(0)
    words = {
        each: _marked(scan, {number: ranges[number] for number in sorted(behind[each])}) for each, scan in scans.items()
    }
    return Lexing(ranges, words, frozenset(begin[grammar.start]), tuple(map(frozenset, after)))


def _edges(grammar: Normal, side: int) -> list[set[int]]:
    """The terminals with which the texts of each symbol begin (side 0) or end (side 1)."""
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


class _Scan(NamedTuple):
    """A terminal read beside others.

    Attributes:
        bounds: First code point of each run of characters.
        symbols: Symbol of each run.
        table: `[Q, A]` next states; the first one is 1, and 0 is dead.
        ends: By number of a set of characters that must not follow, the states in which the terminal ends so.
    """

    bounds: Ints
    symbols: Ints
    table: Table
    ends: Mapping[int, Sequence[int]]


def _scanned(dfas: Sequence[Dfa], ahead: Ranges, sets: dict[Ranges, int]) -> _Scan:
    """The first automaton beside the others: in each state it is known which characters any of them goes on with.

    Args:
        dfas: The terminal, and those that may stand where it does.
        ahead: The characters with which something may follow.
        sets: Numbers of the sets of characters that must not follow; new ones are added.
    """
    points = np.concatenate([*(dfa.bounds for dfa in dfas), *([low, high + 1] for low, high in ahead), [0]])
    bounds = np.unique(points[points <= LAST]).astype(np.int32)
    comes = _inside(bounds, ahead)
    rows = [dfa.symbols[np.searchsorted(dfa.bounds, bounds, "right") - 1] for dfa in dfas]
    letters, symbols = np.unique(np.stack([*rows, comes], 1), axis=0, return_inverse=True)
    runs: Ints = symbols.ravel().astype(np.int32)
    begin = tuple(dfa.start for dfa in dfas)
    number: dict[tuple[int, ...], int] = {begin: 1}
    entries: list[tuple[int, int, int]] = []
    ends: dict[int, list[int]] = {}
    worklist = [begin]
    for states in worklist:  # grows as it is read
        moved = np.stack(
            [dfa.table[q, letters[:, at]] for at, (dfa, q) in enumerate(zip(dfas, states, strict=True))], 1
        )
        if dfas[0].accept[states[0]]:
            never = _runs(bounds, (moved.any(1) & letters[:, -1].astype(bool))[runs])
            ends.setdefault(sets.setdefault(never, len(sets)), []).append(number[states])
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
    return _Scan(bounds, runs + 1, table, ends)


def _marked(scan: _Scan, behind: Mapping[int, Ranges]) -> Dfa:
    """The texts of a terminal between marks.

    Args:
        scan: The terminal.
        behind: Sets of characters with which it must not begin, by number.
    """
    marks = [*(BEGIN + number for number in behind), *(END + number for number in scan.ends)]
    edges = [point for ranges in behind.values() for low, high in ranges for point in (low, high + 1)]
    points = np.array([*edges, *marks, *(mark + 1 for mark in marks)], np.int64)
    bounds = np.union1d(scan.bounds, points[points <= LAST]).astype(np.int32)
    old = scan.symbols[np.searchsorted(scan.bounds, bounds, "right") - 1]
    old[(bounds >= BEGIN) & (bounds < BEHIND)] = 0
    inside = np.stack([_inside(bounds, ranges) for ranges in behind.values()], 1)
    letters, symbols = np.unique(np.concatenate([old[:, None], inside], 1), axis=0, return_inverse=True)
    runs: Ints = symbols.ravel().astype(np.int32) + 1
    runs[np.searchsorted(bounds, marks)] = len(letters) + 1 + np.arange(len(marks))
    states, begin = len(scan.table), len(scan.table)
    last = states + 1 + len(behind)
    table = np.zeros((last + 1, 1 + len(letters) + len(marks)), np.int32)
    plain = slice(1, 1 + len(letters))
    table[:states, plain] = scan.table[:, letters[:, 0]]
    for place in range(len(behind)):
        table[begin, 1 + len(letters) + place] = begin + 1 + place
        table[begin + 1 + place, plain] = np.where(letters[:, 1 + place], 0, table[1, plain])
    for place, ending in enumerate(scan.ends.values()):
        table[list(ending), 1 + len(letters) + len(behind) + place] = last
    accept: Flags = np.arange(len(table)) == last
    return smallest(bounds, runs, table, accept, begin)


def _inside(bounds: Ints, ranges: Ranges) -> Flags:
    """Which runs of characters lie in some ranges; none lies in part of one."""
    found = np.zeros(len(bounds), np.bool_)
    for low, high in ranges:
        found[np.searchsorted(bounds, low) : np.searchsorted(bounds, high, "right")] = True
    return found


def _runs(bounds: NDArray[np.int32], inside: NDArray[np.bool_]) -> Ranges:
    """The characters of some runs."""
    ends = np.append(bounds[1:], LAST + 1) - 1
    chosen = zip(bounds[inside].tolist(), ends[inside].tolist(), strict=True)
    return merged((low, high) for low, high in chosen)
