"""Orders that commit as many positions as the schedule says, and choose the best by one number each."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from lmguide.checks import check_whole
from lmguide.diffusion.orders.base import ORDERS, Decisions, Moment, Order, check_step, highest

if TYPE_CHECKING:
    from torch import Tensor


class RankedOrder(Order):
    """The `quota` open positions with the highest score, leftmost first among equals."""

    @abstractmethod
    def score(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The score of each position, `[B, W]`."""

    def select(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The positions to commit, `[B, W]` bool."""
        return highest(self.score(decisions, moment), moment.open, moment.quota)


@ORDERS.register("low_confidence")
@dataclass(frozen=True)
class LowConfidenceOrder(RankedOrder):
    """The positions whose drawn token has the highest probability: `c_i = p_i(x_i)`.

    The name is LLaDA's (arXiv 2502.09992): what stays masked ("remasked") is where confidence is low. The probability
    is that of the law before temperature, at the token that was drawn with it.

    Example:
        >>> from lmguide.diffusion.orders import as_order
        >>> as_order("low_confidence")
        LowConfidenceOrder()
    """

    def score(self, decisions: Decisions, moment: Moment) -> Tensor:
        """Log-probability of the drawn token."""
        return decisions.log_prob


@ORDERS.register("random")
@dataclass(frozen=True)
class RandomOrder(RankedOrder):
    """Positions at random, uniformly: LLaDA's `random` (arXiv 2502.09992)."""

    def score(self, decisions: Decisions, moment: Moment) -> Tensor:
        """A uniform number."""
        return moment.uniform("order")


@ORDERS.register("margin")
@dataclass(frozen=True)
class MarginOrder(RankedOrder):
    """The positions where the likeliest token leads most: `c_i = p_(1) - p_(2)` (top-k margin, arXiv 2502.06768)."""

    @property
    def reads(self) -> frozenset[str]:
        """`"second"`."""
        return frozenset({"second"})

    def score(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The difference of the two largest probabilities."""
        return decisions.top.exp() - decisions.second.exp()


@ORDERS.register("entropy")
@dataclass(frozen=True)
class EntropyOrder(RankedOrder):
    """The positions of lowest entropy: `c_i = -H(p_i)`."""

    @property
    def reads(self) -> frozenset[str]:
        """`"entropy"`."""
        return frozenset({"entropy"})

    def score(self, decisions: Decisions, moment: Moment) -> Tensor:
        """Minus the entropy."""
        return -decisions.entropy


@ORDERS.register("fixed")
@dataclass(frozen=True)
class FixedOrder(RankedOrder):
    """A schedule that does not look at the model: how many at each step, and which of them.

    Args:
        counts: Tokens to commit at each step of a window, the last number for all further steps; None splits the
            window evenly over its steps, as LLaDA does. `(1,)` is one token per step.
        direction: `"left_to_right"` or `"right_to_left"` takes positions by their column, `"confidence"` by the
            probability of the drawn token as `LowConfidenceOrder` does.

    Raises:
        TypeError: `counts` is not a tuple of whole numbers.
        ValueError: `counts` is empty, negative, or ends with 0; an unknown direction.

    Example:
        >>> order = FixedOrder(counts=(1, 2, 4))
        >>> [order.quota(torch.tensor([9]), torch.tensor([9]), step, 8).item() for step in range(5)]
        [1, 2, 4, 4, 4]
    """

    counts: tuple[int, ...] | None = None
    direction: Literal["left_to_right", "right_to_left", "confidence"] = "left_to_right"

    def __post_init__(self) -> None:
        """Check counts and direction."""
        if self.direction not in {"left_to_right", "right_to_left", "confidence"}:
            raise ValueError(
                f"direction: expected 'left_to_right', 'right_to_left' or 'confidence', got {self.direction!r}. "
                "Use one of the three."
            )
        if self.counts is None:
            return
        if not isinstance(self.counts, tuple):
            raise TypeError(f"counts: expected a tuple of whole numbers or None, got {self.counts!r}. Write (1,).")
        for count in self.counts:
            check_whole("counts", count, "Give the number of tokens of each step.", least=0)
        if not self.counts or self.counts[-1] == 0:
            raise ValueError(
                f"counts: expected a last number of at least 1, got {self.counts!r}. It holds for all further steps."
            )

    def quota(self, initial: Tensor, left: Tensor, step: int, steps: int) -> Tensor:
        """The number of this step, at most `left`."""
        if self.counts is None:
            return super().quota(initial, left, step, steps)
        check_step(step, steps)
        return left.clamp_max(self.counts[min(step, len(self.counts) - 1)])

    def score(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The column, or the log-probability of the drawn token."""
        if self.direction == "confidence":
            return decisions.log_prob
        columns = torch.arange(moment.open.shape[1], device=moment.open.device, dtype=torch.float32)
        return (columns if self.direction == "right_to_left" else -columns).expand(moment.open.shape)
