"""The posterior of a class over rows that come and go, as the requests of a server do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmguide.sources import caches, moving
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

    def advance(self, tokens: Tensor) -> Tensor:
        """Log-posteriors `[B, V]` behind new tokens `[B, n]`, which count as read from then on."""
        posterior = self.log_rewards(tokens, torch.empty(0))
        new, mask = tokens, None
        if self._map is not None:
            new = self._map[tokens]
            mask = (new >= 0).long().repeat(self._codes, 1)
            new = new.clamp_min(0)
        moving.absorb(self._branch, new.repeat(self._codes, 1), mask)
        self._known, self._step = {0: self._known[self._step]}, 0
        return posterior

    def keep(self, rows: Tensor) -> None:
        """Serve only these rows from now on."""
        standing = self._known[0]
        evidence, count = standing.evidence[:, rows], standing.count[rows]
        self._known = {0: Standing(standing.here()[:, rows], None, evidence, count)}
        moving.select(self._branch, torch.cat([rows + code * self._batch for code in range(self._codes)]))
        self._batch = len(rows)

    def joinable(self) -> bool:
        """Whether the guide's cache is one whose rows can be joined."""
        return caches.joinable(self._branch.cache)

    def join(self, other: MovingPosterior) -> None:
        """Serve the rows of another one of the same description too, behind its own; that one is used up."""
        one, two = self._known[0], other._known[0]
        self._known = {
            0: Standing(
                torch.cat([one.here(), two.here()], 1),
                None,
                torch.cat([one.evidence, two.evidence], 1),
                torch.cat([one.count, two.count]),
            )
        }
        mine, theirs = torch.arange(self._batch), torch.arange(other._batch) + self._codes * self._batch
        order = [
            part for code in range(self._codes) for part in (mine + code * self._batch, theirs + code * other._batch)
        ]
        moving.join(self._branch, other._branch)
        moving.select(self._branch, torch.cat(order).to(self.device))
        self._batch += other._batch
