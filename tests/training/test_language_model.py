"""The documents of the tales model hold what the law needs."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from lmguide.training import tales
from lmguide.training.language_model import TALES, LanguageSettings, make_batch, make_tokenizer
from lmguide.training.trainer import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TINY = replace(TALES.settings, batch_size=2, seed=1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(TINY)


def test_every_agent_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    agents = [agent for topic in tales.TOPICS.values() for agent in topic.agents]
    assert [agent for agent in agents if len(tokenizer.tokenize(f" {agent}")) > 1] == []


def test_prompt_and_tale_are_tokenised_as_their_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    for topic in tales.TOPICS:
        prompt, tale = tales.prompt(topic), " " + tales.tale(rng, topic)
        parts = tokenizer(prompt)["input_ids"] + tokenizer(tale, add_special_tokens=False)["input_ids"]
        assert parts == tokenizer(prompt + tale)["input_ids"]


def test_a_batch_learns_the_tale_and_its_end_but_not_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = make_batch(replace(TINY, batch_size=50), tokenizer, step=0)
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        learnt = labels != IGNORED_LABEL
        assert torch.equal(labels[learnt], ids[learnt])
        tale = str(tokenizer.decode(ids[learnt]))
        assert tale.endswith(".<|eos|>")
        assert tales.score(tale, "the sea").grammatical == tales.SENTENCES
        unlearnt = tokenizer.decode(ids[~learnt], skip_special_tokens=True)
        assert unlearnt in {*tales.NULL_PROMPTS, *map(tales.prompt, tales.TOPICS)}


def test_every_null_context_is_trained_in_its_share(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = make_batch(replace(TINY, batch_size=3000, null_share=0.5), tokenizer, step=0)
    contexts = [
        tokenizer.decode(ids[: int((labels != IGNORED_LABEL).int().argmax())])
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
    ]
    expected = {"<|bos|>": 1 / 6, "<|bos|>A tale:": 1 / 6, "<|bos|>:": 1 / 12, ":": 1 / 12}
    expected |= {f"<|bos|>{tales.prompt(topic)}": 1 / 8 for topic in tales.TOPICS}
    assert set(contexts) == set(expected)
    for context, share in expected.items():
        assert abs(contexts.count(context) / 3000 - share) < 4 * (share * (1 - share) / 3000) ** 0.5


def test_batches_depend_on_seed_and_step_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    def ids(settings: LanguageSettings, step: int) -> list[list[int]]:
        rows: list[list[int]] = make_batch(settings, tokenizer, step)["input_ids"].tolist()
        return rows

    assert ids(TINY, 3) == ids(TINY, 3)
    assert ids(TINY, 3) != ids(TINY, 4)
    assert ids(TINY, 3) != ids(replace(TINY, seed=2), 3)
