"""The guided rows of one batch: which requests are combined together, and the library's own step on each such batch.

Knows rows of logits and how they belong together, not where they come from.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from lmguide.rules.candidates import unmasked
from lmguide.schedules import Progress
from lmguide.step import guided_step
from lmguide.vllm.entropies import AT_A_TIME, entropies

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from lmguide.vllm.entropies import Entropies
    from lmguide.vllm.plan import Law


@dataclass(frozen=True)
class Text:
    """What a request has written, for the methods that read it.

    Attributes:
        request: Its id.
        prompt: Token ids.
        answer: The same of what stands already.
    """

    request: str
    prompt: Sequence[int]
    answer: Sequence[int]

    @property
    def ids(self) -> list[int]:
        """The prompt and what stands of the answer."""
        return [*self.prompt, *self.answer]


@dataclass(frozen=True)
class Guided:
    """One conditional that samples in this step.

    Attributes:
        law: How it is combined.
        row: Its row of the batch's logits.
        companions: The rows of its companions, in their order; empty when it runs alone.
        step: Tokens of its answer that stand already.
        text: What it has written, if its law reads that.
        kept: Its own row `[V]` from the step in which it asked for its companions; `row` is then where one of them
            draws in its place.
        signed: Whether what comes after guidance looks at the sign of scores: then they are renormalised.
    """

    law: Law
    row: int
    companions: tuple[int, ...]
    step: int
    text: Text | None = None
    kept: Tensor | None = None
    signed: bool = True

    @property
    def settled(self) -> bool:
        """Whether its gate is known to be open: that of its only method was, on the very row that is kept."""
        return self.kept is not None and len(self.law.methods) == 1

    @property
    def weight(self) -> float | None:
        """That of its companion, where nothing else is asked of its law and its scores may lack a constant."""
        return self.law.weight if not self.signed and (self.settled or not self.law.gated) else None


class Readers(Protocol):
    """What is said of texts by all that reads them."""

    def law(self, guide: str, batch: Sequence[Guided]) -> Tensor:
        """Log-probabilities `[B, V]` of a guide behind the batch's texts."""

    def log_rewards(self, method: int, batch: Sequence[Guided], scores: Tensor) -> Mapping[str, Tensor]:
        """Log-rewards `[B, V]` of a method of the batch's law, by name, from the scores they are added to."""


def guide(logits: Tensor, batch: Sequence[Guided], readers: Readers | None = None) -> list[Exception | None]:
    """Write the guided scores of the conditionals into their rows, in place.

    Requests whose laws differ in strength only are one call of `guided_step`; so is one whose schedule or gate looks at
    its progress, by itself or with those at the same step. On a CPU a weighted sum of two rows is that of their logits.

    Args:
        logits: `[rows, V]`, float32.
        batch: The conditionals that have their companions.
        readers: Needed where methods read texts.

    Returns:
        For each of them what went wrong, or `None`; with a fault its row is as it was.
    """
    faults: list[Exception | None] = [None] * len(batch)
    buckets = list(_buckets(logits, batch, range(len(batch))))
    while buckets:
        places = buckets.pop()
        try:
            _guide_bucket(logits, [batch[place] for place in places], readers)
        except Exception as error:
            if len(places) > 1:  # one request at a time: only those with a fault are to fail
                buckets += [[place] for place in places]
            else:
                faults[places[0]] = error
    return faults


def wanting(logits: Tensor, batch: Sequence[Guided], measure: Entropies = entropies) -> list[bool]:
    """Which of the conditionals that run alone need their companions at this step.

    Args:
        logits: `[rows, V]`, float32.
        batch: The conditionals without companions; every method of theirs has a gate that the conditional can close.
        measure: How entropies are worked out.
    """
    answers = [False] * len(batch)
    uncertain = [place for place, guided in enumerate(batch) if not guided.law.looks_at_progress]
    if uncertain:
        rows = torch.tensor([batch[place].row for place in uncertain], device=logits.device)
        least = torch.tensor([batch[place].law.least_entropy for place in uncertain], device=logits.device)
        for place, answer in zip(uncertain, (measure(logits, rows) > least).tolist(), strict=True):
            answers[place] = answer
    others = [place for place, guided in enumerate(batch) if guided.law.looks_at_progress]
    for places in _buckets(logits, batch, others):
        first = batch[places[0]]
        # Other gates than that of entropy may want log-probabilities.
        cond = _laws(logits, [batch[place].row for place in places])
        progress = Progress(first.step, first.law.total)
        opened = torch.zeros(len(places), dtype=torch.bool, device=logits.device)
        for method in first.law.methods:
            gate, schedule = method.when(), method.schedule
            if schedule is None or schedule.needs_divergence or schedule.weight(progress) != 0:
                opened |= True if gate is None else gate.open(cond, progress)
        for place, answer in zip(places, opened.tolist(), strict=True):
            answers[place] = answer
    return answers


