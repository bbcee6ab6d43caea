"""A specification on a vocabulary: which tokens may follow, by the recogniser alone."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lmguide.constraints.base import ConstraintError
from lmguide.constraints.ccfg.program import RunNode
from lmguide.constraints.spelling import check_start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lmguide.constraints.ccfg.recogniser import Recogniser, State
    from lmguide.constraints.vocabulary import Vocabulary

_MOST_FORCED = 1000
"""Bytes of forced text looked ahead."""


class CCFGCompiled:
    """A specification with relations, compiled for a vocabulary.

    Args:
        recogniser: Of the specification.
        vocabulary: The model's tokens.

    Raises:
        ValueError: No tokens spell a valid text.
    """

    def __init__(self, recogniser: Recogniser, vocabulary: Vocabulary) -> None:
        self._recogniser = recogniser
        self._vocabulary = vocabulary
        check_start(self.start(), vocabulary)

    def start(self) -> CCFGMatcher:
        """The state of an empty text; a new one, since a state remembers those behind it."""
        return CCFGMatcher(self._recogniser.start(), self._vocabulary)


class CCFGMatcher:
    """The state of one text; see `lmguide.constraints.engine.Matcher`."""

    def __init__(self, state: State, vocabulary: Vocabulary, ended: bool = False) -> None:
        self._state = state
        self._vocabulary = vocabulary
        self._ended = ended

    def fill(self, out: NDArray[np.int32]) -> None:
        """Write which tokens may follow, as bits `[words]`."""
        bits = np.zeros(self._vocabulary.words * 32, dtype=bool)
        if not self._ended:
            texts, ids = self._listed(bits)
            waiting = [(self._state, b"", 0, len(texts))]
            while waiting:
                state, begun, first, last = waiting.pop()
                for byte, after in state.moves.items():
                    prefix = begun + bytes((byte,))
                    low = bisect_left(texts, prefix, first, last)
                    # Behind the prefix come texts that begin with it; a text that is the prefix is the first of them.
                    high = bisect_left(texts, _next(prefix), low, last)
                    if low < high:
                        bits[ids[low] if texts[low] == prefix else []] = True
                        waiting.append((after, prefix, low, high))
        out[:] = np.packbits(bits, bitorder="little").view(np.int32)
        if self.accepting():
            out |= self._vocabulary.eos_bits
        if not out.any():
            raise ConstraintError("no token may follow, and the text may not end here.")

    def _listed(self, bits: NDArray[np.bool_]) -> tuple[list[bytes], list[list[int]]]:
        """The texts of the tokens still to be looked at, in order, with the tokens of each; some are allowed at once.

        Within a long run of characters out of a set, those are the tokens that have no others.
        """
        node, at = self._state.places[0].node, self._state.places[0].at
        if len(self._state.places) == 1 and isinstance(node, RunNode) and isinstance(at, tuple):
            inside, longest, texts, ids = _split(self._vocabulary, node.letters)
            if longest <= at[1]:
                bits[inside] = True
                return texts, ids
        return _sorted(self._vocabulary)

    def accept(self, token: int) -> bool:
        """Take a token, or leave the state as it is."""
        if token in self._vocabulary.eos_set:
            self._ended = self._ended or self.accepting()
            return self._ended
        text = self._vocabulary.tokens[token] if 0 <= token < len(self._vocabulary.tokens) else b""
        if self._ended or not text:
            return False
        state, count = self._state.read(text)
        if count < len(text):
            return False
        self._state = state
        return True

    def forced(self) -> list[int]:
        """The tokens that must follow; the last of a forced text is left open, since it may be part of a longer one."""
        state, text = self._state, b""
        while not self._ended and not state.accepting and len(state.moves) == 1 and len(text) < _MOST_FORCED:
            ((byte, state),) = state.moves.items()
            text += bytes((byte,))
        try:
            tokens = self._vocabulary.encode(text.decode()) if text else []
        except ValueError:  # within a character, or the vocabulary cannot spell it
            return []
        if not tokens or self._vocabulary.spell(tokens) != text:
            return []
        return tokens if state.accepting and not state.moves else tokens[:-1]

    def copy(self) -> CCFGMatcher:
        """The same state, on its own."""
        return CCFGMatcher(self._state, self._vocabulary, self._ended)

    def accepting(self) -> bool:
        """Whether the text may end here."""
        return self._ended or self._state.accepting

    def finished(self) -> bool:
        """Whether nothing but an end can follow."""
        return self._ended or (self._state.accepting and not self._state.moves)

    def validate(self, tokens: Sequence[int]) -> int:
        """How many of the tokens could follow in a row."""
        probe = self.copy()
        return next((index for index, token in enumerate(tokens) if not probe.accept(token)), len(tokens))


@lru_cache(maxsize=8)
def _sorted(vocabulary: Vocabulary) -> tuple[list[bytes], list[list[int]]]:
    """The different texts of the tokens in order, and the tokens of each."""
    by_text: dict[bytes, list[int]] = {}
    for token, text in enumerate(vocabulary.tokens):
        if text and token not in vocabulary.eos_set:
            by_text.setdefault(text, []).append(token)
    texts = sorted(by_text)
    return texts, [by_text[text] for text in texts]


@lru_cache(maxsize=32)
def _split(vocabulary: Vocabulary, letters: frozenset[int]) -> tuple[list[int], int, list[bytes], list[list[int]]]:
    """Tokens of some letters alone, the length of the longest; and the others as `_sorted` has them."""
    texts, ids = _sorted(vocabulary)
    within = [letters.issuperset(text) for text in texts]
    inside = [token for own, is_in in zip(ids, within, strict=True) if is_in for token in own]
    longest = max((len(text) for text, is_in in zip(texts, within, strict=True) if is_in), default=0)
    others = [at for at, is_in in enumerate(within) if not is_in]
    return inside, longest, [texts[at] for at in others], [ids[at] for at in others]


def _next(prefix: bytes) -> bytes:
    """The least text behind all those that begin with a prefix of ASCII."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))
