"""Branches over rows that come and go, as the requests of a server do.

What has been written becomes a part of a branch's prompts, so that rows with answers of any length stand side by side,
padded on the left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmguide.sources import caches
from lmguide.sources.branch import Branch
from lmguide.sources.ids import Rows
from lmguide.sources.models import fitted
from lmguide.sources.roomy import ROOM

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def absorb(branch: Branch, tokens: Tensor, mask: Tensor | None = None) -> None:
    """Count tokens `[B, n]` that the branch has read as a part of its prompts from now on.

    Args:
        branch: A branch that has run on its prompts and these tokens.
        tokens: The tokens.
        mask: 0 on tokens that the model was not shown; `None` is none of them.
    """
    seen = torch.ones_like(tokens) if mask is None else mask
    branch.rows = Rows(torch.cat([branch.rows.ids, tokens], 1), torch.cat([branch.rows.mask, seen], 1))
    branch.consumed = 0


def select(branch: Branch, order: Tensor) -> None:
    """Keep some rows, in this order; padding that none of them needs goes too."""
    if branch.cache is not None:
        caches.expand(branch.cache, order)
    branch.rows = Rows(branch.rows.ids[order], branch.rows.mask[order])
    branch.batch = len(order)
    padding = int(branch.rows.mask.argmax(1).min())
    if padding and branch.cache is not None:
        caches.take(branch.cache, branch.batch, padding)
        branch.rows = Rows(branch.rows.ids[:, padding:], branch.rows.mask[:, padding:])


def join(branch: Branch, other: Branch) -> None:
    """Put the rows of another branch of the same model below those of `branch`; the other one is used up."""
    assert branch.cache is not None and other.cache is not None
    widths = [branch.rows.ids.shape[1], other.rows.ids.shape[1]]
    caches.join(branch.cache, [other.cache], widths)
    ids, mask = (
        torch.cat([torch.nn.functional.pad(part, (max(widths) - part.shape[1], 0)) for part in parts])
        for parts in ((branch.rows.ids, other.rows.ids), (branch.rows.mask, other.rows.mask))
    )
    branch.rows = Rows(ids, mask)
    branch.batch = len(ids)


class MovingLaw:
    """The next-token law of a model on rows that can be taken out and joined between two tokens.

    Args:
        model: The model.
        rows: What stands already, `[B, P]`.
        vocab_size: Width of the laws, V.

    Attributes:
        copies: Rows of the model for each that is served.
    """

    copies = 1

    def __init__(self, model: PreTrainedModel, rows: Rows, vocab_size: int) -> None:
        self._branch = Branch(model, rows, rows.ids.shape[0], room=ROOM)
        self._vocab_size = vocab_size
        self._law: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows that are served."""
        return self._branch.batch

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._branch.rows.ids.device

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return self._branch.rows.ids.shape[1]

    @torch.no_grad()
    def advance(self, tokens: Tensor) -> Tensor:
        """Log-probabilities `[B, V]` behind new tokens `[B, n]`, which count as read from then on."""
        if self._law is None or tokens.shape[1]:
            logits = self._branch.logits(tokens)[:, -1]
            self._law = fitted(logits, self._vocab_size).float().log_softmax(-1)
            absorb(self._branch, tokens)
        return self._law

    def keep(self, rows: Tensor) -> None:
        """Serve only these rows from now on."""
        select(self._branch, rows)
        self._law = None if self._law is None else self._law[rows]

    def joinable(self) -> bool:
        """Whether the model's cache is one whose rows can be joined."""
        return caches.joinable(self._branch.cache)

    def join(self, other: MovingLaw) -> None:
        """Serve the rows of another one of the same model too, behind its own; that one is used up."""
        assert self._law is not None and other._law is not None
        self._law = torch.cat([self._law, other._law])
        join(self._branch, other._branch)
