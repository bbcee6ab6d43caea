"""One guided `generate()` call: its sources, and what happens around each forward pass of transformers' own loop."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from lmguide.huggingface.constrained import bound, told
from lmguide.huggingface.rewards import Rewards
from lmguide.huggingface.sources import Pending, Sources
from lmguide.huggingface.stack import EncoderStack, Stack, first_block
from lmguide.schedules import Progress
from lmguide.sources import caches
from lmguide.sources.branch import accepts
from lmguide.sources.ids import Rows
from lmguide.sources.roomy import with_room
from lmguide.sources.skinny import few_rows
from lmguide.step import guided_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor
    from transformers import Cache, GenerationConfig

    from lmguide.constraints.states import ConstraintState
    from lmguide.huggingface.view import Plan


@dataclass
class Stats:
    """What a guided call did.

    Attributes:
        steps: Decoding steps (with assisted decoding: forward passes of the guided model).
        fired: Steps on which guidance applied to at least one row.
        caught_up: Tokens a lazily run source was fed after the step they belong to.
        forwards: Forward passes of any model, prefills included.
        nfe: Forward evaluations per row: a pass over two stacked contexts counts two.
        forced: Tokens that the constraint left no choice about and that were read several at a time.
        truncated: Answers that stop before they are what the constraint says.
    """

    steps: int = 0
    fired: int = 0
    caught_up: int = 0
    forwards: int = 0
    nfe: int = 0
    forced: int = 0
    truncated: int = 0


class Run:
    """The state of one call. The view asks it before and after each forward pass; nobody else keeps it.

    Args:
        plan: Model, methods and tokenizer of the view.
        negative: Rows of the negative prompt given to this call, made when the batch is known; see `Sources`.
        recorder: Called for each scored position with conditional log-probabilities, guided scores `[B, V]`, the rows
            `[B]` on which guidance applied, and the progress.
    """

    def __init__(
        self,
        plan: Plan,
        negative: Mapping[str, Any] | None = None,
        recorder: Callable[[Tensor, Tensor, Tensor, Progress], None] | None = None,
    ) -> None:
        self.plan = plan
        self.negative = negative
        self.recorder = recorder
        self.stats = Stats()
        self.plain = False
        self.skips = False
        self.constraint: ConstraintState | None = None
        self.encoder_input: tuple[Tensor, Tensor | None] | None = None
        self.stack: Stack | EncoderStack | None = None
        self._stacking = False
        self._static: StaticCache | None = None
        self._cache: Cache | None = None
        self._fired = torch.zeros((), dtype=torch.long)

    def begin(
        self,
        view: Any,
        input_ids: Tensor,
        config: GenerationConfig,
        arguments: dict[str, Any],
        assisted: bool,
    ) -> dict[str, Any]:
        """Set up the sources at the start of a decoding loop.

        Returns:
            The loop's keyword arguments, possibly with another cache.
        """
        self.config = config
        self.batch, self.prompt_length = input_ids.shape
        name = caches.cache_name(self.plan.model)
        cache = arguments.get(name)
        self.sources = Sources.build(self, input_ids, arguments, cache, assisted)
        self.rewards = Rewards(self, self.sources, input_ids, arguments, assisted)
        prompts = self.batch // self.sources.expand
        close_within = config.max_length - self.prompt_length if self.plan.close else None
        self.constraint = bound(self.plan, config, prompts, self.sources.expand, close_within)
        self.strengths = [m.strength(prompts, self.sources.expand, input_ids.device) for m in self.plan.methods]
        self._fired = torch.zeros((), dtype=torch.long, device=input_ids.device)
        self._stacking = bool(self.sources.stacked) and self._can_stack(cache, arguments)
        if self._stacking and self.plan.model.config.is_encoder_decoder:
            self.stack = EncoderStack.of([self.sources.encoded(arguments), *self.sources.encoded_stack()])
            if _is_static(cache):
                arguments[name] = view._prepare_static_cache(
                    config.cache_implementation,
                    self.batch * self.stack.blocks,
                    config.max_length - 1,
                    None,
                    {"encoder_outputs": (self.stack.hidden,)},
                )
        elif self.sources.longest_suffix and cache is not None and _is_static(cache):
            arguments[name] = self._with_room(view, cache, arguments)
        elif self._stacking and isinstance(cache, StaticCache):
            self._static = cache
            arguments[name] = DynamicCache(config=view.config.get_text_config(decoder=True))
        elif not config.return_dict_in_generate and not getattr(cache, "_is_user_defined", False):
            with_room(cache, config.max_length - self.prompt_length)
        return arguments

    def _with_room(self, view: Any, cache: Cache, arguments: dict[str, Any]) -> Cache:
        """A static cache that holds the suffixes too, which run behind the last token."""
        if getattr(cache, "_is_user_defined", False):
            raise ValueError(
                "past_key_values: a suffix needs room behind the answer, which a static cache of your own may lack. "
                "Use cache_implementation='static' instead."
            )
        longest = self.config.max_length - 1 + self.sources.longest_suffix
        implementation = self.config.cache_implementation
        static: Cache = view._prepare_static_cache(implementation, self.batch, longest, None, arguments)
        return static

    def end(self) -> None:
        """Close the books, and leave a cache that outlives the call with the conditional's rows alone."""
        self.stats.fired = int(self._fired)
        for branch in self.sources.branches():
            self.stats.forwards += branch.forwards
            self.stats.nfe += branch.forwards
            self.stats.caught_up += branch.caught_up
        for reward in self.rewards:
            self.stats.forwards += reward.forwards
            self.stats.nfe += reward.nfe
        self.stats.forwards += self.sources.suffix_forwards
        self.stats.nfe += self.sources.suffix_forwards
        if self.stack is not None and self._cache is not None and self._outlives():
            padding = self.stack.padding if isinstance(self.stack, Stack) else 0
            for part in caches.parts(self._cache):
                caches.take(part, self.batch, padding)

    def tell(self, sequences: Tensor) -> None:
        """Note, and warn of, returned sequences that stop before they are what the constraint says."""
        if self.constraint is not None:
            self.stats.truncated = told(
                self.constraint, sequences[:, self.prompt_length :], self.batch // self.sources.expand
            )

    def _outlives(self) -> bool:
        return bool(self.config.return_dict_in_generate or getattr(self._cache, "_is_user_defined", False))

    @contextmanager
    def as_plain(self) -> Iterator[None]:
        """Let forward passes through as they are: the conditional's own prefill."""
        self.plain = True
        try:
            yield
        finally:
            self.plain = False

    def prefills_alone(self) -> bool:
        """Whether the conditional is prefilled on its own, before the other sources."""
        return not isinstance(self.stack, EncoderStack)

    def prepare(
        self, prepare: Callable[..., dict[str, Any]], input_ids: Tensor, fresh: int | None, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        """The model's inputs of a forward pass, with a note of what it is for."""
        first = bool(arguments.get("is_first_iteration"))
        generated = input_ids.shape[1] - self.prompt_length
        scored = generated + 1 if first else (fresh or 1)
        pending = Pending(input_ids, scored, first, arguments, fresh or input_ids.shape[1])
        if isinstance(self.stack, EncoderStack):
            inputs = self.stack.inputs(prepare, input_ids, fresh, arguments)
        elif self.stack is not None:
            inputs = self.stack.inputs(prepare, input_ids, scored, arguments)
        else:
            inputs = prepare(input_ids, next_sequence_length=fresh, **arguments)
        inputs["guided"] = pending
        return inputs

    def after_prefill(self, outputs: Any, input_ids: Tensor, arguments: dict[str, Any]) -> Any:
        """Guide the output of the conditional's own prefill."""
        return self._guide(outputs, Pending(input_ids, 1, True, arguments))

    def forward(self, call: Callable[..., Any], pending: Pending, inputs: dict[str, Any]) -> Any:
        """One forward pass and the guidance on its output."""
        if self.sources.hidden_states:
            inputs["output_hidden_states"] = True
        blocks = self.stack.blocks if self.stack is not None else 1
        self.count(blocks)
        eager = call is self.plan.model  # a compiled forward has kernels of its own
        with few_rows(self.plan.model, blocks * self.batch * pending.fresh) if eager else nullcontext():
            outputs = call(**inputs)
        return self._guide(outputs, pending)

    def count(self, blocks: int = 1) -> None:
        """Count a forward pass over so many stacked contexts."""
        self.stats.forwards += 1
        self.stats.nfe += blocks

    def _guide(self, outputs: Any, pending: Pending) -> Any:
        blocks = self.stack.blocks if self.stack is not None else 1
        self.stats.steps += 1
        name = caches.cache_name(self.plan.model)
        self._cache = outputs.get(name)
        generated = pending.input_ids[:, self.prompt_length :]
        scores = outputs.logits[:, -pending.scored :].float().log_softmax(-1)
        cond, *others = scores.split(self.batch)
        self.rewards.now(pending, generated.shape[1])
        if blocks > 1:
            self._own_outputs(outputs, generated.shape[1])
            self.sources.now(pending, outputs, generated, dict(zip(self.sources.stacked, others, strict=True)))
        else:
            self.sources.now(pending, outputs, generated, {})
            if pending.first and self._stacking:
                self._join(outputs, name, generated, pending)
        outputs.logits = self._combine(cond, generated, pending.scored)
        return outputs

    def _own_outputs(self, outputs: Any, generated: int) -> None:
        """Leave the conditional's rows in what a stacked pass returns beside logits."""
        if isinstance(self.stack, EncoderStack):
            first_block(outputs, self.batch, 0, 0, self.stack.width)
        elif self.stack is not None:
            first_block(outputs, self.batch, self.stack.padding, self.stack.length + generated, None)

    def _combine(self, cond: Tensor, generated: Tensor, scored: int) -> Tensor:
        total = self.config.max_length - self.prompt_length
        guided = []
        applied = torch.zeros((), dtype=torch.bool, device=cond.device)
        for place in range(scored):
            progress = Progress(generated.shape[1] - scored + 1 + place, total)

            def fetch(index: int, place: int = place) -> dict[str, Tensor]:
                return {
                    name: self.sources.scores(source)[:, place] for name, source in self.sources.wiring[index].items()
                }

            def rewards(index: int, combined: Tensor, step: int = progress.step) -> dict[str, Tensor]:
                return self.rewards.log_rewards(index, generated[:, :step], combined)

            live = self._live(generated[:, : progress.step])
            allowed = None if self.constraint is None else self.constraint.at(generated[:, : progress.step])
            result = guided_step(
                cond[:, place], self.plan.methods, self.strengths, fetch, progress, live, rewards, allowed
            )
            applied = applied | result.open.any()
            if self.recorder is not None:
                self.recorder(cond[:, place], result.scores, result.open, progress)
            guided.append(result.scores)
        self._fired += applied  # read at the end of the call, so that a step does not wait for the device
        return guided[0][:, None] if scored == 1 else torch.stack(guided, 1)

    def _live(self, generated: Tensor) -> Tensor | None:
        ends = getattr(self.config, "_eos_token_tensor", None)
        if ends is None or not generated.shape[1] or not any(method.when() is not None for method in self.plan.methods):
            return None
        return ~torch.isin(generated, ends.to(generated.device)).any(1)

    def _can_stack(self, cache: Cache | None, arguments: Mapping[str, Any]) -> bool:
        """Whether the sources can share a cache with the conditional and give the same numbers as apart."""
        if cache is None or not arguments.get("use_cache") or self.sources.longest_suffix:
            return False
        config = self.plan.model.config.get_text_config(decoder=True)
        rope = getattr(config, "rope_parameters", None) or {}
        if any(kind in str(rope) for kind in ("'dynamic'", "'longrope'")):
            return False  # their frequencies depend on the longest row of the batch
        if isinstance(cache, EncoderDecoderCache):
            return not caches.length(cache) and type(cache.self_attention_cache) in {DynamicCache, StaticCache}
        if isinstance(cache, StaticCache):
            plain = all(type(layer) in {StaticLayer, StaticSlidingWindowLayer} for layer in cache.layers)
            return plain and not cache.offloading and not getattr(cache, "_is_user_defined", False)
        return caches.joinable(cache)

    def _join(self, outputs: Any, name: str, generated: Tensor, pending: Pending) -> None:
        """Prefill the stacked sources on their own tokens and put their caches below the conditional's."""
        cache = outputs[name]
        branches = [self.sources.prefill(source) for source in self.sources.stacked]
        if not caches.joinable(cache):
            self._stacking = False  # the layers were only now created, and are of a kind that cannot be joined
            return
        mask = pending.arguments.get("attention_mask")  # recurrent caches do not know how much they have seen
        own = caches.length(cache) or (pending.input_ids.shape[1] if mask is None else mask.shape[1])
        rows = [Rows(branch.rows.ids, branch.rows.mask) for branch in branches]
        lengths = [own, *(r.ids.shape[1] + generated.shape[1] for r in rows)]
        caches.join(cache, [branch.cache for branch in branches if branch.cache is not None], lengths)
        prompt = max(lengths) - generated.shape[1]
        self.stack = Stack(
            batch=self.batch,
            prompt_length=self.prompt_length,
            padding=max(lengths) - own,
            rows=rows,
            length=prompt,
            with_positions=accepts(self.plan.model, "position_ids"),
            unpadded=len({own, *lengths}) == 1 and all(bool(r.mask.all()) for r in rows),
        )
        for branch in branches:
            branch.cache = None
        if self._static is not None:
            needed = prompt + self.config.max_length - self.prompt_length
            static = StaticCache(config=self.plan.model.config.get_text_config(decoder=True), max_cache_len=needed)
            caches.fill(static, cache)
            outputs[name] = self._cache = static

    def reorder(self, cache: Cache, order: Tensor) -> Tensor:
        """Follow a beam's re-ordering in every source; returns the order of the loop's own cache."""
        for branch in self.sources.branches():
            branch.reorder(order)
        self.rewards.reorder(order)
        blocks = self.stack.blocks if self.stack is not None else 1
        return torch.cat([order + block * self.batch for block in range(blocks)]) if blocks > 1 else order

    def compile_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The loop's arguments as transformers should see them when it decides whether to compile."""
        if self._static is None:
            return arguments
        return {**arguments, caches.cache_name(self.plan.model): self._static}


def _is_static(cache: Cache | None) -> bool:
    return isinstance(caches.parts(cache)[0] if cache is not None else None, StaticCache)
