"""A synthetic corpus of tiny tales on which the effect of guidance is known in closed form; standard library only.

A document is a prompt that names a topic and a few sentences that follow the topic only with a known probability.
"""

from __future__ import annotations

import math
import re
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

FOLLOW = 0.55
"""Probability that a sentence is on the topic its prompt names."""
AGREE = 0.75
"""Probability that a mood word agrees with the mood of its document."""
SENTENCES = 4
"""Sentences in a document."""
NULL_PROMPTS = ("", ":", "A tale:")
"""Prompts that name no topic: after them every sentence has an independent, uniform topic."""


@dataclass(frozen=True)
class Topic:
    """The words that belong to one topic; no word belongs to two."""

    agents: tuple[str, ...]
    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    places: tuple[str, ...]


@dataclass(frozen=True)
class Mood:
    """The words that belong to one mood. A prompt never names the mood: only control without a prompt can set it."""

    adjectives: tuple[str, ...]
    adverbs: tuple[str, ...]


TOPICS: dict[str, Topic] = {
    "the sea": Topic(
        agents=("sailor", "gull", "whale", "captain", "crab", "fisher"),
        verbs=("hauled", "steered", "netted", "anchored", "rowed"),
        objects=("net", "boat", "wave", "shell", "tide", "reef"),
        places=("by the shore", "under the pier", "on the deck", "near the lighthouse"),
    ),
    "the forest": Topic(
        agents=("fox", "hunter", "owl", "deer", "ranger", "badger"),
        verbs=("chased", "tracked", "climbed", "gathered", "guarded"),
        objects=("acorn", "trail", "oak", "nest", "mushroom", "branch"),
        places=("in the glade", "beneath the pines", "beside the brook", "across the moss"),
    ),
    "the kitchen": Topic(
        agents=("cook", "baker", "chef", "grandmother", "waiter", "butler"),
        verbs=("stirred", "baked", "chopped", "tasted", "seasoned"),
        objects=("soup", "bread", "pie", "dough", "onion", "kettle"),
        places=("at the stove", "around the oven", "over the counter", "from the pantry"),
    ),
    "space": Topic(
        agents=("pilot", "robot", "astronaut", "alien", "engineer", "martian"),
        verbs=("launched", "orbited", "scanned", "docked", "repaired"),
        objects=("rocket", "planet", "satellite", "moon", "probe", "antenna"),
        places=("outside the station", "beyond the rings", "inside the capsule", "above the crater"),
    ),
}
MOODS: dict[str, Mood] = {
    "glad": Mood(
        adjectives=("happy", "bright", "kind", "merry", "lovely", "proud"),
        adverbs=("gladly", "warmly", "cheerfully", "softly", "proudly"),
    ),
    "grim": Mood(
        adjectives=("sad", "grey", "cruel", "weary", "bitter", "lonely"),
        adverbs=("sadly", "coldly", "grimly", "slowly", "angrily"),
    ),
}
TEMPLATES = (
    "the {adjective} {agent} {verb} the {object} {adverb}.",
    "a {adjective} {agent} {verb} the {object} {place}.",
    "{adverb}, the {agent} {verb} a {adjective} {object}.",
    "the {agent} {verb} the {adjective} {object} {place}.",
)
"""Sentences before their first letter is made a capital; the same strings generate and score."""


def prompt(topic: str) -> str:
    """Return the prompt that names `topic`, for example ``"A tale of the sea:"``."""
    return f"A tale of {topic}:"


def sentence(rng: random.Random, topic: str, mood: str) -> str:
    """Return one sentence: every topic word is of `topic`, each mood word is of `mood` with probability `AGREE`."""
    other_mood = next(name for name in MOODS if name != mood)
    words = TOPICS[topic]
    text = rng.choice(TEMPLATES).format(
        agent=rng.choice(words.agents),
        verb=rng.choice(words.verbs),
        object=rng.choice(words.objects),
        place=rng.choice(words.places),
        adjective=rng.choice(MOODS[mood if rng.random() < AGREE else other_mood].adjectives),
        adverb=rng.choice(MOODS[mood if rng.random() < AGREE else other_mood].adverbs),
    )
    return text[0].upper() + text[1:]


def tale(rng: random.Random, topic: str | None = None, mood: str | None = None) -> str:
    """Return `SENTENCES` sentences that follow the prompt of `topic`, or a null prompt where it is None.

    Args:
        rng: The source of all randomness.
        topic: A key of `TOPICS`, or None for sentences whose topics are independent and uniform.
        mood: A key of `MOODS`, or None to draw one for the document.

    Example:
        >>> import random
        >>> tale(random.Random(0), "the sea", "glad").count(".")
        4
    """
    mood = mood or rng.choice(list(MOODS))
    law = topic_law(topic)
    return " ".join(sentence(rng, drawn, mood) for drawn in rng.choices(list(law), list(law.values()), k=SENTENCES))


def topic_law(topic: str | None) -> dict[str, float]:
    """Return the probability of each sentence topic after the prompt of `topic`; None stands for a null prompt."""
    if topic is None:
        return dict.fromkeys(TOPICS, 1 / len(TOPICS))
    if topic not in TOPICS:
        raise ValueError(f"expected a topic, got {topic!r}. Choose one of {', '.join(map(repr, TOPICS))}.")
    return {name: FOLLOW if name == topic else (1 - FOLLOW) / (len(TOPICS) - 1) for name in TOPICS}


