"""Budgets: tokens are re-weighted by the chance that what they begin keeps a length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lmguide.checks import check_number
from lmguide.descriptions.budget import WithinBudget
from lmguide.guidance.base import GUIDANCE
from lmguide.guidance.rewards import Reward, add_reward

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmguide.contexts import Context
    from lmguide.descriptions.budget import GammaLengthPredictor, LengthPredictor
    from lmguide.rules import Scale


@GUIDANCE.register("budget")
@dataclass(frozen=True)
class BudgetGuidance(Reward):
    """Budget guidance: `c(v) + scale * log P(the span keeps its budget | text, v)`, by a predictor of lengths.

    Li et al., 2506.13752. With a perfect predictor, `scale=1` and `every=True` it samples from the model's own law of
    spans that keep the budget. The paper guides the first token of a thought and those behind a newline, which is what
    `every=False` does, with `end="</think>"` and, where the prompt does not open the thought, `start="<think>"`.

    Args:
        predictor: As in `WithinBudget`.
        budget: As in `WithinBudget`.
        scale: Strength, one for all or one per prompt, at least 0; 0 is off, 1 Bayes' rule and the paper.
        start: As in `WithinBudget`.
        end: As in `WithinBudget`.
        every: As in `WithinBudget`.
        min_shape: As in `WithinBudget`.
        min_rate: As in `WithinBudget`.
        min_remaining: As in `WithinBudget`.
        rest: As in `WithinBudget`.
        plausibility: As in `WithinBudget`.

    Raises:
        ValueError: As in `WithinBudget`; a strength below 0, or a gate or schedule that compares two laws.
        TypeError: As in `WithinBudget`.

    Example:
        >>> BudgetGuidance("some/predictor", budget=(500, None), end="</think>").sources()["reward"].budget
        (500, None)
    """

    cuts: ClassVar[bool] = True

    predictor: LengthPredictor | GammaLengthPredictor | str
    budget: int | tuple[int | None, ...] | None
    scale: float | tuple[float, ...] = 1.0
    start: str | tuple[int, ...] | None = None
    end: str | tuple[int, ...] | None = None
    every: bool = False
    min_shape: float | None = 1.0
    min_rate: float | None = 10.0
    min_remaining: float | None = 0.9
    rest: Literal["mean", "excluded"] = "mean"
    plausibility: float = 0.0

    def __post_init__(self) -> None:
        """Check the values, and keep them in the form that contexts have them."""
        super().__post_init__()
        within = self._within()
        for name in ("budget", "start", "end"):
            object.__setattr__(self, name, getattr(within, name))
        for scale in self.scale if isinstance(self.scale, tuple) else (self.scale,):
            check_number("scale", scale, "Use 0 to switch it off, 1 for Bayes' rule.", least=0)

    @property
    def enabled(self) -> bool:
        """Whether the method does anything: false also when there is no budget at all."""
        budgets = self.budget if isinstance(self.budget, tuple) else (self.budget,)
        return super().enabled and any(budget is not None for budget in budgets)

    def sources(self) -> Mapping[str, Context]:
        """The predictor and the budget, as `reward`."""
        return {"reward": self._within()}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`add_reward`."""
        return add_reward(cond, sources["reward"], strength)

    def _within(self) -> WithinBudget:
        return WithinBudget(
            self.predictor,
            self.budget,
            self.start,
            self.end,
            self.every,
            self.min_shape,
            self.min_rate,
            self.min_remaining,
            self.rest,
            self.plausibility,
        )
