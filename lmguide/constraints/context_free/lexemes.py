"""The terminals of a grammar over the tokens of a vocabulary: where a text of one may go on, and where it may end."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from lmguide.constraints.automaton.lift import lifted
from lmguide.constraints.automaton.utf8 import over_bytes
from lmguide.constraints.context_free.lexing import BEGIN, END

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


class Within(NamedTuple):
    """A text may end within a token.

    Attributes:
        left: What is left of the token.
        ahead: Number of the set of characters that must not follow.
    """

    left: bytes
    ahead: int


class Lexeme:
    r"""A terminal that is followed token by token, from sets of states to sets of states.

    Args:
        word: Its texts between marks, over characters.
        sets: How many sets of characters the marks tell apart.
        tokens: The bytes of each token; `b""` for what is no text.
        usable: Which tokens may be written, `[V]`.

    Attributes:
        begin: By number of a set with which it must not begin, the state before its texts.
        ends: By number of a set that must not follow, the states in which a text may end so; only those that occur.

    Example:
        >>> from lmguide.constraints.automaton.json_values import pattern, text
        >>> from lmguide.constraints.automaton.nfa import sequence
        >>> word = sequence([text("\ud800"), pattern("[a-z]+"), text("\udc00")])
        >>> lexeme = Lexeme(word, 1, [b"a", b"b,", b","], np.array([True, True, False]))
        >>> [lexeme.end(states) for states in (lexeme.begin[0], lexeme.anything(lexeme.begin[0]))]
        [0, 1]
        >>> lexeme.along(lexeme.begin[0], b"b,")
        (0, (Within(left=b',', ahead=0),))
    """

    def __init__(self, word: Dfa, sets: int, tokens: Sequence[bytes], usable: Flags) -> None:
        self._dfa = over_bytes(word)
        self._next = [row[self._dfa.classes].tolist() for row in self._dfa.table]
        self._tokens, self._usable = tokens, usable
        before = [self._dfa.after(_mark(BEGIN + number)) for number in range(sets)]
        self.begin: list[States] = [1 << state if state else 0 for state in before]
        self._first = [frozenset(byte for byte in range(256) if self._next[state][byte]) for state in before]
        found = {number: self._ending(_mark(END + number)) for number in range(sets)}
        self.ends: dict[int, States] = {number: states for number, states in found.items() if states}
        self._end: dict[States, int] = {}
        self._anything: dict[States, States] = {0: 0}
        self._along: dict[tuple[States, bytes], tuple[States, tuple[Within, ...]]] = {}

    def _ending(self, mark: bytes) -> States:
        return sum(1 << state for state in range(1, len(self._next)) if self._dfa.after(mark, state))

    @property
    def every(self) -> States:
        """All states."""
        return (1 << len(self._next)) - 2

    def may_begin(self, number: int, text: bytes) -> bool:
        """Whether a text may begin with the first byte of another one, behind a set of characters by number."""
        return text[:1] != b"" and text[0] in self._first[number]

    @cached_property
    def _lifted(self) -> tuple[dict[int, int], list[list[int]], list[States]]:
        """A token of each class; next states by state and class; and those behind any one token, by state."""
        classes, table = lifted(self._dfa, self._tokens)
        living = np.where(self._usable, classes, 0)
        first = {int(each): int(at) for each, at in zip(*np.unique(living, return_index=True), strict=True) if each}
        rows = table[:, list(first)].tolist()
        return dict(enumerate(first.values())), rows, [sum(1 << state for state in {*row} - {0}) for row in rows]

    def anything(self, states: States) -> States:
        """Behind one more token, whichever may be written."""
        if states not in self._anything:
            _, _, one = self._lifted
            found = 0
            for state in bits(states):
                found |= one[state]
            self._anything[states] = found
        return self._anything[states]

    def end(self, states: States) -> int:
        """The sets of characters of which one must not follow where a text ends in one of some states, as bits."""
        if states not in self._end:
            self._end[states] = sum(1 << number for number, those in self.ends.items() if those & states)
        return self._end[states]

    def along(self, states: States, text: bytes) -> tuple[States, tuple[Within, ...]]:
        """Behind some bytes; and wherever a text may end within them."""
        key = states, text
        if key not in self._along:
            if len(self._along) > MOST_KEPT:
                self._along.clear()
            there, within = 0, dict[Within, None]()
            for state in bits(states):
                for place, byte in enumerate(text, 1):
                    state = self._next[state][byte]
                    if not state:
                        break
                    if place < len(text):
                        within |= dict.fromkeys(Within(text[place:], number) for number in bits(self.end(1 << state)))
                else:
                    there |= 1 << state
            self._along[key] = there, tuple(within)
        return self._along[key]

    def token(self, source: int, targets: States) -> int | None:
        """A token that leads from a state to one of some others; `None` if there is none."""
        tokens, rows, _ = self._lifted
        for place, target in enumerate(rows[source]):
            if target and targets >> target & 1:
                return tokens[place]
        return None


def _mark(point: int) -> bytes:
    return chr(point).encode("utf-8", "surrogatepass")
