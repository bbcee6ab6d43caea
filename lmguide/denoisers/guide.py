"""The sources of a guided call on a canvas, and the guided law of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from lmguide import contexts
from lmguide.denoisers.binding import Source, Stack, bind_canvas
from lmguide.denoisers.confidences import Confidences, candidates_of, confidence_of
from lmguide.denoisers.stats import Stats
from lmguide.sources.canvas import remask
from lmguide.sources.canvas_rewards import CanvasReward, bind_reward
from lmguide.sources.models import fitted
from lmguide.step import Guided, guided_step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmguide.denoisers.denoiser import Denoiser
    from lmguide.guidance import Guidance
    from lmguide.rules import Scale
    from lmguide.schedules import Progress
    from lmguide.sources.canvas import Canvas

MAIN = -1
"""Index of the conditional among sources."""

CHUNK = {"cpu": 2**18, "cuda": 2**24}
"""Scores worked on at once. Memory beside the model's own logits stays small whatever the vocabulary, and on a CPU a
part fits into the cache: twice as fast as 2**21."""

WARM_UP = 5
"""First steps on which a reused residual is made anew each time, as in dLLM-Cache (2506.06295)."""


class Guide:
    """Guidance methods bound to a batch of canvases.

    Args:
        denoiser: The guided model.
        methods: The methods, all of them enabled.
        canvas: The canvases; the loop writes to it, every step reads it.
        prompt_length: Columns of the prompt; 0 where a canvas is filled in.
        tokenizer: For negative prompts in text; by default the denoiser's.
        negative: Arguments of `RowBuilder.negative`, to take the place of a `NegativePrompt`'s own.
        cache: `"prefix"` or `"dual"` keeps keys and values of the columns outside a window.
        residual_interval: Steps over which `c - u` is used again; 1 is a fresh one at every step.

    Raises:
        ValueError: A context cannot be served on a canvas, or not by this model.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        methods: Sequence[Guidance],
        canvas: Canvas,
        prompt_length: int,
        *,
        tokenizer: Any = None,
        negative: Mapping[str, Any] | None = None,
        cache: Any = None,
        residual_interval: int = 1,
    ) -> None:
        self.denoiser, self.methods, self.canvas = denoiser, methods, canvas
        self.prompt_length, self.cache, self.residual_interval = prompt_length, cache, residual_interval
        batch, device = canvas.ids.shape[0], canvas.ids.device
        self.strengths: list[Scale] = [method.strength(batch, 1, device) for method in methods]
        self.found: list[contexts.Context] = []
        self.wiring: list[dict[str, int]] = []
        self.sources: dict[int, Source] = {MAIN: Source(denoiser, canvas.attention_mask)}
        self.rewards: dict[int, CanvasReward] = {}
        for method in methods:
            for context in method.sources().values():
                if context in self.found:
                    continue
                self.found.append(context)
                index = len(self.found) - 1
                if method.is_reward:
                    self.rewards[index] = bind_reward(context, denoiser, tokenizer)
                else:
                    self.sources[index] = bind_canvas(context, denoiser, canvas, prompt_length, tokenizer, negative)
            self.wiring.append({name: self.found.index(c) for name, c in method.sources().items()})
        self.stats = Stats()
        self._always = self._read_whatever_happens()
        self._stacks: dict[tuple[int, ...], Stack] = {}
        self.confidences = Confidences(canvas)
        self._kept: Law | None = None
        self._since = 0
        self._window = (0, 0)

    def law(
        self,
        progress: Progress,
        start: int,
        stop: int,
        uniform: Callable[[str], Tensor] | None = None,
        logits: Tensor | None = None,
        mine: Tensor | None = None,
    ) -> Law:
        """Run the conditional, and whatever is surely needed beside it, on the canvas as it is now.

        Args:
            progress: Denoising steps done and how many there are.
            start: First column whose law is wanted.
            stop: First column behind.
            uniform: Noise `[B, L]` of a stream, for rewards that draw; `None` leaves them to their own seeds.
            logits: The conditional's `[B, L, V]`, where somebody has run it; `None` runs it here.
            mine: Columns of each row's own block, `[B, stop - start]`; `None` is all.
        """
        if (start, stop) != self._window:
            self._window, self._kept = (start, stop), None
            self.refresh()
        reuse = self._kept is not None and progress.step >= WARM_UP and self._since + 1 < self.residual_interval
        law = Law(self, progress, start, stop, self._kept if reuse else None, uniform, mine)
        if logits is None:
            law.run((MAIN, *self._needed_now(progress, law)))
        else:
            law.accept(logits)
            if others := self._needed_now(progress, law):
                law.run(tuple(others))
        self._kept, self._since = (self._kept, self._since + 1) if reuse else (law, 0)
        if self.residual_interval == 1:
            self._kept = None
        self.stats.steps += 1
        return law

    def refresh(self) -> None:
        """Have kept keys and values made anew at the next step."""
        start, stop = self._window
        for stack in self._stacks.values():
            if stack.cache is not None:
                stack.cache.begin_block(start + stack.offset, stop + stack.offset)

    def stack(self, group: tuple[int, ...]) -> Stack:
        """How a group of sources of one model runs as one batch."""
        if group not in self._stacks:
            bound = [self.sources[index] for index in group]
            width = max(source.attention_mask.shape[1] for source in bound)
            masks = [pad(source.attention_mask, (width - source.attention_mask.shape[1], 0)) for source in bound]
            denoiser = bound[0].denoiser
            offset = width - self.canvas.ids.shape[1]
            cache = None if self.cache is None else denoiser.new_cache(self.cache)
            if cache is not None:
                cache.begin_block(self._window[0] + offset, self._window[1] + offset)
            mask = masks[0] if len(masks) == 1 else torch.cat(masks)
            self._stacks[group] = Stack(denoiser, mask, width, offset, cache)
        return self._stacks[group]

    def remasked(self) -> list[int]:
        """Sources whose canvas depends on the conditional's confidences."""
        return [index for index, context in enumerate(self.found) if isinstance(context, contexts.RemaskedCanvas)]

    def _read_whatever_happens(self) -> list[int]:
        """Sources of the guided model that some method reads whatever the conditional says, and that need not wait."""
        own: list[int] = []
        for method, names in zip(self.methods, self.wiring, strict=True):
            gate = method.when()
            if not method.is_reward and (gate is None or gate.needs_uncond):
                own += [index for index in names.values() if index not in own and self._can_stack(index)]
        return own

    def _can_stack(self, index: int) -> bool:
        source, context = self.sources[index], self.found[index]
        waits = isinstance(context, contexts.RemaskedCanvas) and context.confidences == "current"
        same_width = source.attention_mask.shape == self.canvas.attention_mask.shape
        return source.denoiser is self.denoiser and not waits and (same_width or self.denoiser.family.padding != "none")

    def _needed_now(self, progress: Progress, law: Law) -> list[int]:
        """The sources to stack at this step."""
        if law.residual is not None or (self.cache is not None and self.residual_interval > 1):
            return []
        if self.cache is not None:
            return self._always  # a cache is for one set of rows
        active: set[int] = set()
        for method, names in zip(self.methods, self.wiring, strict=True):
            schedule = method.schedule
            if schedule is None or schedule.needs_divergence or schedule.weight(progress):
                active.update(names.values())
        return [index for index in self._always if index in active and law.differs(index)]


