"""The candidate set: which tokens a rule may touch, and the vectors and strengths that live on it.

Shared by the rules; it knows none of them.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from lmguide.measures import promote

Scale: TypeAlias = float | Tensor
"""A strength: one number, or a tensor that broadcasts to the leading shape of the first source."""

_MASKED = -1e9
"""Scores at or below this are masks: ``-inf``, or a number in its place such as ``finfo.min``, whose difference or
square would overflow. No log-prob of a model comes near it."""


def plausible(logp: Tensor, alpha: float) -> Tensor:
    """Tokens with at least α times the probability of the likeliest one: ``logp >= log α + max logp``.

    The plausibility constraint of Li et al. (arXiv 2210.15097); the same test as min-p.

    Args:
        logp: log-probs ``[..., V]``.
        alpha: α in [0, 1]; 0 keeps every token that is not ``-inf``.

    Returns:
        Booleans ``[..., V]``; the likeliest token is always kept.

    Raises:
        ValueError: ``alpha`` is outside [0, 1].

    Example:
        >>> plausible(torch.tensor([0.7, 0.2, 0.1]).log(), 0.2)
        tensor([ True,  True, False])
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"expected plausibility in [0, 1], got {alpha}. Use 0 to keep every token.")
    (logp,) = promote(logp)
    floor = (math.log(alpha) if alpha > 0 else -math.inf) + logp.amax(-1, keepdim=True)
    # Written so that NaN counts as plausible: a broken source must show in the result, not be cut away.
    return ~(logp < floor) & (logp != -math.inf)


def normalize(scores: Tensor) -> Tensor:
    """Log-softmax over the vocabulary that leaves a row of ``-inf`` as it is.

    Args:
        scores: scores ``[..., V]``.

    Returns:
        Log-probs ``[..., V]``; a row without any candidate stays ``-inf``, where a plain log-softmax gives NaN.

    Example:
        >>> normalize(torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf]]))
        tensor([[-0.6931, -0.6931],
                [   -inf,    -inf]])
    """
    (scores,) = promote(scores)
    empty = scores.amax(-1, keepdim=True) == -math.inf
    logp = scores.log_softmax(-1)
    # Filling takes a CPU twice as long as the softmax; other devices would wait for the look that spares it.
    return logp if scores.device.type == "cpu" and not empty.any() else logp.masked_fill(empty, -math.inf)


def broadcast(first: Tensor, *others: Tensor) -> list[Tensor]:
    """Promote the sources and check that the others broadcast to the first, so that the result has its shape."""
    promoted = promote(first, *others)
    for other in others:
        if not _fits(other.shape, first.shape):
            raise ValueError(
                f"expected every source to broadcast to the first, {list(first.shape)}, got {list(other.shape)}. "
                "Give each source the rows of the first one."
            )
    return promoted


def per_row(name: str, value: Scale, like: Tensor) -> Scale:
    """Check a strength and make it multiply ``[..., V]``."""
    if not isinstance(value, Tensor):
        check_finite(name, value)
        return value
    if not _fits(value.shape, like.shape[:-1]):
        raise ValueError(
            f"expected {name} to broadcast to {list(like.shape[:-1])}, got {list(value.shape)}. Give one entry per row."
        )
    return value.to(like).unsqueeze(-1)


def check_finite(name: str, value: float) -> None:
    """Refuse NaN and infinity."""
    if not math.isfinite(value):
        raise ValueError(f"expected a finite {name}, got {value}. Use a finite number.")


def masked(*sources: Tensor) -> Tensor:
    """Tokens masked by any source; NaN is not a mask, so that it shows in the result."""
    union = sources[0] <= _MASKED
    for source in sources[1:]:
        union = union | (source <= _MASKED)
    return union


def unmasked(*sources: Tensor) -> bool:
    """Whether no source masks a token, or is NaN."""
    return all(bool((source.amin(-1) > _MASKED).all()) for source in sources)


def unless_masked(score: Tensor, *sources: Tensor) -> Tensor:
    """``score``, but the first source itself where any source masks the token."""
    # Comparing and choosing take a CPU ten times as long as finding the lowest score, which is mostly no mask.
    if score.device.type == "cpu" and unmasked(*sources):
        return score
    return torch.where(masked(*sources), sources[0], score)


def centred(values: Tensor, off: Tensor) -> Tensor:
    """``values`` minus their mean over the tokens that are not ``off``; 0 where they are."""
    kept = values.masked_fill(off, 0.0)
    count = (~off).sum(-1, keepdim=True).clamp_min(1)
    return (kept - kept.sum(-1, keepdim=True) / count).masked_fill(off, 0.0)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner products ``[..., 1]`` of the rows."""
    return (x * y).sum(-1, keepdim=True)


def norm(x: Tensor) -> Tensor:
    """Euclidean lengths ``[..., 1]`` of the rows."""
    return dot(x, x).sqrt()


def tiny(like: Tensor) -> float:
    """Smallest normal number: a divisor that leaves 0 / 0 at 0."""
    return torch.finfo(like.dtype).tiny


def _fits(shape: torch.Size, target: torch.Size) -> bool:
    """Whether ``shape`` broadcasts to ``target`` without making it larger."""
    paired = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in {1, full} for size, full in paired)
