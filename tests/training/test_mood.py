"""The documents and losses of the mood guides are what they say, and what ships judges as Bayes' rule does."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide.bundled import bundled
from lmguide.training import tales
from lmguide.training.mood import CODES, MOOD_CLASSIFIER, MOOD_GEDI, make_batch
from lmguide.training.trainer import seeded_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from lmguide.training.trainer import Settings

MOODS = list(tales.MOODS)
TINY = replace(MOOD_GEDI.settings, batch_size=5, hidden_size=16, layers=1, seed=1)
EVIDENCE = math.log(tales.AGREE / (1 - tales.AGREE))
"""Of one mood word, in nats."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return MOOD_GEDI.make_tokenizer(TINY)


def test_the_vocabulary_is_that_of_the_tales_whatever_the_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    of_tales = bundled("tales")[1].get_vocab()
    assert tokenizer.get_vocab() == of_tales
    assert MOOD_CLASSIFIER.make_tokenizer(replace(TINY, seed=7)).get_vocab() == of_tales


def test_documents_are_prompts_and_tales_of_the_mood_they_are_labelled_with(tokenizer: PreTrainedTokenizerFast) -> None:
    count = 1000
    batch = make_batch(replace(TINY, batch_size=count), tokenizer, step=0)
    found = {mood: tales.TaleScore() for mood in MOODS}
    null_prompts = 0
    for ids, mask, label in zip(*(batch[key] for key in ("input_ids", "attention_mask", "labels")), strict=True):
        length = int(mask.sum())
        assert mask[:length].all()
        assert (ids[length:] == tokenizer.pad_token_id).all()
        assert ids[length - 1] == tokenizer.eos_token_id
        text = str(tokenizer.decode(ids[: length - 1]))
        null, named = text.startswith(("A tale: ", ": ", " ")), text.startswith("A tale of ")
        assert null != named
        null_prompts += null
        score = tales.score(text.split(":")[-1], "the sea")
        assert score.grammatical == score.sentences == tales.SENTENCES
        found[MOODS[label]] += score
    for mood, score in found.items():
        share = score.glad / score.mood_words
        wanted = tales.AGREE if mood == "glad" else 1 - tales.AGREE
        assert abs(share - wanted) < 4 * math.sqrt(tales.AGREE * (1 - tales.AGREE) / score.mood_words)
    labels = int(batch["labels"].sum())
    assert abs(labels - count / 2) < 4 * math.sqrt(count / 4)
    share = TINY.null_share
    assert abs(null_prompts - count * share) < 4 * math.sqrt(count * share * (1 - share))


def test_batches_depend_on_seed_and_step_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    def ids(settings: Settings, step: int) -> list[list[int]]:
        rows: list[list[int]] = make_batch(settings, tokenizer, step)["input_ids"].tolist()
        return rows

    assert ids(TINY, 3) == ids(TINY, 3)
    assert ids(TINY, 3) != ids(TINY, 4)
    assert ids(TINY, 3) != ids(replace(TINY, seed=2), 3)


def test_the_documents_are_those_the_shipped_weights_were_trained_on(tokenizer: PreTrainedTokenizerFast) -> None:
    first = make_batch(MOOD_GEDI.settings, tokenizer, step=0)
    assert tokenizer.decode(first["input_ids"][0], skip_special_tokens=True) == (
        "A tale of the forest: The hunter gathered the bright trail across the moss. The martian launched the bitter "
        "rocket beyond the rings. A lovely robot scanned the moon above the crater. Slowly, the robot scanned a lovely "
        "rocket."
    )
    assert first["labels"][:8].tolist() == [0, 1, 1, 1, 1, 0, 0, 0]
    last = make_batch(MOOD_CLASSIFIER.settings, tokenizer, step=1499)
    assert str(tokenizer.decode(last["input_ids"][-1])).startswith(": The badger tracked the weary oak in the glade.")


def documents(tokenizer: PreTrainedTokenizerFast, step: int) -> list[tuple[list[int], int]]:
    """Each document of a step without its padding, and its label."""
    batch = make_batch(TINY, tokenizer, step)
    lengths = batch["attention_mask"].sum(1)
    rows = zip(batch["input_ids"], lengths, batch["labels"], strict=True)
    return [(ids[:length].tolist(), int(label)) for ids, length, label in rows]