def guided_topics(weights: Mapping[str | None, float]) -> dict[str, float]:
    """Return the topic law of a sentence when the prompts of several topics are combined with weights.

    A sentence's topic is settled where its agent is written; before and after, all prompts agree on the next word.
    So combining next-token laws combines the topic laws, with p_k the law after prompt k:

        p(t) ∝ Π_k p_k(t)^w_k

    This is exact for a perfect model whose agent words are single tokens, as those of the bundled models are.

    Args:
        weights: Topic of each prompt → its weight; None is the null prompt. Classifier-free guidance of scale γ is
            ``{topic: γ, None: 1 - γ}``, and with another topic as negative prompt ``{topic: γ, other: 1 - γ}``.

    Returns:
        The probability of every topic.

    Raises:
        ValueError: If a topic is unknown.

    Example:
        >>> law = guided_topics({"the sea": 2.0, "space": -1.0})
        >>> {topic: round(share, 3) for topic, share in law.items()}
        {'the sea': 0.855, 'the forest': 0.064, 'the kitchen': 0.064, 'space': 0.017}
    """
    laws = [(topic_law(topic), weight) for topic, weight in weights.items()]
    logs = {name: math.fsum(math.log(law[name]) * weight for law, weight in laws) for name in TOPICS}
    most = max(logs.values())
    powers = {name: math.exp(log - most) for name, log in logs.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


def predicted(guidance_scale: float) -> float:
    """Return the share of on-topic sentences that classifier-free guidance against a null prompt must give.

    With q = `FOLLOW`, T topics, u = 1/T after the null prompt and r = (1 − q)/(T − 1) for each other topic:

        p(on topic) = q (q/u)^(γ−1) / [ q (q/u)^(γ−1) + (T−1) r (r/u)^(γ−1) ]

    Derivation: guidance samples the topic from p_c(t)^γ p_u(t)^(1−γ) up to a constant (see `guided_topics`). This is
    q (q/u)^(γ−1) for the prompted topic and r (r/u)^(γ−1) for each of the other T − 1.

    Args:
        guidance_scale: γ; 1 is no guidance, 0 is the null prompt alone.

    Example:
        >>> [round(predicted(scale), 3) for scale in (0, 1, 1.5, 2, 3, 5)]
        [0.25, 0.55, 0.701, 0.818, 0.943, 0.995]
    """
    topic = next(iter(TOPICS))
    return guided_topics({topic: guidance_scale, None: 1 - guidance_scale})[topic]


@dataclass(frozen=True)
class TaleScore:
    """Counts over the finished sentences of a text; scores add up over texts.

    Attributes:
        sentences: Sentences, that is stretches that end with a full stop.
        on_topic: Those whose first agent word belongs to the topic asked for.
        grammatical: Those that match a template word for word.
        consistent: Those with an agent whose topic words and places all belong to one topic.
        mood_words: Adjectives and adverbs that belong to a mood.
        glad: Those of the glad mood.
    """

    sentences: int = 0
    on_topic: int = 0
    grammatical: int = 0
    consistent: int = 0
    mood_words: int = 0
    glad: int = 0

    def __add__(self, other: TaleScore) -> TaleScore:
        return TaleScore(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


_AGENT_TOPIC = {word: name for name, topic in TOPICS.items() for word in topic.agents}
_WORD_TOPIC = _AGENT_TOPIC | {word: name for name, topic in TOPICS.items() for word in topic.verbs + topic.objects}
_PLACE_TOPIC = {place: name for name, topic in TOPICS.items() for place in topic.places}
_WORD_MOOD = {word: name for name, mood in MOODS.items() for word in mood.adjectives + mood.adverbs}


def _one_of(*vocabularies: tuple[str, ...]) -> str:
    return "(?:" + "|".join(word for vocabulary in vocabularies for word in vocabulary) + ")"


_GRAMMAR = re.compile(
    "|".join(
        template.replace(".", r"\.").format(
            agent=_one_of(*(topic.agents for topic in TOPICS.values())),
            verb=_one_of(*(topic.verbs for topic in TOPICS.values())),
            object=_one_of(*(topic.objects for topic in TOPICS.values())),
            place=_one_of(*(topic.places for topic in TOPICS.values())),
            adjective=_one_of(*(mood.adjectives for mood in MOODS.values())),
            adverb=_one_of(*(mood.adverbs for mood in MOODS.values())),
        )
        for template in TEMPLATES
    )
)


def score(text: str, topic: str) -> TaleScore:
    """Count the finished sentences of `text` and how many of them are on `topic`, well formed and coherent.

    Args:
        text: A tale without its prompt. What follows the last full stop was cut off and is not counted.
        topic: The topic that was asked for, a key of `TOPICS`.

    Raises:
        ValueError: If the topic is unknown.

    Example:
        >>> score("The sailor rowed the sad boat by the shore. The fox hauled the", "the sea")
        TaleScore(sentences=1, on_topic=1, grammatical=1, consistent=1, mood_words=1, glad=0)
    """
    topic_law(topic)  # refuses an unknown topic, for which every count would silently be 0
    return sum((score_sentence(part.strip(), topic) for part in re.findall(r"[^.]*\.", text)), TaleScore())


def score_sentence(text: str, topic: str) -> TaleScore:
    """Return the counts of a single sentence, whatever stands in it; see `score`."""
    words = re.findall(r"[a-z]+", text.lower())
    agents = [_AGENT_TOPIC[word] for word in words if word in _AGENT_TOPIC]
    topics = {_WORD_TOPIC[word] for word in words if word in _WORD_TOPIC}
    topics |= {name for place, name in _PLACE_TOPIC.items() if place in text}
    moods = [_WORD_MOOD[word] for word in words if word in _WORD_MOOD]
    return TaleScore(
        sentences=1,
        on_topic=int(agents[:1] == [topic]),
        grammatical=int(text[0].isupper() and _GRAMMAR.fullmatch(text[0].lower() + text[1:]) is not None),
        consistent=int(bool(agents) and len(topics) == 1),
        mood_words=len(moods),
        glad=moods.count("glad"),
    )
