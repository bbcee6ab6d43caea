"""Methods whose other sources are other models of the same vocabulary, on the same prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from lmguide import rules
from lmguide.checks import check_number
from lmguide.contexts import Context, OtherModel
from lmguide.guidance.base import GUIDANCE, Guidance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.rules import Scale


@GUIDANCE.register("autoguidance")
@dataclass(frozen=True)
class AutoGuidance(Guidance):
    """A model guided away from a weaker one: `u + guidance_scale * (c - u)`, `u` the weak model on the prompt.

    Weak is smaller or less trained (autoguidance, 2406.02507), not yet aligned (RLG, 2508.21016: above 1 over-aligns,
    below 1 takes alignment back), or not yet fine-tuned (domain guidance).

    Args:
        model: The weak model, or the name or path `from_pretrained` takes.
        guidance_scale: Strength; 1 is off, 0 the weak model alone.
        tokenizer: The weak model's tokenizer, to check that the vocabularies agree.
    """

    model: PreTrainedModel | str
    guidance_scale: float | tuple[float, ...] = 1.5
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, kw_only=True)

    def sources(self) -> Mapping[str, Context]:
        """The weak model, as `weak`."""
        return {"weak": OtherModel(self.model, self.tokenizer)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.cfg`."""
        return rules.cfg(cond, sources["weak"], strength)


@GUIDANCE.register("contrastive")
@dataclass(frozen=True)
class Contrastive(Guidance):
    """Contrastive decoding: an expert minus an amateur, on the tokens the expert finds plausible.

    `(1 + beta) e - beta a` where `e >= log(plausibility) + max e`, minus infinity elsewhere (O'Brien and Lewis,
    2309.09117); or, as first published, `e - beta a` (Li et al., 2210.15097, whose weights (1, -1) are `beta=1`). `e`
    is the guided model itself.

    Args:
        model: The amateur, or the name or path `from_pretrained` takes.
        beta: Strength, at least 0; 0 is off.
        plausibility: In [0, 1]: how likely a token must be beside the likeliest; 0 keeps every token.
        form: `"reasoning"` for the first formula, `"original"` for the second.
        amateur_temperature: Above 0; the amateur's scores are divided by it.
        tokenizer: The amateur's tokenizer, to check that the vocabularies agree.
    """

    strength_field: ClassVar[str] = "beta"
    cuts: ClassVar[bool] = True
    off: ClassVar[float] = 0.0

    model: PreTrainedModel | str
    beta: float | tuple[float, ...] = 0.5
    plausibility: float = 0.1
    form: Literal["reasoning", "original"] = "reasoning"
    amateur_temperature: float = 1.0
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_plausibility(self.plausibility)
        for beta in self.beta if isinstance(self.beta, tuple) else (self.beta,):
            check_number("beta", beta, "Use 0 to switch it off.", least=0)
        if self.form not in {"reasoning", "original"}:
            raise ValueError(f"form: expected 'reasoning' or 'original', got {self.form!r}. Use one of these.")
        check_number("amateur_temperature", self.amateur_temperature, "Use 1 to leave the amateur alone.", above=0)

    def sources(self) -> Mapping[str, Context]:
        """The amateur, as `amateur`."""
        return {"amateur": OtherModel(self.model, self.tokenizer)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.contrastive`."""
        return rules.contrastive(
            cond,
            sources["amateur"],
            beta=strength,
            plausibility=self.plausibility,
            form=self.form,
            amateur_temperature=self.amateur_temperature,
        )


@GUIDANCE.register("dexperts")
@dataclass(frozen=True)
class DExperts(Guidance):
    """Decoding with experts: `c + alpha * (expert - antiexpert)` (2105.03023).

    Args:
        expert: A small model tuned towards the wish, or its name or path.
        antiexpert: A small model tuned against it, or its name or path.
        alpha: Strength; 0 is off. The paper uses 2.0 against toxicity and 3.2 for sentiment.
        tokenizer: The small models' tokenizer, to check that the vocabularies agree.
    """

    strength_field: ClassVar[str] = "alpha"
    off: ClassVar[float] = 0.0

    expert: PreTrainedModel | str
    antiexpert: PreTrainedModel | str
    alpha: float | tuple[float, ...] = 2.0
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, kw_only=True)

    def sources(self) -> Mapping[str, Context]:
        """The two small models, as `expert` and `antiexpert`."""
        return {
            "expert": OtherModel(self.expert, self.tokenizer),
            "antiexpert": OtherModel(self.antiexpert, self.tokenizer),
        }

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.dexperts`."""
        return rules.dexperts(cond, sources["expert"], sources["antiexpert"], strength)


@GUIDANCE.register("proxy_tuning")
@dataclass(frozen=True)
class ProxyTuning(DExperts):
    """Proxy tuning: a large model moved by what tuning did to a small one.

    `c + alpha * (tuned - untuned)` (2401.08565).

    Args:
        expert: The small tuned model, or its name or path.
        antiexpert: The same small model before tuning, or its name or path.
        alpha: Strength; 0 is off, 1 the paper's choice.
        tokenizer: The small models' tokenizer, to check that the vocabularies agree.
    """

    alpha: float | tuple[float, ...] = 1.0


def check_plausibility(value: float) -> None:
    """Refuse a plausibility outside [0, 1].

    Raises:
        ValueError: It is outside.
    """
    check_number("plausibility", value, "Use 0 to keep every token; 0.1 is usual.", least=0, most=1)
