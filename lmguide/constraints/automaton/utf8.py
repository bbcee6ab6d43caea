"""From an automaton over characters to one over the bytes of UTF-8."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from lmguide.constraints.automaton.dfa import LAST, Dfa, check_size
from lmguide.constraints.automaton.reduction import Flags, Ints, Table, merged_columns, reduced, row_names

_NEXT = 64
"""Values of a byte that continues a character, from `0x80`."""
_LENGTHS = ((0xC0, 32, 0x80, 0x800), (0xE0, 16, 0x800, 0x10000), (0xF0, 5, 0x10000, LAST + 1))
"""Characters of 2, 3 and 4 bytes: lead byte of code point 0, number of those, first code point and the one behind."""


@dataclass(frozen=True, eq=False)
class ByteDfa:
    """A deterministic automaton over bytes, the smallest of its language.

    Attributes:
        classes: `[256]`, what each byte is to the table; 0 is the class of bytes that lead nowhere.
        table: `[Q, C]` next states; state 0 and class 0 are dead.
        accept: `[Q]`, states in which a text may end.
        start: First state; 0 where no text is accepted.
    """

    classes: Ints
    table: Table
    accept: Flags
    start: int

    def accepts(self, text: bytes) -> bool:
        """Whether a text is accepted."""
        return bool(self.accept[self.after(text)])

    def after(self, text: bytes, state: int | None = None) -> int:
        """The state behind a text, from a state or the first one; 0 where no accepted text begins so."""
        state = self.start if state is None else state
        for byte in text:
            state = int(self.table[state, self.classes[byte]])
        return state

    def digest(self) -> str:
        """A hash of the language: equal languages have the same one."""
        found = hashlib.sha256(f"{self.table.shape} {self.start} ".encode())
        for part in (self.classes, self.table, self.accept):
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()


def over_bytes(dfa: Dfa) -> ByteDfa:
    """The automaton of the UTF-8 spellings of the texts that another one accepts.

    Between two characters it is in a state of that one. Within a character it knows which state each of the ways to go
    on would lead to, and states that agree on that are one.

    Raises:
        ValueError: It needs too many states.

    Example:
        >>> from lmguide.constraints.automaton.nfa import of_tree
        >>> from lmguide.constraints.regex import translate
        >>> vowels = over_bytes(of_tree(translate("[aeiouäöü]+")))
        >>> vowels.accepts("aüo".encode()), vowels.accepts("ü".encode()[:1])
        (True, False)
    """
    symbol_of = np.repeat(dfa.symbols, np.append(dfa.bounds[1:], LAST + 1) - dfa.bounds)
    leads, shapes = _shapes(symbol_of)
    states = len(dfa.table)
    between = np.zeros((states, 256), np.int32)
    between[:, :128] = dfa.table[:, symbol_of[:128]]
    within: list[list[Ints]] = [[] for _ in shapes]
    named: list[dict[bytes, int]] = [{} for _ in shapes]
    # states that agree on all characters beyond ASCII lead to the same states within them
    rows, which = np.unique(dfa.table[:, np.unique(symbol_of[128:])], axis=0, return_inverse=True)
    for row in range(len(rows)):
        alike = np.flatnonzero(which.ravel() == row)
        targets = dfa.table[alike[0]]
        for level, shape in enumerate(shapes):
            targets = _numbered(targets[shape], within[level], named[level])
            first = _LENGTHS[level][0]
            between[alike, first : first + len(leads[level])] = targets[leads[level]]
        check_size(states + sum(map(len, within)))
    return _assembled(between, within, dfa.accept, dfa.start)


def _shapes(symbol_of: Ints) -> tuple[list[Ints], list[Ints]]:
    """What follows lead bytes, as far as symbols tell: by level, the shape behind each lead byte, and the shapes.

    A shape of the first level is the symbol of each of the 64 values of the last byte, one of a higher level the shape
    behind each value of the next byte. Shape 0 leads nowhere.
    """
    parts = []
    for level, (_, count, first, behind) in enumerate(_LENGTHS):
        letters = np.zeros(count * _NEXT ** (level + 1), np.int32)
        letters[first:behind] = symbol_of[first:behind]
        parts.append(letters)
    values, leads, shapes = np.concatenate(parts), [], []
    for _, count, _, _ in _LENGTHS:
        rows = np.concatenate([np.zeros((1, _NEXT), np.int32), values.reshape(-1, _NEXT)])
        names = row_names(rows)
        shapes.append(rows[np.unique(names, return_index=True)[1]])
        leads.append(names[1 : 1 + count])
        values = names[1 + count :]
    return leads, shapes


def _numbered(rows: Ints, kept: list[Ints], named: dict[bytes, int]) -> Ints:
    """A number from 1 for each different row, and 0 for one that leads nowhere; new rows are kept."""
    found = np.zeros(len(rows), np.int32)
    for place, row in enumerate(rows):
        if row.any():
            key = row.tobytes()
            if key not in named:
                kept.append(row)
                named[key] = len(kept)
            found[place] = named[key]
    return found


def _assembled(between: Table, within: list[list[Ints]], accept: Flags, start: int) -> ByteDfa:
    """One table of states between characters and within them."""
    tables, offset, last = [between], 0, len(between)
    for level, rows in enumerate(within):
        first = _LENGTHS[level][0]
        behind = between[:, first : first + _LENGTHS[level][1]]
        behind += np.where(behind > 0, last - 1, 0)
        table = np.zeros((len(rows), 256), np.int32)
        if rows:
            values = np.stack(rows)
            table[:, 128 : 128 + _NEXT] = np.where(values > 0, values + offset, 0)
        tables.append(table)
        offset, last = last - 1, last + len(rows)
    table = np.concatenate(tables)
    columns, names = merged_columns(np.concatenate([np.zeros((len(table), 1), np.int32), table], 1))
    result = reduced(columns, np.concatenate([accept, np.zeros(len(table) - len(accept), np.bool_)]), start)
    return ByteDfa(names[1:], *result)
