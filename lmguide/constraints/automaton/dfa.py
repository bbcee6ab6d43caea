"""Deterministic automata over characters, and their algebra: one after the other, either, several times, both, but not.

Characters that no state tells apart are one symbol, so that a table of the whole of Unicode has a few columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmguide.constraints.automaton.reduction import Flags, Ints, Table, merged_columns, reduced

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmguide.constraints.regex import Ranges

LAST = 0x10FFFF
"""The last code point."""

MOST_STATES = 50_000
"""States of an automaton before it is made smaller. Beyond it, tables over a vocabulary take gigabytes."""


@dataclass(frozen=True, eq=False)
class Dfa:
    """A deterministic automaton over characters; made by the functions of this module and `nfa`, always the smallest.

    Attributes:
        bounds: First code point of each run of characters, ascending from 0.
        symbols: Symbol of each run; 0 is that of characters which lead nowhere.
        table: `[Q, A]` next states; state 0 and symbol 0 are dead.
        accept: `[Q]`, states in which a text may end.
        start: First state; 0 where no text is accepted.
    """

    bounds: Ints
    symbols: Ints
    table: Table
    accept: Flags
    start: int

    @property
    def empty(self) -> bool:
        """Whether it accepts no text at all."""
        return self.start == 0

    def accepts(self, text: str) -> bool:
        """Whether a text is accepted."""
        state = self.start
        for character in text:
            run = int(np.searchsorted(self.bounds, ord(character), "right")) - 1
            state = int(self.table[state, self.symbols[run]])
        return bool(self.accept[state])

    def ranges(self) -> list[Ranges]:
        """The characters of each symbol, without those of symbol 0."""
        ends = np.append(self.bounds[1:], LAST + 1) - 1
        found: list[list[tuple[int, int]]] = [[] for _ in range(self.table.shape[1])]
        for low, high, symbol in zip(self.bounds.tolist(), ends.tolist(), self.symbols.tolist(), strict=True):
            found[symbol].append((low, high))
        return [(), *(tuple(runs) for runs in found[1:])]


def smallest(bounds: Ints, symbols: Ints, table: Table, accept: Flags, start: int) -> Dfa:
    """The smallest automaton of the same language: no state, symbol or run more than it needs."""
    result = reduced(table, accept, start)
    columns, names = merged_columns(result.table)
    symbols = names[symbols]
    changes = np.concatenate([[True], symbols[1:] != symbols[:-1]])
    bounds, symbols = bounds[changes], symbols[changes]
    # symbols in the order of their characters, and states in that of symbols: equal languages have equal automata
    order = np.concatenate([[0], list(dict.fromkeys(symbols[symbols > 0].tolist()))]).astype(np.int32)
    number = np.zeros(columns.shape[1], np.int32)
    number[order] = np.arange(len(order))
    result = reduced(np.ascontiguousarray(columns[:, order]), result.accept, result.start)
    return Dfa(bounds, number[symbols], result.table, result.accept, result.start)


def intersection(left: Dfa, right: Dfa) -> Dfa:
    """The texts that both accept."""
    return _product(left, right, np.logical_and)


def difference(left: Dfa, right: Dfa) -> Dfa:
    """The texts that the first accepts and the second does not."""
    return _product(left, right, lambda first, second: first & ~second)


def _product(left: Dfa, right: Dfa, accepts: Callable[[Flags, Flags], Flags]) -> Dfa:
    """The automaton of pairs of states, those that the start reaches; the second may be dead, the first may not."""
    bounds = np.union1d(left.bounds, right.bounds).astype(np.int32)
    pairs = np.stack([_at(left, bounds), _at(right, bounds)], 1)
    letters, symbols = np.unique(pairs, axis=0, return_inverse=True)
    width = len(right.table)
    found = np.array([left.start * width + right.start])
    frontier, rows = found, []
    while len(frontier):
        first = left.table[frontier // width][:, letters[:, 0]]
        second = right.table[frontier % width][:, letters[:, 1]]
        rows.append(np.where(first > 0, first.astype(np.int64) * width + second, 0))
        frontier = np.setdiff1d(rows[-1], found)
        frontier = frontier[frontier > 0]
        found = np.concatenate([found, frontier])
        check_size(len(found))
    order = np.argsort(found)
    targets = np.concatenate(rows)
    places = order[np.searchsorted(found[order], targets).clip(0, len(found) - 1)] + 1
    table = np.zeros((len(found) + 1, len(letters) + 1), np.int32)
    table[1:, 1:] = np.where(targets > 0, places, 0)
    accept = np.concatenate([[False], accepts(left.accept[found // width], right.accept[found % width])])
    return smallest(bounds, symbols.ravel().astype(np.int32) + 1, table, accept, 1)


def _at(dfa: Dfa, bounds: Ints) -> Ints:
    """The symbol of the run that each of these code points begins or lies in."""
    found: Ints = dfa.symbols[np.searchsorted(dfa.bounds, bounds, "right") - 1]
    return found


def check_size(states: int) -> None:
    """Refuse an automaton that has grown too large.

    Raises:
        ValueError: It has.
    """
    if states > MOST_STATES:
        raise ValueError(
            f"constraint: expected texts that an automaton of {MOST_STATES} states can tell, got more. Use narrower "
            r"classes such as [A-Za-z0-9_] in the place of \w, or smaller bounds of repetitions."
        )
