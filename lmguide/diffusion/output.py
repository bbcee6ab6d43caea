"""What a call of `generate` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.denoisers.stats import Stats
    from lmguide.diffusion.templates import Filled
    from lmguide.diffusion.verified import Verification


@dataclass
class DiffusionOutput:
    """Filled canvases and how they came to be.

    Attributes:
        sequences: Prompt and answer, `[B, L]`; what follows an answer's first end-of-sequence token is padding.
        commit_step: Denoising step at which the token of each answer position was last written, `[B, A]`, from 0,
            counting the steps that the row took part in; -1 at positions that were given or are padding behind the end.
        confidences: Probability of the written token under the law that the order went by at that step, `[B, A]`, in
            float32; 1 at positions with `commit_step` -1.
        nfe: Forward evaluations spent on each row, `[B]`: a step with guidance counts two or more, a finished row none.
        stats: Steps, steps on which guidance applied, forward passes, evaluations.
        history: The canvases `[B, L]` before the first step and after each, if asked for.
        verification: How often grammars refused tokens; `None` without a grammar.
        filled: With a template, the text of each row and the values of its fields.
    """

    sequences: Tensor
    commit_step: Tensor
    confidences: Tensor
    nfe: Tensor
    stats: Stats
    history: tuple[Tensor, ...] | None = None
    verification: Verification | None = None
    filled: tuple[Filled, ...] | None = None
