"""Orders that decide themselves how many positions are sure enough to be committed together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from lmguide.checks import check_number
from lmguide.diffusion.orders.base import ORDERS, Decisions, Moment, Order, first, highest, ranking

if TYPE_CHECKING:
    from torch import Tensor


@ORDERS.register("threshold")
@dataclass(frozen=True)
class ThresholdOrder(Order):
    """All positions whose drawn token is probable enough: `p_i(x_i) >= threshold`, and some in any case.

    With `at_least="one"` this is Fast-dLLM's rule (arXiv 2505.22618): where none reaches the threshold, the best one.
    With `"quota"` it is SDAR's `low_confidence_dynamic` (arXiv 2510.06303) and LLaDA2's: where fewer than the
    schedule's number reach it, the schedule's number of the best. Their code wants more than the threshold, Fast-dLLM's
    at least the threshold, which is done here for both.

    Guidance makes laws sharper, so that more positions reach a threshold that was tuned without it.

    Args:
        threshold: Probability in [0, 1]; Fast-dLLM uses 0.9, SDAR 0.85, LLaDA2 0.95.
        at_least: `"one"` or `"quota"`.

    Raises:
        TypeError: `threshold` is no number.
        ValueError: `threshold` is outside [0, 1]; an unknown `at_least`.

    Example:
        >>> from lmguide.diffusion.orders import as_order
        >>> as_order("threshold:threshold=0.85,at_least=quota")
        ThresholdOrder(threshold=0.85, at_least='quota')
    """

    threshold: float = 0.9
    at_least: Literal["one", "quota"] = "one"

    def __post_init__(self) -> None:
        """Check the threshold and what is committed at least."""
        check_number("threshold", self.threshold, "Give a probability, 0.9 for example.", least=0, most=1)
        if self.at_least not in {"one", "quota"}:
            raise ValueError(f"at_least: expected 'one' or 'quota', got {self.at_least!r}. Use one of the two.")

    @property
    def scheduled(self) -> bool:
        """Whether the quota is what is committed at least."""
        return self.at_least == "quota"

    def select(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The positions to commit, `[B, W]` bool."""
        sure = moment.open & (decisions.log_prob.exp() >= self.threshold)
        floor = moment.quota if self.scheduled else torch.ones_like(moment.quota)
        # The best of the row come first among those that are sure, so the union is the larger of the two sets.
        return sure | highest(decisions.log_prob, moment.open, floor)


@ORDERS.register("factor")
@dataclass(frozen=True)
class FactorOrder(Order):
    """The most confident positions, as many as bear it together: the largest `n` with `(n + 1)(1 - c_(n)) < factor`.

    `c_(n)` is the n-th largest probability of a drawn token among the open positions of the row; at least one is
    committed. Theorem 1 of Fast-dLLM (arXiv 2505.22618): with `factor` 1 the most probable tokens by position are then
    the most probable ones jointly. Its code tests `<=`, and commits one more where only the last position fails.

    Args:
        factor: Above 0; larger commits more. Fast-dLLM uses 1.

    Raises:
        TypeError: `factor` is no number.
        ValueError: `factor` is not above 0.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        """Check the factor."""
        check_number("factor", self.factor, "Use 1, or a smaller number to commit less at a time.", above=0)

    @property
    def scheduled(self) -> bool:
        """False."""
        return False

    def select(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The positions to commit, `[B, W]` bool."""
        ranked = ranking(decisions.log_prob, moment.open)
        n = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
        # 1 - c from the log-probability: near 1 the difference itself has lost its digits. It grows with n, and so does
        # the product, so those that pass are the first ones.
        passes = (n + 1) * -torch.expm1(decisions.log_prob.gather(1, ranked)) < self.factor
        return first(ranked, passes | (n == 1), moment.open)


@ORDERS.register("entropy_bound")
@dataclass(frozen=True)
class EntropyBoundOrder(Order):
    """The positions of lowest entropy, as many as bear it together: `Σ H - max H <= bound` over the set.

    The EB-Sampler (arXiv 2505.24857) and the sampler of DiffusionGemma: the left side bounds what is lost by drawing
    the tokens independently of each other. One position is committed in any case, since its left side is 0.

    Guidance lowers entropies, so that a bound that was tuned without it admits more.

    Args:
        bound: Nats, at least 0. DiffusionGemma uses 0.1.

    Raises:
        TypeError: `bound` is no number.
        ValueError: `bound` is negative.
    """

    bound: float = 0.1

    def __post_init__(self) -> None:
        """Check the bound."""
        check_number("bound", self.bound, "Give an entropy in nats, 0.1 for example.", least=0)

    @property
    def reads(self) -> frozenset[str]:
        """`"entropy"`."""
        return frozenset({"entropy"})

    @property
    def scheduled(self) -> bool:
        """False."""
        return False

    def select(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The positions to commit, `[B, W]` bool."""
        ranked = ranking(-decisions.entropy, moment.open)
        # By rising entropy the largest of a set is its last one, so the sum without it is that of those before.
        entropy = decisions.entropy.gather(1, ranked)
        before = torch.cat([torch.zeros_like(entropy[:, :1]), entropy[:, :-1].cumsum(1)], 1)
        return first(ranked, before <= self.bound, moment.open)