def _in_place(logits: Tensor, guided: Guided) -> bool:
    """Guide a row of logits as they are, if its law allows; whether that was done.

    That spares a CPU three softmaxes and four copies, most of the time. Elsewhere these are cheap, and a call for each
    row is not.
    """
    if logits.device.type != "cpu" or (weight := guided.weight) is None:
        return False
    row, companion = logits[guided.row], logits[guided.companions[0]]
    cond = row if guided.kept is None else guided.kept
    if not unmasked(cond, companion):
        return False  # a masked token keeps the conditional's log-probability, which has its constant
    torch.lerp(companion, cond, 1.0 - weight, out=row)
    return True


def _guide_bucket(logits: Tensor, batch: Sequence[Guided], readers: Readers | None) -> None:
    if len(batch) == 1 and _in_place(logits, batch[0]):
        return
    law = batch[0].law
    rows = [guided.row for guided in batch]
    sources: dict[int, Tensor] = {}

    def companion(number: int) -> Tensor:
        if number not in sources:
            sources[number] = _laws(logits, [guided.companions[number] for guided in batch])
        return sources[number]

    def source(wire: int | str) -> Tensor:
        if isinstance(wire, int):
            return companion(wire)
        assert readers is not None
        return readers.law(wire, batch)

    def fetch(method: int) -> Mapping[str, Tensor]:
        return {name: source(wire) for name, wire in law.wiring[method].items()}

    def rewards(method: int, scores: Tensor) -> Mapping[str, Tensor]:
        assert readers is not None
        return readers.log_rewards(method, batch, scores)

    strengths = [
        torch.tensor([guided.law.strengths[index] for guided in batch], device=logits.device)
        for index in range(len(law.methods))
    ]
    kept = [guided.kept for guided in batch]
    scores = _rows(logits, rows)
    if any(row is not None for row in kept):
        scores = torch.stack([own if row is None else row for own, row in zip(scores, kept, strict=True)])
    cond, progress = scores.log_softmax(-1), Progress(batch[0].step, law.total)
    signed, settled = batch[0].signed, batch[0].settled
    result = guided_step(
        cond, law.methods, strengths, fetch, progress, rewards=rewards, normalize=signed, settled=settled
    )
    logits.index_copy_(0, torch.tensor(rows, device=logits.device), result.scores)


def _laws(logits: Tensor, rows: Sequence[int]) -> Tensor:
    return _rows(logits, rows).log_softmax(-1)


def _rows(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of the logits, to be read only: neighbours are not copied."""
    first, last = rows[0], rows[-1] + 1
    if list(rows) == list(range(first, last)):
        return logits[first:last]
    # `index_select` copies rows as such; indexing takes a CPU six times as long.
    return logits.index_select(0, torch.tensor(rows, device=logits.device))


def _buckets(logits: Tensor, batch: Sequence[Guided], places: Iterable[int]) -> Iterable[list[int]]:
    """Those places in the batch that are worked out together."""
    buckets: dict[tuple[str, object, bool, bool], list[int]] = defaultdict(list)
    for place in places:
        law = batch[place].law
        moment = (batch[place].step, law.total) if law.looks_at_progress else None
        buckets[law.key, moment, batch[place].settled, batch[place].signed].append(place)
    most = max(1, AT_A_TIME // logits.shape[1])
    for bucket in buckets.values():
        law, weight = batch[bucket[0]].law, batch[bucket[0]].weight
        apart = logits.device.type == "cpu" and not law.reads  # models read best all texts together
        count = len(bucket) if not apart else most if weight is None else 1
        yield from (bucket[first : first + count] for first in range(0, len(bucket), count))