class Law:
    """The laws of the positions of one step, given the canvas as it is at its making.

    Args:
        guide: The methods and the canvas.
        progress: The step.
        start: First column that will be asked for.
        stop: First column behind.
        residual: The law whose `c - u` stands in for running the other sources; `None` runs them.
        uniform: Noise `[B, L]` of a stream, for rewards that draw.
        mine: Columns of each row's own block, `[B, stop - start]`; `None` is all.
    """

    def __init__(
        self,
        guide: Guide,
        progress: Progress,
        start: int,
        stop: int,
        residual: Law | None = None,
        uniform: Callable[[str], Tensor] | None = None,
        mine: Tensor | None = None,
    ) -> None:
        self.guide, self.progress, self.start, self.stop, self.residual = guide, progress, start, stop, residual
        self.uniform, self._mine = uniform, mine
        self.fired = torch.zeros((), dtype=torch.bool, device=guide.canvas.ids.device)
        self._ids = guide.canvas.ids
        self._logits: dict[int, tuple[Tensor, int]] = {}
        self._prepared: set[int] = set()
        self._before = {index: guide.confidences.last(index) for index in guide.remasked()}
        self._first, self._last = start, stop
        last = self._ids.shape[1] if guide.denoiser.family.attention == "full" else stop
        if guide.remasked():  # confidences of all that may be masked again
            self._first, self._last = 0, last
        elif any(reward.needs_whole_canvas for reward in guide.rewards.values()):
            self._first, self._last = guide.prompt_length, last

    def run(self, group: tuple[int, ...]) -> None:
        """One forward pass over the canvases of these sources, which share a model."""
        stack = self.guide.stack(group)
        whole = MAIN in group or any(reward.needs_whole_canvas for reward in self.guide.rewards.values())
        first, last = (self._first, self._last) if whole else (self.start, self.stop)
        canvases = [self._canvas(index) for index in group]
        canvases = [
            pad(ids, (stack.width - ids.shape[1], 0)) if ids.shape[1] < stack.width else ids for ids in canvases
        ]
        ids = canvases[0] if len(group) == 1 else torch.cat(canvases)
        logits = stack.denoiser(
            ids,
            stack.attention_mask,
            cache=stack.cache,
            start=first + stack.offset,
            stop=last + stack.offset,
            timesteps=self._times(stack.denoiser, len(group)),
        )
        batch = self._ids.shape[0]
        self._logits.update({index: (part, first) for index, part in zip(group, logits.split(batch), strict=True)})
        self.guide.stats.forwards += 1
        self.guide.stats.nfe += len(group)
        if MAIN in group:
            self._remember_confidences()

    def accept(self, logits: Tensor) -> None:
        """Take the conditional's logits `[B, L, V]` from whoever has run it."""
        self._logits[MAIN] = (logits, 0)
        self._remember_confidences()

    def at(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """Guided log-probabilities of some positions.

        Args:
            rows: Rows of the positions, `[n]`.
            columns: Their columns on the canvas, `[n]`, inside the window.

        Returns:
            Log-probabilities `[n, V]` in float32, and the positions `[n]` on which a method applied, `None` for
            nowhere.
        """
        guide = self.guide
        if not guide.methods:
            return self._log_probs(MAIN, rows, columns), None
        result = self._step(rows, columns, rewarded=True)
        self.fired |= result.open.any()
        return result.scores, result.open

    def chunks(self, positions: Tensor) -> Sequence[Tensor]:
        """Positions `[N, 2]` in parts small enough to be worked on at once."""
        scores = CHUNK.get(positions.device.type, CHUNK["cpu"])
        return torch.split(positions, max(1, scores // self.guide.denoiser.vocab_size))

    def differs(self, index: int) -> bool:
        """Whether a source sees anything else than the conditional at this step."""
        context = self.guide.found[index]
        late = isinstance(context, contexts.RemaskedCanvas) and context.confidences == "previous"
        return not late or self._before[index] is not None

    def ran(self, index: int) -> bool:
        """Whether a source has been run on this canvas."""
        return index in self._logits

    def _step(self, rows: Tensor, columns: Tensor, rewarded: bool) -> Guided:
        guide = self.guide
        cond = self._log_probs(MAIN, rows, columns)
        kept = [i for i, method in enumerate(guide.methods) if rewarded or not method.is_reward]

        def fetch(method: int) -> dict[str, Tensor]:
            wiring = guide.wiring[kept[method]]
            return {name: self._source(index, cond, rows, columns) for name, index in wiring.items()}

        def rewards(method: int, scores: Tensor) -> dict[str, Tensor]:
            wiring = guide.wiring[kept[method]]
            return {name: self._reward(index).log_rewards(rows, columns, scores) for name, index in wiring.items()}

        strengths = [s[rows] if isinstance(s := guide.strengths[i], torch.Tensor) else s for i in kept]
        methods = [guide.methods[i] for i in kept]
        return guided_step(cond, methods, strengths, fetch, self.progress, rewards=rewards)

    def _reward(self, index: int) -> CanvasReward:
        reward, canvas = self.guide.rewards[index], self.guide.canvas
        if index not in self._prepared:
            self._prepared.add(index)

            def before(rows: Tensor, columns: Tensor) -> Tensor:
                scores = self._step(rows, columns, rewarded=False).scores
                if canvas.mask_token_id is None:
                    return scores
                scores[:, canvas.mask_token_id] = -torch.inf  # no clean canvas has masks
                return scores.log_softmax(-1)

            reward.prepare(canvas, before, self._last, self.uniform)
            self.guide.stats.forwards += reward.forwards
            self.guide.stats.nfe += reward.forwards
        return reward

    def _source(self, index: int, cond: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if (then := self.residual) is not None and then.ran(index):
            change = then._log_probs(MAIN, rows, columns) - then._log_probs(index, rows, columns)
            return torch.where(change.isfinite(), cond - change, cond)  # what both exclude is excluded
        return self._log_probs(index, rows, columns) if self.differs(index) else cond

    def _log_probs(self, index: int, rows: Tensor, columns: Tensor) -> Tensor:
        if index not in self._logits:
            self.run((index,))
        return self._gather(index, rows, columns).log_softmax(-1)

    def _gather(self, index: int, rows: Tensor, columns: Tensor) -> Tensor:
        logits, first = self._logits[index]
        vocab_size = self.guide.denoiser.vocab_size
        if not logits.is_contiguous():
            return fitted(logits[rows, columns - first], vocab_size).float()
        flat = logits.view(-1, logits.shape[-1])  # whole rows at once are eight times as fast on a CPU
        return fitted(flat.index_select(0, rows * logits.shape[1] + columns - first), vocab_size).float()

    def _times(self, denoiser: Denoiser, canvases: int) -> Tensor | None:
        """How noisy the rows are: the share of the answer that is undecided. Masked models are told 0 throughout."""
        if denoiser.family.noise == "mask" or not denoiser.timed:
            return None
        canvas = self.guide.canvas
        answer = canvas.attention_mask.bool() & ~canvas.given
        return (canvas.undecided.sum(1) / answer.sum(1)).repeat(canvases)

    def _canvas(self, index: int) -> Tensor:
        guide = self.guide
        if index != MAIN and isinstance(context := guide.found[index], contexts.RemaskedCanvas):
            late = context.confidences == "previous"
            confidences = self._before[index] if late else guide.confidences.last(index)
            assert confidences is not None and guide.canvas.mask_token_id is not None
            ratio, mask_token_id = context.remask_ratio, guide.canvas.mask_token_id
            return remask(self._ids, self._candidates(context), confidences, ratio, mask_token_id)
        return guide.sources[index].ids(guide.canvas, self._ids, guide.prompt_length)

    def _candidates(self, context: contexts.RemaskedCanvas) -> Tensor:
        """What may be masked again, as far as a row's own block reaches."""
        found = candidates_of(context, self.guide.canvas)
        if self._mine is None or self.guide.denoiser.family.attention == "full":
            return found
        found = found.clone()
        found[:, self.stop :] = False
        found[:, self.start : self.stop] &= self._mine.flip(1).cumsum(1).flip(1) > 0
        return found

    def _waiting(self) -> Tensor:
        """Rows `[B]` that something is to be decided for; the others wait for them and keep what they know."""
        open_ = self.guide.canvas.undecided[:, self.start : self.stop]
        return (open_ if self._mine is None else open_ & self._mine).any(1)

    def _remember_confidences(self) -> None:
        """Keep the conditional's confidences for canvases that are masked again by them."""
        for index in self.guide.remasked():
            context = self.guide.found[index]
            assert isinstance(context, contexts.RemaskedCanvas)
            logits, first = self._logits[MAIN]
            # those of the next step will be among all tokens of this one, masks included
            later = context.confidences == "previous"
            seen = self.guide.canvas.attention_mask.bool() if later else self._candidates(context)
            seen = seen & self._waiting()[:, None]
            positions = seen[:, first : first + logits.shape[1]].nonzero()
            positions[:, 1] += first
            values = [confidence_of(context, self._log_probs(MAIN, *p.unbind(1))) for p in self.chunks(positions)]
            self.guide.confidences.remember(
                index, positions, torch.cat(values) if values else logits.new_zeros(0).float()
            )
