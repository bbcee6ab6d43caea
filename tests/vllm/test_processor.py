"""The processor in both of its roles, without an engine: rows of runner V1, slots of V2 by a context of our own."""

from __future__ import annotations

import importlib.util
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import lmguide as lg
from lmguide.vllm.parameters import read
from lmguide.vllm.plan import Served, make_plan, row_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

pytestmark = [
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

VOCAB = 40


@pytest.fixture(scope="module")
def processors() -> Iterator[ModuleType]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, at its import
        from lmguide.vllm import plugin, processor

        plugin.register()
        yield processor


def _params(group: str, number: int, scale: float = 2.0, signed: bool = True, **flags: bool) -> SimpleNamespace:
    requested = read({"guidance_scale": scale, "entropy_threshold": 1.0})
    assert requested is not None
    plan = make_plan(requested, [5, 6], Served(VOCAB, 0, lg.bundled("tales")[1], 64))
    if number:
        return SimpleNamespace(extra_args=row_arguments(group, number))
    return SimpleNamespace(extra_args=row_arguments(group, 0, plan, 20, alone=True, signed=signed, **flags))


def _guided(logits: torch.Tensor, row: int, companion: int, scale: float) -> torch.Tensor:
    laws = logits.log_softmax(-1)
    return (laws[companion] + scale * (laws[row] - laws[companion])).log_softmax(-1)


def test_rows(processors: ModuleType) -> None:
    from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality

    processor = processors.GuidanceProcessor(None, torch.device("cpu"), False)
    added: list[Any] = [
        (0, _params("a", 0, 2.0), [5], []),
        (1, SimpleNamespace(extra_args=None), [5], []),
        (2, _params("a", 1), [5], []),
        (3, _params("b", 1), [5], []),
        (4, _params("b", 0, 3.0), [5], []),
        (5, _params("c", 0, 3.0), [5], []),
    ]
    processor.update_state(BatchUpdate(batch_size=6, removed=[], added=added, moved=[]))
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    after = processor.guide_rows(logits)
    torch.testing.assert_close(after[0], _guided(before, 0, 2, 2.0))
    torch.testing.assert_close(after[4], _guided(before, 4, 3, 3.0))
    assert torch.equal(after[[1, 2, 3, 5]], before[[1, 2, 3, 5]])
    assert processor.wanting == [5]  # it has no companion in this batch, and is not sure
    sampled = torch.arange(6)[:, None]
    processor.copy_tokens(sampled)
    assert sampled[:, 0].tolist() == [0, 1, 0, 4, 4, 5]

    moved = [(4, 1, MoveDirectionality.UNIDIRECTIONAL), (0, 3, MoveDirectionality.SWAP)]
    processor.update_state(BatchUpdate(batch_size=4, removed=[1, 4, 5], added=[], moved=moved))
    assert {row: (seat.group, seat.number) for row, (seat, *_) in processor.seats.items()} == {
        0: ("b", 1),
        2: ("a", 1),
        3: ("a", 0),
    }


def test_a_parked_conditional_has_no_row_in_the_step_in_which_it_is_guided(
    processors: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    def enter(params: Any) -> None:
        processor.update_state(BatchUpdate(batch_size=1, removed=[], added=[(0, params, [5], [])], moved=[]))

    processor = processors.GuidanceProcessor(None, torch.device("cpu"), False)
    asked, catching_up, drawn = torch.randn(3, 1, VOCAB, generator=torch.Generator().manual_seed(0))
    enter(_params("a", 0, 3.0, parks=True))
    assert torch.equal(processor.guide_rows(asked.clone()), asked)
    assert (processor.wanting, processor.drawn) == ([0], [])
    enter(_params("a", 1))  # in the row that the conditional has left
    processor.guide_rows(catching_up)  # a chunk of its prompt: what is drawn from it will be thrown away
    after = processor.guide_rows(drawn.clone())
    assert (processor.wanting, processor.drawn) == ([], [(0, "a")])
    torch.testing.assert_close(after[0], _guided(torch.cat([asked, drawn]), 0, 1, 3.0))
    sampled = torch.tensor([[7]])
    processor.copy_tokens(sampled)
    assert sampled.tolist() == [[7]]

    with monkeypatch.context() as patch:
        patch.setattr(processors.combine, "guide", lambda logits, batch, readers: [RuntimeError("no")])
        processor.guide_rows(drawn)
    assert processor.faulty == [0]  # no token may come of the row, whose companion has nobody to differ from

    processor.keep(["a"])
    processor.guide_rows(drawn)
    assert processor.drawn == [(0, "a")]
    processor.keep([])
    processor.guide_rows(drawn)
    assert processor.drawn == []


def test_a_conditional_that_runs_again_draws_for_itself(processors: ModuleType) -> None:
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    processor = processors.GuidanceProcessor(None, torch.device("cpu"), False)
    head, companion = _params("a", 0, 3.0, parks=True), _params("a", 1)
    processor.update_state(BatchUpdate(batch_size=1, removed=[], added=[(0, head, [5], [])], moved=[]))
    processor.guide_rows(torch.randn(1, VOCAB))
    processor.update_state(BatchUpdate(batch_size=2, removed=[], added=[(1, companion, [6], [])], moved=[]))
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0))
    after = processor.guide_rows(logits.clone())
    torch.testing.assert_close(after[0], _guided(logits, 0, 1, 3.0))
    assert torch.equal(after[1], logits[1])
    assert processor.drawn == []


