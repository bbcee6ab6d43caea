"""Budgets in generate(): bit for bit nothing without one, and shorter tales of the bundled model with one."""

from __future__ import annotations

from functools import cache
from statistics import mean
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import lmguide as lg
from lmguide.training import tales
from tests.budgets import ByStates
from tests.families import padded, tiny, tokens
from tests.huggingface.methods import METHODS, Setting
from tests.huggingface.modes import MODES
from tests.huggingface.reference import First

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmguide import Guidance

PREDICTOR = "bundled/tales_length"
COUNT = 24
"""Tales of each topic."""
SAMPLED: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 120}


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams", "prompt lookup"])
def test_no_budget_is_unguided_bit_for_bit(mode: str) -> None:
    setting = Setting("llama", *MODES[mode].rows())
    ids, mask = padded(setting.prompts)
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    arguments |= MODES[mode].arguments | MODES[mode].engine | {"output_scores": True, "return_dict_in_generate": True}
    plain = tiny("llama")
    guided = [lg.guide(plain, lg.BudgetGuidance(ByStates(), none, every=True)) for none in (None, (None,) * len(ids))]
    found = []
    for model in (plain, *guided):
        transformers.set_seed(0)
        found.append(model.generate(ids, **arguments))
    for other in found[1:]:
        assert torch.equal(other.sequences, found[0].sequences)
        assert all(torch.equal(own, its) for own, its in zip(found[0].scores, other.scores, strict=True))


@pytest.mark.parametrize("mode", ["sampling", "penalties", "returned sequences", "beam sampling", "no cache, beams"])
def test_other_processors_and_loops_go_on_working(mode: str) -> None:
    """The published code leaves temperature, top-p and penalties out where it guides."""
    chosen = MODES[mode]
    setting = Setting("llama", *chosen.rows())
    ids, mask = padded(setting.prompts)
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False} | chosen.arguments
    for method in ("budget", "budget of a thought"):
        transformers.set_seed(0)
        expected = First(setting.model, setting.law(method)).generate(ids, **arguments)
        transformers.set_seed(0)
        guided: Any = lg.guide(setting.model, METHODS[method][0](setting))
        assert guided.generate(ids, **arguments | chosen.engine).tolist() == expected.tolist()


def test_a_pass_for_each_newline_and_not_for_each_token() -> None:
    model, tokenizer = lg.bundled("tales")
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    ids = torch.tensor([tokenizer("A tale of the sea:")["input_ids"]])
    guided = lg.guide(model, lg.BudgetGuidance(PREDICTOR, 40), tokenizer=tokenizer)
    bias = {(newline,): 12.0}
    found: Any = guided.generate(ids, max_new_tokens=30, do_sample=False, sequence_bias=bias, no_repeat_ngram_size=2)
    answer = found[0, ids.shape[1] :].tolist()
    behind = 1 + sum(token == newline for token in answer[:-1])
    assert 1 < behind < guided.stats.steps
    assert guided.stats.forwards == guided.stats.steps + behind


@cache
def sampled(methods: tuple[Guidance, ...]) -> tuple[list[int], list[tales.TaleScore]]:
    """Lengths, the end among them, and scores of tales that are whole; 0 for the others."""
    model, tokenizer = lg.bundled("tales")
    writer: Any = lg.guide(model, methods, tokenizer=tokenizer) if methods else model
    torch.manual_seed(11)
    topics = [topic for topic in tales.TOPICS for _ in range(COUNT)]
    inputs = tokenizer(list(map(tales.prompt, topics)), return_tensors="pt", padding=True)
    rows = writer.generate(**inputs, **SAMPLED)[:, inputs.input_ids.shape[1] :].tolist()
    lengths, scores = [], []
    for topic, row in zip(topics, rows, strict=True):
        ended = tokenizer.eos_token_id in row
        lengths.append(row.index(tokenizer.eos_token_id) + 1 if ended else len(row) + 1)
        text = str(tokenizer.decode(row, skip_special_tokens=True))
        found = tales.score(text, topic)
        whole = ended and text.endswith(".") and found.grammatical == found.sentences
        scores.append(found if whole else tales.TaleScore())
    return lengths, scores


