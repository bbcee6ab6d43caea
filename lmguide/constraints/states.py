"""The states of a batch under constraints: one matcher per row, found again by what the row has written.

A loop adds a token to each row, re-orders rows (beams), or takes tokens back (drafts). Rows are told apart by their
tokens alone, so each of these is right by construction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from lmguide.constraints.base import ConstraintError
from lmguide.constraints.closing import Closing
from lmguide.constraints.engine import fill_batch
from lmguide.constraints.masks import apply_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from lmguide.constraints.engine import Compiled, Matcher
    from lmguide.constraints.vocabulary import Vocabulary

NEAR = 24
"""Tokens left, beyond twice the way to a complete text, at which only tokens with a known way are allowed."""

LIKELIEST = 4
"""Tokens looked at then, the likeliest; and the one on the way that is known."""


@dataclass
class Row:
    """One row: what it has written, and where its matcher stands.

    Attributes:
        compiled: Its constraint; `None` is none.
        ends: Tokens that end a text.
        tokens: All tokens of the row.
        taken: How many of them, from the first, the constraint allows. Fewer than there are where a token was not
            allowed: an invalid draft, or a beam of probability 0.
        ended: Whether the text has ended; what stands behind its end is padding.
        matcher: Has taken the first `taken` tokens.
        way: Tokens to a complete text, where one was looked for.
        lost: Whether none was found; it is not looked for again.
    """

    compiled: Compiled | None
    ends: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    taken: int = 0
    ended: bool = False
    matcher: Matcher | None = None
    way: list[int] | None = None
    lost: bool = False

    def __post_init__(self) -> None:
        """Start a matcher."""
        self.matcher = None if self.compiled is None else self.compiled.start()

    @property
    def open(self) -> bool:
        """Whether the constraint has a say in the next token."""
        return self.matcher is not None and not self.ended and self.taken == len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Write tokens behind those that stand."""
        for token in tokens:
            self.way = self.way[1:] if self.way and self.way[0] == token else None
            if self.open:
                assert self.matcher is not None
                if token in self.ends:
                    self.ended = self.matcher.accepting()
                    self.taken += self.ended
                else:
                    self.taken += self.matcher.accept(token)
            self.tokens.append(token)

    def moved_to(self, tokens: list[int]) -> Row:
        """A row of its own with other tokens: this one's, as far as they are the same, and the rest."""
        row = Row(self.compiled, self.ends)
        if self.matcher is not None and self.tokens == tokens[: len(self.tokens)]:
            row.matcher = self.matcher.copy()
            row.tokens, row.taken, row.ended, row.lost = list(self.tokens), self.taken, self.ended, self.lost
        row.extend(tokens[len(row.tokens) :])
        return row