def test_penalties_see_log_probabilities_where_nothing_is_guided_too(processors: ModuleType) -> None:
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    processor = processors.GuidanceProcessor(None, torch.device("cpu"), False)
    added: list[Any] = [(row, _params(name, 0, signed=name != "b"), [5], []) for row, name in enumerate("abc")]
    processor.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=[]))
    logits = torch.zeros(3, VOCAB)
    logits[:2, 3] = 50.0  # sure; the third is not, and asks
    after = processor.guide_rows(logits.clone())
    assert processor.wanting == [2]
    assert torch.equal(after, torch.stack([logits[0].log_softmax(-1), logits[1], logits[2]]))


def test_guided_rows_are_renormalised_where_their_sign_counts(processors: ModuleType) -> None:
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    processor = processors.GuidanceProcessor(None, torch.device("cpu"), False)
    added: list[Any] = []
    for row, (name, signed) in enumerate((("a", True), ("b", False))):
        added += [(2 * row, _params(name, 0, signed=signed), [5], []), (2 * row + 1, _params(name, 1), [5], [])]
    processor.update_state(BatchUpdate(batch_size=4, removed=[], added=added, moved=[]))
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    after = processor.guide_rows(logits.clone())
    torch.testing.assert_close(after[0], _guided(logits, 0, 1, 2.0))
    laws = logits.log_softmax(-1)
    torch.testing.assert_close(after[2], 2 * laws[2] - laws[3])
    torch.testing.assert_close(after[2].log_softmax(-1), _guided(logits, 2, 3, 2.0))


def test_slots(processors: ModuleType) -> None:
    lengths = SimpleNamespace(np=np.array([9, 9, 4, 2, 9, 9]))
    states = SimpleNamespace(prompt_len=lengths, device=torch.device("cpu"))
    processor = processors.GuidanceProcessor(None, states)
    assert processor.add_request(2, _params("a", 0, 2.0)) is False
    assert processor.add_request(3, _params("a", 1)) is False
    assert processor.add_request(1, SimpleNamespace(extra_args={})) is False
    batch = SimpleNamespace(idx_mapping_np=np.array([3, 1, 2]), seq_lens_cpu_upper_bound=torch.tensor([5, 9, 7]))
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0)).bfloat16()
    after = processor.guide_slots(logits, batch)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after[2], _guided(logits.float(), 2, 0, 2.0))
    assert torch.equal(after[:2], logits[:2].float())
    sampled = torch.tensor([[7], [8], [9]])
    processor.copy_tokens(sampled)
    assert sampled[:, 0].tolist() == [9, 8, 9]

    processor.add_request(2, SimpleNamespace(extra_args=None))  # the slot's next request is not guided
    assert processor.guide_slots(logits, batch) is logits


