"""Guided scores of a canvas with a mask token, in anyone's denoising loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmguide.denoisers.denoiser import Denoiser
from lmguide.denoisers.guide import Guide
from lmguide.denoisers.stats import Stats
from lmguide.schedules import Progress
from lmguide.sources.canvas import Canvas

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmguide.guidance import Guidance


class MaskedCanvas:
    """What a `CanvasLogitsProcessor` does where the loop hands over the canvas.

    Args:
        model: A `Denoiser`, or a model whose family is recognised.
        methods: The methods, all of them enabled.
        negative: Arguments of `RowBuilder.negative`, to take the place of a `NegativePrompt`'s own.
        attention_mask: The canvas' mask `[B, L]`; `None` is all ones.
        tokenizer: For negative prompts in text; by default the denoiser's.
        steps: Denoising steps there will be.

    Raises:
        ValueError: A model without a mask token.
    """

    def __init__(
        self,
        model: Any,
        methods: Sequence[Guidance],
        negative: Mapping[str, Any] | None,
        attention_mask: Tensor | None,
        tokenizer: Any,
        steps: int | None,
    ) -> None:
        self.denoiser = model if isinstance(model, Denoiser) else Denoiser(model, tokenizer=tokenizer)
        if self.denoiser.mask_token_id is None:
            raise ValueError(
                f"model: expected one with a mask token, got {self.denoiser.family.name}: its canvas does not tell "
                "what is undecided. Use lmguide.diffusion.generate."
            )
        self.methods, self.negative = methods, negative
        self.attention_mask, self.tokenizer, self.steps = attention_mask, tokenizer, steps
        self.reset()

    def reset(self) -> None:
        """Forget the last call."""
        self._guide: Guide | None = None
        self._seen = 0

    @property
    def stats(self) -> Stats:
        """What the last call did."""
        return Stats() if self._guide is None else self._guide.stats

    def guided(self, input_ids: Tensor, scores: Tensor, cur_step: int | None) -> Tensor:
        """Guided log-probabilities `[B, L, V]` of the canvas `[B, L]`."""
        if scores.shape[:2] != input_ids.shape:
            raise ValueError(
                f"scores: expected [B, L, V] for the canvas {list(input_ids.shape)}, got {list(scores.shape)}. "
                "Give the scores of all columns of the canvas."
            )
        guide = self._begun(input_ids)
        step = self._seen if cur_step is None else int(cur_step)
        self._seen += 1
        law = guide.law(Progress(step, self.steps), guide.prompt_length, input_ids.shape[1], logits=scores)
        guided = scores.float().log_softmax(-1)
        for part in law.chunks(guide.canvas.undecided.nonzero()):
            rows, columns = part.unbind(1)
            guided[rows, columns] = law.at(rows, columns)[0]
        guide.stats.fired += int(law.fired)
        return guided

    def _begun(self, ids: Tensor) -> Guide:
        """The guide of this call, looking at this canvas."""
        mask_id = self.denoiser.mask_token_id
        guide = self._guide
        masked = torch.eq(ids, -1 if mask_id is None else mask_id)
        if guide is not None and guide.canvas.ids.shape == ids.shape:
            given = guide.canvas.given
            if bool((ids[given] == guide.canvas.ids[given]).all()):
                guide.canvas.ids, guide.canvas.undecided = ids, masked
                return guide
        mask = torch.ones_like(ids) if self.attention_mask is None else self.attention_mask
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask: expected the canvas' shape {list(ids.shape)}, got {list(mask.shape)}. "
                "Give 1 at every token, masks included."
            )
        masked &= mask.bool()
        prompt_length = int((masked.any(0).cumsum(0) == 0).sum())
        infill = bool((mask.bool() & ~masked)[:, prompt_length:].any())
        canvas = Canvas(ids, mask, mask.bool() & ~masked, masked, mask_id)
        length = 0 if infill else prompt_length
        self._guide = Guide(
            self.denoiser, self.methods, canvas, length, tokenizer=self.tokenizer, negative=self.negative
        )
        self._seen = 0
        return self._guide
