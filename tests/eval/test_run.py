"""Runs over items: the answers of `generate`, scored, with costs that a plain forward pass confirms."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.eval import cognac
from lmguide.eval.cognac import Item, Setting
from tests.families import tiny, words
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Sequence

ITEMS = [
    Item(f"dev-{number:03d}", topic, constraint, prompt, topic_words, forbidden)
    for number, (topic, constraint, prompt, topic_words, forbidden) in enumerate(
        [
            ("the sea", "ships", "A tale of the sea:", ("sailor", "gull", "whale"), ("boat", "captain")),
            ("space", "moons", "A tale of space: The", ("pilot", "robot", "alien"), ("moon", "planet")),
            ("the forest", "birds", "A tale of the forest:", ("fox", "owl", "deer"), ("owl",)),
            ("the sea", "fish", "A tale:", ("sailor", "gull", "whale"), ("crab",)),
            ("the kitchen", "soups", "A tale of the kitchen:", ("cook", "chef", "butler"), ("soup",)),
        ]
    )
]
SETTING = Setting("tales", (), "dev", "abcd", max_new_tokens=24, batch_size=2)
WORDS = {"name": "word_guidance", "include": "<allowed_words>", "exclude": "<forbidden_words>", "beta": 15.0}


def ran(setting: Setting, done: Sequence[str] = (), model: Any = None, tokenizer: Any = None) -> list[cognac.Answer]:
    bundled, its_own = lg.bundled("tales")
    made = cognac.answers(setting, model or bundled, tokenizer or its_own, ITEMS, done)
    return [answer for batch in made for answer in batch]


def test_unguided_answers_are_those_of_generate_under_the_batchs_seed() -> None:
    bundled: Any = lg.bundled("tales")
    model, tokenizer = bundled
    found = ran(SETTING)
    assert [answer.id for answer in found] == [item.id for item in ITEMS]
    for start in range(0, len(ITEMS), 2):
        batch = ITEMS[start : start + 2]
        inputs = tokenizer([item.prompt for item in batch], return_tensors="pt", padding=True)
        torch.manual_seed(SETTING.seed + start)
        output: Any = model.generate(**inputs, do_sample=True, temperature=0.7, top_p=0.92, top_k=0, max_new_tokens=24)
        texts = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        for item, text, answer in zip(batch, texts, found[start : start + 2], strict=True):
            assert answer.text == text
            assert cognac.score(item, text).topic_words == answer.topic_words
            assert (answer.topic, answer.constraint) == (item.topic, item.constraint)
            assert (answer.steps, answer.nfe) == (output.shape[1] - inputs.input_ids.shape[1],) * 2


def test_nats_are_those_of_the_unguided_model_behind_the_prompt() -> None:
    model, tokenizer = lg.bundled("tales")
    setting = replace(SETTING, guidance=(cognac.parse(WORDS),), max_new_tokens=80)
    found = ran(setting)
    assert {answer.tokens for answer in found} != {80}, "one of them ends before"
    methods = cognac.filled(WORDS, ITEMS[:2])
    inputs = tokenizer([item.prompt for item in ITEMS[:2]], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    guided = lg.guide(model, methods, tokenizer=tokenizer)
    output: Any = guided.generate(**inputs, do_sample=True, temperature=0.7, top_p=0.92, top_k=0, max_new_tokens=80)
    for row, answer in enumerate(found[:2]):
        prompt = inputs.input_ids[row][inputs.attention_mask[row].bool()]
        written = output[row, inputs.input_ids.shape[1] :][: answer.tokens]
        with torch.no_grad():
            law = model(torch.cat([prompt, written])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert answer.nats == pytest.approx(float(-law.gather(-1, written[:, None]).sum()), abs=1e-3)
        assert answer.text == tokenizer.decode(written, skip_special_tokens=True)
        assert answer.nfe == guided.stats.nfe > answer.steps


def test_oracle_words_make_instructions_followed() -> None:
    plain = cognac.summary(ran(SETTING))
    guided = cognac.summary(ran(replace(SETTING, guidance=(cognac.parse(WORDS),))))
    assert plain["on_topic_not_violated"].value < 0.7
    assert guided["on_topic"].value == 1.0
    assert guided["violated"].value == 0.0
    assert guided["on_topic_not_violated"].value == 1.0
    assert guided["perplexity"].value > plain["perplexity"].value


def test_what_is_done_is_left_out_and_the_rest_comes_out_the_same() -> None:
    found = ran(SETTING)
    assert ran(SETTING, done=[item.id for item in ITEMS[:2]]) == found[2:]
    assert ran(SETTING, done=[ITEMS[1].id]) == found, "a batch shares a seed, so it is made whole"
    assert ran(SETTING, done=[item.id for item in ITEMS]) == []


def test_greedy_answers_do_not_depend_on_the_seed() -> None:
    greedy = replace(SETTING, temperature=0.0)
    texts = [answer.text for answer in ran(greedy)]
    assert texts == [answer.text for answer in ran(replace(greedy, seed=5))]
    assert texts != [answer.text for answer in ran(SETTING)]


def test_holes_are_filled_for_each_item() -> None:
    example = {"name": "example_guidance", "topic": "<topic>", "avoid": "kinds of <constraint>", "beta": 3.0}
    method: Any = cognac.filled(example, ITEMS[:2])
    assert method == lg.ExampleGuidance(("the sea", "space"), ("kinds of ships", "kinds of moons"), 3.0)
    oracle: Any = cognac.filled(WORDS, ITEMS[2:4])
    assert oracle.include == (("fox", "deer"), ("sailor", "gull", "whale")), "what is forbidden is not wanted"
    assert oracle.exclude == (("owl",), ("crab",))
    contrast: Any = cognac.filled({"name": "cfg", "negative_prompt": "About <constraint>:"}, ITEMS[:2])
    assert contrast.negative_prompt == ("About ships:", "About moons:")


def test_settings_have_names_of_their_own() -> None:
    settings = [
        SETTING,
        replace(SETTING, seed=1),
        replace(SETTING, guidance=(cognac.parse(WORDS),)),
        replace(SETTING, guidance=(cognac.parse(WORDS | {"beta": 5.0}),)),
        replace(SETTING, guidance=(cognac.parse({"name": "cfg"}), cognac.parse(WORDS))),
    ]
    assert len({setting.name for setting in settings}) == len(settings)
    assert settings[0].name.startswith("dev-unguided-")
    assert [setting.label for setting in settings] == [
        "unguided",
        "unguided",
        "word_guidance include, exclude, beta=15.0",
        "word_guidance include, exclude",
        "cfg + word_guidance include, exclude, beta=15.0",
    ]


def test_what_cannot_be_run_is_refused() -> None:
    with refused("guidance", "<topic>", "inside"):
        cognac.parse({"name": "word_guidance", "include": ["<topic>", "sea"]})
    with refused("guidance", "<forbidden_words>", "longer text"):
        cognac.parse({"name": "cfg", "negative_prompt": "About <forbidden_words>:"})
    with refused("expected", "word_guidances"):
        cognac.parse({"name": "word_guidances"})
    with refused("model", "encoder-decoder"):
        ran(SETTING, model=tiny("t5"), tokenizer=words())
    with refused("prompt", "chat template"):
        ran(replace(SETTING, chat=True))
