"""The way to a complete text in the tokens that are left."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lmguide.constraints.engine import Matcher
    from lmguide.constraints.vocabulary import Vocabulary

EACH = 2
"""Tokens of each rank that are tried behind a text, and as many long ones."""

NODES = 1500
"""Texts looked at in one search."""

LONGEST = 400
"""Longest way that is looked for."""

_RANKS = (rb"[\"'`}\])>]+", rb"[;\s]+", rb"[0-9]", rb"[a-z]", rb"[A-Za-z]+", rb"[{\[(<].*")
"""Tokens that are likely to lead to an end, the likeliest first."""


class Closing:
    """Finds short ways to a complete text: limited-discrepancy search along the tokens that look best; not exhaustive.

    Args:
        vocabulary: The tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        ranked = sorted((_rank(text), token) for token, text in enumerate(vocabulary.tokens) if text)
        self._ranks = [
            np.array([token for (own, _), token in ranked if own == rank], dtype=np.int64)
            for rank in range(len(_RANKS) + 1)
        ]
        lengths = np.array([len(text) for text in vocabulary.tokens])
        self._longest = np.argsort(-lengths, kind="stable")
        self._left = 0
        self._bits = np.zeros(vocabulary.words, dtype=np.int32)

    def way(self, matcher: Matcher, most: int) -> list[int] | None:
        """Tokens to a complete text, its end among them.

        Args:
            matcher: The state of the text; left as it is.
            most: Longest way that is of use.

        Returns:
            At most `most` tokens; `None` if none were found.
        """
        most = min(most, LONGEST)
        for turns in (0, 1, 2):  # how often the way may leave what looks best
            self._left = NODES
            if (found := self._dive(matcher, most, turns)) is not None:
                return found
        return None

    def _dive(self, state: Matcher, most: int, turns: int) -> list[int] | None:
        if most < 1 or not self._left:
            return None
        self._left -= 1
        if state.accepting():
            return [self.vocabulary.eos[0]]
        for place, token in enumerate(self._next(state)):
            if place and not turns:
                return None
            following = state.copy()
            if following.accept(token):
                rest = self._dive(following, most - 1, turns - (place > 0))
                if rest is not None:
                    return [token, *rest]
        return None

    def _next(self, state: Matcher) -> list[int]:
        """Tokens worth trying."""
        if forced := state.forced():
            return forced[:1]
        state.fill(self._bits)
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little", count=self.vocabulary.size).astype(bool)
        found = [token for order in (*self._ranks, self._longest) for token in order[allowed[order]][:EACH].tolist()]
        return list(dict.fromkeys(found))


def _rank(text: bytes) -> tuple[int, int]:
    for rank, pattern in enumerate(_RANKS):
        if re.fullmatch(pattern, text, re.DOTALL):
            return rank, -len(text) if rank == 0 else len(text)
    return len(_RANKS), len(text)
