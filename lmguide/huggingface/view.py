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
from transformers import GenerationMixin, LogitsProcessorList, PreTrainedModel

from lmguide.constraints.base import Constraint  # noqa: TC001 - likewise
from lmguide.constraints.engine import check_backend
from lmguide.constraints.mixed import divided
from lmguide.guidance import Guidance, with_scale
from lmguide.huggingface import refusals
from lmguide.huggingface.constrained import ForcedTokens, NeverEmpty, bound, can_skip, checked, end_tokens
from lmguide.huggingface.particles import decode
from lmguide.huggingface.run import Run, Stats
from lmguide.sources import caches
from lmguide.sources.binding import given_negative

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import Cache, GenerationConfig, PreTrainedTokenizerBase
    from transformers.generation.utils import GenerateOutput

    from lmguide.huggingface.particles import Drawer


POSITIONAL = tuple(inspect.signature(GenerationMixin.generate).parameters)[2:-1]
"""Names of the arguments of transformers' `generate` behind `inputs`, in their order."""


_Model: Any = GenerationMixin


@dataclass(frozen=True)
class Plan:
    """What a view does: model, methods and tokenizer; constraints, their engine, and whether to close in time."""

    model: PreTrainedModel
    methods: tuple[Guidance, ...]
    tokenizer: PreTrainedTokenizerBase | None
    constraint: Constraint | tuple[Constraint | None, ...] | None = None
    backend: str | None = None
    close: bool = False


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
        constraint: Constraint | Sequence[Constraint | None] | None = None,
        close: bool = False,
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
            constraint: What the answers must be, or one for each prompt (`None` for a prompt without), instead of the
                view's own.
            close: Near `max_new_tokens` allow only tokens from which a short way to a complete answer is known. The
                way is searched for, so this costs time there, and it may be missed by grammars with long ways out.
            **kwargs: Further arguments of transformers' `generate`.

        Returns:
            What transformers' `generate` returns. `scores` and `logits`, if asked for, are guided log-probabilities;
            `past_key_values` is the conditional's own cache.

        Raises:
            ValueError: An argument is wrong, or the model or mode cannot be guided exactly; it is named.
            ConstraintError: No token can follow in a row; it is named.

        Warns:
            UserWarning: Answers stop before they are what the constraint says, because `max_new_tokens` cuts them off.
        """
        kwargs.update(zip(POSITIONAL[: len(args)], args, strict=True))
        ids = kwargs.pop("negative_prompt_ids", negative_prompt_ids)
        mask = kwargs.pop("negative_prompt_attention_mask", negative_prompt_attention_mask)
        refusals.check_call(self, inputs, kwargs)
        call = for_call(self, guidance_scale, negative_prompt, ids, mask, constraint, close)
        result = super(GuidedModel, call).generate(inputs, **kwargs)
        self.stats = call.stats
        if call._run is not None:
            call._run.tell(result if isinstance(result, torch.Tensor) else result.sequences)
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
            if run.constraint is not None:
                kwargs["logits_processor"] = LogitsProcessorList([*kwargs["logits_processor"], NeverEmpty()])
            try:
                return loop(input_ids, **kwargs)
            finally:
                run.end()

    @functools.wraps(GenerationMixin._sample)
    def _sample(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._run is not None and not args and can_skip(self._plan, input_ids, kwargs):
            self._run.skips = True
            return self._assisted_decoding(input_ids=input_ids, **kwargs)
        return self._decode(functools.partial(super()._sample), input_ids, False, kwargs)

    @functools.wraps(GenerationMixin._beam_search)
    def _beam_search(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._decode(super()._beam_search, input_ids, False, kwargs)

    @functools.wraps(GenerationMixin._assisted_decoding)
    def _assisted_decoding(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._decode(super()._assisted_decoding, input_ids, True, kwargs)

    @functools.wraps(GenerationMixin._get_candidate_generator)
    def _get_candidate_generator(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        if self._run is not None and self._run.skips:
            return ForcedTokens(self._run, generation_config.max_length)
        return super()._get_candidate_generator(generation_config, *args, **kwargs)

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: requests of a continuous batch cannot see each other's logits."""
        raise ValueError(refusals.CONTINUOUS_BATCHING)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: requests of a continuous batch cannot see each other's logits."""
        raise ValueError(refusals.CONTINUOUS_BATCHING)


