"""The arithmetic of a batch of requests: each guided row is the library's own step, whatever shares the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.schedules import Progress
from lmguide.step import guided_step
from lmguide.vllm import combine
from lmguide.vllm.combine import Guided, guide, wanting
from lmguide.vllm.parameters import read
from lmguide.vllm.plan import Law, Served, make_plan, read_row, row_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

VOCAB = 50
ARGUMENTS: list[dict[str, Any]] = [
    {"guidance_scale": 2.0},
    {"guidance_scale": 0.5},
    {"guidance_scale": 3.0, "entropy_threshold": 3.4},
    {"guidance_scale": 3.0, "guidance_schedule": "linear"},
    {"guidance": "apg:guidance_scale=3"},
    {"guidance_scale": 3.0, "negative_prompts": ["a", "b"]},
    {"guidance": ["cfg:guidance_scale=2", "tpg:guidance_scale=3"]},
    {"guidance_scale": 3.0, "guidance_gate": "period:every=2"},
    {"guidance": "contrastive:model=small,beta=1"},
    {"guidance": ["dexperts:expert=small,antiexpert=smaller", "cfg:guidance_scale=2"]},
]


def _law(**arguments: Any) -> Law:
    requested = read(arguments)
    assert requested is not None
    plan = make_plan(requested, [5, 6, 7], Served(512, 0, lg.bundled("tales")[1], 64))
    row = read_row(row_arguments("r", 0, plan, 20))
    assert row is not None and row.law is not None
    return row.law


def _batch() -> tuple[torch.Tensor, list[Guided]]:
    """Two requests of each kind, their rows in any order between rows of others."""
    laws = [_law(**arguments) for arguments in ARGUMENTS * 2]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(sum(1 + law.companions for law in laws) + 5, generator=generator).tolist()
    logits = 2 * torch.randn(len(order), VOCAB, generator=generator)
    batch = []
    for number, law in enumerate(laws):
        rows = [order.pop() for _ in range(1 + law.companions)]
        batch.append(Guided(law, rows[0], tuple(rows[1:]), step=number))
    return logits, batch


def _guide_law(guide: str, step: int) -> torch.Tensor:
    """What a guide of that name says at a step."""
    generator = torch.Generator().manual_seed(100 * len(guide) + step)
    return torch.randn(VOCAB, generator=generator).log_softmax(-1)


class _Guides:
    def law(self, guide: str, batch: Sequence[Guided]) -> torch.Tensor:
        return torch.stack([_guide_law(guide, guided.step) for guided in batch])

    def log_rewards(self, method: int, batch: Sequence[Guided], scores: torch.Tensor) -> dict[str, torch.Tensor]:
        raise AssertionError("no rewards here")


def _alone(logits: torch.Tensor, guided: Guided) -> torch.Tensor:
    """The step of one request by itself."""
    laws = logits.log_softmax(-1)
    law = guided.law

    def fetch(method: int) -> dict[str, torch.Tensor]:
        return {
            name: laws[[guided.companions[wire]]] if isinstance(wire, int) else _guide_law(wire, guided.step)[None]
            for name, wire in law.wiring[method].items()
        }

    progress = Progress(guided.step, law.total)
    return guided_step(laws[[guided.row]], law.methods, law.strengths, fetch, progress).scores[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_each_row_is_its_own_step(signed: bool, masked: bool) -> None:
    logits, batch = _batch()
    batch = [replace(guided, signed=signed) for guided in batch]
    if masked:  # the conditionals of some requests, the companions of others
        logits[::3, 7:9] = -torch.inf
    before = logits.clone()
    assert guide(logits, batch, _Guides()) == [None] * len(batch)
    heads = {guided.row for guided in batch}
    for guided in batch:
        law = logits[guided.row] if signed else logits[guided.row].log_softmax(-1)
        torch.testing.assert_close(law, _alone(before, guided), rtol=1e-6, atol=1e-6)
    others = [row for row in range(len(logits)) if row not in heads]
    assert torch.equal(logits[others], before[others])


def test_a_companion_draws_from_the_law_of_a_conditional_without_a_row() -> None:
    logits, batch = _batch()
    before = logits.clone()
    parked = [
        replace(guided, row=guided.companions[0], kept=before[guided.row])
        if number % 2 and guided.companions and wanting(before, [guided]) == [True]
        else guided
        for number, guided in enumerate(batch)
    ]
    assert sum(guided.kept is not None for guided in parked) > 5
    assert guide(logits, parked, _Guides()) == [None] * len(batch)
    for guided, own in zip(parked, batch, strict=True):
        torch.testing.assert_close(logits[guided.row], _alone(before, own), rtol=1e-6, atol=1e-6)
        if guided.kept is not None:
            assert torch.equal(logits[own.row], before[own.row])


def test_a_weighted_sum_of_two_rows_takes_their_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 2 * torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    kinds: list[dict[str, Any]] = [
        {"guidance_scale": 2.0},
        {"guidance_scale": 3.0, "entropy_threshold": 9.0},
        {"guidance": "suffix_cfg:guidance_scale=0,suffix=[7]"},
    ]
    cfg, *behind_gates = [_law(**kind) for kind in kinds]
    batch = [Guided(cfg, 4, (1,), 0, signed=False)]
    batch += [
        Guided(law, row, (row,), 0, kept=before[row + 3].clone(), signed=False)
        for row, law in zip((0, 2), behind_gates, strict=True)
    ]
    monkeypatch.setattr(combine, "guided_step", None)  # not asked
    assert guide(logits, batch) == [None] * 3
    torch.testing.assert_close(logits[4], 2 * before[4] - before[1])
    torch.testing.assert_close(logits[0], 3 * before[3] - 2 * before[0])
    assert torch.equal(logits[[1, 2, 3, 5]], before[[1, 2, 3, 5]])


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 2.0, "entropy_threshold": 3.4},
        {"guidance_scale": 2.0, "guidance_schedule": "linear"},
        {"guidance": "cfg:guidance_scale=2,guidance_rescale=0.5"},
        {"guidance": "apg:guidance_scale=3"},
        {"guidance": ["cfg:guidance_scale=2", "tpg:guidance_scale=3"]},
        {"guidance": "contrastive:model=small,beta=1"},
    ],
)
def test_other_laws_are_no_weighted_sum_of_two_rows(arguments: dict[str, Any]) -> None:
    assert Guided(_law(**arguments), 0, (1, 2), 0, signed=False).weight is None


def test_the_gate_of_a_law_that_is_kept_was_open_and_is_not_asked_again() -> None:
    kinds = {"entropy_threshold": 9.0}, {"guidance": ["cfg:guidance_scale=2", "tpg:guidance_scale=3"]}
    for single, law in zip((True, False), [_law(**{"guidance_scale": 2.0, **kind}) for kind in kinds], strict=True):
        logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
        parked = Guided(law, 0, (0,) * law.companions, 3, kept=logits[1].clone())
        assert parked.settled is single
    law = _law(guidance_scale=2.0, entropy_threshold=9.0)  # closed, whatever the law
    laws = logits.log_softmax(-1)
    assert guide(logits, [Guided(law, 0, (0,), 3, kept=logits[1].clone())]) == [None]
    torch.testing.assert_close(logits[0], (2 * laws[1] - laws[0]).log_softmax(-1))


def test_conditionals_that_run_alone_ask_when_their_gate_is_open() -> None:
    law = _law(guidance_scale=3.0, entropy_threshold=1.0)
    logits = torch.tensor([[0.0] * VOCAB, [50.0] + [0.0] * (VOCAB - 1)])
    assert wanting(logits, [Guided(law, row, (), 0) for row in range(2)]) == [True, False]


def test_one_gate_that_is_open_is_enough() -> None:
    both = ["selective_cfg:guidance_scale=2,entropy_threshold=9", "suffix_cfg:suffix=[7],entropy_threshold=1"]
    logits = torch.zeros(1, VOCAB)
    assert [wanting(logits, [Guided(_law(guidance=kinds), 0, (), 0)]) for kinds in (both, both[:1])] == [
        [True],
        [False],
    ]


def test_off_by_schedule_does_not_ask() -> None:
    law = _law(guidance_scale=3.0, entropy_threshold=1.0, guidance_schedule="window:start=4")
    logits = torch.zeros(1, VOCAB)
    assert [wanting(logits, [Guided(law, 0, (), step)])[0] for step in (3, 4)] == [False, True]


def test_a_fault_stays_with_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, batch = _batch()
    before = logits.clone()
    healthy = combine._guide_bucket

    def faulty(logits: torch.Tensor, bucket: Any, readers: Any) -> None:
        if any(guided is batch[0] for guided in bucket):
            raise RuntimeError("no")
        healthy(logits, bucket, readers)

    monkeypatch.setattr(combine, "_guide_bucket", faulty)
    faults = guide(logits, batch, _Guides())
    assert [fault is not None for fault in faults] == [True] + [False] * (len(batch) - 1)
    assert torch.equal(logits[batch[0].row], before[batch[0].row])
    torch.testing.assert_close(logits[batch[10].row], _alone(before, batch[10]))
