"""Guidance as callables over whole canvases, for anyone's own denoising loop.

They take the canvas `[B, L]` and the model's scores `[B, L, V]` and give guided ones, like a `LogitsProcessor`. Every
other source is run here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import LogitsProcessor

from lmguide.denoisers.denoiser import Denoiser
from lmguide.denoisers.guide import Guide
from lmguide.denoisers.stats import Stats
from lmguide.guidance import CFG, AdaptiveCFG, Guidance, as_methods
from lmguide.schedules import Progress
from lmguide.sources.binding import given_negative
from lmguide.sources.canvas import Canvas

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmguide.contexts import Context, Prompt


class CanvasLogitsProcessor(LogitsProcessor):
    """Any guidance method or several on a canvas.

    The first canvas of a call tells what was given: every token that is not the mask token. A canvas on which one of
    these has changed, or of another shape, is a new call; `reset()` says so too.

    Args:
        model: A `Denoiser`, or a model whose family is recognised.
        guidance: A method or several.
        attention_mask: The canvas' mask `[B, L]`, 0 on left padding; `None` is all ones.
        negative_prompt: Instead of the method's own: text, chat messages or ids.
        tokenizer: For negative prompts in text; by default the denoiser's.
        steps: Denoising steps there will be, which schedules and gates in fractions need to know.

    Raises:
        ValueError: A model without a mask token, whose canvas does not tell what is undecided.

    Example:
        >>> import lmguide as lg
        >>> model, tokenizer = lg.bundled("sudoku")
        >>> denoiser = lg.diffusion.Denoiser(model, tokenizer=tokenizer)
        >>> canvas = tokenizer("1000 0002 4003 0000:", return_tensors="pt").input_ids
        >>> canvas = torch.nn.functional.pad(canvas, (0, 16), value=denoiser.mask_token_id)
        >>> processor = lg.MaskedCFGLogitsProcessor(denoiser, guidance_scale=2.0)
        >>> with torch.no_grad():
        ...     scores = processor(canvas, denoiser(canvas))
        >>> tuple(scores.shape[:2]) == tuple(canvas.shape)
        True
    """

    def __init__(
        self,
        model: Any,
        guidance: Guidance | Sequence[Guidance],
        *,
        attention_mask: Tensor | None = None,
        negative_prompt: Prompt | Tensor | None = None,
        tokenizer: Any = None,
        steps: int | None = None,
    ) -> None:
        self.denoiser = model if isinstance(model, Denoiser) else Denoiser(model, tokenizer=tokenizer)
        if self.denoiser.mask_token_id is None:
            raise ValueError(
                f"model: expected one with a mask token, got {self.denoiser.family.name}: its canvas does not tell "
                "what is undecided. Use lmguide.diffusion.generate."
            )
        methods = as_methods(guidance)
        self.methods = tuple(method for method in methods if method.enabled)
        self.negative = given_negative(methods, negative_prompt)
        self.attention_mask, self.tokenizer, self.steps = attention_mask, tokenizer, steps
        self.reset()

    def reset(self) -> None:
        """Forget the last call; the next canvas begins a new one."""
        self._guide: Guide | None = None
        self._seen = 0

    @property
    def stats(self) -> Stats:
        """What the last call did; the caller's own forwards are not counted."""
        return Stats() if self._guide is None else self._guide.stats

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor, cur_step: int | None = None) -> Tensor:
        """Guided scores of a canvas.

        Args:
            input_ids: The canvas, `[B, L]`.
            scores: The model's logits `[B, L, V]` on it; entry i scores the token at column i, shifts undone.
            cur_step: Steps that are done; `None` counts the calls.

        Returns:
            Guided log-probabilities `[B, L, V]` in float32 at undecided columns, and the scores' own law elsewhere; the
            scores themselves if every method is off.

        Raises:
            ValueError: Scores of another shape than the canvas.
        """
        if scores.shape[:2] != input_ids.shape:
            raise ValueError(
                f"scores: expected [B, L, V] for the canvas {list(input_ids.shape)}, got {list(scores.shape)}. "
                "For DiffusionGemma, whose loop hands over the prompt instead, use lmguide.diffusion.guide_gemma."
            )
        if not self.methods:
            return scores
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

    def dream_hook(self) -> Callable[[int | None, Tensor, Tensor], Tensor]:
        """Itself as Dream's `generation_logits_hook_func(step, x, logits)`."""
        return lambda step, canvas, logits: self(canvas, logits, step)

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


class MaskedCFGLogitsProcessor(CanvasLogitsProcessor):
    """`CFG` on a canvas: away from the prompt masked, or from a negative prompt.

    Args:
        model: As in `CanvasLogitsProcessor`.
        guidance_scale: As in `CFG`; LLaDA's `cfg_scale` is `guidance_scale - 1`.
        negative_prompt: As in `CFG`, or a tensor of ids; `None` masks the prompt.
        **kwargs: As in `CanvasLogitsProcessor`.
    """

    def __init__(
        self,
        model: Any,
        guidance_scale: float | tuple[float, ...] = 1.5,
        negative_prompt: Prompt | Context | Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        given = negative_prompt if isinstance(negative_prompt, torch.Tensor) else None
        own = None if isinstance(negative_prompt, torch.Tensor) else negative_prompt
        super().__init__(model, CFG(guidance_scale, own), negative_prompt=given, **kwargs)


class AdaptiveCFGLogitsProcessor(CanvasLogitsProcessor):
    """`AdaptiveCFG` (A-CFG, 2505.20199): away from the canvas without its least sure tokens.

    Args:
        model: As in `CanvasLogitsProcessor`.
        guidance_scale: As in `AdaptiveCFG`; the paper's `w` is `guidance_scale - 1`.
        remask_ratio: As in `AdaptiveCFG`.
        candidates: As in `AdaptiveCFG`.
        confidence: As in `AdaptiveCFG`.
        **kwargs: As in `CanvasLogitsProcessor`.
    """

    def __init__(
        self,
        model: Any,
        guidance_scale: float | tuple[float, ...] = 1.5,
        remask_ratio: float = 0.7,
        candidates: Literal["all", "generated", "prompt"] = "all",
        confidence: Literal["max_probability", "entropy"] = "max_probability",
        **kwargs: Any,
    ) -> None:
        super().__init__(model, AdaptiveCFG(guidance_scale, remask_ratio, candidates, confidence), **kwargs)