def guide(
    model: PreTrainedModel,
    guidance: Guidance | Constraint | Sequence[Guidance | Constraint],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    backend: str | None = None,
) -> GuidedModel:
    """A view of a model whose `generate()` is guided; the model itself is not touched.

    Everything transformers' `generate` does goes on working: sampling, beams, several returned sequences, streamers,
    stop strings, static caches, prompt lookup, assistant models, other processors. All contexts of the model run as one
    batched forward per step. With every strength at `off` the view runs the plain model, bit for bit and without a
    further forward.

    Args:
        model: A causal language model or encoder-decoder of transformers, or a PEFT model around one.
        guidance: A method such as `CFG(1.5)`, or several, whose effects add up; and at most one constraint such as
            `JSONSchema(...)`, which the guided answer then keeps to.
        tokenizer: The model's tokenizer; needed for a constraint and where a method is given text or messages, and it
            gives chat models their default negative prompt.
        backend: The engine that constraints run on: `"llguidance"`, the default, or `"xgrammar"`.

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
    methods, constraint = divided(guidance)
    check_backend(backend)
    model = refusals.check_model(model)
    kind: Any = type(model)
    view: GuidedModel = object.__new__(_view_class(kind))
    view.__dict__.update(model.__dict__)
    view._plan = Plan(model, methods, tokenizer, constraint, backend)
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
    other = copied(view)
    other._recorder = recorder
    return other


def copied(view: GuidedModel) -> GuidedModel:
    """A view of the same model with the same plan."""
    other = object.__new__(type(view))
    other.__dict__.update(view.__dict__)
    return other


def drawn(view: GuidedModel, drawer: Drawer, inputs: Tensor, **kwargs: Any) -> Tensor:
    """Sequences `[B, L]` of a guided view whose next tokens somebody else draws, all rows from one prompt.

    Args:
        view: A view made by `guide`. Its `stats` will be those of the call.
        drawer: Makes what draws from the state of the rows under the view's constraint, which is not applied here, and
            the end-of-sequence tokens.
        inputs: The prompt, as for `view.generate`.
        **kwargs: As for `view.generate`; `num_return_sequences` says how many rows.
    """
    refusals.check_call(view, inputs, kwargs)
    own = ("guidance_scale", "negative_prompt", "negative_prompt_ids", "negative_prompt_attention_mask")
    bare = copied(view)
    bare._plan = replace(view._plan, constraint=None)
    call = for_call(bare, **{name: kwargs.pop(name, None) for name in own})

    def loop(_: Any, input_ids: Tensor, **arguments: Any) -> Any:
        config = arguments["generation_config"]
        draw = drawer(bound(view._plan, config, 1, len(input_ids)), end_tokens(config))
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
    constraint: Constraint | Sequence[Constraint | None] | None = None,
    close: bool = False,
) -> GuidedModel:
    """A copy of a view for one call, which holds the state of that call alone: calls may nest or run in threads.

    The arguments are those of `GuidedModel.generate`. Without an enabled method or a constraint the copy runs the plain
    model.
    """
    own = view._plan.constraint if constraint is None else checked(constraint)
    plan = replace(view._plan, methods=with_scale(view._plan.methods, guidance_scale), constraint=own, close=close)
    negative = given_negative(plan.methods, negative_prompt, negative_prompt_ids, negative_prompt_attention_mask)
    enabled = tuple(method for method in plan.methods if method.enabled)
    call = copied(view)
    call._plan = replace(plan, methods=enabled)
    call._run = Run(call._plan, negative, view._recorder) if enabled or own is not None else None
    call.stats = Stats() if call._run is None else call._run.stats
    return call
