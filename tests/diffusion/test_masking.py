"""Masks of a target: what they hide, and that estimates over them have the mean and the error they say."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch

from lmguide.diffusion.masking import MaskPlan, mask_plan
from tests.denoisers.models import MASK, VOCAB, denoiser_of
from tests.refusals import refused

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 6
DRAWS = 1500


@cache
def sums_of_masks() -> Tensor:
    """`sum_(l masked) log p(target_l | the rest)` of a small random model for every mask, by its bits, `[2^L]`."""
    generator = torch.Generator().manual_seed(0)
    context, target = torch.randint(4, VOCAB, (2, LENGTH), generator=generator)
    sums = torch.zeros(2**LENGTH, dtype=torch.float64)
    for bits in range(1, 2**LENGTH):
        masked = torch.tensor([bool(bits >> place & 1) for place in range(LENGTH)])
        canvas = torch.cat([context, target.masked_fill(masked, MASK)])[None]
        with torch.no_grad():
            log_probs = denoiser_of("llada")(canvas, start=LENGTH)[0].log_softmax(-1)
        sums[bits] = log_probs[torch.arange(LENGTH), target][masked].double().sum()
    return sums


def looked_up(plan: MaskPlan) -> Tensor:
    return sums_of_masks()[(plan.masks * 2 ** torch.arange(LENGTH)).sum(1)]


def expected() -> float:
    """The mean over uniform counts and uniform masks of so many tokens, written out."""
    total = 0.0
    for count in range(1, LENGTH + 1):
        hidden = list(itertools.combinations(range(LENGTH), count))
        sums = [float(sums_of_masks()[sum(2**place for place in places)]) for places in hidden]
        total += LENGTH / count * sum(sums) / len(sums) / LENGTH
    return total


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("antithetic", [False, True])
def test_where_all_masks_fit_each_is_taken_once(length: int, antithetic: bool) -> None:
    plan = mask_plan(length, 2**length - 1, antithetic=antithetic)
    assert plan.exact
    assert {tuple(row) for row in plan.masks.tolist()} == set(itertools.product([False, True], repeat=length)) - {
        (False,) * length
    }
    assert len(plan.masks) == 2**length - 1
    assert torch.equal(plan.standard_error(torch.randn(3, len(plan.masks))), torch.zeros(3).double())
    if length > 1:
        assert not mask_plan(length, 2**length - 2, antithetic=antithetic).exact


def test_the_exact_plan_is_the_mean() -> None:
    plan = mask_plan(LENGTH, 128)
    assert float(plan.estimate(looked_up(plan))) == pytest.approx(expected(), rel=1e-12)


@pytest.mark.parametrize(("length", "samples"), [(10, 1), (10, 7), (10, 10), (10, 64), (3, 5), (300, 128)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counts_are_spread_evenly(length: int, samples: int, seed: int) -> None:
    plan = mask_plan(length, samples, seed)
    counts = plan.counts
    assert plan.masks.shape == (samples, length)
    assert int(counts.min()) >= 1
    assert torch.equal(counts, plan.masks.sum(1))
    torch.testing.assert_close(plan.weights, length / (counts.double() * samples))
    every = counts.bincount(minlength=length + 1)[1:]
    assert every.max() - every.min() <= 1, "no count is used twice before the others once"
    gaps = counts.sort().values.diff()
    assert int(gaps.max() if len(gaps) else 0) <= math.ceil(length / samples)


def test_each_count_and_each_mask_is_as_likely_as_it_should_be() -> None:
    length, samples = 4, 5
    seen = torch.zeros(2**length, dtype=torch.float64)
    for seed in range(DRAWS):
        masks = mask_plan(length, samples, seed).masks
        seen.index_add_(0, (masks * 2 ** torch.arange(length)).sum(1), torch.ones(samples, dtype=torch.float64))
    seen /= DRAWS * samples
    for bits in range(1, 2**length):
        exact = 1 / (length * math.comb(length, bits.bit_count()))
        assert abs(float(seen[bits]) - exact) < 4 * math.sqrt(exact / (DRAWS * samples))
    assert seen[0] == 0


@pytest.mark.parametrize(("samples", "masks"), [(1, 3), (2, 3), (9, 9), (20, 21), (21, 21)])
def test_antithetic_masks_are_the_full_one_and_pairs(samples: int, masks: int) -> None:
    plan = mask_plan(LENGTH, samples, 3, antithetic=True)
    assert plan.masks.shape == (masks, LENGTH)
    assert plan.masks[0].all()
    assert torch.equal(plan.masks[1::2], ~plan.masks[2::2])
    assert not plan.masks[1:].all(1).any()
    # the weights are those of the mean: together each mask's (L / k) is seen with probability one
    assert float((plan.weights * plan.counts / LENGTH).sum()) == pytest.approx(1.0)


def test_two_tokens_are_exact_with_one_antithetic_pair() -> None:
    """Both masks of one token and the full one: all there are."""
    for seed in range(4):
        plan = mask_plan(2, 2, seed, antithetic=True)
        assert sorted(plan.masks.tolist()) == [[False, True], [True, False], [True, True]]
        torch.testing.assert_close(plan.weights, torch.full((3,), 0.5, dtype=torch.float64))


PLANS = [(16, False), (15, True), (48, False), (47, True)]
_drawn: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}


def drawn(samples: int, antithetic: bool) -> tuple[Tensor, Tensor]:
    """Estimates of the small model's score, and their errors, over many seeds."""
    if (samples, antithetic) not in _drawn:
        plans = [mask_plan(LENGTH, samples, seed, antithetic) for seed in range(DRAWS)]
        estimates = torch.stack([plan.estimate(looked_up(plan)) for plan in plans])
        errors = torch.stack([plan.standard_error(looked_up(plan)) for plan in plans])
        _drawn[samples, antithetic] = estimates, errors
    return _drawn[samples, antithetic]


