"""Methods that only make sense on a canvas: for models that denoise all positions at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lmguide import rules
from lmguide.contexts import Context, RemaskedCanvas
from lmguide.guidance.base import GUIDANCE, Guidance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmguide.rules import Scale


@GUIDANCE.register("adaptive_cfg")
@dataclass(frozen=True)
class AdaptiveCFG(Guidance):
    """Guidance away from the canvas without the tokens the model is least sure of (A-CFG).

    `u + guidance_scale * (c - u)`, `u` being the model on the canvas with its least confident tokens masked again. Li
    et al., "Adaptive Classifier-Free Guidance via Dynamic Low-Confidence Masking", 2505.20199, Algorithm 1; its `w` is
    `guidance_scale - 1`. Nothing to mask again is no guidance.

    Args:
        guidance_scale: Strength, one for all or one per row; 1 is off. The paper's 0.5 to 2.0 are 1.5 to 3.0 here.
        remask_ratio: As in `RemaskedCanvas`.
        candidates: As in `RemaskedCanvas`.
        confidence: As in `RemaskedCanvas`.
        confidences: As in `RemaskedCanvas`. `"current"` is the paper's algorithm, two passes one after the other;
            `"previous"` makes them one batched pass.

    Raises:
        ValueError: A strength that is not finite, a ratio outside (0, 1], or an unknown word.

    Example:
        >>> AdaptiveCFG(1.5, remask_ratio=0.5).sources()["uncond"].remask_ratio
        0.5
    """

    guidance_scale: float | tuple[float, ...] = 1.5
    remask_ratio: float = 0.7
    candidates: Literal["all", "generated", "prompt"] = "all"
    confidence: Literal["max_probability", "entropy"] = "max_probability"
    confidences: Literal["current", "previous"] = "current"

    def sources(self) -> Mapping[str, Context]:
        """The canvas masked again, as `uncond`."""
        return {"uncond": RemaskedCanvas(self.remask_ratio, self.candidates, self.confidence, self.confidences)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.cfg`."""
        return rules.cfg(cond, sources["uncond"], strength)
