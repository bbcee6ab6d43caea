"""Which tokens of a target to mask, and what each mask weighs: the Monte-Carlo part of a likelihood.

Numbers only. It knows no model and no guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from lmguide.checks import check_whole

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MaskPlan:
    """Masks of a target of `L` tokens and their weights.

    With `s_m` the sum of the log-probabilities of the tokens that mask `m` hides, given those that it leaves,
    `sum_m weight_m s_m` estimates the mean of `(L / k) s` over `k` uniform in `1..L` and masks of `k` tokens.

    Attributes:
        masks: What each mask hides, `[S, L]` booleans.
        weights: `[S]`, float64.
        exact: Every mask there is, each with its probability: the mean itself.
        paired: Masks but the first one, which hides all, stand in pairs of complements.

    Example:
        >>> plan = mask_plan(2, samples=128)
        >>> plan.masks.tolist(), plan.weights.tolist(), plan.exact
        ([[True, False], [False, True], [True, True]], [0.5, 0.5, 0.5], True)
    """

    masks: Tensor
    weights: Tensor
    exact: bool = False
    paired: bool = False

    @cached_property
    def counts(self) -> Tensor:
        """Tokens that each mask hides, `[S]`."""
        return self.masks.sum(1)

    def estimate(self, sums: Tensor) -> Tensor:
        """`sum_m weight_m s_m`.

        Args:
            sums: `[..., S]`.

        Returns:
            `[...]`, float64.
        """
        return (sums.double() * self.weights.to(sums.device)).sum(-1)

    def standard_error(self, sums: Tensor) -> Tensor:
        """The Monte-Carlo standard error of `estimate`, from the same numbers.

        Counts are spread evenly and not drawn one by one, so the spread of all terms would say too much. In order of
        their counts, the differences of neighbours hold little but the noise of the masks: `sum (y_i+1 - y_i)^2 / (2 n
        (n - 1))`, the usual variance of a systematic sample.

        Args:
            sums: `[..., S]`.

        Returns:
            `[...]`, float64: 0 where every mask was taken, NaN where a single draw cannot tell.
        """
        if self.exact:
            return torch.zeros(sums.shape[:-1], dtype=torch.float64, device=sums.device)
        counts = self.counts
        terms = sums.double() * self.weights.to(sums.device)
        if self.paired:
            terms = terms[..., 1::2] + terms[..., 2::2]
            counts = torch.minimum(counts[1::2], counts[2::2])
        count = terms.shape[-1]
        terms = terms * count  # the estimate, or its random part, is their mean
        if count < 2:
            return torch.full(sums.shape[:-1], torch.nan, dtype=torch.float64, device=sums.device)
        steps = terms[..., counts.argsort(stable=True).to(sums.device)].diff(dim=-1)
        return (steps.square().sum(-1) / (2 * count * (count - 1))).sqrt()


def mask_plan(length: int, samples: int, seed: int = 0, antithetic: bool = False) -> MaskPlan:
    """Masks of a target, the same for every target of that length.

    Counts are stratified as in LLaDA (2502.09992): the first is uniform in `1..L`, the others follow evenly spaced
    modulo `L`; exactly so many tokens are hidden. Where `samples` are enough for all `2^L - 1` masks, each is taken
    once and nothing is random: a target of one token is one mask.

    Args:
        length: `L`, at least 1.
        samples: Masks, at least 1. Antithetic ones come in pairs beside the one that hides everything, so an even
            number of them gives one more.
        seed: Of the draws, which never touch torch's global generator.
        antithetic: Draw masks together with their complements. The mask that hides everything, which has no
            complement, is then taken once with its probability `1 / L`, and the counts of the others are in `1..L-1`.

    Raises:
        ValueError: A number out of range.
        TypeError: A number that is not whole.
    """
    check_whole("length", length, "Give the number of target tokens.", least=1)
    check_whole("samples", samples, "LLaDA uses 128, and 1 for answers of one token.", least=1)
    check_whole("seed", seed, "Give a seed of the masks.", least=0)
    if length <= samples.bit_length() and 2**length - 1 <= samples:
        masks = (torch.arange(1, 2**length)[:, None] >> torch.arange(length)) & 1
        counts = masks.sum(1)
        weights = [1 / (count * math.comb(length, count)) for count in counts.tolist()]
        return MaskPlan(masks.bool(), torch.tensor(weights, dtype=torch.float64), exact=True)
    generator = torch.Generator().manual_seed(seed)
    if not antithetic:
        counts = _spread(length, samples, generator)
        masks = _hidden(counts, length, generator)
        return MaskPlan(masks, length / (counts.double() * samples))
    pairs = max(1, samples // 2)
    counts = _spread(length - 1, pairs, generator)
    halves = _hidden(counts, length, generator)
    both = torch.stack([halves, ~halves], 1).flatten(0, 1)
    of_pairs = (length - 1) / (2 * pairs * both.sum(1).double())
    masks = torch.cat([torch.ones(1, length, dtype=torch.bool), both])
    return MaskPlan(masks, torch.cat([torch.tensor([1 / length], dtype=torch.float64), of_pairs]), paired=True)


def _spread(most: int, samples: int, generator: torch.Generator) -> Tensor:
    """Counts in `1..most`, evenly spaced from a uniform first one, `[S]`."""
    first = torch.randint(most, (1,), generator=generator)
    return (first + torch.arange(samples) * most // samples) % most + 1


def _hidden(counts: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """For each count a uniformly drawn mask that hides so many tokens, `[S, L]`."""
    order = torch.rand(len(counts), length, generator=generator, dtype=torch.float64).argsort(1)
    return order.argsort(1) < counts[:, None]
