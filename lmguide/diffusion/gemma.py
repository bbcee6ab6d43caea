"""`guide_gemma`: a view of a DiffusionGemma whose `generate()` is guided.

The view is an object of a class made on the fly, below the model's own, that shares its modules. Canvas, sampler,
temperature, stopping and streaming stay transformers' own code: the view only changes what a denoising step is told
about the logits.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from lmguide.denoisers.gemma_checks import base_model, check_input, check_method
from lmguide.denoisers.gemma_run import Moment, Plan, Run
from lmguide.denoisers.stats import Stats
from lmguide.guidance import Guidance, as_methods, with_scale
from lmguide.sources import caches
from lmguide.sources.binding import given_negative

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

POSITIONAL = ("past_key_values", "streamer", "generation_config", "logits_processor", "stopping_criteria")
"""Names of the arguments of DiffusionGemma's `generate` behind `input_ids`, in their order."""

SEAMS = (
    "generate",
    "_prepare_generation_config",
    "_prepare_encoder_inputs",
    "_prepare_denoiser_inputs",
    "_denoising_step",
    "_compile_functions",
    "_prepare_static_cache",
)
"""Methods of the model that the view overrides."""

_Model: Any = object


class GuidedDiffusionGemma(_Model):  # type: ignore[misc] # mixed in before the model's own class
    """The seams. Mixed in before the model's own class; see `guide_gemma`.

    Attributes:
        stats: What the last finished `generate()` call did.
    """

    stats: Stats
    _plan: Plan
    _run: Run | None

    def generate(
        self,
        input_ids: Tensor | None = None,
        *args: Any,
        negative_prompt: Any = None,
        negative_prompt_ids: Any = None,
        negative_prompt_attention_mask: Tensor | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        **kwargs: Any,
    ) -> Any:
        """DiffusionGemma's `generate`, guided.

        Args:
            input_ids: The prompts, `[B, L]`, padded on the left.
            *args: Further arguments by position, in transformers' order.
            negative_prompt: Text, chat messages or ids, for all prompts or one per prompt; instead of the method's own.
            negative_prompt_ids: Token ids `[P]`, `[1, P]` or `[B, P]`, or lists of them, instead.
            negative_prompt_attention_mask: Their mask, same shape; without it leading padding is inferred where it can
                be.
            guidance_scale: A strength, or one per prompt, instead of the method's own.
            **kwargs: Further arguments of transformers' `generate`. A logits processor is called several times a step,
                on the guided law and on what each source remembers: it must depend on its arguments alone.

        Returns:
            What transformers' `generate` returns; `past_key_values` is the conditional's own cache.

        Raises:
            ValueError: An argument is wrong, or the call cannot be guided exactly; the argument is named.
        """
        kwargs.update(zip(POSITIONAL[: len(args)], args, strict=True))
        # transformers appends its own to the lists it is given, which would be there twice at a second call
        for name, kind in (("logits_processor", LogitsProcessorList), ("stopping_criteria", StoppingCriteriaList)):
            if (given := kwargs.get(name)) is not None:
                kwargs[name] = copy.copy(given) if isinstance(given, kind) else kind(given)
        plan = replace(self._plan, methods=with_scale(self._plan.methods, guidance_scale))
        negative = given_negative(plan.methods, negative_prompt, negative_prompt_ids, negative_prompt_attention_mask)
        enabled = tuple(method for method in plan.methods if method.enabled)
        # a copy holds the state of this call alone: calls may nest or run in threads
        call = object.__new__(type(self))
        call.__dict__.update(self.__dict__)
        call._run = Run(replace(plan, methods=enabled), negative) if enabled else None
        if call._run is not None:
            check_input(input_ids, self._plan.model)
        result = super(GuidedDiffusionGemma, call).generate(input_ids, **kwargs)
        self.stats = Stats() if call._run is None else call._run.closed()
        return result

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> Any:
        config, arguments = super()._prepare_generation_config(*args, **kwargs)
        if self._run is not None:
            self._run.total = config.max_denoising_steps
        return config, arguments

    def _prepare_encoder_inputs(self, **arguments: Any) -> Any:
        run = self._run
        if run is not None:
            ids = arguments["input_ids"]
            if arguments["is_prefill"]:
                cache = arguments["past_key_values"]
                run.begin(ids, arguments["attention_mask"], cache, partial=bool(caches.length(cache)))
            else:
                run.commit(ids[:, -arguments["canvas_length"] :])
            run.count()
        return super()._prepare_encoder_inputs(**arguments)

    def _prepare_denoiser_inputs(self, **arguments: Any) -> Any:
        if self._run is not None:
            self._run.start(arguments["decoder_attention_mask"], arguments["past_key_values"])
        return super()._prepare_denoiser_inputs(**arguments)

    def _denoising_step(self, decoder_forward: Callable[..., Any], **arguments: Any) -> Any:
        run = self._run
        if run is None:
            return super()._denoising_step(decoder_forward=decoder_forward, **arguments)
        moment = Moment(
            input_ids=arguments["input_ids"],
            cur_step=arguments["cur_step"],
            finished=arguments["finished_denoising"],
            sampler=arguments["sampler"],
            processors=arguments["logits_processor"],
        )

        def guided(**inputs: Any) -> Any:
            return run.denoise(decoder_forward, moment, inputs)

        return super()._denoising_step(decoder_forward=guided, **arguments)

    def _compile_functions(self, sampler: Any, diffusion_stopping_criteria: Any) -> Any:
        # compiled code stays with the view, not with the copy of it that serves one call
        compiled = self._home._compile_functions(sampler, diffusion_stopping_criteria)
        if self._run is not None:
            # a compiled sampler is that of the first call, and does not tell which tokens it accepted at a later one
            for name in ("accept_canvas", "renoise_canvas"):
                sampler.__dict__.pop(name, None)
        return compiled

    def _prepare_static_cache(self, *args: Any, **kwargs: Any) -> Any:
        return self._home._prepare_static_cache(*args, **kwargs)


