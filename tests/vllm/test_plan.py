"""From what is asked for to token ids: the same rows as the Hugging Face engine binds."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import lmguide as lg
from lmguide.vllm import admission
from lmguide.vllm.parameters import read
from lmguide.vllm.plan import PLAN, ROW, Companion, Served, make_plan, read_plan, read_row, row_arguments
from tests.vllm.served import TEMPLATE, VOCAB

if TYPE_CHECKING:
    from lmguide.vllm.plan import Plan

PROMPT = [9, 8, 7]


@pytest.fixture(scope="module")
def served() -> Served:
    return Served(VOCAB, 0, lg.bundled("tales")[1], 64)


def _plan(served: Served, prompt: list[int] | None = PROMPT, **arguments: Any) -> Plan:
    requested = read(arguments)
    assert requested is not None
    return make_plan(requested, prompt, served)


def _ids(served: Served, text: str, special: bool = True) -> list[int]:
    return list(served.tokenizer(text, add_special_tokens=special)["input_ids"])  # type: ignore[misc]


def test_prompts(served: Served) -> None:
    sad, prefix = _ids(served, "Sad!"), _ids(served, "Sad!", special=False)
    assert _plan(served, guidance_scale=2).companions == [Companion([7])]
    assert _plan(served, guidance_scale=2, negative_prompt="Sad!").companions == [Companion(sad)]
    assert _plan(served, guidance_scale=2, negative_prompt_ids=[5, 6]).companions == [Companion([5, 6])]
    assert _plan(served, guidance="preadd:prefix=Sad!").companions == [Companion([*prefix, *PROMPT])]
    assert _plan(served, guidance="suffix_cfg:suffix=[5, 6]").companions == [Companion([5, 6], behind=True)]
    assert _plan(served, guidance_scale=2, negative_prompts=["Sad!", "a"]).wiring == [{"prompt_0": 0, "prompt_1": 1}]


def test_guides_are_no_companions(served: Served) -> None:
    plan = _plan(served, guidance=["dexperts:expert=small,antiexpert=smaller", "cfg:negative_prompt=Sad!"])
    assert plan.wiring == [{"expert": "small", "antiexpert": "smaller"}, {"uncond": 0}]
    assert (len(plan.companions), plan.reads) == (1, True)
    row = read_row(json.loads(json.dumps(row_arguments("r1", 0, plan, 40))))
    assert row is not None and row.law is not None
    assert (row.law.companions, row.law.reads) == (1, True)
    assert not _plan(served, guidance_scale=2).reads


@pytest.mark.parametrize(
    ("stages", "asynchronous", "v2"), [(2, True, False), (1, True, False), (2, False, False), (2, True, True)]
)
def test_an_asynchronous_pipeline_of_v1_is_read_too_late(
    served: Served, stages: int, asynchronous: bool, v2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "refusals", lambda config: [])
    config = SimpleNamespace(
        use_v2_model_runner=v2,
        scheduler_config=SimpleNamespace(max_num_seqs=8, async_scheduling=asynchronous),
        parallel_config=SimpleNamespace(pipeline_parallel_size=stages),
    )
    reason = admission.refusal(config, _plan(served, guidance="contrastive:model=small"))
    assert (reason is not None) == (stages == 2 and asynchronous and not v2)
    assert admission.refusal(config, _plan(served, guidance_scale=2)) is None


def test_equal_contexts_are_one_companion(served: Served) -> None:
    plan = _plan(served, guidance=["cfg:negative_prompt=Sad!", "apg:negative_prompt=Sad!"])
    assert (plan.wiring, len(plan.companions)) == ([{"uncond": 0}, {"uncond": 0}], 1)


def test_chat_models_have_another_default(served: Served) -> None:
    tokenizer = lg.bundled("tales")[1]
    tokenizer.chat_template = TEMPLATE
    plan = _plan(replace(served, tokenizer=tokenizer), guidance_scale=2)
    assert plan.companions == [Companion(list(tokenizer("<user><a>", add_special_tokens=False)["input_ids"]))]


@pytest.mark.parametrize(
    ("arguments", "selective"),
    [
        ({"guidance_scale": 2}, False),
        ({"guidance_scale": 2, "entropy_threshold": 1}, True),
        ({"guidance_scale": 2, "guidance_gate": "divergence:threshold=1"}, False),
        ({"guidance": ["suffix_cfg", "tpg"]}, False),
        ({"guidance": "contrastive:model=small"}, True),
        ({"guidance": ["contrastive:model=small", "suffix_cfg"]}, False),
    ],
)
def test_companions_may_rest_only_where_the_conditional_closes_every_gate(
    served: Served, arguments: dict[str, Any], selective: bool
) -> None:
    assert _plan(served, **arguments).selective is selective


@pytest.mark.parametrize(
    ("prompt", "arguments", "words"),
    [
        (PROMPT, {"guidance_scale": 2, "negative_prompt_ids": [VOCAB]}, "negative_prompt_ids: expected ids in"),
        (PROMPT, {"guidance_scale": 2, "negative_prompt_ids": [5] * 64}, "leave no room"),
        ([5] * 60, {"guidance": "suffix_cfg:suffix=[1, 2, 3, 4]"}, "leave no room"),
        (None, {"guidance_scale": 2}, "inputs_embeds"),
        (PROMPT, {"guidance": "cad:passage=nowhere"}, "passage: its tokens do not stand"),
        (PROMPT, {"guidance_scale": 2, "negative_messages": '[{"role": "user"}]'}, "chat template"),
    ],
)
def test_what_cannot_be_planned(
    served: Served, prompt: list[int] | None, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        _plan(served, prompt, **arguments)


def test_plans_travel_as_json(served: Served) -> None:
    plan = _plan(served, guidance="suffix_cfg:suffix=[5, 6]")
    assert read_plan(json.loads(json.dumps(plan.arguments()))) == plan
    assert set(plan.arguments()) == {PLAN}
    assert read_plan({"session_id": 1}) is None


def test_rows_travel_as_json(served: Served) -> None:
    plan = _plan(served, guidance="apg:guidance_scale=3,eta=0.5", negative_prompt="Sad!")
    row = read_row(json.loads(json.dumps(row_arguments("r1", 0, plan, 40))))
    assert row is not None and row.law is not None
    assert (row.group, row.number, row.law.companions, row.law.total) == ("r1", 0, 1, 40)
    assert row.law.methods == (lg.APG(3.0, eta=0.5),)
    assert read_row(row_arguments("r1", 1)) is not None
    assert read_row(None) is None
    assert set(row_arguments("r1", 1)) == {ROW}


def test_laws_that_differ_in_strength_and_prompt_share_a_key(served: Served) -> None:
    def key(**arguments: Any) -> str:
        row = read_row(row_arguments("r1", 0, _plan(served, **arguments), 40))
        assert row is not None and row.law is not None
        return row.law.key

    assert key(guidance_scale=2) == key(guidance_scale=3, negative_prompt="Sad!")
    assert key(guidance_scale=2) != key(guidance_scale=2, entropy_threshold=1)
    assert key(guidance_scale=2) != key(guidance="apg:guidance_scale=2")
