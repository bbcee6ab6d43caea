"""The state of one guided call of DiffusionGemma, and the guided law of each of its denoising steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import DynamicCache, StaticCache

from lmguide import contexts, measures
from lmguide.denoisers import gemma_branches as branches
from lmguide.denoisers.gemma_branches import Block, Prefix, PromptSource, Reading
from lmguide.denoisers.gemma_checks import check_input
from lmguide.denoisers.guide import CHUNK, MAIN
from lmguide.denoisers.stats import Stats
from lmguide.schedules import Progress
from lmguide.sources.binding import bind
from lmguide.sources.ids import Rows, pack
from lmguide.sources.rows import RowBuilder
from lmguide.step import guided_step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from transformers import Cache

    from lmguide.guidance import Guidance
    from lmguide.rules import Scale

Source: TypeAlias = "PromptSource | contexts.RemaskedCanvas"


@dataclass(frozen=True)
class Plan:
    """What is guided, and how: the model itself, the methods, and the tokenizer."""

    model: Any
    methods: tuple[Guidance, ...]
    tokenizer: Any


@dataclass(frozen=True)
class Moment:
    """What transformers' denoising step knows beside the decoder's inputs.

    Attributes:
        input_ids: Prompt and finished canvases, `[B, L]`.
        cur_step: Steps left of this canvas, this one included.
        finished: Rows `[B]` whose canvas is done.
        sampler: Its sampler.
        processors: Its logits processors.
    """

    input_ids: Tensor
    cur_step: int
    finished: Tensor
    sampler: Any
    processors: Callable[..., Tensor]


class Run:
    """The state of one call. Whoever guides it tells of each canvas and asks for the logits of each step.

    Args:
        plan: Model, methods (all of them enabled) and tokenizer.
        negative: Arguments of `RowBuilder.negative`, to take the place of a `NegativePrompt`'s own.

    Attributes:
        total: Denoising steps a canvas may have.
        stats: What was done so far, but for `fired`.
        fired: On how many steps guidance applied to at least one position; on the device until somebody wants it.
    """

    def __init__(self, plan: Plan, negative: Mapping[str, Any] | None) -> None:
        self.plan = plan
        self.negative = negative
        self.total = 0
        self.stats = Stats()
        self.found: list[contexts.Context] = []
        self.wiring: list[dict[str, int]] = []
        for method in plan.methods:
            self.found += [c for c in method.sources().values() if c not in self.found]
            self.wiring.append({name: self.found.index(c) for name, c in method.sources().items()})
        self.sources: dict[int, Source] = {}
        self.state: Tensor | None = None
        self.confidences: dict[str, Tensor] = {}
        self._fresh_canvas = True
        self._readings: dict[tuple[int, ...], Reading | None] = {}

    def begin(self, input_ids: Tensor, mask: Tensor, cache: Cache, partial: bool) -> None:
        """Bind the contexts to the prompts of the call.

        Args:
            input_ids: The prompts, or what is new of them, `[B, L]`.
            mask: True on tokens, `[B, P + L]`, `P` columns having been in the cache before the call.
            cache: The conditional's cache.
            partial: Whether the ids are only what is new of the prompts.

        Raises:
            ValueError: The ids are no prompts of the model, a context cannot be made from what there is, or the cache
                is of a kind that cannot be followed.
        """
        model, batch = self.plan.model, input_ids.shape[0]
        check_input(input_ids, model)
        _check_cache(cache)
        self.fired = torch.zeros((), dtype=torch.long, device=input_ids.device)
        if not bool(mask[:, -input_ids.shape[1] :].any(1).all()):
            raise ValueError(
                "attention_mask: expected at least one token in every row, got a row of zeros. Drop the empty prompt."
            )
        self.strengths: list[Scale] = [m.strength(batch, 1, input_ids.device) for m in self.plan.methods]
        prompt = pack(Rows(input_ids, mask[:, -input_ids.shape[1] :]).tokens(), input_ids.device)
        builder = RowBuilder(prompt, batch, model, self.plan.tokenizer, input_ids.device, partial)
        for index, context in enumerate(self.found):
            if isinstance(context, contexts.RemaskedCanvas):
                self.sources[index] = context
                continue
            _, rows = bind(context, builder, self.negative)
            if bool((rows.ids == model.config.image_token_id).any()):
                raise ValueError(
                    f"{type(context).__name__}: its prompt holds image tokens, but only the prompt itself is given the "
                    "image. Use a negative prompt of text, or give the tokenizer: its special tokens are not drawn."
                )
            own: Cache = branches.dynamic_cache(model)
            if isinstance(cache, StaticCache):
                # no longer than the conditional's unless it must be: a compiled decoder then finds the same shapes
                more = max(0, rows.ids.shape[1] - mask.shape[1])
                own = branches.static_cache(model, cache.get_max_length() + more)
            self.sources[index] = PromptSource(model, rows, batch, own, self.stats)

    def commit(self, canvas: Tensor) -> None:
        """Put a finished canvas behind every prompt."""
        for source in self.sources.values():
            if isinstance(source, PromptSource):
                source.commit(canvas)

    def start(self, mask: Tensor, cache: Cache) -> None:
        """Turn to a new canvas.

        Args:
            mask: The conditional's mask, canvas included, `[B, L + C]`.
            cache: Its cache, in which everything before the canvas is encoded.
        """
        self.prefix = Prefix(cache, mask[:, : mask.shape[1] - self.plan.model.config.canvas_length])
        self._fresh_canvas = True
        self._readings = {}
        for source in self.sources.values():
            if isinstance(source, PromptSource):
                source.state = None

    def denoise(self, decoder: Callable[..., Any], moment: Moment, inputs: dict[str, Any]) -> Any:
        """The decoder's output of a step with guided log-probabilities for its logits."""
        if self._fresh_canvas:
            self.state = inputs["self_conditioning_logits"]
            main = Reading(inputs["past_key_values"], inputs["decoder_attention_mask"], inputs["decoder_position_ids"])
            self._readings[MAIN,] = main
        step = Step(self, decoder, moment, inputs)
        self._fresh_canvas = False
        self.stats.steps += 1
        outputs, fired = step.run()
        self.fired += fired.to(self.fired.device)
        if moment.cur_step > 1:
            self._remember(step, moment)
        return outputs

    def candidates(self, moment: Moment) -> Tensor | None:
        """Positions that may be re-noised: those the sampler accepted at the last step, `[B, C]`; `None` for none."""
        # at the first step of a canvas the sampler still tells of the one before; later it has accepted at least one
        accepted: Tensor | None = None if self._fresh_canvas else moment.sampler.accepted_token_mask
        return accepted

    def reading(self, group: tuple[int, ...]) -> Reading | None:
        """What the decoder is given for a source, or for several as one batch; `None` if they cannot be one."""
        if len(group) == 1 and not isinstance(self.sources.get(group[0]), PromptSource):
            group = (MAIN,)
        if group not in self._readings:
            prefixes = [self._prefix(index) for index in group]
            model = self.plan.model
            if len(group) > 1:  # a joined copy is as large as the caches: one is enough
                self._readings = {key: value for key, value in self._readings.items() if len(key) == 1}
            one = len(group) == 1
            self._readings[group] = branches.reading(model, prefixes[0]) if one else branches.joined(model, prefixes)
        return self._readings[group]

    def count(self, blocks: int = 1) -> None:
        """Count a forward pass over so many stacked sources."""
        self.stats.forwards += 1
        self.stats.nfe += blocks

    def closed(self) -> Stats:
        """What was done; it waits for the device."""
        return replace(self.stats, fired=int(self.fired))

    def _prefix(self, index: int) -> Prefix:
        source = self.sources.get(index)
        return source.prefix() if isinstance(source, PromptSource) else self.prefix

    def _remember(self, step: Step, moment: Moment) -> None:
        """Keep what each source has said for its own next step, in the form in which the decoder takes it."""
        dtype = self.plan.model.model.decoder.embed_tokens.weight.dtype
        cur_step = torch.tensor(moment.cur_step, device=moment.input_ids.device, dtype=torch.int32)
        for index, logits in step.logits.items():
            source = self.sources.get(index)
            if index == MAIN:
                self.state = moment.processors(moment.input_ids, logits, cur_step=cur_step).to(dtype)
            elif isinstance(source, PromptSource):
                source.state = moment.processors(moment.input_ids, logits, cur_step=cur_step).to(dtype)
        for source in self.sources.values():
            if isinstance(source, contexts.RemaskedCanvas) and source.confidences == "previous":
                self.confidences[source.confidence] = step.confidence(source.confidence)


