"""The logarithm of the Gamma law's distribution function, against arithmetic of 60 digits and its own laws."""

from __future__ import annotations

import math
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch

from lmguide.sources.rewards.budget_law import SMALL, log_gamma_cdf, log_within

mpmath.mp.dps = 60
SHAPES = (0.01, 0.5, 1.01, 2.0, 7.5, 20.0, 100.0, 999.0, 2e4, 1e6)
BELOW = (-3.0, -1.0, 0.0, 1.0, 4.0, 8.5, 9.5, 12.0, 40.0, 300.0)
"""Standard deviations by which the value is below the mean; the two ways to compute it meet at about 9."""


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def exact(shape: float, x: float) -> float:
    """`log P(shape, x)` by the power series of the lower incomplete gamma function."""
    a, z = mpmath.mpf(shape), mpmath.mpf(x)
    total = term = mpmath.mpf(1)
    place = 0
    while term > total * mpmath.mpf(10) ** -30:
        place += 1
        term *= z / (a + place)
        total += term
    return float(a * mpmath.log(z) - z - mpmath.loggamma(a + 1) + mpmath.log(total))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_right_in_the_bulk_and_far_out(shape: float) -> None:
    values = [value for value in (1 - below / math.sqrt(shape) for below in BELOW) if value > 0]
    values += [1e-3, 1e-6]
    found = log_gamma_cdf(double(*values), double(shape), double(shape))
    wanted = double(*(exact(shape, shape * value) for value in values))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_the_series_of_this_file_is_scipys_where_that_does_not_underflow() -> None:
    stats: Any = pytest.importorskip("scipy.stats")
    for shape, rate, value in ((3.0, 2.0, 1.7), (40.0, 12.0, 3.0), (500.0, 100.0, 3.5)):
        assert exact(shape, rate * value) == pytest.approx(stats.gamma(shape, scale=1 / rate).logcdf(value), abs=1e-9)


def test_both_ways_agree_where_they_meet() -> None:
    shape = torch.logspace(1.5, 5, 40, dtype=torch.float64)
    ratio = 1 - 9.2 / shape.sqrt()
    shape, ratio = shape[ratio > 0], ratio[ratio > 0]
    near = torch.special.gammainc(shape, shape * ratio)
    assert bool(((near > 1e-200) & (near < SMALL)).all()), "the fraction is used, and torch's own has not underflown"
    torch.testing.assert_close(log_gamma_cdf(ratio, shape, shape), near.log(), atol=1e-8, rtol=0)


def test_it_is_finite_where_the_probability_is_none() -> None:
    shape, rate = double(2000.0, 1e5), double(300.0, 1e4)
    assert not bool(torch.special.gammainc(shape, rate * math.log(2)).any())
    found = log_gamma_cdf(double(math.log(2)), shape, rate)
    assert bool(found.isfinite().all())
    assert bool((found < -1000).all())


def test_an_exponential_law_has_a_closed_form() -> None:
    value, rate = torch.linspace(0.01, 3, 20, dtype=torch.float64), double(2.5)
    torch.testing.assert_close(log_gamma_cdf(value, double(1.0), rate), (-torch.expm1(-rate * value)).log())


def test_float32_laws_lose_nothing_more() -> None:
    shape, rate = torch.tensor([5000.0]), torch.tensor([1250.0])
    found = log_gamma_cdf(torch.tensor([math.log(21)]), shape, rate)
    assert float(found) == pytest.approx(exact(5000.0, 1250.0 * float(torch.tensor(math.log(21)))), abs=1e-6)


def test_less_budget_never_favours_what_takes_longer() -> None:
    """With equal rates the laws are ordered by likelihood ratio, so `P_long / P_short` grows with the budget."""
    shape = torch.linspace(2.0, 60.0, 30)[None]
    budgets = torch.arange(1.0, 200.0)
    logs = log_within(budgets, shape.expand(len(budgets), -1), torch.full((len(budgets), 30), 9.0))
    assert bool((logs.diff(dim=0) >= 0).all()), "more budget, more chance"
    assert bool((logs.diff(dim=1) <= 0).all()), "longer, less chance"
    assert bool((logs.diff(dim=1).diff(dim=0) >= -1e-9).all())
    longest = (logs - logs.logsumexp(1, keepdim=True))[:, -1]
    assert bool((longest.diff() >= -1e-9).all())


def test_the_published_conditions() -> None:
    shape = torch.tensor([[1.0, 1.5, 30.0, 30.0, 30.0, 5.0]])
    rate = torch.tensor([[10.0, 10.0, 9.99, 10.0, 45.2, 10.0]])
    budget = torch.tensor([40.0])
    free = log_within(budget, shape, rate)
    assert bool(free.isfinite().all())
    assert log_within(budget, shape, rate, min_shape=1.0).isneginf().tolist() == [[True] + [False] * 5]
    assert log_within(budget, shape, rate, min_rate=10.0).isneginf()[0].nonzero()[:, 0].tolist() == [2]
    modes = ((shape - 1) / rate).exp() - 1
    assert (modes < 0.9).tolist() == [[True, True, False, False, True, True]]
    found = log_within(budget, shape, rate, 1.0, 10.0, 0.9)
    assert found.isneginf().tolist() == [[True, True, True, False, True, True]]
    torch.testing.assert_close(found[0, 3], free[0, 3])
