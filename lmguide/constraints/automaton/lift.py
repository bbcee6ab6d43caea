"""From an automaton over bytes to one over the tokens of a vocabulary.

Tokens that do the same to every state are one class, so that a vocabulary of a hundred thousand tokens has some ten to
some hundred of them. Whatever is worked out later, is worked out for classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmguide.constraints.automaton.reduction import Flags, Ints, Table, distances, merged_columns, reduced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmguide.constraints.automaton.utf8 import ByteDfa

MOST_ENTRIES = 2**25
"""Entries of the table of states and classes; as 32-bit numbers they take 128 MiB."""


@dataclass(frozen=True, eq=False)
class TokenDfa:
    """A deterministic automaton over tokens, the smallest of its language.

    Attributes:
        classes: `[V]`, what each token is to the table; 0 is the class of tokens that lead nowhere.
        table: `[Q, K]` next states; state 0 and class 0 are dead.
        accept: `[Q]`, states in which a text may end.
        start: First state; 0 where no tokens spell an accepted text.
    """

    classes: Ints
    table: Table
    accept: Flags
    start: int

    @property
    def empty(self) -> bool:
        """Whether no tokens spell an accepted text."""
        return self.start == 0

    @property
    def least(self) -> int:
        """Tokens of the shortest accepted text; -1 where there is none."""
        return int(distances(self.table, self.accept)[self.start]) if self.start else -1

    def shortest(self) -> list[int]:
        """Tokens of a shortest accepted text, one token at least; for an automaton that is not empty.

        Raises:
            ValueError: Only the empty text is accepted.
        """
        left, state, found = distances(self.table, self.accept), self.start, list[int]()
        while not found or not self.accept[state]:
            ways = np.flatnonzero(self.table[state])
            if not len(ways):
                raise ValueError(
                    "constraint: expected one of some text, got one of the empty text alone. Leave it out."
                )
            chosen = ways[left[self.table[state, ways]].argmin()]
            found.append(int((self.classes == chosen).argmax()))
            state = int(self.table[state, chosen])
        return found

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens spell an accepted text."""
        state = self.start
        for token in tokens:
            state = int(self.table[state, self.classes[token]])
        return bool(self.accept[state])


def lift(dfa: ByteDfa, tokens: Sequence[bytes]) -> TokenDfa:
    """The automaton over the tokens of a vocabulary that accepts what spells an accepted text.

    A token is what its bytes do to all states at once, one column of a table. All tokens are read together, byte by
    byte: those that have come to the same column and go on with bytes of the same class are one from there on, so the
    table of a column's successors is made for each pair of column and class that occurs, and not for each token.

    Args:
        dfa: Over bytes.
        tokens: The bytes of each token; `b""` is no text and leads nowhere.

    Raises:
        ValueError: More classes than memory should hold.

    Example:
        >>> from lmguide.constraints.automaton.nfa import of_tree
        >>> from lmguide.constraints.automaton.utf8 import over_bytes
        >>> from lmguide.constraints.regex import translate
        >>> even = lift(over_bytes(of_tree(translate("(ab)*"))), [b"a", b"b", b"ab", b"ba", b"c"])
        >>> even.classes.tolist(), even.accepts([2, 0, 1]), even.accepts([0, 3])
        ([1, 2, 3, 4, 0], True, False)
    """
    return smallest(*lifted(dfa, tokens), dfa.accept, dfa.start)


def lifted(dfa: ByteDfa, tokens: Sequence[bytes]) -> tuple[Ints, Table]:
    """The same over the states of the automaton over bytes itself: classes of tokens, and next states by class.

    Raises:
        ValueError: As `lift`.
    """
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    text = np.frombuffer(b"".join(tokens), np.uint8)
    places = np.concatenate([[0], lengths.cumsum()[:-1]])
    columns = _Columns(dfa)
    found = np.zeros(len(tokens), np.int32)
    alive = np.flatnonzero(lengths > 0)
    found[alive] = columns.first
    length = 0
    while len(alive):
        found[alive] = columns.after(found[alive], dfa.classes[text[places[alive] + length]])
        length += 1
        alive = alive[(lengths[alive] > length) & (found[alive] > 0)]
    used, classes = np.unique(np.append(0, found), return_inverse=True)
    return classes[1:].astype(np.int32), columns.table(used)


def smallest(classes: Ints, table: Table, accept: Flags, start: int) -> TokenDfa:
    """The smallest automaton of the same language, and the same for equal ones; arguments as attributes of `TokenDfa`.

    Classes are numbered by their first tokens, and only those that some token belongs to are kept.
    """
    used, first, names = np.unique(np.append(0, classes), return_index=True, return_inverse=True)
    order = np.argsort(first)  # class 0 comes first
    number = np.empty(len(used), np.int32)
    number[order] = np.arange(len(used))
    result = reduced(np.ascontiguousarray(table[:, used[order]]), accept, start)
    columns, merged = merged_columns(result.table)
    result = reduced(columns, result.accept, result.start)
    return TokenDfa(merged[number[names.ravel()[1:]]], *result)


class _Columns:
    """What texts do to all states at once: columns `[Q]`, numbered; number 0 leads every state nowhere."""

    def __init__(self, dfa: ByteDfa) -> None:
        self._dfa = dfa
        identity = np.arange(len(dfa.table), dtype=np.int32)
        self._known = {np.zeros_like(identity).tobytes(): 0, identity.tobytes(): 1}
        self._columns = [np.zeros_like(identity), identity]
        self._steps: dict[int, int] = {}
        self.first = 1
        """The column of the empty text."""

    def after(self, columns: Ints, letters: Ints) -> Ints:
        """The columns behind one more byte of each."""
        width = self._dfa.table.shape[1]
        pairs = columns.astype(np.int64) * width + letters
        found = np.full(len(self._columns) * width, -1, np.int32)
        found[pairs] = 0
        for pair in np.flatnonzero(found == 0).tolist():
            found[pair] = self._step(pair, width)
        answer: Ints = found[pairs]
        return answer

    def _step(self, pair: int, width: int) -> int:
        if pair not in self._steps:
            column = self._dfa.table[self._columns[pair // width], pair % width]
            key = column.tobytes()
            if key not in self._known:
                self._known[key] = len(self._columns)
                self._columns.append(column)
                if len(self._columns) * len(column) > MOST_ENTRIES:
                    raise ValueError(
                        f"constraint: expected at most {MOST_ENTRIES} pairs of states and kinds of tokens, got more. "
                        r"Use narrower classes such as [A-Za-z0-9_] in the place of \w, or smaller bounds of "
                        "repetitions."
                    )
            self._steps[pair] = self._known[key]
        return self._steps[pair]

    def table(self, used: Ints) -> Table:
        """Some columns side by side."""
        return np.stack([self._columns[column] for column in used.tolist()], 1)
