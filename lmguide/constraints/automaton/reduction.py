"""The smallest table of a deterministic automaton: states without use dropped, states that agree merged.

It knows numbers alone: what the columns of a table stand for, characters, bytes or tokens, is its callers' business.
State 0 is dead everywhere: nothing leads out of it, and it does not accept.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int32]
Flags: TypeAlias = NDArray[np.bool_]
Table: TypeAlias = NDArray[np.int32]
"""Next states, `[states, symbols]`."""

ENDLESS = -1
"""Height of states from which texts of any length may follow."""


class Reduced(NamedTuple):
    """The smallest table that accepts the same, and unique: states are numbered in the order a search meets them.

    Attributes:
        table: `[Q, A]`; row 0 is the dead state.
        accept: `[Q]`.
        start: 1, or 0 where nothing is accepted.
    """

    table: Table
    accept: Flags
    start: int


def reduced(table: Table, accept: Flags, start: int) -> Reduced:
    """The unique smallest table of the same language, up to the numbering of symbols.

    States that the start does not reach or that reach no accepting state become the dead state. The others are split
    by what tells them apart at once, the lengths of the shortest and of the longest text that may follow, and then by
    their successors until nothing splits (Moore). The first split makes the second one short: chains of counted
    repetitions, which would be split one link at a time, have fallen apart already.

    Args:
        table: `[Q, A]` next states; row 0 is all 0.
        accept: `[Q]`.
        start: The first state.
    """
    live = _reached(table, start) & (distances(table, accept) >= 0)
    live[0] = False
    if not live[start]:
        return Reduced(np.zeros((1, table.shape[1]), np.int32), np.zeros(1, np.bool_), 0)
    number = np.zeros(len(table), np.int32)
    kept = np.concatenate([[0], np.flatnonzero(live)])
    number[kept] = np.arange(len(kept))
    table, accept, start = number[table[kept]], accept[kept], int(number[start])
    blocks = _merged(table, accept)
    first = np.full(int(blocks.max()) + 1, -1, np.int64)
    first[blocks[::-1]] = np.arange(len(blocks))[::-1]  # the leftmost of each block
    return _renumbered(blocks[table[first]], accept[first], int(blocks[start]), int(blocks[0]))


def distances(table: Table, accept: Flags) -> Ints:
    """The least number of symbols to an accepting state, `[Q]`; -1 where there is none."""
    before = _predecessors(table)
    found = np.full(len(table), -1, np.int32)
    frontier: NDArray[np.integer] = np.flatnonzero(accept)
    steps = 0
    while len(frontier):
        found[frontier] = steps
        nearby = np.unique(before.of(frontier))
        frontier, steps = nearby[found[nearby] < 0], steps + 1
    return found


def merged_columns(table: Table) -> tuple[Table, Ints]:
    """Equal columns once, in the order of their first ones, and which of them each is.

    Args:
        table: `[Q, A]`, the first column of which is all 0.

    Returns:
        `[Q, C]`, and `[A]` with numbers below `C`.
    """
    names = row_names(np.ascontiguousarray(table.T))
    _, first = np.unique(names, return_index=True)
    return np.ascontiguousarray(table[:, first]), names


def row_names(rows: NDArray[np.int32]) -> Ints:
    """A number for each row `[N, M]`, the same for equal rows, counted from 0 in the order they come."""
    width = rows.shape[1] * rows.itemsize
    if not rows.size:
        return np.zeros(len(rows), np.int32)
    first = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]).any(1)))  # one of each run of equal rows is read
    seen: dict[bytes, int] = {}
    keys = np.ascontiguousarray(rows[first]).view(f"V{width}").ravel().tolist()
    names = np.fromiter((seen.setdefault(key, len(seen)) for key in keys), np.int32, len(first))
    return np.repeat(names, np.diff(first, append=len(rows)))


class _Predecessors(NamedTuple):
    """States by those that lead to them: the predecessors of `q` are `states[begin[q]:begin[q + 1]]`."""

    states: Ints
    begin: NDArray[np.int64]

    def of(self, states: NDArray[np.integer]) -> Ints:
        """The predecessors of several states in a row."""
        counts = self.begin[states + 1] - self.begin[states]
        offsets = np.repeat(self.begin[states] - np.concatenate([[0], counts.cumsum()[:-1]]), counts)
        found: Ints = self.states[offsets + np.arange(len(offsets))]
        return found


def _predecessors(table: Table) -> _Predecessors:
    """Edges between live states, each pair once."""
    sources = np.repeat(np.arange(len(table), dtype=np.int64), table.shape[1])
    targets = table.ravel().astype(np.int64)
    pairs = np.unique((targets * len(table) + sources)[targets > 0])
    begin = np.searchsorted(pairs // len(table), np.arange(len(table) + 1))
    return _Predecessors((pairs % len(table)).astype(np.int32), begin)


def _reached(table: Table, start: int) -> Flags:
    found = np.zeros(len(table), np.bool_)
    frontier = np.array([start])
    while len(frontier):
        found[frontier] = True
        nearby = np.unique(table[frontier])
        frontier = nearby[~found[nearby]]
    return found


def _heights(table: Table) -> Ints:
    """Symbols of the longest text that may follow, `[Q]`, or `ENDLESS`; every live state reaches an accepting one."""
    before = _predecessors(table)
    left = np.bincount(before.states, minlength=len(table))
    found = np.full(len(table), ENDLESS, np.int32)
    frontier, height = np.flatnonzero(left == 0), 0
    while len(frontier):
        found[frontier] = height
        sources = before.of(frontier)
        np.subtract.at(left, sources, 1)
        frontier, height = np.unique(sources[left[sources] == 0]), height + 1
    return found


def _merged(table: Table, accept: Flags) -> Ints:
    """The block of each state, `[Q]`."""
    told = np.stack([accept, _heights(table), distances(table, accept)], 1).astype(np.int32)
    blocks = row_names(told)
    while True:
        split = row_names(np.concatenate([blocks[:, None], blocks[table]], 1))
        if split.max() == blocks.max():
            return split
        blocks = split


def _renumbered(table: Table, accept: Flags, start: int, dead: int) -> Reduced:
    """States in the order in which a search from the start meets them, symbol by symbol; the dead one is 0."""
    number = np.full(len(table), -1, np.int32)
    number[dead], number[start] = 0, 1
    order = [dead, start]
    for state in order:  # grows as it is read
        if state != dead:
            successors = table[state]
            fresh = list(dict.fromkeys(successors[number[successors] < 0].tolist()))
            number[fresh] = np.arange(len(order), len(order) + len(fresh))
            order += fresh
    return Reduced(number[table[order]], accept[order], 1)
