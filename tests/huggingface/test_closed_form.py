"""Guided tales of the bundled model follow the law that their corpus implies, measured beside predicted."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.training import tales

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

TOPICS = list(tales.TOPICS)
TALES = 104
"""Tales for one measurement: 416 sentences, a standard error of at most 0.025."""
CLOSE = 0.08
SCALES = (1.0, 1.5, 2.0, 3.0)


@lru_cache
def _loaded() -> tuple[Any, PreTrainedTokenizerBase]:
    return lg.bundled("tales")


def shares(method: lg.Guidance, topics: Sequence[str], seed: int = 0, **call: Any) -> dict[str, float]:
    """The share of sentences on each topic, in sampled tales whose prompts name these topics in turn.

    With several topics the key is `"on topic"`: a sentence counts if it is on the topic of its own prompt.
    """
    model, tokenizer = _loaded()
    asked = [topics[row * len(topics) // TALES] for row in range(TALES)]
    inputs = tokenizer([tales.prompt(topic) for topic in asked], return_tensors="pt", padding=True)
    guided: Any = lg.guide(model, method, tokenizer=tokenizer)
    torch.manual_seed(seed)
    # Cutting to the likeliest tokens would bend the law that the prediction is about.
    rows = guided.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=100, **call)
    texts = tokenizer.batch_decode(rows[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    found = [
        [tales.score(text, topic) for text, topic in zip(texts, column, strict=True)]
        for column in ([asked] if len(topics) > 1 else [[topic] * TALES for topic in TOPICS])
    ]
    totals = [sum(scores, tales.TaleScore()) for scores in found]
    assert totals[0].sentences > 3.8 * TALES
    assert totals[0].grammatical > 0.9 * totals[0].sentences
    names = ["on topic"] if len(topics) > 1 else TOPICS
    return {name: total.on_topic / total.sentences for name, total in zip(names, totals, strict=True)}


def law(weights: Mapping[str | None, float]) -> Any:
    return pytest.approx(tales.guided_topics(weights), abs=CLOSE)


@pytest.mark.parametrize("scale", SCALES)
def test_guidance_against_the_default_negative(scale: float) -> None:
    """The last token of the prompt, a colon, names no topic: the closed form of the project's first promise."""
    assert shares(lg.CFG(scale), TOPICS)["on topic"] == pytest.approx(tales.predicted(scale), abs=CLOSE)


@pytest.mark.parametrize("scale", SCALES[1:])
def test_guidance_against_no_prompt(scale: float) -> None:
    assert shares(lg.CFG(scale, lg.EmptyPrompt()), TOPICS)["on topic"] == pytest.approx(
        tales.predicted(scale), abs=CLOSE
    )


@pytest.mark.parametrize("scale", SCALES[1:])
def test_guidance_where_the_model_is_unsure(scale: float) -> None:
    """A topic is settled where an agent is written, and there the entropy is high: the gate keeps the law."""
    method = lg.SelectiveCFG(scale, entropy_threshold=1.5)
    assert shares(method, TOPICS)["on topic"] == pytest.approx(tales.predicted(scale), abs=CLOSE)


def test_guidance_where_the_model_is_sure_does_nothing() -> None:
    """The other half of the gate's steps: agents are never written there, so the topics stay unguided."""
    method = lg.CFG(3.0, gate=~lg.Entropy(1.5))
    assert shares(method, TOPICS)["on topic"] == pytest.approx(tales.predicted(1.0), abs=CLOSE)


@pytest.mark.parametrize("scale", SCALES[1:])
def test_another_topic_as_negative_prompt(scale: float) -> None:
    found = shares(lg.CFG(scale, tales.prompt("space")), ["the sea"])
    assert found == law({"the sea": scale, "space": 1 - scale})


def test_a_negative_prompt_of_the_call() -> None:
    found = shares(lg.CFG(2.0), ["the sea"], negative_prompt=tales.prompt("the forest"))
    assert found == law({"the sea": 2.0, "the forest": -1.0})


def test_a_mixture_of_two_negative_prompts() -> None:
    prompts = (tales.prompt("space"), tales.prompt("the forest"))
    found = shares(lg.PromptMixture(prompts, weights=(-0.8, -0.4)), ["the sea"])
    assert found == law({"the sea": 2.2, "space": -0.8, "the forest": -0.4})


def test_a_mixture_that_draws_to_one_prompt_and_away_from_another() -> None:
    prompts = (tales.prompt("the kitchen"), tales.prompt("space"))
    found = shares(lg.PromptMixture(prompts, weights=(1.0, -0.5)), ["the sea"])
    assert found == law({"the sea": 0.5, "the kitchen": 1.0, "space": -0.5})


def test_two_methods_multiply() -> None:
    """`c + (g1 - c) + (g2 - c)` is one mixture of three prompts."""
    model, tokenizer = _loaded()
    methods: list[lg.Guidance] = [lg.CFG(1.8, tales.prompt("space")), lg.CFG(1.4, tales.prompt("the forest"))]
    inputs = tokenizer([tales.prompt("the sea")] * 4, return_tensors="pt")
    guided: Any = lg.guide(model, methods, tokenizer=tokenizer)
    more: dict[str, Any] = {
        "max_new_tokens": 3,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    both = guided.generate(**inputs, **more).logits
    prompts = (tales.prompt("space"), tales.prompt("the forest"))
    mixture: Any = lg.guide(model, lg.PromptMixture(prompts, weights=(-0.8, -0.4)), tokenizer=tokenizer)
    torch.testing.assert_close(both, mixture.generate(**inputs, **more).logits, atol=1e-4, rtol=1e-4)
