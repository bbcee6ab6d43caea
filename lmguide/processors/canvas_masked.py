"""Guided scores of a canvas with a mask token, in anyone's denoising loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmguide.denoisers.binding import denoiser_of
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

    A canvas begins a new call if it comes with step 0, with an earlier step than the last, with another shape, or with
    a change of a token that was given. Without a step that went up, so does a canvas on which masks came back: all
    masks of the call's first canvas, or so many that nothing stands behind a row's first one, which is how a prompt
    looks. A loop that masks committed tokens again should hand over its steps.

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
        self.denoiser = denoiser_of(model, tokenizer)
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
        self._step: int | None = None

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
        own = scores.float().log_softmax(-1)
        mask = self._mask(input_ids)
        undecided = (input_ids == self.denoiser.mask_token_id) & mask.bool()
        if not bool(undecided.any()):  # nothing to guide
            return own
        given_step = None if cur_step is None else int(cur_step)
        guide = self._begun(input_ids, mask, undecided, given_step)
        step = self._seen if given_step is None else given_step
        self._seen, self._step = self._seen + 1, given_step
        law = guide.law(Progress(step, self.steps), guide.prompt_length, input_ids.shape[1], logits=scores)
        for part in law.chunks(undecided.nonzero()):
            rows, columns = part.unbind(1)
            own[rows, columns] = law.at(rows, columns)[0]
        guide.stats.fired += int(law.fired)
        return own

    def _mask(self, ids: Tensor) -> Tensor:
        mask = torch.ones_like(ids) if self.attention_mask is None else self.attention_mask
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask: expected the canvas' shape {list(ids.shape)}, got {list(mask.shape)}. "
                "Give 1 at every token, masks included."
            )
        return mask

    def _begun(self, ids: Tensor, mask: Tensor, undecided: Tensor, step: int | None) -> Guide:
        """The guide of this call, looking at this canvas."""
        guide = self._guide
        ids = ids.clone()  # the loop may write the next step, or the next call, into the same tensor
        if guide is not None and self._goes_on(guide.canvas, ids, undecided, step):
            guide.canvas.ids, guide.canvas.undecided = ids, undecided
            return guide
        real = mask.bool()
        prompt_length = int((undecided.any(0).cumsum(0) == 0).sum())
        infill = bool((real & ~undecided)[:, prompt_length:].any())
        canvas = Canvas(ids, mask, real & ~undecided, undecided, self.denoiser.mask_token_id)
        length = 0 if infill else prompt_length
        self._guide = Guide(
            self.denoiser, self.methods, canvas, length, tokenizer=self.tokenizer, negative=self.negative
        )
        self._seen = 0
        return self._guide

    def _goes_on(self, canvas: Canvas, ids: Tensor, undecided: Tensor, step: int | None) -> bool:
        """Whether a canvas is a later one of the call whose last canvas this is."""
        if step == 0 or canvas.ids.shape != ids.shape or canvas.ids.device != ids.device:
            return False
        if bool((ids != canvas.ids)[canvas.given].any()):
            return False
        if step is not None and self._step is not None and step != self._step:
            return step > self._step
        if not bool((undecided & ~canvas.undecided).any()):
            return True
        real = canvas.attention_mask.bool()
        all_back = undecided.equal(real & ~canvas.given)
        like_a_prompt = undecided.equal((undecided.cumsum(1) > 0) & real)
        return not (all_back or like_a_prompt)
