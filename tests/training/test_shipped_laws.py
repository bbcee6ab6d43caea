"""What ships obeys its closed form (slots) and leaves guidance something to gain (sudoku), by a plain sampler."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide.bundled import bundled
from lmguide.training import slots, sudoku, tales
from lmguide.training.tales import TOPICS, TaleScore
from tests.training.sampler import decode, masked_prompt, remasked

if TYPE_CHECKING:
    from tests.training.sampler import Contrast

NAMES = list(TOPICS)
SLOTS_OF_TOPICS = {1: "agents", 2: "verbs", 5: "objects"}
"""Place in a sentence → the words of a topic that may stand there."""


@pytest.fixture(scope="module")
def in_slots() -> tuple[Any, Any]:
    return bundled("slots")


@pytest.fixture(scope="module")
def solver() -> tuple[Any, Any]:
    return bundled("sudoku")


def topic_laws(loaded: tuple[Any, Any], weights: dict[str | None, float]) -> torch.Tensor:
    """The guided law of the topics `[6, 4]` at each place of the empty canvas that settles one."""
    model, tokenizer = loaded
    score = torch.zeros(slots.ANSWER_LENGTH, len(tokenizer))
    for topic, weight in weights.items():
        prompt = "<|mask|><|mask|>" if topic is None else slots.prompt(topic)
        canvas = tokenizer(prompt + "<|mask|>" * slots.ANSWER_LENGTH, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            score += weight * model(canvas).logits[0, slots.PROMPT_LENGTH :].log_softmax(-1)
    law = score.softmax(-1)
    found = []
    for start in (0, slots.SENTENCE_LENGTH):
        for place, kind in SLOTS_OF_TOPICS.items():
            ids = [tokenizer.convert_tokens_to_ids(list(getattr(words, kind))) for words in TOPICS.values()]
            found.append(torch.stack([law[start + place, each].sum() for each in ids]))
    return torch.stack(found)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("topic", NAMES)
def test_the_law_of_a_topic_is_the_closed_form(in_slots: tuple[Any, Any], topic: str, scale: float) -> None:
    weights = {topic: scale, None: 1 - scale}
    expected = torch.tensor(list(tales.guided_topics(weights).values()))
    found = topic_laws(in_slots, weights)
    torch.testing.assert_close(found.mean(0), expected, atol=0.025, rtol=0)
    torch.testing.assert_close(found, expected.expand_as(found), atol=0.05, rtol=0)


def test_another_topic_as_negative_prompt_gives_the_closed_form(in_slots: tuple[Any, Any]) -> None:
    weights: dict[str | None, float] = {"the sea": 2.0, "space": -1.0}
    expected = torch.tensor(list(tales.guided_topics(weights).values()))
    torch.testing.assert_close(topic_laws(in_slots, weights).mean(0), expected, atol=0.04, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0, 3.0])
def test_sampled_answers_follow_the_closed_form(in_slots: tuple[Any, Any], scale: float) -> None:
    model, tokenizer = in_slots
    total = TaleScore()
    for seed, topic in enumerate(NAMES):
        prompts = tokenizer([slots.prompt(topic)] * 80, return_tensors="pt")["input_ids"]
        options = {"mask": tokenizer.mask_token_id, "steps": 20, "scale": scale, "order": "random", "seed": seed}
        answers = decode(model, prompts, slots.ANSWER_LENGTH, **options)
        total += sum((slots.score(text, topic) for text in tokenizer.batch_decode(answers)), TaleScore())
    assert total.sentences == 640
    # A standard error of 0.02 at most.
    assert total.on_topic / total.sentences == pytest.approx(tales.predicted(scale), abs=0.06)
    assert total.grammatical / total.sentences > 0.96
    assert total.consistent / total.sentences > 0.96


def puzzles(count: int) -> list[str]:
    """Proper puzzles that training left out, with 4, 6, 8 and 10 clues by turns."""
    rng = random.Random(0)
    return [sudoku.draw(rng, 4 + 2 * (index % 4), held_out=True, proper=True)[0] for index in range(count)]


def solved(loaded: tuple[Any, Any], asked: list[str], steps: int, scale: float, contrast: Contrast = "prompt") -> float:
    """The share of the puzzles that is solved at temperature 1, over two seeds."""
    model, tokenizer = loaded
    prompts = tokenizer([sudoku.prompt(puzzle) for puzzle in asked], return_tensors="pt")["input_ids"]
    count = 0
    for seed in (0, 1):
        options: dict[str, Any] = {"steps": steps, "scale": scale, "contrast": contrast, "seed": seed}
        answers = decode(model, prompts, 16, mask=tokenizer.mask_token_id, order="confidence", **options)
        texts = tokenizer.batch_decode(answers)
        count += sum(map(sudoku.is_valid_completion, asked, texts))
    return count / (2 * len(asked))


def test_guidance_has_something_to_gain_at_sudoku(solver: tuple[Any, Any]) -> None:
    asked = puzzles(200)
    plain, adaptive = solved(solver, asked, 4, 1.0), solved(solver, asked, 4, 3.0, "adaptive")
    # 400 answers each: a standard error of 0.025.
    assert 0.45 < plain < 0.68
    assert adaptive > plain + 0.1
    # The control of as many forward passes is as good: what guidance gains here is steps, not compute.
    assert solved(solver, asked, 8, 1.0) > adaptive - 0.05


def test_the_sampler_masks_what_it_says() -> None:
    canvas = torch.tensor([[5, 6, 7, 1, 8], [5, 6, 1, 1, 1]])
    assert masked_prompt(canvas, 2, mask=1).tolist() == [[1, 1, 7, 1, 8], [1, 1, 1, 1, 1]]
    law = torch.tensor([[0.9, 0.1, 0.5, 0.0, 0.3], [0.2, 0.1, 0.0, 0.0, 0.0]])[..., None]
    # 3 of 4 candidates and 2 of 2, the least sure first.
    assert remasked(canvas, law, mask=1).tolist() == [[5, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
