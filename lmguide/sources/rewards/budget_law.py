"""The arithmetic of budgets: the logarithm of the Gamma law's distribution function, and which laws count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 1e-20
"""Below it the distribution function is taken from its continued fraction, which by then has converged."""

LEVELS = 24
"""Of the continued fraction. Where the function is below `SMALL` they leave an error of 1e-11 in the logarithm."""


def log_gamma_cdf(value: Tensor, shape: Tensor, rate: Tensor) -> Tensor:
    """`log P(Y <= value)` of a Gamma law, also where the probability itself is 0 in floating point.

    With `x = rate * value` it is the logarithm of the regularised lower incomplete gamma function `P(shape, x)`. In
    the far tail `log P = shape log x - x - log Gamma(shape) - log f` with the continued fraction (DLMF 8.9.1)

        f = a - a x / (a + 1 + x / (a + 2 - (a + 1) x / (a + 3 + 2 x / (a + 4 - ...)))),   a = shape

    Args:
        value: Above 0, `[...]`.
        shape: Above 0, `[...]`.
        rate: Above 0, `[...]`.

    Returns:
        Log-probabilities, float64: right to 1e-6 for shapes up to 1e6.

    Example:
        >>> log_gamma_cdf(torch.tensor(1.0), torch.tensor([1.0, 2000.0]), torch.tensor([1.0, 3.0]))
        tensor([-4.5868e-01, -1.1012e+04], dtype=torch.float64)
    """
    shape, x = torch.broadcast_tensors(shape.double(), rate.double() * value.double())
    probability = torch.special.gammainc(shape, x)
    result: Tensor = probability.log()
    far = probability < SMALL
    if bool(far.any()):
        result[far] = _tail(shape[far], x[far])
    return result


def _tail(a: Tensor, x: Tensor) -> Tensor:
    fraction = a + LEVELS
    for level in range(LEVELS, 0, -1):
        numerator = -(a + level // 2) * x if level % 2 else level // 2 * x
        fraction = a + (level - 1) + numerator / fraction
    result: Tensor = a * x.log() - x - torch.lgamma(a) - fraction.log()
    return result


def log_within(
    budget: Tensor,
    shape: Tensor,
    rate: Tensor,
    min_shape: float | None = None,
    min_rate: float | None = None,
    min_remaining: float | None = None,
    only: Tensor | None = None,
) -> Tensor:
    """`log P(remaining tokens <= budget)` where `log(remaining + 1)` has a Gamma law.

    The modulation of Budget Guidance (2506.13752) with its conditions: minus infinity where `shape <= min_shape`,
    `rate < min_rate` or `exp((shape - 1) / rate) - 1 < min_remaining`. The last is the mode of the law, which the
    published code calls its expectation.

    Args:
        budget: Tokens, at least 1, `[...]`.
        shape: Above 0, `[..., V]`.
        rate: Above 0, `[..., V]`.
        min_shape: `None` is no condition.
        min_rate: Likewise.
        min_remaining: Likewise.
        only: Where the answer matters, booleans `[..., V]`; it is minus infinity elsewhere. `None` is everywhere.

    Returns:
        Log-probabilities `[..., V]`, float64.

    Example:
        >>> found = log_within(torch.tensor(50.0), torch.tensor([40.0, 40.0]), torch.tensor([12.0, 8.0]), min_rate=10.0)
        >>> found.exp()
        tensor([0.8699, 0.0000], dtype=torch.float64)
    """
    counts = torch.ones_like(shape, dtype=torch.bool) if only is None else only.clone()
    if min_shape is not None:
        counts &= shape > min_shape
    if min_rate is not None:
        counts &= rate >= min_rate
    if min_remaining is not None:
        counts &= ((shape.double() - 1) / rate.double()).expm1() >= min_remaining
    result = torch.full_like(shape, -torch.inf, dtype=torch.float64)
    value = budget.double().log1p()[..., None].expand(shape.shape)
    result[counts] = log_gamma_cdf(value[counts], shape[counts], rate[counts])
    return result
