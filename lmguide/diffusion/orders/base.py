"""What every order is: which undecided positions of a window are committed at a step, and how many there should be.

Frozen descriptions over what is known of each position; they know no model, no canvas and no law over the vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lmguide.checks import check_whole
from lmguide.serialization import Registry

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Decisions:
    """What would be written at each position of a window, and how sure its law is. All `[B, W]`.

    Log-probabilities are in nats, of the guided law, or of the one after temperature and filters for orders that are
    `filtered`. Positions that nobody looked at hold -1, `-inf` and an entropy of `inf`; so do `top`, `second` and
    `entropy` everywhere where the order does not read them.

    Args:
        tokens: int64, the token that was drawn.
        log_prob: Its log-probability.
        top: The largest log-probability.
        second: The second largest.
        entropy: Entropy of the law in nats.
    """

    tokens: Tensor
    log_prob: Tensor
    top: Tensor
    second: Tensor
    entropy: Tensor

    def __post_init__(self) -> None:
        """Check that all have one shape."""
        shapes = {tuple(each.shape) for each in (self.tokens, self.log_prob, self.top, self.second, self.entropy)}
        if len(shapes) != 1:
            raise ValueError(f"tokens: expected the shape of every statistic, got {sorted(shapes)}. Give all [B, W].")


@dataclass(frozen=True)
class Moment:
    """Where a step stands.

    Args:
        open: `[B, W]` bool, the positions of the window that are undecided.
        quota: `[B]` int64, tokens the schedule wants committed at this step.
        steps_left: Steps left for this window, this one included.
        fraction: Share of the whole answer's steps that are done, in [0, 1).
        uniform: The noise of this step: the name of a stream to `[B, W]` float32 in (0, 1).
        step: Steps of this window that are done, so that it has `step + steps_left` in all.

    Raises:
        TypeError: A count of steps is no whole number.
        ValueError: Shapes that do not belong together, a count of steps out of its range.
    """

    open: Tensor
    quota: Tensor
    steps_left: int
    fraction: float
    uniform: Callable[[str], Tensor]
    step: int

    def __post_init__(self) -> None:
        """Check shapes and numbers."""
        if self.open.dim() != 2 or self.open.dtype != torch.bool or self.quota.shape != self.open.shape[:1]:
            raise ValueError(
                f"quota: expected [B] beside booleans [B, W] in open, got {list(self.quota.shape)} beside "
                f"{self.open.dtype} {list(self.open.shape)}. Give one number per row."
            )
        check_whole("steps_left", self.steps_left, "Count the present step too.", least=1)
        check_whole("step", self.step, "Count the steps of the window that are done.", least=0)

    @property
    def steps(self) -> int:
        """Steps of this window in all."""
        return self.step + self.steps_left


class Order(ABC):
    """Which positions are committed at a step. Subclasses are frozen dataclasses registered in `ORDERS`.

    Ties are broken by the column, leftmost first, so that the same numbers give the same answer on every device.

    Example:
        >>> from lmguide.diffusion.orders import LowConfidenceOrder
        >>> LowConfidenceOrder().quota(torch.tensor([7]), torch.tensor([7]), step=0, steps=3)
        tensor([3])
    """

    name: ClassVar[str]
    filtered: ClassVar[bool] = False
    """Whether it goes by the law after temperature, top-p and top-k, or by the one before."""

    @property
    def reads(self) -> frozenset[str]:
        """What it needs beside the probability of the drawn token: `"second"` (the two largest), `"entropy"`."""
        return frozenset()

    @property
    def scheduled(self) -> bool:
        """Whether it commits as many as the quota says; otherwise it decides itself and never commits none."""
        return True

    def quota(self, initial: Tensor, left: Tensor, step: int, steps: int) -> Tensor:
        """Tokens to commit at a step: LLaDA's even split, `initial // steps` and one more in the first steps.

        Args:
            initial: `[B]` int64, undecided positions of the window at its start.
            left: `[B]` int64, those that are left.
            step: The step of this window, from 0.
            steps: Steps of this window.

        Returns:
            `[B]` int64, at most `left`.

        Raises:
            TypeError: `step` or `steps` is no whole number.
            ValueError: `step` does not lie in `[0, steps)`.
        """
        check_step(step, steps)
        return torch.minimum(initial // steps + (step < initial % steps), left)

    @abstractmethod
    def select(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The positions to commit.

        Args:
            decisions: The candidates.
            moment: The step.

        Returns:
            `[B, W]` bool, a subset of `moment.open`.
        """


ORDERS: Registry[Order] = Registry("decoding order")


def check_step(step: int, steps: int) -> None:
    """Refuse a step that is not one of the window's.

    Raises:
        TypeError: Not whole numbers.
        ValueError: `step` does not lie in `[0, steps)`.
    """
    check_whole("steps", steps, "Give the number of steps of the window.", least=1)
    check_whole("step", step, "Count from 0.", least=0)
    if step >= steps:
        raise ValueError(f"step: expected a step below {steps}, got {step}. Commit what is left at the last step.")


def ranking(score: Tensor, eligible: Tensor) -> Tensor:
    """The columns of each row from the highest score to the lowest, those that are not eligible last.

    Args:
        score: `[B, W]`.
        eligible: `[B, W]` bool.

    Returns:
        `[B, W]` int64 column numbers; among equal scores the leftmost comes first.
    """
    # An eligible position may score -inf too: it still goes before those that are not.
    score = score.clamp_min(torch.finfo(score.dtype).min).masked_fill(~eligible, -torch.inf)
    return score.argsort(dim=1, descending=True, stable=True)


def first(ranked: Tensor, taken: Tensor, eligible: Tensor) -> Tensor:
    """The positions of a ranking that are taken.

    Args:
        ranked: `[B, W]` column numbers of `ranking`.
        taken: `[B, W]` bool by rank.
        eligible: `[B, W]` bool by column.

    Returns:
        `[B, W]` bool by column: taken and eligible.
    """
    return torch.zeros_like(eligible).scatter(1, ranked, taken) & eligible


def highest(score: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """The `count` eligible positions of each row with the highest scores, leftmost first among equals.

    Args:
        score: `[B, W]`.
        eligible: `[B, W]` bool.
        count: `[B]` or `[B, 1]` int64; all of a row if there are no more.

    Returns:
        `[B, W]` bool.

    Example:
        >>> score, eligible = torch.tensor([[0.1, 0.3, 0.3, 0.9]]), torch.tensor([[True, True, True, False]])
        >>> highest(score, eligible, torch.tensor([1]))
        tensor([[False,  True, False, False]])
    """
    ranks = torch.arange(score.shape[1], device=score.device)
    return first(ranking(score, eligible), ranks < count.view(-1, 1), eligible)
