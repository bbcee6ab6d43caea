"""What the engine core knows of a guided request, without an engine."""

from __future__ import annotations

import importlib.util
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lmguide.vllm.plan import Companion, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

pytestmark = [
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.fixture(scope="module")
def groups() -> Iterator[ModuleType]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, at its import
        from lmguide.vllm import groups

        yield groups


def _group(groups: ModuleType, **options: Any) -> Any:
    plan = Plan([], [], [Companion([5]), Companion([6])], selective=True)
    return groups.Group(SimpleNamespace(num_computed_tokens=9), plan, True, wanted=False, **options)


def test_a_conditional_that_asks_again_has_only_counted_tokens_in_the_cache(groups: ModuleType) -> None:
    group = _group(groups, parks=True)
    group.ask()
    assert (group.wanted, group.parked, group.due, group.ahead) == (True, True, 0, 0)
    assert group.conditional.num_computed_tokens == 9
    group.unpark()  # its companions were preempted
    group.wanted = False
    assert (group.parked, group.due, group.ahead, group.conditional.num_computed_tokens) == (False, 1, 1, 8)
    group.conditional.num_computed_tokens += 1
    group.ask()
    assert (group.parked, group.ahead, group.conditional.num_computed_tokens) == (True, 0, 9)


def test_a_conditional_that_cannot_be_parked_computes_its_last_token_again(groups: ModuleType) -> None:
    group = _group(groups)
    group.ask()
    assert (group.wanted, group.parked, group.due, group.ahead) == (True, False, 1, 1)
    assert group.conditional.num_computed_tokens == 8


def test_a_parked_conditional_lends_its_place(groups: ModuleType) -> None:
    assert _group(groups).more_places == 2
    group = _group(groups, parks=True)
    assert group.more_places == 1
    group.ask()
    assert group.more_places == 1
    group.unpark()
    assert group.more_places == 2  # both run beside it, should they still be there


def test_only_companions_of_a_parked_conditional_draw_as_it_would(groups: ModuleType) -> None:
    group = _group(groups, parks=True)
    theirs = groups.SamplingParams(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, max_tokens=9, stop_token_ids=[3])
    group.conditional = SimpleNamespace(sampling_params=theirs, max_tokens=9, request_id="r", num_computed_tokens=9)
    copies = group._sampling(1)  # whose token is the conditional's, however it is drawn
    group.ask()
    draws = group._sampling(1)
    assert copies.temperature == 0
    assert [getattr(draws, name) for name in groups.DRAWING] == [0.7, 0.9, 5, 0.1]
    assert not draws.stop_token_ids
    assert draws.max_tokens == 9
    assert draws.extra_args != group._sampling(2).extra_args
    assert group._sampling(1) is draws


@pytest.mark.parametrize(
    ("changes", "parks"),
    [
        ({}, True),
        ({"use_v2_model_runner": True}, False),
        ({"watermark_config": object()}, False),
        ({"logits_processors": ["module:Class"]}, False),
        ({"installed": ["lmguide.vllm.processor:GuidanceProcessor", "other:Processor"]}, False),
    ],
)
def test_nobody_is_parked_where_others_look_at_the_row_that_is_sampled(
    groups: ModuleType, changes: dict[str, Any], parks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"use_v2_model_runner": False, "watermark_config": None, "logits_processors": None, "installed": ["ours"]}
    found |= changes
    monkeypatch.setattr(groups, "_processors", lambda: found["installed"])
    model = SimpleNamespace(logits_processors=found["logits_processors"])
    config = SimpleNamespace(model_config=model, watermark_config=found["watermark_config"])
    scheduler = SimpleNamespace(use_v2_model_runner=found["use_v2_model_runner"], vllm_config=config)
    assert groups._samples_rows(scheduler) is parks


@pytest.mark.parametrize(("tokens", "preempted", "stalled"), [(0, False, True), (0, True, False), (3, False, False)])
def test_a_step_that_preempts_is_no_stall(groups: ModuleType, tokens: int, preempted: bool, stalled: bool) -> None:
    from lmguide.vllm.step import Step

    step = Step(SimpleNamespace(running=[], pause_state=None))
    step._preempted = preempted
    step.note(SimpleNamespace(total_num_scheduled_tokens=tokens))
    assert step._stalled is stalled


@pytest.mark.parametrize(
    ("options", "parks"),
    [
        ({}, True),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "n": 3}, True),
        ({"stop": ["x"], "stop_token_ids": [3], "max_tokens": 5, "ignore_eos": True}, True),
        ({"detokenize": False}, True),
        ({"seed": 1, "temperature": 0}, True),  # greedy, whatever the seed
        ({"seed": 1}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"presence_penalty": 0.1}, False),
        ({"logit_bias": {3: 1.0}}, False),
        ({"min_tokens": 2}, False),
        ({"logprobs": 0}, False),
        ({"allowed_token_ids": [3]}, False),
        ({"bad_words": ["x"]}, False),
    ],
)
def test_only_requests_that_sample_from_nothing_but_their_law_are_parked(
    groups: ModuleType, options: dict[str, Any], parks: bool
) -> None:
    assert groups.draws_by_law(groups.SamplingParams(**options)) is parks
