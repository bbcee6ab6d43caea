"""The pieces of a grammar over the tokens of a vocabulary: where a text of one may go on, and where it may end."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from lmguide.constraints.automaton.lift import lifted
from lmguide.constraints.automaton.utf8 import over_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmguide.constraints.automaton.dfa import Dfa
    from lmguide.constraints.automaton.reduction import Flags

States: TypeAlias = int
"""A set of states, as the bits of a number."""


MOST_KEPT = 2**17
"""Steps that are kept of each automaton."""


def bits(number: int) -> Iterator[int]:
    """The places of the bits of a number, from the lowest."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


class Lexeme:
    """An automaton over bytes that is followed token by token, from sets of states to sets of states.

    Args:
        dfa: Over characters.
        tokens: The bytes of each token; `b""` for what is no text.
        usable: Which tokens may be written, `[V]`.

    Example:
        >>> from lmguide.constraints.automaton.json_values import pattern
        >>> word = Lexeme(pattern("[a-z]+"), [b"a", b"b,", b","], np.array([True, True, False]))
        >>> [bool(states & word.accept) for states in (word.start, word.anything(word.start))]
        [False, True]
        >>> word.along(word.start, b"b,")
        (0, (b',',))
    """

    def __init__(self, dfa: Dfa, tokens: Sequence[bytes], usable: Flags) -> None:
        self._bytes = over_bytes(dfa)
        self._next = [row[self._bytes.classes].tolist() for row in self._bytes.table]
        self._ends: list[bool] = self._bytes.accept.tolist()
        self.start: States = 1 << self._bytes.start
        self.accept: States = sum(1 << int(state) for state in np.flatnonzero(self._bytes.accept))
        starting = self._next[self._bytes.start]
        self.first = frozenset(byte for byte in range(256) if starting[byte])
        self.begin = frozenset(bytes([byte]) for byte in self.first)
        self.every: States = (1 << len(self._ends)) - 2
        classes, self._table = lifted(self._bytes, tokens)
        living = np.where(usable, classes, 0)
        self._tokens = {
            int(each): int(first) for each, first in zip(*np.unique(living, return_index=True), strict=True)
        }
        used = self._table[:, sorted(set(self._tokens) - {0})]
        self._one = [sum(1 << int(state) for state in np.unique(row) if state) for row in used]
        self._anything: dict[States, States] = {0: 0}
        self._along: dict[tuple[States, bytes], tuple[States, tuple[bytes, ...]]] = {}

    def anything(self, states: States) -> States:
        """Behind one more token, whichever may be written."""
        if states not in self._anything:
            found = 0
            for state in bits(states):
                found |= self._one[state]
            self._anything[states] = found
        return self._anything[states]

    def along(self, states: States, text: bytes) -> tuple[States, tuple[bytes, ...]]:
        """Behind some bytes; and what is left of them wherever a text may end within."""
        key = states, text
        if key not in self._along:
            if len(self._along) > MOST_KEPT:
                self._along.clear()
            there, left = 0, set()
            for state in bits(states):
                for place, byte in enumerate(text, 1):
                    state = self._next[state][byte]
                    if not state:
                        break
                    if place < len(text) and self._ends[state]:
                        left.add(text[place:])
                else:
                    there |= 1 << state
            self._along[key] = there, tuple(left)
        return self._along[key]

    def token(self, source: int, targets: States) -> tuple[int, int] | None:
        """A token that leads from a state to one of some others, and to which; `None` if there is none."""
        row = self._table[source].tolist()
        for each, token in self._tokens.items():
            if each and targets >> row[each] & 1 and row[each]:
                return token, row[each]
        return None