def test_slots_that_want_their_companions_are_run_again(
    processors: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    lengths = SimpleNamespace(np=np.array([4, 4, 4]))
    processor = processors.GuidanceProcessor(None, SimpleNamespace(prompt_len=lengths, device=torch.device("cpu")))
    for slot, group in enumerate("abc"):
        processor.add_request(slot, _params(group, 0))
    # Slot 0 samples; 1 is in the middle of what it had written before it was preempted; 2 is amid its prompt.
    batch = SimpleNamespace(idx_mapping_np=np.array([0, 1, 2]), seq_lens_cpu_upper_bound=torch.tensor([5, 6, 3]))

    def sample(self: Any, hidden_states: Any, *_: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
        tokens = self.model.compute_logits(hidden_states).argmax(-1, keepdim=True)
        return SimpleNamespace(sampled_token_ids=tokens), torch.tensor([1, 0, 0]), torch.tensor([0, 0, 0])

    monkeypatch.setattr(GPUModelRunner, "sample", sample)
    processors.patches._install_slots(lambda found: found)
    model = type("Model", (), {"compute_logits": lambda self, states: states})()
    runner = SimpleNamespace(model=model, sampler=SimpleNamespace(logits_processors=processor))
    _, sampled, rejected = GPUModelRunner.sample(runner, torch.zeros(3, VOCAB), batch, None)
    assert (sampled.tolist(), rejected.tolist()) == ([0, 0, 0], [1, 0, 0])


def test_slots_fetch_what_was_written(processors: ModuleType) -> None:
    requested = read({"guidance": "word_guidance:include=lighthouses,beta=50"})
    assert requested is not None
    tokenizer = lg.bundled("tales")[1]
    plan = make_plan(requested, [5, 6], Served(512, 0, tokenizer, 64))
    tokens = torch.zeros(3, 64, dtype=torch.int32)
    states = SimpleNamespace(
        prompt_len=SimpleNamespace(np=np.array([9, 2, 9])),
        device=torch.device("cpu"),
        all_token_ids=SimpleNamespace(gpu=tokens),
    )
    processor = processors.GuidanceProcessor(None, states)
    processor.rewards._tokenizer, processor.rewards._ends = tokenizer, SimpleNamespace()
    processor.add_request(1, SimpleNamespace(extra_args=row_arguments("a", 0, plan, 20)))
    word = tokenizer(" lighthouses", add_special_tokens=False)["input_ids"]
    assert len(word) > 1
    written = [5, 6, *word]
    for length in range(1, len(written) + 1):
        tokens[1, :length] = torch.tensor(written[:length])
        batch = SimpleNamespace(idx_mapping_np=np.array([1]), seq_lens_cpu_upper_bound=torch.tensor([length]))
        guided = processor.guide_slots(torch.zeros(1, 512), batch)
        _, prompt, answer = processor.seats[1]
        if length < 2:  # a chunk of the prompt
            assert torch.equal(guided, torch.zeros(1, 512))
        else:
            assert (prompt, answer) == ([5, 6], written[2:length])
        if 2 < length < len(written):
            assert guided[0, written[length]] == guided.max() > guided.min()  # the word goes on
    processor.add_request(1, SimpleNamespace(extra_args=row_arguments("b", 0, plan, 20)))
    assert processor.seats[1][1:] == ([], [])


def test_nothing_is_left_for_apply(processors: ModuleType) -> None:
    processor = processors.GuidanceProcessor(None, torch.device("cpu"), False)
    logits = torch.zeros(1, VOCAB)
    assert processor.apply(logits) is logits
    assert processor.apply(logits, SimpleNamespace()) is logits
    assert processor.is_argmax_invariant()


def test_a_fault_shows_in_the_token(processors: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    processor = processors.GuidanceProcessor(None, torch.device("cpu"), False)
    added: list[Any] = [(0, _params("a", 0), [5], []), (1, _params("a", 1), [5], [])]
    processor.update_state(BatchUpdate(batch_size=2, removed=[], added=added, moved=[]))
    monkeypatch.setattr(processors.combine, "guide", lambda logits, batch, readers: [RuntimeError("no")])
    processor.guide_rows(torch.zeros(2, VOCAB))
    for token in (0, VOCAB - 1):
        sampled = torch.tensor([[token], [token]])
        processor._spoilt, processor._copies = [1], [(0, 1)]
        processor.copy_tokens(sampled)
        assert sampled[0] == token
        assert sampled[1] != token
        assert 0 <= int(sampled[1]) < VOCAB


def test_logits_pass_through_a_change_for_a_while(processors: ModuleType) -> None:
    model = torch.nn.Linear(2, 2)
    model.compute_logits = None  # type: ignore[assignment]

    class Model(torch.nn.Module):
        def compute_logits(self, states: torch.Tensor) -> torch.Tensor:
            return states + 1

    served = Model()
    with processors.patches.logits_through(served, lambda logits: 2 * logits):
        assert served.compute_logits(torch.zeros(1)) == 2
    assert served.compute_logits(torch.zeros(1)) == 1


def test_another_shape_is_refused(processors: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = processors.patches
    for kind in patches.SHAPES:
        patches.check_shapes(kind)
    monkeypatch.setitem(
        patches.SHAPES, "rows", {"vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample": ("self", "x")}
    )
    with pytest.raises(RuntimeError, match="to take"):
        patches.check_shapes("rows")
    monkeypatch.setitem(patches.SHAPES, "rows", {"vllm.v1.worker.gpu_model_runner:GPUModelRunner.gone": ()})
    with pytest.raises(RuntimeError, match="gone"):
        patches.check_shapes("rows")


def test_another_release_is_refused(processors: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors.patches, "served_version", lambda: "0.99.1")
    with pytest.raises(ValueError, match=r"guidance: expected vLLM 0\.32, got 0\.99\.1"):
        processors.GuidanceProcessor.validate_params(SimpleNamespace(extra_args={"guidance_scale": 2.0}))
    processors.GuidanceProcessor.validate_params(SimpleNamespace(extra_args={"guidance_scale": 1.0}))


def _caches() -> list[torch.Tensor]:
    whole = [torch.arange(6 * 4 * 5, dtype=dtype).reshape(6, 4, 5) for dtype in (torch.float32, torch.bfloat16)]
    split = torch.arange(12.0 * 7).reshape(12, 7)  # two blocks of the kernel for each of the scheduler's
    return [*whole, whole[0], split]


def _layers() -> list[torch.Tensor]:
    """Of one memory, one layer behind the other, as vLLM has them on a CPU."""
    shared = torch.arange(3 * 6 * 2 * 5.0)
    return [shared.as_strided((6, 2, 5), (10, 5, 1), 60 * layer) for layer in range(3)]


def _blocks() -> list[torch.Tensor]:
    """The same, but block by block, of which vLLM copies all there is."""
    shared = torch.arange(6 * 2 * 5.0).reshape(6, 2, 5)
    return [shared[:, 0], shared[:, 1]]


@pytest.mark.parametrize(("make", "ours"), [(_caches, True), (_layers, True), (_blocks, False)])
def test_blocks_are_copied_as_vllm_copies_them(processors: Any, make: Any, ours: bool) -> None:
    from vllm.v1.worker.utils import copy_kv_cache_blocks_inplace as theirs

    told: list[int] = []

    def slow(caches: Any, blocks: int, copies: Any) -> None:
        told.append(blocks)
        theirs(caches, blocks, copies)

    copies = [(0, 3), (3, 5), (1, 0)]  # what is a source may be overwritten too
    expected, found = make(), make()
    theirs(expected, 6, copies)
    processors.patches.copying(slow)(iter(found), 6, copies)
    for one, other, before in zip(found, expected, make(), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
        assert not torch.equal(one, before)
    assert told == ([] if ours else [6])