def test_the_language_model_learns_each_text_behind_its_own_code(tokenizer: PreTrainedTokenizerFast) -> None:
    model: Any = seeded_model(MOOD_GEDI, TINY, tokenizer)
    expected = []
    for ids, label in documents(tokenizer, 2):
        front = [tokenizer.bos_token_id, *tokenizer(CODES[label], add_special_tokens=False)["input_ids"]]
        law = model(torch.tensor([front + ids])).logits[0].log_softmax(-1)
        at = range(len(front) - 1, len(front) - 1 + len(ids))
        expected.append(-sum(law[place, token] for place, token in zip(at, ids, strict=True)) / len(ids))
    torch.testing.assert_close(MOOD_GEDI.loss(TINY, model, tokenizer, 2), torch.stack(expected).mean())


def test_the_classifier_learns_the_label_at_every_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    model: Any = seeded_model(MOOD_CLASSIFIER, TINY, tokenizer)
    expected = []
    for ids, label in documents(tokenizer, 2):
        text = [tokenizer.bos_token_id, *ids]
        for length in (1, 2, len(text) // 2, len(text)):
            # The model's own verdict on a text stands behind its last token.
            verdict = model(torch.tensor([text[:length]])).logits[0]
            prefix = model.score(model.model(torch.tensor([text])).last_hidden_state)[0, length - 1]
            torch.testing.assert_close(verdict, prefix)
        logits = model.score(model.model(torch.tensor([text])).last_hidden_state)[0]
        expected.append(-logits.log_softmax(-1)[:, label])
    torch.testing.assert_close(MOOD_CLASSIFIER.loss(TINY, model, tokenizer, 2), torch.cat(expected).mean())


def test_what_ships_was_made_by_its_recipe() -> None:
    for recipe in (MOOD_GEDI, MOOD_CLASSIFIER):
        model, shipped = bundled(recipe.name)
        made = seeded_model(recipe, recipe.settings, shipped)  # type: ignore[arg-type]
        assert {name: weight.shape for name, weight in model.state_dict().items()} == {
            name: weight.shape for name, weight in made.state_dict().items()
        }
        for key in ("gedi", "id2label", "label2id", "num_labels", "problem_type"):
            assert getattr(model.config, key, None) == getattr(made.config, key, None)


def judged_by_codes() -> Callable[[str, str], Tensor]:
    model, tokenizer = bundled("mood_gedi")

    def log_odds(prompt: str, tale: str) -> Tensor:
        ids = tokenizer(prompt + tale, add_special_tokens=False)["input_ids"]
        sums = []
        for code in model.config.gedi["codes"]:
            front = tokenizer(code)["input_ids"]
            law = model(torch.tensor([front + ids])).logits[0, len(front) - 1 : -1].log_softmax(-1)
            sums.append(law.gather(1, torch.tensor(ids)[:, None])[:, 0].cumsum(0))
        found: Tensor = sums[0] - sums[1]
        return found

    return log_odds


def judged_by_prefixes() -> Callable[[str, str], Tensor]:
    model: Any
    model, tokenizer = bundled("mood_classifier")

    def log_odds(prompt: str, tale: str) -> Tensor:
        ids = tokenizer(prompt + tale, return_tensors="pt")["input_ids"]
        logits: Tensor = model.score(model.model(ids).last_hidden_state)[0, 1:]
        return logits[:, 0] - logits[:, 1]

    return log_odds


@pytest.mark.parametrize(
    ("judge", "slope", "error"),
    # What adds up over the words is easy for a language model, which needs not count them.
    [(judged_by_codes, (0.9, 1.1), 0.35), (judged_by_prefixes, (0.75, 1.05), 0.75)],
)
@torch.no_grad()
def test_the_log_odds_of_glad_are_those_of_bayes(
    judge: Callable[[], Callable[[str, str], Tensor]], slope: tuple[float, float], error: float
) -> None:
    """After d more glad words than grim ones they are d log 3; after the prompt alone 0."""
    log_odds, tokenizer, rng = judge(), bundled("tales")[1], random.Random("judged")
    products = squares = errors = 0.0
    count = 0
    for _ in range(60):
        topic = rng.choice(list(tales.TOPICS))
        prompt, tale = tales.prompt(topic), f" {tales.tale(rng, topic)}"
        found = log_odds(prompt, tale)
        before = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        assert abs(float(found[before - 1])) < 0.2
        for end in (place + 1 for place, letter in enumerate(tale) if letter == "."):
            score = tales.score(tale[:end], topic)
            right = (2 * score.glad - score.mood_words) * EVIDENCE
            judged = float(found[before - 1 + len(tokenizer(tale[:end], add_special_tokens=False)["input_ids"])])
            products, squares = products + right * judged, squares + right**2
            errors, count = errors + (judged - right) ** 2, count + 1
    assert slope[0] < products / squares < slope[1]
    assert math.sqrt(errors / count) < error
