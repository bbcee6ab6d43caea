"""The posterior of a class over rows that come and go, as the requests of a server do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmguide.sources import caches
from lmguide.sources.ids import Rows
from lmguide.sources.rewards.gedi import PosteriorReward, Standing

if TYPE_CHECKING:
    from torch import Tensor


class MovingPosterior(PosteriorReward):
    """A `PosteriorReward` without drafts and beams whose rows can be taken out and joined between two tokens.

    What has been written becomes a part of the prompts at every step, so rows with answers of any length stand side by
    side: evidence and counts of tokens are kept for each row, and the cache is padded on the left.
    """

    @property
    def rows(self) -> int:
        """Rows of the loop that are served."""
        return self._batch

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._branch.rows.ids.device

    @property
    def width(self) -> int:
        """Tokens of the longest row, with its code."""
        return self._branch.rows.ids.shape[1]

    @property
    def copies(self) -> int:
        """Rows of the guide for each that is served: its codes."""
        return self._codes

    def advance(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Log-posteriors `[B, V]` behind new tokens `[B, n]`, which count as read from then on."""
        posterior = self.log_rewards(tokens, scores)
        new = tokens
        mask = torch.ones_like(tokens)
        if self._map is not None:
            new = self._map[tokens]
            mask = (new >= 0).long()
            new = new.clamp_min(0)
        rows = self._branch.rows
        ids = torch.cat([rows.ids, new.repeat(self._codes, 1)], 1)
        self._branch.rows = Rows(ids, torch.cat([rows.mask, mask.repeat(self._codes, 1)], 1))
        self._branch.consumed = 0
        self._known, self._step = {0: self._known[self._step]}, 0
        return posterior

    def keep(self, rows: Tensor) -> None:
        """Serve only these rows from now on; padding that none of them needs goes too."""
        standing, before = self._known[0], self._branch.rows
        evidence, count = standing.evidence[:, rows], standing.count[rows]
        self._known = {0: Standing(standing.here()[:, rows], None, evidence, count)}
        self._take(torch.cat([rows + code * self._batch for code in range(self._codes)]), before, len(rows))
        padding = int(self._branch.rows.mask.argmax(1).min())
        if padding and self._branch.cache is not None:
            caches.take(self._branch.cache, len(self._branch.rows.ids), padding)
            self._branch.rows = Rows(self._branch.rows.ids[:, padding:], self._branch.rows.mask[:, padding:])

    def joinable(self) -> bool:
        """Whether the guide's cache is one whose rows can be joined."""
        return caches.joinable(self._branch.cache)

    def join(self, other: MovingPosterior) -> None:
        """Serve the rows of another one of the same description too, behind its own; that one is used up."""
        mine, theirs = self._branch.cache, other._branch.cache
        assert mine is not None and theirs is not None
        one, two = self._known[0], other._known[0]
        self._known = {
            0: Standing(
                torch.cat([one.here(), two.here()], 1),
                None,
                torch.cat([one.evidence, two.evidence], 1),
                torch.cat([one.count, two.count]),
            )
        }
        caches.join(mine, [theirs], [self.width, other.width])
        width = max(self.width, other.width)
        parts = [
            torch.nn.functional.pad(part, (width - part.shape[1], 0))
            for rows in (self._branch.rows, other._branch.rows)
            for part in (rows.ids, rows.mask)
        ]
        below = self._codes * self._batch
        order = [
            torch.cat(
                [
                    torch.arange(self._batch) + code * self._batch,
                    torch.arange(other._batch) + below + code * other._batch,
                ]
            )
            for code in range(self._codes)
        ]
        joined = Rows(torch.cat([parts[0], parts[2]]), torch.cat([parts[1], parts[3]]))
        self._take(torch.cat(order).to(joined.ids.device), joined, self._batch + other._batch)

    def _take(self, order: Tensor, rows: Rows, batch: int) -> None:
        if self._branch.cache is not None:
            caches.expand(self._branch.cache, order)
        self._branch.rows = Rows(rows.ids[order], rows.mask[order])
        self._branch.batch = len(order)
        self._batch = batch
