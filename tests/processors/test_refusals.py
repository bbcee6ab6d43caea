"""What a processor refuses, and that nothing given to it is passed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lmguide as lg
from tests.families import VOCAB, tiny, tokens, words
from tests.refusals import refused

IDS = torch.tensor([tokens(6, 1), tokens(6, 2)])
SCORES = torch.zeros(2, VOCAB)


def test_an_encoder_decoder() -> None:
    for family in ("t5", "bart"):
        with refused("model", "encoder", "lmguide.guide"):
            lg.CFGLogitsProcessor(tiny(family), 2.0)


@pytest.mark.parametrize("given", [None, "gpt2", torch.nn.Linear(2, 2)])
def test_what_is_no_model(given: Any) -> None:
    with refused("model", type(given).__name__, error=TypeError):
        lg.CFGLogitsProcessor(given, 2.0)


def test_what_is_no_guidance() -> None:
    wrong: tuple[Any, ...] = (None, "cfg", 2.0)
    for given in wrong:
        with refused("guidance", error=TypeError):
            lg.GuidanceLogitsProcessor(tiny("llama"), given)
    with refused("guidance", "empty"):
        lg.GuidanceLogitsProcessor(tiny("llama"), [])


NEGATIVES: dict[str, tuple[Any, str]] = {
    "an id too large": ([VOCAB], f"got {VOCAB}"),
    "an empty list": ([], "at least one token"),
    "another device": (IDS.to("meta"), "meta"),
    "floats": (torch.ones(1, 3), "float32"),
    "a text without a tokenizer": ("w4", "tokenizer"),
    "three for two prompts": ([[4], [5], [6]], "got 3"),
}


@pytest.mark.parametrize("case", NEGATIVES)
def test_a_bad_negative_prompt(case: str) -> None:
    negative, said = NEGATIVES[case]
    with refused("negative_prompt", said):
        lg.CFGLogitsProcessor(tiny("llama"), 2.0, negative)(IDS, SCORES)


def test_two_negatives_for_four_prompts() -> None:
    """Two for four rows are right for two beams of each of two prompts, and wrong for four prompts."""
    processor = lg.CFGLogitsProcessor(tiny("llama"), 2.0, ((4, 5), (6, 7)))
    beams = IDS.repeat_interleave(2, 0)
    assert processor(beams, SCORES.repeat(2, 1)).shape == (4, VOCAB)
    with refused("negative_prompt", "got 2"):
        processor(torch.tensor([tokens(6, seed) for seed in range(4)]), SCORES.repeat(2, 1))


def test_two_strengths_for_four_prompts() -> None:
    processor = lg.CFGLogitsProcessor(tiny("llama"), (2.0, 3.0))
    assert processor(IDS.repeat_interleave(2, 0), SCORES.repeat(2, 1)).shape == (4, VOCAB)
    for count in (3, 4):
        with refused("guidance_scale", "got 2"):
            processor(torch.tensor([tokens(6, seed) for seed in range(count)]), torch.zeros(count, VOCAB))


def test_a_negative_prompt_that_no_method_takes() -> None:
    with refused("negative_prompt", "none of the methods"):
        lg.GuidanceLogitsProcessor(
            tiny("llama"), lg.DExperts(tiny("llama", 1), tiny("llama", 2)), negative_prompt=[4, 5]
        )


def test_a_negative_prompt_for_several_prompts_of_a_mixture() -> None:
    method = lg.PromptMixture(((4, 5), (6, 7)), (-0.5, 0.5))
    with refused("negative_prompt"):
        lg.GuidanceLogitsProcessor(tiny("llama"), method, negative_prompt=[8])(IDS, SCORES)


def test_a_mask_without_a_negative_prompt() -> None:
    with refused("negative_prompt_attention_mask", "without"):
        lg.GuidanceLogitsProcessor(
            tiny("llama"), lg.CFG(2.0), negative_prompt_attention_mask=torch.ones(1, 2, dtype=torch.long)
        )


@pytest.mark.parametrize("shape", [(6,), (2, 5), (3, 6), (2, 6, 1)])
def test_a_prompt_mask_of_another_shape(shape: tuple[int, ...]) -> None:
    with refused("prompt_attention_mask", r"\[2, 6\]"):
        lg.GuidanceLogitsProcessor(tiny("llama"), lg.DoLa((1,)), prompt_attention_mask=torch.ones(shape).long())(
            IDS, SCORES
        )


def test_a_schedule_that_needs_the_length() -> None:
    with refused("total", "max_new_tokens"):
        lg.GuidanceLogitsProcessor(tiny("llama"), lg.CFG(2.0, schedule=lg.Linear()))(IDS, SCORES)


def test_a_schedule_that_is_told_the_length() -> None:
    method = lg.CFG(3.0, ((4, 5),), schedule=lg.Linear(0.5, 2.0))
    model: Any = tiny("llama")
    options: dict[str, Any] = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 8, "do_sample": False}
    view: Any = lg.guide(model, method)
    processor = lg.GuidanceLogitsProcessor(model, method, max_new_tokens=8)
    found = model.generate(IDS, logits_processor=[processor], **options)
    assert found.tolist() == view.generate(IDS, **options).tolist()
    assert found.tolist() != lg.guide(model, lg.CFG(3.0, ((4, 5),))).generate(IDS, **options).tolist()  # type: ignore[union-attr]


def test_a_passage_that_is_not_in_the_prompt() -> None:
    with refused("passage", "w100"):
        lg.GuidanceLogitsProcessor(tiny("llama"), lg.CAD(2.0, "w100"), tokenizer=words())(IDS, SCORES)


def test_a_vocabulary_of_another_size() -> None:
    with refused("model", "vocabulary"):
        lg.ContrastiveLogitsProcessor(tiny("llama"), _smaller())(IDS, SCORES)


def _smaller() -> Any:
    from tests.families import made

    return made("llama", vocab_size=VOCAB - 8)
