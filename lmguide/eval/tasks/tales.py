"""Documents and scores of the tasks on the bundled models, for which the effect of guidance is known in closed form."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

from lmguide.training import slots, tales

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SEED = 7


def choices(documents: int = 200, **_: Any) -> Any:
    """One prompt and four sentences each, alike but for the words of their topics.

    For a perfect model the probabilities of the four, normalised over them, are those of their topics: the words before
    the topic shows are the same, and behind it every topic has as many words.
    """
    return _splits([_choice(random.Random(SEED + place)) for place in range(documents)])


def slot_choices(documents: int = 60, **_: Any) -> Any:
    """The same for the model of slots, whose answers are two sentences of one form on one topic."""
    return _splits([_slot_choice(random.Random(SEED + place)) for place in range(documents)])


def prompts(documents: int = 200, **_: Any) -> Any:
    """Prompts that name a topic, each topic equally often."""
    topics = list(tales.TOPICS)
    rows = [{"topic": topic, "prompt": tales.prompt(topic)} for topic in (topics * documents)[:documents]]
    return _splits(rows)


def slot_prompts(documents: int = 200, **_: Any) -> Any:
    """Prompts of the model of slots."""
    topics = list(tales.TOPICS)
    return _splits([{"topic": topic, "prompt": slots.prompt(topic)} for topic in (topics * documents)[:documents]])


def process_choices(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """How often the model would choose the sentence on the topic if it drew one of the four from `softmax(scores)`.

    `topic_probability` is that probability, `drawn` whether the draw that the document fixes falls on it: the same
    mean, and the spread of a share.
    """
    scores = [score for score, _ in results]
    most = max(scores)
    shares = [math.exp(score - most) for score in scores]
    share = shares[doc["label"]] / math.fsum(shares)
    return {"topic_probability": share, "drawn": float(doc["draw"] < share)}


def process_tale(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Shares of the finished sentences of a tale that are on the topic, and that are grammatical."""
    return _shares(tales.score(results[0], doc["topic"]))


def process_slots(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The same of the model of slots."""
    return _shares(slots.score(results[0], doc["topic"]))


def _shares(found: tales.TaleScore) -> dict[str, float]:
    sentences = max(1, found.sentences)
    return {"on_topic": found.on_topic / sentences, "grammatical": found.grammatical / sentences}


def _choice(rng: random.Random) -> dict[str, Any]:
    topics = list(tales.TOPICS)
    topic = rng.choice(topics)
    state = rng.getstate()
    sentences = []
    for other in topics:
        rng.setstate(state)  # the same draws for every topic: the same form, moods and places in the lists of words
        sentences.append(tales.sentence(rng, other, "glad"))
    row = {"prompt": tales.prompt(topic), "choices": sentences, "label": topics.index(topic)}
    return {**row, "draw": random.Random(rng.random()).random()}


def _slot_choice(rng: random.Random) -> dict[str, Any]:
    topics = list(tales.TOPICS)
    topic = rng.choice(topics)
    state = rng.getstate()
    answers = []
    for other in topics:
        rng.setstate(state)
        answers.append(_slot_answer(rng, other))
    row = {"prompt": slots.prompt(topic), "choices": answers, "label": topics.index(topic)}
    return {**row, "draw": random.Random(rng.random()).random()}


def _slot_answer(rng: random.Random, topic: str) -> str:
    words = tales.TOPICS[topic]
    slots_of = (words.agents, words.verbs, slots.ADJECTIVES, words.objects, words.places)
    sentences = [map(rng.choice, slots_of) for _ in range(slots.SENTENCES)]
    return " ".join(f"The {agent} {verb} the {how} {what} {where}." for agent, verb, how, what, where in sentences)


def _splits(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(rows)})
