"""Rewards: methods that add `scale * log r(position, token)` to what the rules have combined.

Descriptions and their arithmetic; what computes `log r` on a canvas is in `lmguide.sources.canvas_rewards`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from lmguide.checks import check_number
from lmguide.contexts import CanvasClassifier, ClassifierGradient, Context, SampledCanvases
from lmguide.guidance.base import GUIDANCE, Guidance
from lmguide.rules.candidates import broadcast, per_row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.rules import Scale


def add_reward(scores: Tensor, log_reward: Tensor, scale: Scale, most: float | None = None) -> Tensor:
    """`scores + min(scale * log r, most)`, minus infinity where the scores or the reward are.

    Args:
        scores: Scores `[..., V]`.
        log_reward: Log-rewards `[..., V]`; minus infinity excludes a token wherever `scale` is not 0.
        scale: Strength, a number or `[...]`; rows where it is 0 come back bit for bit.
        most: Largest change; `None` is no bound.

    Returns:
        Scores `[..., V]`, not normalised.

    Example:
        >>> add_reward(torch.zeros(3), torch.tensor([1.0, -1.0, -torch.inf]), 2.0, most=1.5).tolist()
        [1.5, -2.0, -inf]
    """
    before, reward = broadcast(scores, log_reward)
    strength = per_row("scale", scale, before)
    if not isinstance(strength, torch.Tensor) and strength > 0:  # infinities come out right by themselves
        change = strength * reward
        return before + (change if most is None else change.clamp_max(most))
    never = torch.isneginf(reward)
    change = strength * reward.masked_fill(never, 0.0)
    if most is not None:
        change = change.clamp_max(most)
    return (before + change).masked_fill(torch.isneginf(before) | (never & (strength != 0)), -torch.inf)


@dataclass(frozen=True)
class Reward(Guidance):
    """What methods that are rewards share: they are added after all rules, and there is no other law to look at."""

    strength_field: ClassVar[str] = "scale"
    off: ClassVar[float] = 0.0
    is_reward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse gates and schedules that compare two laws."""
        super().__post_init__()
        if self.gate is not None and self.gate.needs_uncond:
            raise ValueError(
                f"gate: expected one that looks at the conditional law alone, got {self.gate}. "
                "A reward is no law to compare with; use Entropy, Confidence or Interval."
            )
        if self.schedule is not None and self.schedule.needs_divergence:
            raise ValueError(
                f"schedule: expected one of progress, got {self.schedule}. "
                "A reward is no law to diverge from; use Linear, Cosine or Window."
            )


@GUIDANCE.register("classifier_guidance")
@dataclass(frozen=True)
class ClassifierGuidance(Reward):
    """Guidance of a canvas by a classifier: `c + scale * (log p(y | x with v at l) - log p(y | x))`, to first order.

    With `g = d log p(y | x) / d x` by the one-hot canvas `x`, the change at position `l` and token `v` is `g_{l,v} -
    sum_v' x_{l,v'} g_{l,v'}`: one forward and one backward pass of the classifier at each step. The first-order form
    of D-CBG (Schiff et al., 2412.10193), and TAG (Nisonoff et al., 2406.01572), which also clamps it. It is exact for
    a classifier linear in the one-hot canvas.

    The classifier sees noised canvases, masks and all, so it must have been trained on such: one of clean text alone
    gives gradients that mean nothing early on.

    Args:
        model: As in `ClassifierGradient`.
        label: As in `ClassifierGradient`.
        scale: Strength `gamma`, one for all or one per prompt; 0 is off, 1 Bayes' rule. The papers go to 5; below 0
            leads away from the class.
        clamp: Largest change of a log-probability, above 0, after `scale`; TAG's is 80. `None` is no bound.
        tokenizer: As in `ClassifierGradient`.

    Raises:
        ValueError: A number out of range, or a gate or schedule that compares two laws.

    Example:
        >>> ClassifierGuidance("some/classifier", label=1, scale=2.0).to_dict()["label"]
        1
    """

    model: PreTrainedModel | CanvasClassifier | str
    label: int | tuple[int, ...]
    scale: float | tuple[float, ...] = 1.0
    clamp: float | None = 80.0
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if isinstance(self.label, list):
            object.__setattr__(self, "label", tuple(self.label))
        if self.clamp is not None:
            check_number("clamp", self.clamp, "Use None for no bound; 80 is the published one.", above=0)

    def sources(self) -> Mapping[str, Context]:
        """The classifier, as `reward`."""
        return {"reward": ClassifierGradient(self.model, self.label, self.tokenizer)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`add_reward`."""
        return add_reward(cond, sources["reward"], strength, self.clamp)


@GUIDANCE.register("rewarded_samples")
@dataclass(frozen=True)
class RewardedSamples(Reward):
    """Guidance of a canvas by any reward of whole texts: `c + scale * (log p' - log p)`.

    At each step `samples` clean canvases are drawn from the law `p` of the undecided positions, each position by
    itself, and weighed by `w = softmax(reward / temperature)`. `p'` at a position is the weighted share of each token
    among the samples (`"mixture"`: the discrete part of TFG-Flow, 2501.14216), or the token of one sample drawn by its
    weight (`"pick"`: SVDD-PM, 2408.08252). Tokens in no sample are excluded. With many samples a mixture at scale 1 has
    the marginals of `p(x) exp(reward(x) / temperature) / Z`. No further pass of the model; `samples` rewards a row and
    step.

    Positions that stand are left alone, and so is the law where a corrector asks about them. Several methods with
    equal `samples` and `seed` draw the same canvases, so that what one keeps the other can keep.

    Args:
        reward: As in `SampledCanvases`. It sees the prompt too, and on a batch the padding in front of it; with block
            attention, nothing behind the block.
        scale: Strength, one for all or one per prompt, at least 0; 0 is off, 1 the formula as published.
        samples: As in `SampledCanvases`. TFG-Flow uses 4, SVDD 10 to 20.
        temperature: As in `SampledCanvases`. TFG-Flow uses 0.1, SVDD 0.01 to 0.05.
        mode: As in `SampledCanvases`.
        seed: As in `SampledCanvases`.

    Raises:
        ValueError: A number out of range, or a gate or schedule that compares two laws.
        TypeError: A reward that is no function.

    Example:
        >>> short = RewardedSamples(lambda ids: -(ids != 0).sum(-1).float(), samples=8, temperature=0.5)
        >>> short.sources()["reward"].samples
        8
    """

    reward: Callable[..., Tensor] | str
    scale: float | tuple[float, ...] = 1.0
    samples: int = 16
    temperature: float = 1.0
    mode: Literal["mixture", "pick"] = "mixture"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        for scale in self.scale if isinstance(self.scale, tuple) else (self.scale,):
            check_number("scale", scale, "Use 0 to switch it off, and turn the reward's sign to avoid it.", least=0)

    def sources(self) -> Mapping[str, Context]:
        """The samples, as `reward`."""
        return {"reward": SampledCanvases(self.reward, self.samples, self.temperature, self.mode, self.seed)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`add_reward`."""
        return add_reward(cond, sources["reward"], strength)