@pytest.mark.parametrize(("samples", "antithetic"), PLANS)
def test_estimates_are_unbiased(samples: int, antithetic: bool) -> None:
    estimates, _ = drawn(samples, antithetic)
    assert abs(float(estimates.mean()) - expected()) < 4 * float(estimates.std()) / math.sqrt(DRAWS)


@pytest.mark.parametrize(("samples", "antithetic"), PLANS)
def test_the_standard_error_is_honest(samples: int, antithetic: bool) -> None:
    """It is the spread over seeds, and two of it hold the truth as often as they should, but for the heavy tails."""
    estimates, errors = drawn(samples, antithetic)
    assert float(errors.square().mean().sqrt() / estimates.std()) == pytest.approx(1.0, abs=0.1)
    inside = float((estimates - expected()).abs().le(2 * errors).double().mean())
    assert (0.83 if samples < 20 else 0.9) < inside < 0.97


def test_antithetic_pairs_and_stratified_counts_reduce_the_variance() -> None:
    plain, paired = (drawn(48, False)[0].var(), drawn(47, True)[0].var())
    assert paired < 0.7 * plain, "with one pass less"
    sums, generator = sums_of_masks(), torch.Generator().manual_seed(0)
    independent = []
    for _ in range(DRAWS):
        counts = torch.randint(1, LENGTH + 1, (48, 1), generator=generator)
        masks = torch.rand(48, LENGTH, generator=generator).argsort(1).argsort(1) < counts
        terms = sums[(masks * 2 ** torch.arange(LENGTH)).sum(1)] * LENGTH / counts[:, 0]
        independent.append(terms.mean())
    assert plain < 0.95 * torch.stack(independent).var()


def test_one_draw_cannot_tell_its_error() -> None:
    assert mask_plan(10, 1).standard_error(torch.zeros(2, 1)).isnan().all()
    assert mask_plan(10, 2, antithetic=True).standard_error(torch.zeros(2, 3)).isnan().all()


def test_masks_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = mask_plan(9, 20, 1), mask_plan(9, 20, 1), mask_plan(9, 20, 2)
    assert torch.equal(one.masks, same.masks)
    assert not torch.equal(one.masks, other.masks)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_numbers() -> None:
    for argument, arguments in (("length", (0, 1)), ("samples", (5, 0)), ("seed", (5, 1, -1))):
        with refused(argument):
            mask_plan(*arguments)
    with refused("samples", error=TypeError):
        mask_plan(5, 2.0)  # type: ignore[arg-type]
