"""Every method as a `LogitsProcessor` of a plain `generate()` gives the reference's tokens, however it is reused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lmguide as lg
from tests.budgets import RATE, ByStates
from tests.families import ENCODER_DECODERS, FAMILIES, STATEFUL, padded, text, tiny, tokens, words
from tests.huggingface.methods import BARRED, METHODS, NEW, Setting, entropy_of
from tests.huggingface.modes import MODES, Mode
from tests.huggingface.reference import First, next_token
from tests.huggingface.test_view import Counter
from tests.sources.rewards.classifiers import unpadded

NEEDS_LENGTH = {"cfg, growing", "cfg, in a window"}
"""Methods whose schedule needs the answer's length, which no processor is told."""
EVERY_METHOD = ("ragged", "beams", "prompt lookup")
# On Llama every method in three modes, the main ones in all; elsewhere one whose branch lags, rewinds and reorders.
MORE_MODES = ("sampling", "returned beams", "static cache", "no cache", "ends")
CELLS = [
    (family, method, mode)
    for family in FAMILIES
    for method in METHODS
    for mode in (*EVERY_METHOD, *MORE_MODES)
    if family not in (*ENCODER_DECODERS, *MODES[mode].without)
    and method not in NEEDS_LENGTH
    and (
        (family == "llama" and (mode in EVERY_METHOD or method in {"cfg", "selective", "suffix, selective"}))
        or (method == "selective" and mode in EVERY_METHOD)
    )
]


def run(model: Any, setting: Setting, mode: Mode, **more: Any) -> list[list[int]]:
    ids, mask = padded(setting.prompts)
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False} | mode.arguments
    torch.manual_seed(0)
    found: list[list[int]] = model.generate(ids, **arguments | more).tolist()
    return found


@pytest.mark.parametrize(("family", "method", "mode"), CELLS)
def test_a_processor_gives_the_tokens_of_the_reference(family: str, method: str, mode: str) -> None:
    setting = Setting(family, *MODES[mode].rows())
    processor = lg.GuidanceLogitsProcessor(setting.model, METHODS[method][0](setting), tokenizer=words())
    found = run(setting.model, setting, MODES[mode], logits_processor=[processor], **MODES[mode].engine)
    assert found == run(First(setting.model, setting.law(method)), setting, MODES[mode])


SETTING = Setting("llama", [tokens(9, 1), tokens(6, 2)], [tokens(4, 3), tokens(12, 4)])
GREEDY = Mode((), ())
SHORT: dict[str, Any] = {"max_new_tokens": 5}


def guided(processor: Any, setting: Setting, **more: Any) -> list[list[int]]:
    return run(setting.model, setting, GREEDY, logits_processor=[processor], **more)


def expected(setting: Setting, method: str, **more: Any) -> list[list[int]]:
    return run(First(setting.model, setting.law(method)), setting, GREEDY, **more)


REUSED = ("cfg, last token", "selective", "suffix", "dola", "dexperts", "caif", "fudge", "words", "gedi")


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", method) for method in REUSED] + [("mistral_sliding", "cfg, last token"), ("gpt2", "selective")],
)
def test_one_processor_serves_call_after_call(family: str, method: str) -> None:
    """Its state is a memo of the last prefix: whatever comes next, it is right."""
    negative = [tokens(5, 9)]
    first = Setting(family, [tokens(9, 1)], negative)
    processor = lg.GuidanceLogitsProcessor(first.model, METHODS[method][0](first), tokenizer=words())
    answer = expected(first, method, **SHORT)[0]
    prompts = {
        "the same prompt": first.prompts,
        "another of its length": [tokens(9, 2)],
        "the first again": first.prompts,
        "a shorter one": [tokens(6, 4)],
        "its own beginning": [tokens(9, 1)[:6]],
        "the first once more": first.prompts,
        "the whole answer and more": [[*answer, *tokens(3, 5)]],
        "the first, after all": first.prompts,
        "the first and other words": [[*first.prompts[0], *tokens(2, 6)]],
        "two prompts": [tokens(9, 1), tokens(6, 2)],
        "two others": [tokens(9, 3), tokens(6, 4)],
        "a part of one": [tokens(6, 2)],
    }
    for name, rows in prompts.items():
        setting = Setting(family, rows, negative)
        setting.__dict__["threshold"] = first.threshold
        assert guided(processor, setting, **SHORT) == expected(setting, method, **SHORT), name