class Step:
    """One denoising step.

    Attributes:
        logits: What each source that has run said, `[B, C, V]`, by index.
    """

    def __init__(self, run: Run, decoder: Callable[..., Any], moment: Moment, inputs: dict[str, Any]) -> None:
        self.plan, self.owner, self.decoder, self.moment, self.inputs = run.plan, run, decoder, moment, inputs
        self.progress = Progress(run.total - moment.cur_step, run.total)
        self.main = Block(inputs["decoder_input_ids"], run.state)
        self.candidates = run.candidates(moment)
        self.logits: dict[int, Tensor] = {}
        self._confidence: dict[str, Tensor] = {}

    def run(self) -> tuple[Any, Tensor]:
        """The guided output, and whether guidance applied anywhere."""
        owner, methods = self.owner, self.plan.methods
        active = [index for index in range(len(methods)) if self._applies(index)]
        outputs = self._run((MAIN, *self._surely_read(active)))
        cond = self.logits[MAIN]
        fired = torch.zeros((), dtype=torch.bool, device=cond.device)
        if not active:
            outputs.logits = cond.clone()  # a processor may write to it, and the conditional reads it again
            return outputs, fired
        batch, width, vocab_size = cond.shape
        guided = torch.empty_like(cond, dtype=torch.float32)
        live = ~self.moment.finished.repeat_interleave(width)
        strengths = [_by_position(owner.strengths[index], width) for index in active]
        size = _positions_at_once(cond)
        for first in range(0, batch * width, size):
            part = slice(first, first + size)

            def fetch(number: int, part: slice = part) -> dict[str, Tensor]:
                return {name: self._law(index, part) for name, index in owner.wiring[active[number]].items()}

            chosen = [strength[part] if isinstance(strength, torch.Tensor) else strength for strength in strengths]
            law = self._law(MAIN, part)
            result = guided_step(law, [methods[i] for i in active], chosen, fetch, self.progress, live[part])
            guided.view(-1, vocab_size)[part] = result.scores
            fired |= (result.open & live[part]).any()
        outputs.logits = guided
        return outputs, fired

    def confidence(self, measure: str) -> Tensor:
        """How sure the conditional is at each position, `[B, C]`."""
        if measure not in self._confidence:
            cond = self.logits[MAIN]
            law = measures.max_probability if measure == "max_probability" else _certainty
            parts = [law(part.float().log_softmax(-1)) for part in cond.flatten(0, 1).split(_positions_at_once(cond))]
            self._confidence[measure] = torch.cat(parts).view(cond.shape[:2])
        return self._confidence[measure]

    def _applies(self, index: int) -> bool:
        """Whether a method may do anything at this step."""
        schedule = self.plan.methods[index].schedule
        if schedule is not None and not schedule.needs_divergence and schedule.weight(self.progress) == 0:
            return False
        return all(self._differs(source) for source in self.owner.wiring[index].values())

    def _differs(self, index: int) -> bool:
        """Whether a source sees anything else than the conditional."""
        source = self.owner.sources[index]
        if isinstance(source, PromptSource):
            return True
        known = source.confidences == "current" or source.confidence in self.owner.confidences
        return self.candidates is not None and known

    def _surely_read(self, active: list[int]) -> list[int]:
        """The sources that are read whatever the conditional says and that need not wait for it."""
        sure: list[int] = []
        for method in active:
            gate = self.plan.methods[method].when()
            if gate is None or gate.needs_uncond:
                sure += [i for i in self.owner.wiring[method].values() if i not in sure and not self._waits(i)]
        return sure

    def _waits(self, index: int) -> bool:
        source = self.owner.sources[index]
        return isinstance(source, contexts.RemaskedCanvas) and source.confidences == "current"

    def _law(self, index: int, part: slice) -> Tensor:
        if index not in self.logits:
            self._run((index,))
        return self.logits[index].flatten(0, 1)[part].float().log_softmax(-1)

    def _run(self, group: tuple[int, ...]) -> Any:
        """The sources' forward pass, or passes where they cannot be one batch; the first one's output."""
        reading = self.owner.reading(group)
        if reading is None:
            return [self._run((index,)) for index in group][0]
        outputs = self.decoder(
            **self.inputs
            | branches.stack([self._block(index) for index in group])
            | {
                "past_key_values": reading.cache,
                "decoder_attention_mask": reading.masks,
                "decoder_position_ids": reading.positions,
            }
        )
        self.owner.count(len(group))
        self.logits.update(zip(group, outputs.logits.split(self.main.canvas.shape[0]), strict=True))
        return outputs

    def _block(self, index: int) -> Block:
        source = self.owner.sources.get(index)
        if source is None:
            return self.main
        if isinstance(source, PromptSource):
            return Block(self.main.canvas, source.state)
        assert self.candidates is not None
        known = self.owner.confidences if source.confidences == "previous" else {}
        confidence = known[source.confidence] if known else self.confidence(source.confidence)
        noise = self.moment.sampler.initialize_canvas(self.candidates.shape[0], self.candidates.device)
        return branches.renoised(source, self.main, self.candidates, confidence, noise)


def _check_cache(cache: Cache) -> None:
    if type(cache) not in {DynamicCache, StaticCache} or cache.offloading:
        raise ValueError(
            f"past_key_values: expected a dynamic or static cache on the model's device, got {type(cache).__name__}. "
            "Leave cache_implementation out, or use 'static'."
        )


def _positions_at_once(logits: Tensor) -> int:
    """How many positions are combined at once, so that memory beside the logits stays small at any vocabulary."""
    return max(1, CHUNK.get(logits.device.type, CHUNK["cpu"]) // logits.shape[-1])


def _by_position(strength: Scale, width: int) -> Scale:
    return strength.repeat_interleave(width) if isinstance(strength, torch.Tensor) else strength


def _certainty(logp: Tensor) -> Tensor:
    return -measures.entropy(logp)
