"""What would be written at each undecided position, and how sure the law is: the work that every step does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmguide import measures
from lmguide.diffusion.orders import Decisions
from lmguide.diffusion.sampling import draw, likeliest

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmguide.denoisers.guide import Law
    from lmguide.diffusion.noise import RowNoise

NOTHING_LEFT = (
    "constraint: expected a token that may be written at every position, got none at some: the constraint, "
    "suppress_tokens and what guidance excludes leave none, or the model's scores are NaN. Loosen them."
)


@dataclass(frozen=True)
class Sampler:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Smallest set of tokens with this much probability; `None` is all.
        top_k: So many likeliest tokens; `None` is all.
        suppressed: Tokens that are never written, beside the mask token.
        mask_token_id: The mask token, if there is one.
        noise: Noise by row, step and column.
        allowed: Further limits: rows and columns `[n]` to booleans `[n, V]`; `None` is none.
    """

    temperature: float
    top_p: float | None
    top_k: int | None
    suppressed: Tensor
    mask_token_id: int | None
    noise: RowNoise
    allowed: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def cuts(self) -> bool:
        """Whether top-p or top-k cut tokens off."""
        return self.top_p not in {None, 1} or bool(self.top_k)

    @property
    def filters(self) -> bool:
        """Whether tokens come from another law than the one before temperature."""
        return self.temperature > 0 or self.cuts


def decide(
    law: Law, wanted: Tensor, start: int, step: int, sampler: Sampler, filtered: bool, reads: frozenset[str]
) -> Decisions:
    """A token for every wanted position, and what orders go by.

    The mask token is never drawn. It keeps its share of the law; where it is the likeliest token the position counts as
    unsure as can be.

    Args:
        law: The guided laws of the step.
        wanted: Positions to decide, `[B, W]`.
        start: Column of the first of them.
        step: Number of the step, for the noise.
        sampler: How tokens are drawn.
        filtered: Statistics of the law after temperature and filters in the place of the one before.
        reads: Which of `second` and `entropy` are asked for.

    Raises:
        ValueError: No token is left to be written at some position.
    """
    shape, device = wanted.shape, wanted.device
    tokens = torch.full(shape, -1, dtype=torch.long, device=device)
    log_prob, top, second = (torch.full(shape, -torch.inf, device=device) for _ in range(3))
    entropy = torch.full(shape, torch.inf, device=device)
    for part in law.chunks(wanted.nonzero()):
        rows, places = part.unbind(1)
        columns = places + start
        scores = _limited(law.at(rows, columns)[0], rows, columns, sampler)
        mask_share = None
        if not sampler.filters or not filtered:
            top[rows, places], second[rows, places], entropy[rows, places] = _spread(scores, reads, sampler)
        if sampler.mask_token_id is not None:
            mask_share = scores[:, sampler.mask_token_id].exp()
            scores[:, sampler.mask_token_id] = -torch.inf  # from here on for the draw alone
        if sampler.filters:
            gumbel = None
            if sampler.temperature > 0:
                gumbel = sampler.noise.gumbel(rows, columns, step, scores.shape[-1])
            drawn, after = draw(scores, sampler.temperature, sampler.top_p, sampler.top_k, gumbel)
            if filtered:
                scores = after if mask_share is None else after + (-mask_share).log1p()[:, None]
                top[rows, places], second[rows, places], entropy[rows, places] = _spread(scores, reads, sampler)
        else:
            drawn = likeliest(scores)
        tokens[rows, places] = drawn
        log_prob[rows, places] = scores.gather(-1, drawn[:, None])[:, 0]
    if not bool((log_prob.isfinite() | ~wanted).all()):
        raise ValueError(NOTHING_LEFT)
    return Decisions(tokens, log_prob, top, second, entropy)


def _spread(logp: Tensor, reads: frozenset[str], sampler: Sampler) -> tuple[Tensor, Tensor, Tensor]:
    """The two largest log-probabilities and the entropy, as far as they are asked for.

    Where the mask token is the likeliest the model is as unsure as can be: no gap, and the entropy of knowing nothing.
    """
    top = second = logp.new_full(logp.shape[:1], -torch.inf)
    entropy = torch.full_like(top, torch.inf)
    if not reads:
        return top, second, entropy
    best = logp.topk(min(2, logp.shape[-1]), -1)
    if "second" in reads:
        top, second = best.values[:, 0], best.values[:, -1]
    if "entropy" in reads:
        entropy = measures.entropy(logp)
    if sampler.mask_token_id is not None:
        masked = best.indices[:, 0] == sampler.mask_token_id
        top = torch.where(masked, second, top)
        entropy = entropy.masked_fill(masked, math.log(logp.shape[-1]))
    return top, second, entropy


def _limited(scores: Tensor, rows: Tensor, columns: Tensor, sampler: Sampler) -> Tensor:
    if sampler.suppressed.numel():
        scores = scores.index_fill(-1, sampler.suppressed, -torch.inf).log_softmax(-1)
    if sampler.allowed is None:
        return scores
    return scores.masked_fill(~sampler.allowed(rows, columns), -torch.inf).log_softmax(-1)
