"""What determines a trained guide, checked. Needs the standard library alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmguide.checks import check_number, check_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
"""Learning-rate schedules of `transformers.get_scheduler` that need nothing but a number of steps."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What determines the weights, beside the texts.

    Args:
        base: The model to start from: a folder, a name on the hub, or `bundled/` and the name of a bundled one.
        learning_rate: Peak of the schedule, above 0.
        epochs: Times that each text is read; need not be whole.
        batch_size: Texts of a forward pass of one process.
        gradient_accumulation: Forward passes of each process before the weights change.
        max_length: Longest row in tokens, with what stands in front of the text. Longer texts are cut.
        scheduler: One of `SCHEDULES`.
        warmup_steps: Steps in which the rate rises from 0.
        weight_decay: Of AdamW.
        max_grad_norm: Longer gradients are shortened to this.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`; `None` is what accelerate is configured for.
        seed: Of the order of the texts, dropout and what weights are new.
        trust_remote_code: Run code that the model's author wrote.

    Raises:
        ValueError: A number is out of range, or a name unknown.
    """

    base: str
    learning_rate: float = 2e-5
    epochs: float = 1.0
    batch_size: int = 4
    gradient_accumulation: int = 1
    max_length: int = 192
    scheduler: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    mixed_precision: str | None = None
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        check_number("learning_rate", self.learning_rate, "The papers use 2e-5 for pre-trained models.", above=0)
        check_number("epochs", self.epochs, "1 reads every text once.", above=0)
        check_number("weight_decay", self.weight_decay, "Use 0 for none.", least=0)
        check_number("max_grad_norm", self.max_grad_norm, "1 is usual.", above=0)
        for name, least in (("batch_size", 1), ("gradient_accumulation", 1), ("warmup_steps", 0), ("max_length", 2)):
            check_whole(name, getattr(self, name), "Give a larger number.", least=least)
        check_whole("seed", self.seed, "Any number will do.", least=0)
        if self.scheduler not in SCHEDULES:
            raise ValueError(f"scheduler: expected one of {', '.join(SCHEDULES)}, got {self.scheduler!r}.")


@dataclass(frozen=True, kw_only=True)
class GediSettings(Settings):
    """Those of a class-conditional language model.

    Args:
        gen_weight: lambda of the loss, in [0, 1]: 1 trains the language model alone, 0 the classifier alone.
        topic: Whether it is trained for topics that it has not seen: on the codes `true` and `false` in front of the
            topic.
        codes: Text of the code of some labels, or of the topic; others have a space and the label.
    """

    gen_weight: float = 0.8
    topic: bool = False
    codes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_number("gen_weight", self.gen_weight, "The paper's is 0.8.", least=0, most=1)