@pytest.mark.parametrize("method", REUSED)
def test_one_processor_serves_mode_after_mode(method: str) -> None:
    setting = Setting("llama", [tokens(9, 1)], [tokens(5, 9)])
    processor = lg.GuidanceLogitsProcessor(setting.model, METHODS[method][0](setting), tokenizer=words())
    beams, more = {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}
    for mode in ({}, beams, {"num_beams": 2}, more, beams, {}):
        assert guided(processor, setting, **mode) == expected(setting, method, **mode), mode
    for _ in range(2):
        assert guided(processor, setting, prompt_lookup_num_tokens=2) == expected(setting, method)


def test_the_next_step_of_a_call_can_be_told_to_be_a_prompt() -> None:
    """The one prompt that cannot be told from a next step: the last sequence and one more token. `reset()` tells it."""
    setting = Setting("llama", [tokens(9, 1)], [tokens(5, 9)])
    processor = lg.CFGLogitsProcessor(setting.model, 3.0)
    answer = guided(processor, setting)[0]
    longer = Setting("llama", [[*answer[:-1], 7]], setting.negatives)
    processor.reset()
    assert guided(processor, longer) == expected(longer, "cfg, last token")


def test_anyones_own_loop() -> None:
    """No `generate` at all: tokens taken back, rows swapped, steps repeated."""
    setting = Setting("llama", [tokens(7, 1), tokens(7, 2)], [tokens(4, 3), tokens(12, 4)])
    model, law = setting.model, setting.law("cfg")
    processor = lg.CFGLogitsProcessor(model, 3.0, setting.negative)

    def scores(rows: list[int], answers: list[list[int]]) -> torch.Tensor:
        ids = torch.tensor([[*setting.prompts[row], *answer] for row, answer in zip(rows, answers, strict=True)])
        with torch.no_grad():
            return processor(ids, model(ids).logits[:, -1])

    def exact(rows: list[int], answers: list[list[int]]) -> torch.Tensor:
        return torch.stack([law(row, answer).log_softmax(-1) for row, answer in zip(rows, answers, strict=True)])

    a, b = tokens(6, 7), tokens(6, 8)
    for cut in (0, 1, 2, 3, 4, 2, 3, 4, 5, 5, 1, 2, 3):
        torch.testing.assert_close(
            scores([0, 1], [a[:cut], b[:cut]]), exact([0, 1], [a[:cut], b[:cut]]), atol=1e-4, rtol=1e-4
        )
    other = tokens(6, 9)
    for cut in (4, 5):
        changed = [*a[:3], *other[3:cut]]
        torch.testing.assert_close(
            scores([0, 1], [changed, b[:cut]]), exact([0, 1], [changed, b[:cut]]), atol=1e-4, rtol=1e-4
        )


def test_the_branch_runs_where_the_gate_opens() -> None:
    setting = Setting("llama", [tokens(9, 1)], [tokens(4, 3)])
    processor = lg.SelectiveCFGLogitsProcessor(setting.model, 3.0, setting.negatives[0], setting.threshold)
    with Counter(setting.model) as counter:
        answer = guided(processor, setting)[0][9:]
    laws = [next_token(setting.model, setting.prompts[0], answer[:step]) for step in range(NEW)]
    fired = sum(entropy_of(logp) > setting.threshold for logp in laws)
    assert 0 < fired < NEW
    assert counter.count == NEW + fired


def test_a_processor_that_is_off_returns_the_very_scores() -> None:
    model = tiny("llama")
    scores = torch.randn(2, 120)
    for processor in (
        lg.CFGLogitsProcessor(model, 1.0),
        lg.SuffixCFGLogitsProcessor(model, 1.0, (5, 7)),
        lg.DoLaLogitsProcessor(model, (1,), 0.0),
        lg.ContrastiveLogitsProcessor(model, tiny("llama", 1), 0.0),
    ):
        with Counter(model, tiny("llama", 1)) as counter:
            assert processor(torch.tensor([tokens(4, 1), tokens(4, 2)]), scores) is scores
        assert counter.count == 0


