"""A masked-diffusion sampler to be read by eye: one canvas after another, no cache, no batch of branches.

It shares no code with the library: what the shipped models are worth is measured with it.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

Contrast = Literal["prompt", "adaptive"]
REMASK_RATIO = Fraction(7, 10)
"""ρ, exactly: 0.7 · 10 in floating point may be more than seven."""


@torch.no_grad()
def decode(
    model: Any,
    prompts: Tensor,
    length: int,
    *,
    mask: int,
    steps: int,
    scale: float = 1.0,
    contrast: Contrast = "prompt",
    order: Literal["random", "confidence"],
    seed: int,
) -> Tensor:
    """Answers of `length` tokens to prompts `[B, P]`, drawn at temperature 1; `[B, length]`.

    Every step draws a token for each masked position and keeps `length / steps` of them: anywhere, or those of the
    highest probability.
    """
    noise = torch.Generator().manual_seed(seed)
    canvas = torch.cat([prompts, torch.full((len(prompts), length), mask)], dim=1)
    for count in (length // steps + (step < length % steps) for step in range(steps)):
        law = model(canvas).logits.float().log_softmax(-1)
        if scale != 1.0:
            other = (
                masked_prompt(canvas, prompts.shape[1], mask) if contrast == "prompt" else remasked(canvas, law, mask)
            )
            null = model(other).logits.float().log_softmax(-1)
            law = (null + scale * (law - null)).log_softmax(-1)
        drawn = (law - torch.empty_like(law).exponential_(generator=noise).log()).argmax(-1)
        rank = law.gather(-1, drawn[..., None])[..., 0]
        if order == "random":
            rank = torch.rand(canvas.shape, generator=noise)
        chosen = rank.masked_fill(canvas != mask, -torch.inf).topk(count, dim=-1).indices
        canvas.scatter_(1, chosen, drawn.gather(1, chosen))
    assert not (canvas == mask).any()
    return canvas[:, prompts.shape[1] :]


def masked_prompt(canvas: Tensor, prompt_length: int, mask: int) -> Tensor:
    """The canvas with the whole prompt masked (LLaDA)."""
    other = canvas.clone()
    other[:, :prompt_length] = mask
    return other


def remasked(canvas: Tensor, law: Tensor, mask: int) -> Tensor:
    """The canvas with the least sure tokens masked again: Algorithm 1 of A-CFG (arXiv 2505.20199).

    All tokens that are no masks are candidates, the prompt's too; ⌈ρ · number⌉ of those with the lowest maximal
    probability are masked.
    """
    other = canvas.clone()
    for row, confidence in enumerate(law.max(-1).values.tolist()):
        candidates = [column for column, token in enumerate(canvas[row].tolist()) if token != mask]
        candidates.sort(key=confidence.__getitem__)
        other[row, candidates[: math.ceil(REMASK_RATIO * len(candidates))]] = mask
    return other