def whole(scores: Sequence[tales.TaleScore]) -> float:
    """The share of tales that ended behind a full stop and are grammatical word for word."""
    return mean(bool(score.sentences) for score in scores)


@pytest.mark.parametrize("budget", [52, 58])
def test_tales_keep_their_budget(budget: int) -> None:
    """Those that unguided keep it are what a perfect predictor samples, and a cut at the budget leaves no others."""
    lengths, scores = sampled(())
    kept = [length for length in lengths if length <= budget]
    found, found_scores = sampled((lg.BudgetGuidance(PREDICTOR, budget, every=True),))
    assert mean(length <= budget for length in found) > 0.98 > len(kept) / len(lengths) + 0.3
    assert mean(found) == pytest.approx(mean(kept), abs=1.5)
    assert whole(found_scores) > len(kept) / len(lengths) + 0.3
    soft, soft_scores = sampled((lg.BudgetGuidance(PREDICTOR, budget, every=True, plausibility=0.01),))
    assert whole(soft_scores) > 0.98, "improbable tokens are excluded, an end within a sentence too"
    assert mean(soft) < mean(found) + 2
    assert mean(length <= budget for length in soft) > len(kept) / len(lengths) + 0.3


def test_less_budget_is_shorter_and_each_prompt_has_its_own() -> None:
    model, tokenizer = lg.bundled("tales")
    prompts = [tales.prompt(topic) for topic in tales.TOPICS]
    budgets = (64, 56, None, 48)
    method = lg.BudgetGuidance(PREDICTOR, budgets, every=True)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    torch.manual_seed(2)
    found: Any = lg.guide(model, method, tokenizer=tokenizer).generate(**inputs, **SAMPLED, num_return_sequences=24)
    answers = found[:, inputs.input_ids.shape[1] :]
    ended = (answers == tokenizer.eos_token_id).int().argmax(1) + 1
    by_prompt = [part.tolist() for part in ended.split(24)]
    for lengths, budget in zip(by_prompt, budgets, strict=True):
        assert mean(length <= (budget or 120) for length in lengths) > 0.9
    means = [mean(lengths) for lengths in by_prompt]
    assert means[2] > means[0] > means[1] > means[3]


def test_with_guidance_towards_the_prompt_both_do_their_work() -> None:
    budget = lg.BudgetGuidance(PREDICTOR, 56, every=True, plausibility=0.01)
    cfg = lg.CFG(2.0, "A tale:")
    _, plain = sampled((budget,))
    lengths, scores = sampled((cfg, budget))
    without, _ = sampled((cfg,))
    assert mean(length <= 56 for length in lengths) > mean(length <= 56 for length in without) + 0.3
    totals = [sum(found, tales.TaleScore()) for found in (plain, scores)]
    on_topic = [total.on_topic / total.sentences for total in totals]
    assert on_topic[1] > on_topic[0] + 0.15


def test_a_processor_shortens_too() -> None:
    model, tokenizer = lg.bundled("tales")
    inputs = tokenizer(["A tale of the sea:"] * 24, return_tensors="pt")
    processor = lg.BudgetGuidanceLogitsProcessor(model, PREDICTOR, 50, settings={"every": True})
    torch.manual_seed(0)
    found: Any = model.generate(**inputs, **SAMPLED, logits_processor=[processor])  # type: ignore[operator]
    ended = (found[:, inputs.input_ids.shape[1] :] == tokenizer.eos_token_id).int().argmax(1) + 1
    assert float((ended <= 50).float().mean()) > 0.9


def test_the_bundled_predictor_is_for_no_other_model() -> None:
    ids = torch.tensor([tokens(5, 1)])
    with pytest.raises(ValueError, match=r"predictor: expected one for 120 tokens, got one for 512\."):
        lg.guide(tiny("llama"), lg.BudgetGuidance(PREDICTOR, 9, every=True)).generate(ids, max_new_tokens=2)
