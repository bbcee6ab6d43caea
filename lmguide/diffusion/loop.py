"""Decoding of a masked- or uniform-diffusion language model: the canvas, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from lmguide.diffusion.decisions import Sampler, decide
from lmguide.diffusion.joint import decide_jointly
from lmguide.diffusion.orders import Moment
from lmguide.diffusion.output import DiffusionOutput
from lmguide.schedules import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmguide.denoisers.guide import Guide, Law
    from lmguide.diffusion.correctors import Corrector
    from lmguide.diffusion.early_commit import EarlyCommit
    from lmguide.diffusion.noise import RowNoise
    from lmguide.diffusion.orders import Decisions, Order
    from lmguide.diffusion.spans import SpanGroup
    from lmguide.diffusion.verified import Verifier
    from lmguide.diffusion.windows import Window
    from lmguide.sources.canvas import Canvas


@dataclass
class Loop:
    """One call: the canvas, who decides, and what has been recorded.

    Attributes:
        guide: The guided laws.
        order: Picks the positions to commit.
        sampler: Draws tokens.
        noise: Noise by row.
        windows: Columns to decode, one window after the other.
        steps: Denoising steps of a window.
        blocks: How many windows schedules and gates count on: that of any prompt, whatever stands beside it.
        groups: Spans of the canvas under constraints that an automaton reads.
        verifier: Has the word on spans under grammars.
        corrector: Opens or rewrites committed positions.
        early_commit: Commits whole rows.
        deferred: Tokens that are committed only when nothing else is left to commit.
        ends: End-of-sequence tokens.
        padding: Token written behind an end.
        streamer: Gets tokens once all before them stand.
        progress: Show a progress bar.
        keep_history: Record the canvases.
        law: The guided laws of the step.
    """

    guide: Guide
    order: Order
    sampler: Sampler
    noise: RowNoise
    windows: Sequence[Window]
    steps: int
    blocks: int
    groups: Sequence[SpanGroup]
    verifier: Verifier | None
    corrector: Corrector | None
    early_commit: EarlyCommit | None
    deferred: Tensor
    ends: Tensor
    padding: int
    streamer: Any
    progress: bool
    keep_history: bool
    law: Law = field(init=False)

    def run(self) -> DiffusionOutput:
        """Decode window after window."""
        canvas, first = self.canvas, self.guide.prompt_length
        shape = canvas.ids.shape[0], canvas.ids.shape[1]
        self.commit_step = torch.full(shape, -1, dtype=torch.long, device=canvas.ids.device)
        self.confidences = torch.ones(shape, device=canvas.ids.device)
        self.nfe = torch.zeros(shape[0], dtype=torch.long, device=canvas.ids.device)
        self.row_step = torch.zeros_like(self.nfe)
        self.behind = torch.zeros_like(canvas.given)
        self.total = self.steps * self.blocks
        self.fired = torch.zeros((), dtype=torch.long, device=canvas.ids.device)
        self.streamed = 0
        self.noise_step = -1
        self._renoise()
        self.history = [canvas.ids] if self.keep_history else []
        self.reads = self.order.reads
        for part in (self.corrector, self.early_commit):
            self.reads |= frozenset() if part is None else part.reads
        self._stream()
        with tqdm(total=self.steps * len(self.windows), disable=not self.progress, desc="denoising") as bar:
            for number, window in enumerate(self.windows):
                self._decode(window, number, bar)
        self._finish_rows()
        self._stream()
        if self.streamer is not None:
            self.streamer.end()
        self.guide.stats.fired = int(self.fired)  # asked once, so that no step waits for the device
        return DiffusionOutput(
            canvas.ids,
            self.commit_step[:, first:],
            self.confidences[:, first:],
            self.nfe,
            self.guide.stats,
            tuple(self.history) if self.keep_history else None,
            None if self.verifier is None else self.verifier.counts,
        )

    @property
    def canvas(self) -> Canvas:
        """The canvases."""
        return self.guide.canvas

    def _decode(self, window: Window, number: int, bar: Any) -> None:
        """All steps of a window."""
        inside = slice(window.start, window.stop)
        done = number * self.steps
        # noise goes by the schedule: a row may need more steps than its neighbours
        self.noise_step = number * (2 + self.steps + (0 if self.corrector is None else self.corrector.post_steps))
        if window.seeds is not None and bool((self.canvas.undecided[:, inside] & window.seeds).any()):
            self._seed(window, done)
        initial = (self.canvas.undecided[:, inside] & window.mine).sum(1)
        for step in range(self.steps):
            self.noise_step += 1
            if not bool((self._changeable(inside) & window.mine).any()):
                bar.update(self.steps - step)
                return
            self._advance(window, done, step, initial)
            bar.update()
        live = torch.ones_like(initial, dtype=torch.bool)
        for _ in range(0 if self.corrector is None else self.corrector.post_steps):
            self.noise_step += 1
            live = self._advance(window, done, self.steps - 1, initial, live)
            if not bool(live.any()):
                return

    def _changeable(self, inside: slice) -> Tensor:
        """Positions that a step may change: the undecided, and with a corrector the committed."""
        canvas = self.canvas
        found = canvas.undecided if self.corrector is None else canvas.undecided | canvas.committed
        return found[:, inside]

    def _seed(self, window: Window, done: int) -> None:
        """Write the first token of each row's block, which the block before it decides; beside the schedule."""
        assert window.seeds is not None
        inside = slice(window.start, window.stop)
        chosen = self.canvas.undecided[:, inside] & window.seeds
        decisions = self._decisions(window, done, chosen)
        decisions, chosen = self._verified(decisions, window, lambda _: chosen)
        self._write(decisions, chosen, inside)
        self._record(chosen.any(1))

    def _decisions(self, window: Window, done: int, wanted: Tensor) -> Decisions:
        stats = self.guide.stats
        before = stats.nfe
        length = self.canvas.ids.shape[1]

        def uniform(stream: str) -> Tensor:
            return self.noise.uniform(stream, self.noise_step, 0, length)

        law = self.guide.law(Progress(done, self.total), window.start, window.stop, uniform, mine=window.mine)
        how = wanted, window.start, self.noise_step, self.sampler, self.order.filtered, self.reads
        decisions = decide_jointly(law, self.canvas, self.groups, *how) if self.groups else decide(law, *how)
        self.law = law
        self.fired += law.fired
        self.nfe += (stats.nfe - before) * wanted.any(1)
        return decisions

    def _advance(self, window: Window, done: int, step: int, initial: Tensor, live: Tensor | None = None) -> Tensor:
        """One denoising step of the rows that are `live`; returns the rows `[B]` whose tokens it changed."""
        canvas, inside = self.canvas, slice(window.start, window.stop)
        open_ = canvas.undecided[:, inside] & window.mine
        committed = canvas.committed[:, inside] & window.mine
        if live is not None:
            open_, committed = open_ & live[:, None], committed & live[:, None]
        corrector = self.corrector
        looks = corrector is not None and corrector.looks_at_committed
        wanted = open_ | committed if looks else open_
        decisions = self._decisions(window, done + step, wanted)
        quota = self.order.quota(initial, open_.sum(1), step, self.steps)
        moment = Moment(
            open=open_,
            quota=quota,
            steps_left=self.steps - step,
            fraction=(done + step) / self.total,
            uniform=lambda stream: self.noise.uniform(stream, self.noise_step, window.start, window.stop),
            step=step,
        )
        edited = reopened = None
        if corrector is not None:
            edited = corrector.edit(decisions, moment, committed, canvas.ids[:, inside])
            kept = self.confidences[:, inside], self.commit_step[:, inside]
            reopened = corrector.remask(decisions, moment, committed & ~edited, *kept)
            quota = corrector.quota(quota, initial, step, self.steps) + reopened.sum(1)
            moment = replace(moment, quota=quota)
        decisions, chosen = self._verified(decisions, window, lambda given: self._choose(given, moment))
        self._write(decisions, chosen if edited is None else chosen | edited, inside)
        if reopened is not None and moment.steps_left > 1:
            self._reopen(reopened, inside)
        self._record(wanted.any(1))
        return (chosen if edited is None else chosen | edited).any(1)

    def _record(self, active: Tensor) -> None:
        """End a step of the rows that are active: fresh noise, ended rows, history, the stream."""
        self._renoise()
        if self.corrector is None:
            self._finish_rows()
        self.row_step = self.row_step + active
        if self.keep_history:
            self.history.append(self.canvas.ids)
        self._stream()

    def _verified(
        self, decisions: Decisions, window: Window, choose: Callable[[Decisions], Tensor]
    ) -> tuple[Decisions, Tensor]:
        """What is chosen, and its tokens as grammars allow them."""
        if self.verifier is None:
            return decisions, choose(decisions)
        return self.verifier.chosen(self.law, self.canvas, decisions, window, self.noise_step, choose)

    def _choose(self, decisions: Decisions, moment: Moment) -> Tensor:
        if moment.steps_left == 1:
            return moment.open
        if self.deferred.numel():
            late = torch.isin(decisions.tokens, self.deferred)
            names = ("log_prob", "top", "second")
            least = {name: getattr(decisions, name).masked_fill(late, -torch.inf) for name in names}
            decisions = replace(decisions, entropy=decisions.entropy.masked_fill(late, torch.inf), **least)
        chosen = self.order.select(decisions, moment)
        if self.early_commit is not None:
            chosen = torch.where(self.early_commit.commits(decisions, moment)[:, None], moment.open, chosen)
        return chosen

    def _write(self, decisions: Decisions, where: Tensor, inside: slice) -> None:
        canvas = self.canvas
        ids, undecided = canvas.ids.clone(), canvas.undecided.clone()
        ids[:, inside] = torch.where(where, decisions.tokens, ids[:, inside])
        undecided[:, inside] &= ~where
        canvas.ids, canvas.undecided = ids, undecided
        self.commit_step[:, inside] = torch.where(where, self.row_step[:, None], self.commit_step[:, inside])
        self.confidences[:, inside] = torch.where(where, decisions.log_prob.exp(), self.confidences[:, inside])

    def _reopen(self, where: Tensor, inside: slice) -> None:
        canvas = self.canvas
        undecided = canvas.undecided.clone()
        undecided[:, inside] |= where
        canvas.undecided = undecided
        if canvas.mask_token_id is not None:
            ids = canvas.ids.clone()
            ids[:, inside] = ids[:, inside].masked_fill(where, canvas.mask_token_id)
            canvas.ids = ids

    def _renoise(self) -> None:
        """Fresh random tokens at undecided positions, where the model knows no mask."""
        canvas = self.canvas
        if canvas.mask_token_id is None:
            length = canvas.ids.shape[1]
            noise = self.noise.tokens("canvas", self.noise_step + 1, 0, length, self.guide.denoiser.vocab_size)
            canvas.ids = torch.where(canvas.undecided, noise, canvas.ids)

    def _finish_rows(self) -> None:
        """Pad the rest of a row behind an end of sequence before which everything stands."""
        if not self.ends.numel():
            return
        canvas = self.canvas
        decided = canvas.undecided.cumsum(1) == 0
        last = canvas.given.flip(1).cumsum(1).flip(1) == 0  # behind every given token: a hole between them is no end
        ended = canvas.committed & torch.isin(canvas.ids, self.ends) & decided & last
        behind = self.behind | ((ended.cumsum(1) - ended.long()) > 0)
        self.behind = behind
        canvas.ids = canvas.ids.masked_fill(behind, self.padding)
        canvas.undecided = canvas.undecided & ~behind
        self.commit_step.masked_fill_(behind, -1)
        self.confidences.masked_fill_(behind, 1.0)

    def _stream(self) -> None:
        """Hand over the tokens before which everything stands, up to the first end."""
        if self.streamer is None:
            return
        canvas = self.canvas
        if not self.streamed and self.guide.prompt_length:
            self.streamer.put(canvas.ids[:, : self.guide.prompt_length].cpu())
            self.streamed = self.guide.prompt_length
            return
        stands = int((((canvas.undecided | self.behind).cumsum(1)) == 0).sum(1)[0])
        if stands > self.streamed:
            self.streamer.put(canvas.ids[0, self.streamed : stands].cpu())
            self.streamed = stands
