"""Early commits: rows that are sure enough to have all their open positions committed at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lmguide.checks import check_number
from lmguide.diffusion.descriptions import described
from lmguide.serialization import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmguide.diffusion.orders.base import Decisions, Moment

_PHASES = (0.33, 0.67)
"""Progress at which Prophet passes from its first threshold to the second, and to the third."""


class EarlyCommit(ABC):
    """When a row is done before its steps are. Subclasses are frozen dataclasses registered in `EARLY_COMMITS`."""

    name: ClassVar[str]

    @property
    def reads(self) -> frozenset[str]:
        """What it needs beside the probability of the drawn token, as `Order.reads`."""
        return frozenset()

    @abstractmethod
    def commits(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The rows to commit.

        Args:
            decisions: The candidates.
            moment: The step.

        Returns:
            `[B]` bool; false for rows without open positions.
        """


EARLY_COMMITS: Registry[EarlyCommit] = Registry("rule of early commit")


@EARLY_COMMITS.register("prophet")
@dataclass(frozen=True)
class Prophet(EarlyCommit):
    """Prophet (arXiv 2508.19982): commit a row once `mean (ℓ_(1) - ℓ_(2)) >= threshold · scale`.

    The mean is over the open positions of the window. `ℓ_(1) - ℓ_(2)` is the gap between the two largest logits, which
    is that between the two largest log-probabilities, since the normaliser cancels. The threshold falls with the
    progress of the answer: the first up to 0.33, the second up to 0.67, then the third. Prophet's own code takes the
    mean over the span where it expects the answer to a question, which a general decoder does not know.

    The gap is one of guided laws. Linear guidance with scale γ makes a gap `g_u + γ (g_c - g_u)` of the gaps of its
    sources, so that it grows about as γ does, and thresholds tuned without guidance commit too soon. Set `scale` to γ
    to make up for it.

    Positions with one possible token have no gap and are left out of the mean.

    Args:
        thresholds: Three gaps in nats, at least 0: early, middle, late.
        scale: Factor of the thresholds, above 0.

    Raises:
        TypeError: A threshold or the scale is no number, or the thresholds are no tuple.
        ValueError: Not three thresholds, or a number out of its range.

    Example:
        >>> as_early_commit("prophet:scale=1.5")
        Prophet(thresholds=(7.5, 5.0, 2.5), scale=1.5)
    """

    thresholds: tuple[float, float, float] = (7.5, 5.0, 2.5)
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not isinstance(self.thresholds, tuple):
            raise TypeError(
                f"thresholds: expected a tuple of three gaps, got {self.thresholds!r}. Write (7.5, 5.0, 2.5)."
            )
        if len(self.thresholds) != 3:
            raise ValueError(
                f"thresholds: expected three gaps, for early, middle and late, got {self.thresholds!r}. "
                "Repeat a number to use it twice."
            )
        for threshold in self.thresholds:
            check_number("thresholds", threshold, "Give gaps in nats, (7.5, 5.0, 2.5) for example.", least=0)
        check_number("scale", self.scale, "Use the guidance scale, or 1 without guidance.", above=0)

    @property
    def reads(self) -> frozenset[str]:
        """`"second"`."""
        return frozenset({"second"})

    def commits(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The rows whose mean gap reaches the threshold, `[B]` bool."""
        threshold = self.thresholds[sum(moment.fraction >= phase for phase in _PHASES)]
        counted = moment.open & (decisions.second > -torch.inf)
        gap = torch.where(counted, decisions.top - decisions.second, 0.0).sum(1)
        # Compared as a sum, so that a row in which nothing is left to choose is committed.
        return (gap >= threshold * self.scale * counted.sum(1)) & moment.open.any(1)


def as_early_commit(early_commit: EarlyCommit | str | Mapping[str, Any]) -> EarlyCommit:
    """An early commit from itself, a string such as `prophet:scale=1.5`, a JSON object, or a dictionary.

    Raises:
        TypeError: None of these.
        ValueError: A broken string, or an unknown name, key or value, with the nearest known one.

    Example:
        >>> as_early_commit("prophet")
        Prophet(thresholds=(7.5, 5.0, 2.5), scale=1.0)
    """
    return described(early_commit, EarlyCommit, EARLY_COMMITS, "early_commit", "prophet:scale=1.5")  # type: ignore[type-abstract]