class ConstraintState:
    """Says which tokens may follow in every row of a loop.

    Args:
        compiled: The constraint of each row, `None` for rows without.
        vocabulary: Their vocabulary.
        close_within: Tokens an answer may have, its end among them, if it is to be complete by then: towards the end
            only tokens are allowed from which a way to a complete text is known. `None` is no such care.
    """

    def __init__(
        self, compiled: Sequence[Compiled | None], vocabulary: Vocabulary, *, close_within: int | None = None
    ) -> None:
        self.vocabulary = vocabulary
        self.close_within = close_within
        self._closing = None if close_within is None else Closing(vocabulary)
        ends = frozenset(vocabulary.eos)
        self.rows = [Row(each, ends) for each in compiled]
        self._seen: NDArray[np.int64] | None = None
        self._bits = np.zeros((len(compiled), vocabulary.words), dtype=np.int32)

    def at(self, generated: Tensor) -> Callable[[Tensor], Tensor]:
        """What may follow the answers so far `[B, G]`: a function of scores `[B, V]`, which gives others back.

        There, tokens that are not allowed have minus infinity. Rows that have ended, and rows whose tokens their
        constraint never allowed (drafts that the loop will take back, beams of probability 0), stay as they are.

        Raises:
            ConstraintError: No token can follow in a row, or the engine has failed; the row and its text are named.
        """
        self.follow(generated)
        matchers = [row.matcher if row.open else None for row in self.rows]
        if not any(matchers):
            return lambda scores: scores
        constrained = np.array([row is not None for row in matchers]) if None in matchers else None
        try:
            fill_batch(matchers, self._bits)
        except ConstraintError as error:
            texts = ", ".join(repr(self.text(index)) for index, row in enumerate(self.rows) if row.open)
            raise ConstraintError(f"constraint: {error} The texts so far: {texts}") from None
        bits = self._bits
        if self._closing is None:
            return lambda scores: apply_bits(scores.clone(), bits, constrained)
        near = [index for index, row in enumerate(self.rows) if row.open and self._is_near(row)]
        return lambda scores: self._closed(apply_bits(scores.clone(), bits, constrained), near)

    def follow(self, generated: Tensor) -> None:
        """Turn to rows with these answers so far, `[B, G]`."""
        tokens = generated.numpy(force=True)  # bytes are compared several times as fast as small tensors
        seen, self._seen = self._seen, tokens
        if seen is None and not tokens.shape[1]:
            return
        if seen is not None and tokens.shape[1] == seen.shape[1] + 1 and tokens[:, :-1].tobytes() == seen.tobytes():
            for row, token in zip(self.rows, tokens[:, -1].tolist(), strict=True):
                row.extend((token,))
        elif seen is None or tokens.shape != seen.shape or tokens.tobytes() != seen.tobytes():
            self.rows = _moved(self.rows, tokens.tolist())

    def forced(self, generated: Tensor, row: int = 0) -> list[int]:
        """Tokens that must follow in a row; none if there is a choice."""
        self.follow(generated)
        found = self.rows[row]
        return found.matcher.forced() if found.open and found.matcher is not None else []

    def _is_near(self, row: Row) -> bool:
        """Whether so few tokens are left that the way out must be looked after; finds the way."""
        assert self._closing is not None
        assert self.close_within is not None
        assert row.matcher is not None
        left = self.close_within - len(row.tokens)
        if row.way is None and not row.lost:
            row.way = self._closing.way(row.matcher, left)
            row.lost = row.way is None
        return row.way is not None and left <= 2 * len(row.way) + NEAR

    def _closed(self, scores: Tensor, near: list[int]) -> Tensor:
        """In rows near their end, the likeliest tokens from which there is a short enough way, and no others."""
        assert self._closing is not None
        assert self.close_within is not None
        for index in near:
            row = self.rows[index]
            assert row.way
            assert row.matcher is not None
            left = self.close_within - len(row.tokens) - 1
            kept = [row.way[0]]
            if left > len(row.way):
                likeliest = scores[index].topk(min(LIKELIEST, scores.shape[1]))
                for token in likeliest.indices[likeliest.values > -torch.inf].tolist():
                    after = row.matcher.copy()
                    ends = token in self.vocabulary.eos and row.matcher.accepting()
                    if ends or (after.accept(token) and self._closing.way(after, left)):
                        kept.append(token)
            best = scores[index, kept]
            if bool(torch.isneginf(best).all()):
                continue  # something else excludes them; what is left of the constraint is not bent further
            scores[index] = torch.full_like(scores[index], -torch.inf).index_put_((torch.tensor(kept),), best)
        return scores

    def text(self, row: int) -> str:
        """What a row has written."""
        return self.vocabulary.spell(self.rows[row].tokens).decode("utf-8", "replace")


def _moved(rows: Sequence[Row], answers: list[list[int]]) -> list[Row]:
    """Rows with these tokens, each made from the row of its constraint that has come furthest on the way to them."""
    known = {(id(row.compiled), tuple(row.tokens)): row for row in rows}
    lengths = sorted({len(row.tokens) for row in rows}, reverse=True)
    moved = []
    for own, tokens in zip(rows, answers, strict=True):
        ways = ((id(own.compiled), tuple(tokens[:length])) for length in lengths if length <= len(tokens))
        source = next((known[way] for way in ways if way in known), own)
        moved.append(source.moved_to(tokens))
    return moved
