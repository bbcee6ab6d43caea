"""Rewards from classifiers: CAIF and FUDGE. Descriptions; `lmguide.sources.rewards.caif` asks the classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from lmguide.descriptions.caif import Label, TextClassifier, Texts
from lmguide.guidance.base import GUIDANCE
from lmguide.guidance.rewards import Reward, add_reward

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.contexts import Context
    from lmguide.rules import Scale


@GUIDANCE.register("caif")
@dataclass(frozen=True)
class CAIF(Reward):
    """Sampling with any text classifier: `c(v) + alpha * log p(label | prefix, v)` on the `top_k` likeliest tokens.

    Sitdikov et al., 2205.07276. `p(v | prefix, label) ~ p(v | prefix) p(label | prefix, v)^alpha`: alpha 1 is Bayes'
    rule among the candidates, below 0 leads away from the class. The paper's period and entropy threshold are
    `gate=Period(5)` and `gate=Entropy(2.0)`.

    Args:
        classifier: As in `TextClassifier`.
        label: As in `TextClassifier`.
        alpha: Strength, one for all or one per prompt; 0 is off. The paper's demonstration goes from -5 to 5 for
            sigmoid classifiers and from -30 to 30 for softmax.
        top_k: As in `TextClassifier`; the paper's code uses 100.
        rest: As in `TextClassifier`.
        reading: As in `TextClassifier`.
        batch_size: As in `TextClassifier`.
        max_length: As in `TextClassifier`.
        tokenizer: As in `TextClassifier`.

    Raises:
        ValueError: A number out of range, an empty label, or a gate or schedule that compares two laws.
        TypeError: A classifier of no known kind.

    Example:
        >>> CAIF("some/classifier", "positive", alpha=-2.0).to_dict()["alpha"]
        -2.0
    """

    strength_field: ClassVar[str] = "alpha"
    cuts: ClassVar[bool] = True

    classifier: PreTrainedModel | Texts | str
    label: Label | tuple[Label, ...]
    alpha: float | tuple[float, ...] = 5.0
    top_k: int = 100
    rest: Literal["excluded", "mean"] = "excluded"
    reading: Literal["auto", "ids", "text"] = "auto"
    batch_size: int = 128
    max_length: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if isinstance(self.label, list):
            object.__setattr__(self, "label", tuple(self.label))

    def sources(self) -> Mapping[str, Context]:
        """The classifier, as `reward`."""
        return {
            "reward": TextClassifier(
                self.classifier,
                self.label,
                self.top_k,
                self.rest,
                self.reading,
                self.batch_size,
                self.max_length,
                self.tokenizer,
            )
        }

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`add_reward`."""
        return add_reward(cond, sources["reward"], strength)


@GUIDANCE.register("fudge")
@dataclass(frozen=True)
class Fudge(Reward):
    """Future discriminators: `c(v) + scale * log p(label | prefix, v)` on the `top_k` likeliest tokens.

    Yang and Klein, 2104.05218. The classifier is trained on prefixes, so that its `p(label | prefix)` is the chance
    that the whole text will have the label; with such a one scale 1 is Bayes' rule. It must be causal and of the
    guided model's vocabulary: it then scores all candidates of a step in one forward pass. That is `CAIF` with
    `reading="ids"`, as a reward; what differs is what the classifier has been taught.

    Args:
        classifier: A causal `AutoModelForSequenceClassification` trained at every position, or its name or path.
        label: As in `TextClassifier`.
        scale: Strength `lambda`, one for all or one per prompt; 0 is off, 1 Bayes' rule. The paper uses 1, and 4 for
            topics.
        top_k: As in `TextClassifier`; the paper uses 200.
        rest: As in `TextClassifier`.
        tokenizer: As in `TextClassifier`.

    Raises:
        ValueError: A number out of range, an empty label, or a gate or schedule that compares two laws.
        TypeError: A classifier of no known kind.

    Example:
        >>> Fudge("some/prefix-classifier", label=1).sources()["reward"].reading
        'ids'
    """

    cuts: ClassVar[bool] = True

    classifier: PreTrainedModel | str
    label: Label | tuple[Label, ...]
    scale: float | tuple[float, ...] = 1.0
    top_k: int = 200
    rest: Literal["excluded", "mean"] = "excluded"
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if isinstance(self.label, list):
            object.__setattr__(self, "label", tuple(self.label))

    def sources(self) -> Mapping[str, Context]:
        """The classifier, as `reward`."""
        return {
            "reward": TextClassifier(
                self.classifier, self.label, self.top_k, self.rest, "ids", tokenizer=self.tokenizer
            )
        }

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`add_reward`."""
        return add_reward(cond, sources["reward"], strength)