def guide_gemma(
    model: PreTrainedModel, guidance: Guidance | Sequence[Guidance], tokenizer: PreTrainedTokenizerBase | None = None
) -> GuidedDiffusionGemma:
    """A view of a DiffusionGemma whose `generate()` is guided; the model itself is not touched.

    At every denoising step the guided log-probabilities take the place of the model's logits. Whatever transformers
    does with those follows: logits processors, temperature schedule, entropy-bound sampling, the stopping criterion,
    the streamed draft. Canvas and accepted tokens are shared by all sources. Each source keeps an encoder cache and a
    self-conditioning estimate of its own. Where no gate may leave them alone, sources run as further rows of the
    conditional's decoder pass. With every strength at `off` the view runs the plain model, bit for bit and without a
    further forward.

    Methods whose sources are prompts are served (`CFG` and its kin, `APG`, `ICG`, `TPG`, `CAD`, `PREADD`,
    `PromptMixture`, ...), and `AdaptiveCFG`, whose canvas is re-noised here in the place of masked: of the tokens the
    sampler accepted at the step before, the least confident become random tokens.

    Schedules and gates that depend on progress see the denoising steps done of a canvas and `max_denoising_steps`.

    Args:
        model: A `DiffusionGemmaForBlockDiffusion`, or a PEFT model around one.
        guidance: A method such as `CFG(1.5)`, or several, whose effects add up.
        tokenizer: The model's tokenizer; needed where a method is given text or messages, and it gives chat models
            their default negative prompt.

    Returns:
        The view: `isinstance(view, type(model))`. A plain `view(...)` is unguided.

    Raises:
        TypeError: Not a DiffusionGemma, or no guidance.
        ValueError: A method that this model cannot serve, with what to do instead.
    """
    methods = as_methods(guidance)
    model = _checked_model(model)
    for method in methods:
        check_method(method)
    kind: Any = type(model)
    view: GuidedDiffusionGemma = object.__new__(_view_class(kind))
    home: Any = object.__new__(kind)
    for other in (view, home):
        other.__dict__.update(model.__dict__)
        other.__dict__.pop("_cache", None)  # the model's own static cache
    home.__dict__["_modules"] = dict(model._modules)  # transformers registers what it compiles as modules
    view.__dict__["_home"] = home
    view._plan = Plan(model, methods, tokenizer)
    view._run = None
    view.stats = Stats()
    return view


@functools.cache
def _view_class(cls: Any) -> type[GuidedDiffusionGemma]:
    """The class of the views of a model class. It keeps the name, which transformers looks at."""
    return type(cls.__name__, (GuidedDiffusionGemma, cls), {"__module__": cls.__module__})


def _checked_model(model: Any) -> PreTrainedModel:
    if isinstance(model, GuidedDiffusionGemma):
        raise ValueError("model: it is already guided. Give guide_gemma() the model itself and a list of methods.")
    model = base_model(model)
    if not isinstance(model, PreTrainedModel) or not all(hasattr(model, name) for name in SEAMS):
        raise TypeError(
            f"model: expected a DiffusionGemmaForBlockDiffusion, got {type(model).__name__}. "
            "Use lmguide.guide for models that write from left to right, lmguide.diffusion.generate for those with a "
            "mask token."
        )
    if patched := [name for name in SEAMS if name in model.__dict__]:
        raise ValueError(
            f"model: {', '.join(patched)} of this very object has been replaced, which the view would not run. "
            "Give guide_gemma() the model as it was loaded."
        )
    return model
