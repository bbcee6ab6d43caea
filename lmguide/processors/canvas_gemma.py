"""Guided scores of DiffusionGemma's canvas, in transformers' own `generate()` of the plain model.

Transformers hands a processor the prompt and the scores. Canvas, encoder cache, self-conditioning, sampler and the
processors behind are arguments of the denoising step that calls it, and are read from the call stack. Nothing is
installed on the model, so nothing can be left there.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from transformers import LogitsProcessorList, PreTrainedModel

from lmguide.denoisers.gemma_checks import base_model, check_method
from lmguide.denoisers.gemma_run import Moment, Plan, Run
from lmguide.denoisers.stats import Stats
from lmguide.sources import caches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from transformers import LogitsProcessor

    from lmguide.guidance import Guidance

STEP = (
    "decoder_forward",
    "current_canvas",
    "self_conditioning_logits",
    "mask_mapping",
    "past_key_values",
    "decoder_position_ids",
    "finished_denoising",
    "sampler",
    "logits_processor",
    "model_kwargs",
    "raw_logits",
)
"""What is read of transformers' `_denoising_step`: its arguments, and the logits that go into the first processor."""

INPUTS = {
    "decoder_input_ids": "current_canvas",
    "self_conditioning_logits": "self_conditioning_logits",
    "decoder_attention_mask": "mask_mapping",
    "past_key_values": "past_key_values",
    "decoder_position_ids": "decoder_position_ids",
}
"""The decoder's arguments, by what the denoising step calls them."""

COMPILED = ("accept_canvas", "renoise_canvas")
"""Methods of the sampler that transformers replaces by compiled ones."""


class GemmaCanvas:
    """What a `CanvasLogitsProcessor` does in `DiffusionGemmaForBlockDiffusion.generate()`.

    Transformers' own decoder pass has the guided law in its self-conditioning, where every source is to have its own
    (`lmguide.diffusion.guide_gemma`). So the conditional is run again with what it remembers, in one batch with the
    other sources: the pass of `guide_gemma`, bit for bit.

    Args:
        model: A DiffusionGemma, or a PEFT model around one.
        methods: The methods, all of them enabled.
        negative: Arguments of `RowBuilder.negative`, to take the place of a `NegativePrompt`'s own.
        tokenizer: For negative prompts in text or messages.

    Raises:
        TypeError: Not a model of transformers.
        ValueError: A method that the model cannot serve.
    """

    def __init__(
        self, model: Any, methods: Sequence[Guidance], negative: Mapping[str, Any] | None, tokenizer: Any
    ) -> None:
        model = base_model(model)
        if not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"model: expected a DiffusionGemmaForBlockDiffusion, got {type(model).__name__}. "
                "Give the model as transformers loads it."
            )
        for method in methods:
            check_method(method)
        self.plan = Plan(model, tuple(methods), tokenizer)
        self.negative = negative
        self.reset()

    def reset(self) -> None:
        """Forget all calls."""
        # A sampler lives as long as its call, and so does what the call needs: calls may nest or run in threads.
        self._runs: WeakKeyDictionary[Any, Run] = WeakKeyDictionary()
        self._books: tuple[Stats, Tensor] | None = None

    @property
    def stats(self) -> Stats:
        """What the last call did; it waits for the device."""
        if self._books is None:
            return Stats()
        done, fired = self._books
        return Stats(done.steps, int(fired), done.forwards, done.nfe)

    def guided(
        self, processor: LogitsProcessor, input_ids: Tensor, scores: Tensor, cur_step: Tensor | int | None
    ) -> Tensor:
        """Guided log-probabilities `[B, C, V]` of the canvas that is denoised now.

        Args:
            processor: Who asks, as it stands in transformers' list.
            input_ids: Prompt and finished canvases, `[B, L]`.
            scores: The model's logits.
            cur_step: Steps left of this canvas, this one included.
        """
        model = self.plan.model
        step = _locals("_denoising_step", model, STEP)
        processors = step["logits_processor"]
        if cur_step is None or processors[0] is not processor or scores is not step["raw_logits"]:
            raise ValueError(
                "logits_processor: expected guidance before all others and once, got scores that another processor has "
                "seen. Put it first, and give several methods to one processor."
            )
        left = int(cur_step)
        sampler, cache, width = step["sampler"], step["past_key_values"], step["current_canvas"].shape[1]
        run = self._runs.get(sampler)
        if run is None or left == run.total:  # a new canvas
            (mask,) = _locals("generate", model, ("decoder_attention_mask",)).values()
            if run is None:
                run = Run(self.plan, self.negative)
                run.total = left
                run.begin(input_ids, mask[:, :-width], cache, partial=caches.length(cache) > input_ids.shape[1])
                for name in COMPILED:  # those of the first call, which do not tell what they accept at a later one
                    sampler.__dict__.pop(name, None)
                self._runs[sampler] = run
                self._books = run.stats, run.fired
            else:
                run.commit(input_ids[:, -width:])
            run.start(mask, cache)
        inputs = {name: step[own] for name, own in INPUTS.items()} | step["model_kwargs"]
        others = LogitsProcessorList(processors[1:])
        moment = Moment(input_ids, left, step["finished_denoising"], sampler, others)
        logits: Tensor = run.denoise(step["decoder_forward"], moment, inputs).logits
        return logits


def _locals(function: str, model: Any, names: Sequence[str]) -> dict[str, Any]:
    """Variables of the innermost method of that name of this very model that is running now.

    Raises:
        ValueError: There is none, or it does not have them.
    """
    frame = inspect.currentframe()
    while frame is not None:
        # looked at by name first: up to Python 3.12 a frame keeps what f_locals has once shown for as long as it lives
        found = frame.f_locals if frame.f_code.co_name == function else {}
        if found.get("self") is model and all(name in found for name in names):
            return {name: found[name] for name in names}
        frame = frame.f_back
    raise ValueError(
        f"model: expected to be called by generate() of the very {type(model).__name__} that the processor was given, "
        "unguided and with transformers' own denoising step, got another caller. Use lmguide.diffusion.guide_gemma."
    )
