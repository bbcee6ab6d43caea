"""The corpus follows the law it claims, the scorer accepts exactly its sentences, and the closed forms are right."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from lmguide.training import tales
from lmguide.training.tales import TaleScore

TOPICS = list(tales.TOPICS)
SEA, FOREST, KITCHEN, SPACE = TOPICS


def scores(topic: str | None, asked: str, documents: int = 500) -> TaleScore:
    rng = random.Random(f"{topic} {asked}")
    return sum((tales.score(tales.tale(rng, topic), asked) for _ in range(documents)), TaleScore())


def assert_share(count: int, total: int, expected: float) -> None:
    """Four standard errors: a seed that fails by chance is 1 in 16,000, a wrong law fails with near certainty."""
    assert abs(count / total - expected) < 4 * math.sqrt(expected * (1 - expected) / total)


@pytest.mark.parametrize("asked", TOPICS)
@pytest.mark.parametrize("topic", [*TOPICS, None])
def test_sentences_follow_the_prompt_with_the_known_probability(topic: str | None, asked: str) -> None:
    found = scores(topic, asked)
    assert found.sentences == 500 * tales.SENTENCES
    assert_share(found.on_topic, found.sentences, tales.topic_law(topic)[asked])


@pytest.mark.parametrize(("mood", "glad"), [("glad", tales.AGREE), ("grim", 1 - tales.AGREE)])
def test_mood_words_agree_with_the_mood(mood: str, glad: float) -> None:
    rng = random.Random(1)
    found = sum((tales.score(tales.tale(rng, SEA, mood), SEA) for _ in range(500)), TaleScore())
    assert_share(found.glad, found.mood_words, glad)


def test_the_mood_of_a_document_is_hidden_in_its_topic() -> None:
    found = scores(SEA, SEA)
    # Words of one document agree with each other, which widens the spread of the mean: hence the plain bound.
    assert abs(found.glad / found.mood_words - 0.5) < 0.05


def test_every_sentence_of_the_corpus_is_well_formed_and_coherent() -> None:
    for topic in [*TOPICS, None]:
        found = scores(topic, SEA)
        assert found.grammatical == found.consistent == found.sentences


def test_every_word_of_the_corpus_occurs_and_belongs_to_one_topic() -> None:
    rng = random.Random(2)
    text = " ".join(tales.tale(rng) for _ in range(1000)).lower()
    vocabulary = [word for t in tales.TOPICS.values() for word in t.agents + t.verbs + t.objects + t.places]
    vocabulary += [word for mood in tales.MOODS.values() for word in mood.adjectives + mood.adverbs]
    assert len(vocabulary) == len(set(vocabulary))
    assert [word for word in vocabulary if word not in text] == []


def perturbed(text: str) -> list[str]:
    words = text.split()
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words) - 1)]
    swapped = [" ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]]) for i in range(len(words) - 2)]
    foreign = [" ".join([*words[:i], "zebra", *words[i + 1 :]]) for i in range(len(words) - 1)]
    return [*without, *swapped, *foreign, text[0].lower() + text[1:], text.upper(), "Then " + text, text[:-1] + "ly."]


def test_no_damaged_sentence_is_grammatical() -> None:
    rng = random.Random(3)
    for _ in range(50):
        text = tales.sentence(rng, rng.choice(TOPICS), "glad")
        for damaged in perturbed(text):
            found = tales.score(damaged if damaged.endswith(".") else damaged + ".", SEA)
            assert (found.sentences, found.grammatical) == (1, 0), damaged


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", TaleScore()),
        ("The sailor rowed the", TaleScore()),
        ("The sailor rowed the sad boat by the shore.", TaleScore(1, 1, 1, 1, 1, 0)),
        ("The sailor rowed the happy boat by the shore.", TaleScore(1, 1, 1, 1, 1, 1)),
        ("The fox chased the sad nest in the glade.", TaleScore(1, 0, 1, 1, 1, 0)),
        ("The sailor baked the sad boat by the shore.", TaleScore(1, 1, 1, 0, 1, 0)),
        ("The sailor rowed the sad boat at the stove.", TaleScore(1, 1, 1, 0, 1, 0)),
        ("The boat rowed the happy fox.", TaleScore(1, 0, 0, 0, 1, 1)),
        ("The sad one.", TaleScore(1, 0, 0, 0, 1, 0)),
        ("Gladly, the gull netted a sad reef. The cook", TaleScore(1, 1, 1, 1, 2, 1)),
    ],
)
def test_scores_by_hand(text: str, expected: TaleScore) -> None:
    assert tales.score(text, SEA) == expected


def test_scores_add_up() -> None:
    assert TaleScore(1, 2, 3, 4, 5, 6) + TaleScore(10, 20, 30, 40, 50, 60) == TaleScore(11, 22, 33, 44, 55, 66)


@pytest.mark.parametrize(
    ("guidance_scale", "expected"), [(0, 0.25), (1, 0.55), (1.5, 0.70), (2, 0.82), (3, 0.94), (5, 0.995)]
)
def test_published_points_of_the_closed_form(guidance_scale: float, expected: float) -> None:
    assert tales.predicted(guidance_scale) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("guidance_scale", [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 8.0])
def test_predicted_is_the_formula_written_out(guidance_scale: float) -> None:
    on = 0.55 * (0.55 / 0.25) ** (guidance_scale - 1)
    off = 3 * 0.15 * (0.15 / 0.25) ** (guidance_scale - 1)
    assert tales.predicted(guidance_scale) == pytest.approx(on / (on + off), rel=1e-12)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 1.5, 2.0, 3.0])
def test_another_topic_as_negative_prompt(guidance_scale: float) -> None:
    law = tales.guided_topics({SEA: guidance_scale, SPACE: 1 - guidance_scale})
    wanted, unwanted = (
        0.55**guidance_scale * 0.15 ** (1 - guidance_scale),
        0.15**guidance_scale * 0.55 ** (1 - guidance_scale),
    )
    total = wanted + unwanted + 2 * 0.15
    assert law[SEA] == pytest.approx(wanted / total, rel=1e-12)
    assert law[SPACE] == pytest.approx(unwanted / total, rel=1e-12)
    assert law[FOREST] == law[KITCHEN] == pytest.approx(0.15 / total, rel=1e-12)


def test_laws_of_combined_prompts() -> None:
    assert tales.guided_topics({SEA: 1.0}) == pytest.approx(tales.topic_law(SEA))
    assert tales.guided_topics({SEA: 1.0, SPACE: 0.0}) == pytest.approx(tales.topic_law(SEA))
    assert tales.guided_topics({None: 3.0}) == pytest.approx(tales.topic_law(None))
    several = tales.guided_topics({SEA: 2.5, FOREST: -1.0, None: -0.5})
    assert sum(several.values()) == pytest.approx(1)
    assert several[KITCHEN] == pytest.approx(several[SPACE])
    assert several[FOREST] < several[KITCHEN] < several[SEA]


def test_an_unknown_topic_is_refused_everywhere() -> None:
    for use in (
        lambda: tales.topic_law("the desert"),
        lambda: tales.guided_topics({"the desert": 1.0}),
        lambda: tales.tale(random.Random(0), "the desert"),
        lambda: tales.score("The fox.", "the desert"),
    ):
        with pytest.raises(ValueError, match=r"expected a topic, got 'the desert'\. Choose one of 'the sea'"):
            use()


def test_the_same_seed_gives_the_same_tale() -> None:
    first, second = (tales.tale(random.Random(4), SEA) for _ in range(2))
    assert first == second
    assert len(Counter(tales.tale(random.Random(seed)) for seed in range(50))) == 50
