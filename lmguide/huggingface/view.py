"""`guide`: a view of a model whose `generate()` is guided.

The view is an object of a class made on the fly, below the model's own. It shares the model's modules and overrides the
seams of transformers' generation loop: what goes into a forward pass and what comes out of it. The user's model is not
touched.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable  # noqa: TC003 - transformers evaluates the annotations of model classes
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationMixin, PreTrainedModel

from lmguide.guidance import Guidance, as_methods, with_scale
from lmguide.huggingface import refusals
from lmguide.huggingface.particles import decode
from lmguide.huggingface.run import Run, Stats
from lmguide.sources import caches
from lmguide.sources.binding import given_negative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import Cache, GenerationConfig, PreTrainedTokenizerBase
    from transformers.generation.utils import GenerateOutput

    from lmguide.huggingface.particles import Draw


POSITIONAL = tuple(inspect.signature(GenerationMixin.generate).parameters)[2:-1]
"""Names of the arguments of transformers' `generate` behind `inputs`, in their order."""


_Model: Any = GenerationMixin


@dataclass(frozen=True)
class Plan:
    """What a view does: the model it looks at, the methods, and the tokenizer."""

    model: PreTrainedModel
    methods: tuple[Guidance, ...]
    tokenizer: PreTrainedTokenizerBase | None


