"""A trace tells, token by token, what the same call without a trace has done."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lmguide as lg
from tests.families import ENCODER_DECODERS, FAMILIES, VOCAB, padded, tiny, tokens, words
from tests.huggingface.methods import METHODS, Setting, entropy_of
from tests.huggingface.reference import First, next_token
from tests.refusals import refused

NEW = 7
PROMPTS, NEGATIVES = [tokens(9, 1), tokens(6, 2)], [tokens(4, 3), tokens(12, 4)]
SETTING = Setting("llama", PROMPTS, NEGATIVES)
IDS, MASK = padded(PROMPTS)
ARGUMENTS: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": NEW, "do_sample": False}


def view(method: str = "selective", setting: Setting = SETTING) -> Any:
    return lg.guide(setting.model, METHODS[method][0](setting), tokenizer=words())


@pytest.mark.parametrize("method", ["cfg", "selective", "suffix, selective", "dola", "contrastive", "two methods"])
def test_records_are_the_laws_numbers(method: str) -> None:
    traced = lg.trace(view(method), IDS, top=4, **ARGUMENTS)
    assert traced.prompt_length == IDS.shape[1]
    law = SETTING.law(method)
    for row, records in enumerate(traced.rows):
        answer = traced.sequences[row, IDS.shape[1] :].tolist()
        assert [record.token for record in records] == answer
        for step, record in enumerate(records):
            cond = next_token(SETTING.model, PROMPTS[row], answer[:step])
            exact = law(row, answer[:step]).log_softmax(-1)
            assert record.entropy == pytest.approx(entropy_of(cond), abs=1e-4)
            moved = (exact.exp() * (exact - cond)).nan_to_num(0.0).sum()
            assert record.divergence == pytest.approx(float(moved), abs=1e-3)
            selective = method in {"selective", "suffix, selective"}
            assert record.open == (not selective or entropy_of(cond) > SETTING.threshold)
            for candidates, logp in ((record.before, cond), (record.after, exact)):
                top = logp.exp().topk(4)
                assert [token for token, _ in candidates] == top.indices.tolist()
                assert [share for _, share in candidates] == pytest.approx(top.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_traced_call_is_the_call(family: str) -> None:
    setting = Setting(family, PROMPTS, NEGATIVES)
    ids, mask = padded(PROMPTS, right=family in ENCODER_DECODERS)
    arguments = ARGUMENTS | {"attention_mask": mask}
    guided = view("selective", setting)
    expected = guided.generate(ids, **arguments)
    stats = guided.stats
    traced = lg.trace(guided, ids, **arguments)
    assert torch.equal(traced.sequences, expected)
    assert guided.stats == stats
    assert traced.prompt_length == (1 if family in ENCODER_DECODERS else IDS.shape[1])
    assert sum(any(row[step].open for row in traced.rows) for step in range(NEW)) == stats.fired


def test_a_traced_call_samples_the_same_tokens() -> None:
    for more in (
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 3},
        {"cache_implementation": "static"},
    ):
        guided = view()
        torch.manual_seed(0)
        expected = guided.generate(IDS, **ARGUMENTS | more)
        torch.manual_seed(0)
        traced = lg.trace(guided, IDS, **ARGUMENTS | more)
        assert torch.equal(traced.sequences, expected)
        assert len(traced.rows) == len(expected)


def test_a_row_ends_with_its_end_of_sequence_token() -> None:
    guided = view("cfg")
    plain = guided.generate(IDS, **ARGUMENTS)[:, IDS.shape[1] :].tolist()
    eos = next(token for token in plain[0][1:-1] if token not in plain[1])
    for given in (eos, [eos, 119]):
        traced = lg.trace(guided, IDS, eos_token_id=given, **ARGUMENTS)
        assert [len(row) for row in traced.rows] == [plain[0].index(eos) + 1, NEW]
        assert traced.rows[0][-1].token == eos


def test_no_more_candidates_than_tokens_and_no_fewer_than_asked() -> None:
    for top in (1, VOCAB, VOCAB + 5):
        traced = lg.trace(view("cfg"), IDS, top=top, **ARGUMENTS | {"max_new_tokens": 1})
        assert len(traced.rows[0][0].before) == len(traced.rows[0][0].after) == min(top, VOCAB)


def test_a_structured_output_is_traced_too() -> None:
    traced = lg.trace(view("cfg"), IDS, return_dict_in_generate=True, **ARGUMENTS)
    assert torch.equal(traced.sequences, view("cfg").generate(IDS, **ARGUMENTS))


def test_the_view_itself_records_nothing_afterwards() -> None:
    guided = view("cfg")
    traced = lg.trace(guided, IDS, **ARGUMENTS)
    assert guided.generate(IDS, **ARGUMENTS).tolist() == traced.sequences.tolist()
    assert [len(row) for row in traced.rows] == [NEW, NEW]
    expected = First(SETTING.model, SETTING.law("cfg")).generate(IDS, **ARGUMENTS)
    assert traced.sequences.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("option", "value"), [("num_beams", 3), ("prompt_lookup_num_tokens", 3), ("assistant_model", tiny("llama", 1))]
)
def test_ways_of_decoding_with_several_paths(option: str, value: Any) -> None:
    with refused(option, "Leave it out"):
        lg.trace(view(), IDS, **ARGUMENTS | {option: value})


def test_beams_in_a_generation_config() -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(num_beams=3, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    with refused("num_beams"):
        lg.trace(view(), IDS, attention_mask=MASK, generation_config=config)


def test_nothing_to_trace() -> None:
    with refused("guidance", "off"):
        lg.trace(lg.guide(tiny("llama"), lg.CFG(1.0)), IDS, **ARGUMENTS)
    with refused("guidance", "off"):
        lg.trace(view("cfg"), IDS, guidance_scale=1.0, **ARGUMENTS)


@pytest.mark.parametrize("top", [0, -1])
def test_too_few_candidates(top: int) -> None:
    with refused("top", str(top)):
        lg.trace(view(), IDS, top=top, **ARGUMENTS)
