"""Answers in slots follow the law of the tales, each word stands in its slot, and the scorer reads the slots."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import pytest

from lmguide.training import slots, tales
from lmguide.training.tales import TaleScore
from tests.refusals import refused

TOPICS = list(tales.TOPICS)
SEA = TOPICS[0]


def tokens(text: str) -> list[str]:
    return re.findall(slots.TOKEN, text)


def scores(topic: str | None, asked: str, answers: int = 1000) -> TaleScore:
    rng = random.Random(f"{topic} {asked}")
    return sum((slots.score(slots.answer(rng, topic), asked) for _ in range(answers)), TaleScore())


@pytest.mark.parametrize("asked", TOPICS)
@pytest.mark.parametrize("topic", [*TOPICS, None])
def test_sentences_follow_the_prompt_with_the_known_probability(topic: str | None, asked: str) -> None:
    found = scores(topic, asked)
    assert found.sentences == found.grammatical == found.consistent == 2000
    share = tales.topic_law(topic)[asked]
    # Four standard errors: a seed that fails by chance is 1 in 16,000.
    assert abs(found.on_topic / 2000 - share) < 4 * math.sqrt(share * (1 - share) / 2000)


def test_the_two_sentences_of_an_answer_are_independent() -> None:
    rng = random.Random(0)
    both: Counter[int] = Counter(slots.score(slots.answer(rng, SEA), SEA).on_topic for _ in range(4000))
    for count, share in enumerate(((1 - tales.FOLLOW) ** 2, 2 * tales.FOLLOW * (1 - tales.FOLLOW), tales.FOLLOW**2)):
        assert abs(both[count] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000)


def test_every_slot_has_its_words() -> None:
    rng = random.Random(1)
    seen: list[set[str]] = [set() for _ in range(slots.SENTENCE_LENGTH)]
    for _ in range(2000):
        found = tokens(slots.answer(rng))
        assert len(found) == slots.ANSWER_LENGTH
        for place, word in enumerate(found):
            seen[place % slots.SENTENCE_LENGTH].add(word)
    assert [len(words) for words in seen] == [1, 24, 20, 1, 12, 24, 16, 1, 16, 1]
    assert seen[1] == {agent for topic in tales.TOPICS.values() for agent in topic.agents}


def test_each_of_five_slots_tells_the_topic_alone() -> None:
    # The closed form needs a topic to be settled by whichever of its words is written first.
    rng = random.Random(2)
    owners: dict[tuple[int, str], set[str]] = {}
    for _ in range(1000):
        text = slots.answer(rng)
        (first, _) = (sentence + "." for sentence in text.rstrip(".").split(". "))
        (topic,) = (topic for topic in TOPICS if tales.score_sentence(first, topic).on_topic)
        for place in (1, 2, 5, 6, 8):
            owners.setdefault((place, tokens(first)[place]), set()).add(topic)
    assert len(owners) == 24 + 20 + 24 + 16 + 16
    assert all(len(topics) == 1 for topics in owners.values())


def test_the_vocabulary_is_what_the_corpus_uses() -> None:
    rng = random.Random(3)
    used = {token for _ in range(2000) for token in tokens(slots.prompt(rng.choice(TOPICS)) + slots.answer(rng))}
    assert used == set(slots.VOCABULARY)
    assert len(slots.VOCABULARY) == len(used)


def test_a_prompt_is_two_tokens() -> None:
    assert [tokens(slots.prompt(topic)) for topic in TOPICS] == [[topic, ":"] for topic in TOPICS]


ON, OFF = "The sailor rowed the sad boat by the shore.", "The fox chased the merry nest in the glade."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ON} {OFF}", TaleScore(2, 1, 2, 2, 2, 1)),
        (f"{OFF}{ON}", TaleScore(2, 1, 2, 2, 2, 1)),
        # Without its full stops the answer has two sentences all the same, neither of them grammatical.
        (f"{ON[:-1]} the {OFF[:-1]} the", TaleScore(2, 1, 0, 2, 2, 1)),
        (f"The sailor chased the sad boat by the shore. {OFF}", TaleScore(2, 1, 2, 1, 2, 1)),
        (f"The boat rowed the sad boat by the shore. {ON}", TaleScore(2, 1, 1, 1, 2, 0)),
        # A topic's name is one token, and so is a mask.
        (f"The sailor rowed the sea the sad boat by shore. {OFF}", TaleScore(2, 1, 1, 2, 2, 1)),
        (f"The <|mask|> rowed the sad boat by the shore. {OFF}", TaleScore(2, 0, 1, 1, 2, 1)),
    ],
)
def test_scores_by_hand(text: str, expected: TaleScore) -> None:
    assert slots.score(text, SEA) == expected


def test_what_cannot_be_scored_is_refused() -> None:
    with refused("text", "expected an answer of 20 tokens, got 22"):
        slots.score(f"{slots.prompt(SEA)} {ON} {OFF}", SEA)
    with refused("text", "got 10"):
        slots.score(ON, SEA)
    for use in (lambda: slots.prompt("the desert"), lambda: slots.score(f"{ON} {OFF}", "the desert")):
        with pytest.raises(ValueError, match="expected a topic, got 'the desert'"):
            use()