class GuidedModel(_Model):  # type: ignore[misc] # a class of any model, of which types know nothing
    """The seams. Mixed in before the model's own class; see `guide`.

    Attributes:
        stats: What the last finished `generate()` call did.
    """

    stats: Stats
    _plan: Plan
    _run: Run | None
    _recorder: Callable[..., None] | None

    def generate(
        self,
        inputs: Tensor | None = None,
        *args: Any,
        negative_prompt: Any = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        **kwargs: Any,
    ) -> GenerateOutput | Tensor:
        """Transformers' `generate`, guided.

        Args:
            inputs: The prompt, as transformers takes it.
            *args: Further arguments by position, in transformers' order.
            negative_prompt: Text, chat messages or ids, for all prompts or one per prompt; instead of the method's own.
            negative_prompt_ids: Token ids `[P]`, `[1, P]` or `[B, P]` instead.
            negative_prompt_attention_mask: Their mask, same shape; without it leading padding is inferred where it can
                be.
            guidance_scale: A strength, or one per prompt, instead of the method's own.
            **kwargs: Further arguments of transformers' `generate`.

        Returns:
            What transformers' `generate` returns. `scores` and `logits`, if asked for, are guided log-probabilities;
            `past_key_values` is the conditional's own cache.

        Raises:
            ValueError: An argument is wrong, or the model or mode cannot be guided exactly; it is named.
        """
        kwargs.update(zip(POSITIONAL[: len(args)], args, strict=True))
        ids = kwargs.pop("negative_prompt_ids", negative_prompt_ids)
        mask = kwargs.pop("negative_prompt_attention_mask", negative_prompt_attention_mask)
        refusals.check_call(self, inputs, kwargs)
        call = for_call(self, guidance_scale, negative_prompt, ids, mask)
        result = super(GuidedModel, call).generate(inputs, **kwargs)
        self.stats = call.stats
        return cast("GenerateOutput | Tensor", result)

    def __call__(self, *args: Any, guided: Any = None, **kwargs: Any) -> Any:
        """The model's forward pass; guided only where the generation loop asks for it."""
        return self._forward(self._plan.model, *args, guided=guided, **kwargs)

    def _forward(self, call: Callable[..., Any], *args: Any, guided: Any = None, **kwargs: Any) -> Any:
        if guided is not None and self._run is not None:
            return self._run.forward(call, guided, kwargs)
        if self._run is not None and self._run.plain:
            self._run.count()
            if self._run.sources.hidden_states:
                kwargs["output_hidden_states"] = True
        return call(*args, **kwargs)

    def get_compiled_call(self, compile_config: Any) -> Callable[..., Any]:
        """The model's own compiled forward, guided around it."""
        return functools.partial(self._forward, self._plan.model.get_compiled_call(compile_config))

    def _valid_auto_compile_criteria(self, model_kwargs: dict[str, Any], generation_config: GenerationConfig) -> bool:
        arguments = model_kwargs if self._run is None else self._run.compile_arguments(model_kwargs)
        return bool(super()._valid_auto_compile_criteria(arguments, generation_config))

    def _prepare_text_encoder_decoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        if self._run is not None and not inputs_tensor.is_floating_point():
            self._run.encoder_input = (inputs_tensor, model_kwargs.get("attention_mask"))
        encode = super()._prepare_text_encoder_decoder_kwargs_for_generation
        return cast("dict[str, Any]", encode(inputs_tensor, model_kwargs, *args, **kwargs))

    def _prefill(
        self,
        input_ids: Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        run = self._run
        if run is None or not run.prefills_alone():
            return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
        with run.as_plain():
            outputs = super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
        return run.after_prefill(outputs, input_ids, model_kwargs)

    def _reorder_cache(self, cache: Cache, beam_idx: Tensor) -> Cache:
        order = beam_idx if self._run is None else self._run.reorder(cache, beam_idx)
        if hasattr(super(), "_reorder_cache"):
            return cast("Cache", super()._reorder_cache(cache, order))
        caches.expand(cache, order)
        return cache

    def _decode(self, loop: Callable[..., Any], input_ids: Tensor, assisted: bool, kwargs: dict[str, Any]) -> Any:
        run = self._run
        if run is None:
            return loop(input_ids, **kwargs)
        config = kwargs["generation_config"]
        refusals.check_mode(config)
        with torch.no_grad():
            kwargs = run.begin(cast("PreTrainedModel", self), input_ids, config, kwargs, assisted)
            try:
                return loop(input_ids, **kwargs)
            finally:
                run.end()

    @functools.wraps(GenerationMixin._sample)
    def _sample(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._decode(functools.partial(super()._sample), input_ids, False, kwargs)

    @functools.wraps(GenerationMixin._beam_search)
    def _beam_search(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._decode(super()._beam_search, input_ids, False, kwargs)

    @functools.wraps(GenerationMixin._assisted_decoding)
    def _assisted_decoding(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._decode(super()._assisted_decoding, input_ids, True, kwargs)

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: requests of a continuous batch cannot see each other's logits."""
        raise ValueError(refusals.CONTINUOUS_BATCHING)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: requests of a continuous batch cannot see each other's logits."""
        raise ValueError(refusals.CONTINUOUS_BATCHING)


def guide(
    model: PreTrainedModel, guidance: Guidance | Sequence[Guidance], tokenizer: PreTrainedTokenizerBase | None = None
) -> GuidedModel:
    """A view of a model whose `generate()` is guided; the model itself is not touched.

    Everything transformers' `generate` does goes on working: sampling, beams, several returned sequences, streamers,
    stop strings, static caches, prompt lookup, assistant models, other processors. All contexts of the model run as one
    batched forward per step. With every strength at `off` the view runs the plain model, bit for bit and without a
    further forward.

    Args:
        model: A causal language model or encoder-decoder of transformers, or a PEFT model around one.
        guidance: A method such as `CFG(1.5)`, or several, whose effects add up.
        tokenizer: The model's tokenizer; needed where a method is given text or messages, and it gives chat models
            their default negative prompt.

    Returns:
        The view: `isinstance(view, type(model))`. A plain `view(input_ids)` is unguided.

    Raises:
        TypeError: Not a model of transformers, or no guidance.
        ValueError: A model that cannot be guided exactly here, with what to do instead.

    Example:
        >>> import lmguide as lg
        >>> model, tokenizer = lg.bundled("tales")
        >>> guided = lg.guide(model, lg.CFG(guidance_scale=3.0), tokenizer=tokenizer)
        >>> inputs = tokenizer("A tale of the sea:", return_tensors="pt")
        >>> output = guided.generate(**inputs, max_new_tokens=40, do_sample=False)
        >>> guided.stats.steps > 0
        True
    """
    methods = as_methods(guidance)
    model = refusals.check_model(model)
    kind: Any = type(model)
    view: GuidedModel = object.__new__(_view_class(kind))
    view.__dict__.update(model.__dict__)
    view._plan = Plan(model, methods, tokenizer)
    view._run = None
    view._recorder = None
    view.stats = Stats()
    return view


@functools.cache
def _view_class(cls: Any) -> type[GuidedModel]:
    """The class of the views of a model class. It keeps the name, which transformers looks at."""
    prepare_inputs = cls.prepare_inputs_for_generation

    @functools.wraps(prepare_inputs)  # generate() inspects the signature
    def prepare_inputs_for_generation(
        self: Any, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        own = functools.partial(prepare_inputs, self)
        if self._run is None or self._run.plain:
            return cast("dict[str, Any]", own(input_ids, next_sequence_length=next_sequence_length, **kwargs))
        return cast("dict[str, Any]", self._run.prepare(own, input_ids, next_sequence_length, kwargs))

    namespace = {"__module__": cls.__module__, "prepare_inputs_for_generation": prepare_inputs_for_generation}
    return type(cls.__name__, (GuidedModel, cls), namespace)


def recorded(view: GuidedModel, recorder: Callable[..., None]) -> GuidedModel:
    """A view of the same model that hands every scored position to `recorder`; see `Run`."""
    other = object.__new__(type(view))
    other.__dict__.update(view.__dict__)
    other._recorder = recorder
    return other


def drawn(view: GuidedModel, draw: Draw, inputs: Tensor | None = None, **kwargs: Any) -> Tensor:
    """Sequences `[B, L]` of a guided view whose next tokens somebody else draws, all rows from one prompt.

    Args:
        view: A view made by `guide`. Its `stats` will be those of the call.
        draw: Draws a token for every row at every step, and may drop and double rows.
        inputs: As for `view.generate`, for one prompt.
        **kwargs: As for `view.generate`; `num_return_sequences` says how many rows.
    """
    refusals.check_call(view, inputs, kwargs)
    own = ("guidance_scale", "negative_prompt", "negative_prompt_ids", "negative_prompt_attention_mask")
    call = for_call(view, **{name: kwargs.pop(name, None) for name in own})

    def loop(_: Any, input_ids: Tensor, **arguments: Any) -> Any:
        return call._decode(functools.partial(decode, call, draw=draw), input_ids, False, arguments)

    sequences = super(GuidedModel, call).generate(inputs, custom_generate=loop, **kwargs)
    view.stats = call.stats
    return cast("Tensor", sequences)


def for_call(
    view: GuidedModel,
    guidance_scale: float | Sequence[float] | None = None,
    negative_prompt: Any = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
) -> GuidedModel:
    """A copy of a view for one call, which holds the state of that call alone: calls may nest or run in threads.

    The arguments are those of `GuidedModel.generate`. Without an enabled method the copy runs the plain model.
    """
    plan = replace(view._plan, methods=with_scale(view._plan.methods, guidance_scale))
    negative = given_negative(plan.methods, negative_prompt, negative_prompt_ids, negative_prompt_attention_mask)
    enabled = tuple(method for method in plan.methods if method.enabled)
    call = object.__new__(type(view))
    call.__dict__.update(view.__dict__)
    call._plan = replace(plan, methods=enabled)
    call._run = Run(call._plan, negative, view._recorder) if enabled else None
    call.stats = Stats() if call._run is None else call._run.stats
    return call
