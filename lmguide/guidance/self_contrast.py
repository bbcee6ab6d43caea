"""Methods whose other source is a weaker read-out of the same model on the same prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lmguide import rules
from lmguide.checks import check_number
from lmguide.contexts import Context, DroppedBlocks, EarlyLayers, Prompt
from lmguide.guidance.base import GUIDANCE, Guidance
from lmguide.guidance.models import check_plausibility
from lmguide.guidance.prompts import as_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmguide.rules import Scale


@GUIDANCE.register("dola")
@dataclass(frozen=True)
class DoLa(Guidance):
    """Decoding by contrasting layers: `final - scale * early_M`, on the tokens the final layer finds plausible.

    `M` is, at each step and row, the candidate layer whose next-token law has the largest Jensen-Shannon divergence
    from the final one (2309.03883; the published code computes another quantity under that name). Early layers are read
    out by the language-model head without the final norm, as published.

    Args:
        layers: Candidate layers: `"low"`, `"high"` or indices (see `EarlyLayers`).
        scale: Strength; 0 is off, 1 the paper's choice.
        plausibility: In [0, 1]: how likely a token must be beside the likeliest; 0 keeps every token.
    """

    strength_field: ClassVar[str] = "scale"
    cuts: ClassVar[bool] = True
    off: ClassVar[float] = 0.0

    layers: Literal["low", "high"] | tuple[int, ...] = "low"
    scale: float | tuple[float, ...] = 1.0
    plausibility: float = 0.1

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        object.__setattr__(self, "layers", EarlyLayers(self.layers).layers)
        for part in (self.gate, self.schedule):
            if getattr(part, "needs_uncond", False) or getattr(part, "needs_divergence", False):
                raise ValueError(
                    f"{type(part).__name__}: DoLa has several candidate layers, so no one divergence from them. "
                    "Use an entropy or time-based one."
                )
        check_plausibility(self.plausibility)

    def sources(self) -> Mapping[str, Context]:
        """The early layers, as `early` with an axis of layers before the vocabulary."""
        return {"early": EarlyLayers(self.layers)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.dola`."""
        return rules.dola(cond, sources["early"], strength, self.plausibility)


@GUIDANCE.register("s2")
@dataclass(frozen=True)
class S2Guidance(Guidance):
    """Stochastic self-guidance: classifier-free guidance, and away from the model with a few blocks skipped.

    `u + guidance_scale * (c - u) - omega * (s - c)` with `s` the thinned model on the prompt (2508.12880).

    Args:
        guidance_scale: As in `CFG`.
        negative_prompt: As in `CFG`.
        omega: Strength of the second part, at least 0.
        fraction: Share of the blocks to skip.
        seed: Of the choice of blocks.
    """

    guidance_scale: float | tuple[float, ...] = 1.5
    negative_prompt: Prompt | Context | None = None
    omega: float = 0.25
    fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_number("omega", self.omega, "Use 0 to leave the thinned model out.", least=0)

    @property
    def enabled(self) -> bool:
        """Whether the method does anything: also at a guidance scale of 1, unless `omega` is 0."""
        return super().enabled or self.omega != 0

    def sources(self) -> Mapping[str, Context]:
        """The negative prompt as `uncond`, the thinned model as `thinned`."""
        return {"uncond": as_context(self.negative_prompt), "thinned": DroppedBlocks(self.fraction, self.seed)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.s2`."""
        return rules.s2(cond, sources["uncond"], sources["thinned"], strength, self.omega)
