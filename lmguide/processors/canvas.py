"""Guidance as callables over whole canvases, for anyone's own denoising loop.

They take the canvas `[B, L]` and the model's scores `[B, L, V]` and give guided ones, like a `LogitsProcessor`. Every
other source is run here. DiffusionGemma's loop is transformers' own and hands over the prompt instead: there they are
items of `logits_processor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import LogitsProcessor

from lmguide.denoisers.gemma_checks import is_gemma
from lmguide.guidance import CFG, AdaptiveCFG, Guidance, as_methods, parse_guidance
from lmguide.processors.canvas_gemma import GemmaCanvas
from lmguide.processors.canvas_masked import MaskedCanvas
from lmguide.sources.binding import given_negative

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmguide.contexts import Context, Prompt
    from lmguide.denoisers.stats import Stats


class CanvasLogitsProcessor(LogitsProcessor):
    """Any guidance method or several on a canvas.

    With a mask token, the first canvas of a call tells what was given: every token that is not the mask token. A canvas
    on which one of these has changed, or of another shape, is a new call; `reset()` says so too.

    DiffusionGemma has no mask token, and its `generate()` hands a processor the prompt and not the canvas. As the first
    item of `logits_processor=LogitsProcessorList([processor])` of the plain model's own `generate()`, the tokens are
    those of `lmguide.diffusion.guide_gemma(model, guidance).generate()`, bit for bit. The canvas is that of the
    denoising step which calls the processor; nothing is installed on the model. It costs one decoder pass over the
    conditional a step more than `guide_gemma`, whose conditional remembers its own law and not the guided one.

    Args:
        model: A `Denoiser`, a model whose family is recognised, or a DiffusionGemma.
        guidance: A method, several, or strings such as `"cfg:guidance_scale=2"`.
        attention_mask: The canvas' mask `[B, L]`, 0 on left padding; `None` is all ones. Not for DiffusionGemma, whose
            `generate()` has it.
        negative_prompt: Instead of the method's own: text, chat messages or ids.
        negative_prompt_attention_mask: The mask of a negative prompt given as a tensor of ids.
        tokenizer: For negative prompts in text; by default the denoiser's.
        steps: Denoising steps there will be, which schedules and gates in fractions need to know. Not for
            DiffusionGemma, whose `generate()` has it.

    Raises:
        TypeError: No guidance, or not a model.
        ValueError: A model without a mask token other than DiffusionGemma, whose canvas does not tell what is
            undecided, or a method that the model cannot serve.

    Example:
        >>> import lmguide as lg
        >>> model, tokenizer = lg.bundled("sudoku")
        >>> denoiser = lg.diffusion.Denoiser(model, tokenizer=tokenizer)
        >>> canvas = tokenizer("0034 0300 0400 0102:", return_tensors="pt").input_ids
        >>> canvas = torch.nn.functional.pad(canvas, (0, 16), value=denoiser.mask_token_id)
        >>> processor = lg.MaskedCFGLogitsProcessor(denoiser, guidance_scale=2.0)
        >>> with torch.no_grad():
        ...     scores = processor(canvas, denoiser(canvas))
        >>> tuple(scores.shape[:2]) == tuple(canvas.shape)
        True
    """

    supports_continuous_batching = False

    def __init__(
        self,
        model: Any,
        guidance: Guidance | Sequence[Guidance | str] | str,
        *,
        attention_mask: Tensor | None = None,
        negative_prompt: Prompt | Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        tokenizer: Any = None,
        steps: int | None = None,
    ) -> None:
        given: Any = [guidance] if isinstance(guidance, str) else guidance
        if isinstance(given, list | tuple):
            given = [parse_guidance(each) if isinstance(each, str) else each for each in given]
        methods = as_methods(given)
        self.methods = tuple(method for method in methods if method.enabled)
        negative = given_negative(methods, negative_prompt, mask=negative_prompt_attention_mask)
        self._canvas: GemmaCanvas | MaskedCanvas
        if is_gemma(model):
            for name, value in (("attention_mask", attention_mask), ("steps", steps)):
                if value is not None:
                    raise ValueError(f"{name}: expected None for DiffusionGemma, got one. Give it to generate().")
            self._canvas = GemmaCanvas(model, self.methods, negative, tokenizer)
        else:
            self._canvas = MaskedCanvas(model, self.methods, negative, attention_mask, tokenizer, steps)

    def reset(self) -> None:
        """Forget the last call; the next canvas begins a new one."""
        self._canvas.reset()

    @property
    def stats(self) -> Stats:
        """What the last call did; the caller's own forwards are not counted."""
        return self._canvas.stats

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor, cur_step: Any = None) -> Tensor:
        """Guided scores of a canvas.

        Args:
            input_ids: The canvas, `[B, L]`; from DiffusionGemma prompt and finished canvases.
            scores: The model's logits `[B, L, V]` on the canvas; entry i scores the token at column i, shifts undone.
            cur_step: Steps that are done, `None` counts the calls; from DiffusionGemma steps that are left.

        Returns:
            Guided log-probabilities `[B, L, V]` in float32 at undecided columns, and the scores' own law elsewhere; the
            scores themselves if every method is off.

        Raises:
            ValueError: Scores of another shape than the canvas, or a call that cannot be guided exactly.
        """
        if not self.methods:
            return scores
        if isinstance(self._canvas, GemmaCanvas):
            return self._canvas.guided(self, input_ids, scores, cur_step)
        return self._canvas.guided(input_ids, scores, cur_step)

    def dream_hook(self) -> Callable[[int | None, Tensor, Tensor], Tensor]:
        """Itself as Dream's `generation_logits_hook_func(step, x, logits)`."""
        return lambda step, canvas, logits: self(canvas, logits, step)


class MaskedCFGLogitsProcessor(CanvasLogitsProcessor):
    """`CFG` on a canvas: away from the prompt masked, or from a negative prompt.

    DiffusionGemma has nothing to mask with: there it is away from a negative prompt, by default `CFG`'s.

    Args:
        model: As in `CanvasLogitsProcessor`.
        guidance_scale: As in `CFG`; LLaDA's `cfg_scale` is `guidance_scale - 1`.
        negative_prompt: As in `CFG`, or a tensor of ids; `None` masks the prompt, or is `CFG`'s default.
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

    They are masked again, or on DiffusionGemma's canvas random again.

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
