"""The canvas a model denoises, and the canvases that guidance contrasts it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Canvas:
    """A batch of canvases at one moment.

    Attributes:
        ids: Tokens, `[B, L]`, int64; undecided positions hold the mask token, or noise where a model knows no mask.
        attention_mask: 1 on tokens, masks included, and 0 on padding, `[B, L]`, int64.
        given: Tokens the user gave, `[B, L]`; they never change.
        undecided: Positions that are still to be committed, `[B, L]`.
        mask_token_id: The mask token; `None` where undecided positions hold noise.
    """

    ids: Tensor
    attention_mask: Tensor
    given: Tensor
    undecided: Tensor
    mask_token_id: int | None

    @property
    def committed(self) -> Tensor:
        """Tokens the decoder has written so far, `[B, L]`."""
        return self.attention_mask.bool() & ~self.given & ~self.undecided


def mask_prompt(canvas: Canvas, ids: Tensor, mask_token_id: int) -> Tensor:
    """The tokens `ids` `[B, L]` with every given one masked (LLaDA, 2502.09992; D-CFG, 2412.10193)."""
    return ids.masked_fill(canvas.given, mask_token_id)


def remask(ids: Tensor, candidates: Tensor, confidence: Tensor, ratio: float, mask_token_id: int) -> Tensor:
    """A canvas with the least confident candidates of each row masked, `[B, L]`: A-CFG, 2505.20199, Algorithm 1.

    Args:
        ids: The canvas, `[B, L]`.
        candidates: Positions that may be masked, `[B, L]`.
        confidence: What is low where the model is unsure, `[B, L]`; equal values go from left to right.
        ratio: Share of a row's candidates that are masked, rounded up.
        mask_token_id: The mask token.

    Example:
        >>> ids, confidence = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0.9, 0.2, 0.8, 0.1]])
        >>> remask(ids, torch.tensor([[True, True, True, False]]), confidence, 0.5, mask_token_id=0)
        tensor([[5, 0, 0, 8]])
    """
    return ids.masked_fill(least_confident(candidates, confidence, ratio), mask_token_id)


def least_confident(candidates: Tensor, confidence: Tensor, ratio: float) -> Tensor:
    """The `ceil(ratio |C|)` candidates of each row with the lowest confidence, `[B, L]`; arguments as in `remask`."""
    # 0.7 * 30 is 21.000000000000004 in binary: what a rounding error adds is not another token
    count = (candidates.sum(-1, keepdim=True).double() * ratio - 1e-9).ceil()
    order = confidence.masked_fill(~candidates, torch.inf).argsort(dim=-1, stable=True)
    return (order.argsort(dim=-1) < count) & candidates
