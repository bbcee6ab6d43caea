"""Tales with fixed slots, for masked-diffusion models: every word has its place; standard library only.

The prompt is two tokens, a topic and a colon. The answer is two sentences of one template, twenty tokens. The laws of
the topics are those of `lmguide.training.tales`, and so is the closed form of guidance, `tales.predicted`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lmguide.training import tales
from lmguide.training.tales import MOODS, TOPICS, TaleScore, topic_law

if TYPE_CHECKING:
    import random

SENTENCES = 2
"""Sentences in an answer."""
SENTENCE_LENGTH = 10
"""Tokens of a sentence, its full stop among them."""
ANSWER_LENGTH = SENTENCES * SENTENCE_LENGTH
"""Tokens of an answer."""
PROMPT_LENGTH = 2
"""Tokens of a prompt: the topic and the colon."""
TOKEN = rf"(?:{'|'.join(TOPICS)})\b|<\|\w+\|>|\w+|[^\w\s]"
"""The pattern of one token: a topic's name as a whole, a special token, a word or a sign."""

ADJECTIVES = tuple(word for mood in MOODS.values() for word in mood.adjectives)
_WORDS = [word for topic in TOPICS.values() for word in topic.agents + topic.verbs + topic.objects]
_PLACES = [word for topic in TOPICS.values() for place in topic.places for word in place.split()]
VOCABULARY = tuple(dict.fromkeys([*TOPICS, ":", "The", "the", ".", *_WORDS, *_PLACES, *ADJECTIVES]))
"""Every token of the corpus, special tokens aside."""


def prompt(topic: str) -> str:
    """Return the prompt that names `topic`, for example ``"the sea:"``.

    Raises:
        ValueError: If the topic is unknown.
    """
    topic_law(topic)  # refuses an unknown topic
    return f"{topic}:"


def answer(rng: random.Random, topic: str | None = None) -> str:
    """Return the two sentences that follow the prompt of `topic`, or a masked prompt where it is None.

    Each sentence is on the prompted topic with probability `tales.FOLLOW`, independently of the other; after a masked
    prompt its topic is uniform.

    Args:
        rng: The source of all randomness.
        topic: A key of `tales.TOPICS`, or None.

    Example:
        >>> import random
        >>> answer(random.Random(1), "the sea")
        'The sailor netted the grey net near the lighthouse. The grandmother tasted the grey bread at the stove.'
    """
    law = topic_law(topic)
    return " ".join(_sentence(rng, drawn) for drawn in rng.choices(list(law), list(law.values()), k=SENTENCES))


def _sentence(rng: random.Random, topic: str) -> str:
    words = TOPICS[topic]
    agent, verb, thing, place = map(rng.choice, (words.agents, words.verbs, words.objects, words.places))
    return f"The {agent} {verb} the {rng.choice(ADJECTIVES)} {thing} {place}."


def score(text: str, topic: str) -> TaleScore:
    """Count the sentences of an answer and how many of them are on `topic`, well formed and coherent.

    Sentences are told apart by their slots, ten tokens each, not by their full stops: an answer always has two.

    Args:
        text: An answer of twenty tokens, without its prompt.
        topic: The topic that was asked for, a key of `tales.TOPICS`.

    Raises:
        ValueError: If the topic is unknown or the text has another number of tokens.

    Example:
        >>> score("The sailor rowed the sad boat by the shore. The fox chased the merry net in the glade.", "the sea")
        TaleScore(sentences=2, on_topic=1, grammatical=2, consistent=1, mood_words=2, glad=1)
    """
    topic_law(topic)
    tokens = re.findall(TOKEN, text)
    if len(tokens) != ANSWER_LENGTH:
        raise ValueError(
            f"text: expected an answer of {ANSWER_LENGTH} tokens, got {len(tokens)}. Leave out the prompt alone."
        )
    sentences = (tokens[start : start + SENTENCE_LENGTH] for start in range(0, ANSWER_LENGTH, SENTENCE_LENGTH))
    return sum((tales.score_sentence(" ".join(slots).replace(" .", "."), topic) for slots in sentences), TaleScore())