NAMED: dict[str, tuple[Any, lg.Guidance]] = {
    "cfg": (lambda m: lg.CFGLogitsProcessor(m, 3.0, (4, 5)), lg.CFG(3.0, (4, 5))),
    "cfg, a tensor": (lambda m: lg.CFGLogitsProcessor(m, 3.0, torch.tensor([4, 5])), lg.CFG(3.0, (4, 5))),
    "cfg, a masked tensor": (
        lambda m: lg.CFGLogitsProcessor(
            m, 3.0, torch.tensor([[9, 4, 5]]), negative_prompt_attention_mask=torch.tensor([[0, 1, 1]])
        ),
        lg.CFG(3.0, (4, 5)),
    ),
    "cfg, text": (lambda m: lg.CFGLogitsProcessor(m, 3.0, text((4, 5)), words()), lg.CFG(3.0, (4, 5))),
    "cfg, the call's": (
        lambda m: lg.GuidanceLogitsProcessor(m, lg.CFG(3.0), negative_prompt=(4, 5)),
        lg.CFG(3.0, (4, 5)),
    ),
    "selective": (
        lambda m: lg.SelectiveCFGLogitsProcessor(m, 3.0, (4, 5), 3.9),
        lg.SelectiveCFG(3.0, (4, 5), entropy_threshold=3.9),
    ),
    "suffix": (
        lambda m: lg.SuffixCFGLogitsProcessor(m, 3.0, (5, 7), 3.9),
        lg.SuffixCFG(3.0, (5, 7), entropy_threshold=3.9),
    ),
    "contrastive": (
        lambda m: lg.ContrastiveLogitsProcessor(m, tiny("llama", 1), 0.7, 0.2, "original"),
        lg.Contrastive(tiny("llama", 1), 0.7, 0.2, "original"),
    ),
    "caif": (
        lambda m: lg.CAIFLogitsProcessor(m, unpadded(), 2, 5.0, settings={"top_k": 8}),
        lg.CAIF(unpadded(), 2, 5.0, 8),
    ),
    "words": (
        lambda m: lg.WordGuidanceLogitsProcessor(
            m, "w9", BARRED, 4.0, 6.0, words(), {"exclude_at": "boundary"}, max_new_tokens=NEW
        ),
        lg.WordGuidance("w9", BARRED, 4.0, 6.0, exclude_at="boundary"),
    ),
    "dola": (lambda m: lg.DoLaLogitsProcessor(m, (1, 2), 0.5, 0.2), lg.DoLa((1, 2), 0.5, 0.2)),
    "budget": (
        lambda m: lg.BudgetGuidanceLogitsProcessor(m, ByStates(), 9, settings={"every": True, "min_rate": RATE}),
        lg.BudgetGuidance(ByStates(), 9, every=True, min_rate=RATE),
    ),
    "gedi": (
        lambda m: lg.GeDiLogitsProcessor(
            m, tiny("llama", 3), (40,), ((40,), (41,)), settings={"class_bias": -9.0, "filter_p": 0.5}
        ),
        lg.GeDi(tiny("llama", 3), (40,), ((40,), (41,)), class_bias=-9.0, filter_p=0.5),
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_each_named_processor_is_its_method(name: str) -> None:
    make, method = NAMED[name]
    view: Any = lg.guide(tiny("llama"), method, tokenizer=words())
    expected = run(view, SETTING, GREEDY)
    assert guided(make(tiny("llama")), SETTING) == expected
    assert expected != run(tiny("llama"), SETTING, GREEDY)


def test_a_processor_goes_well_with_a_view_and_with_others() -> None:
    """Two processors in a row multiply, as two methods of one view do."""
    expert, amateur = SETTING.expert, SETTING.amateur
    both: Any = lg.guide(tiny("llama"), [lg.CFG(3.0, SETTING.negative), lg.DExperts(expert, amateur, 0.7)])
    first = lg.CFGLogitsProcessor(tiny("llama"), 3.0, SETTING.negative)
    second = lg.GuidanceLogitsProcessor(tiny("llama"), lg.DExperts(expert, amateur, 0.7))
    found = run(tiny("llama"), SETTING, GREEDY, logits_processor=[first, second])
    assert found == run(both, SETTING, GREEDY)


@pytest.mark.parametrize("family", STATEFUL)
def test_recurrent_states_follow_beams_and_rewinds(family: str) -> None:
    setting = Setting(family, [tokens(9, 1)], [tokens(5, 9)])
    processor = lg.GuidanceLogitsProcessor(setting.model, METHODS["selective"][0](setting))
    for more in ({"num_beams": 3}, {}, {"num_beams": 3}):
        assert guided(processor, setting, **more) == expected(setting, "selective", **more)
