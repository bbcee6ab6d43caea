"""The items of the benchmark: what to write about, what to leave out, and the words by which both are told."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from lmguide.eval.cognac.matching import Matcher
from lmguide.eval.cognac.templates import TEMPLATES, Split

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lmguide.eval.cognac.wordnet import Concept, Taxonomy

ROOTS = tuple(
    f"{name}.n.{sense:02d}"
    for name, sense in (
        ("animal", 1),
        ("plant", 2),
        ("food", 1),
        ("food", 2),
        ("fruit", 1),
        ("clothing", 1),
        ("fabric", 1),
        ("furniture", 1),
        ("building", 1),
        ("vehicle", 1),
        ("tool", 1),
        ("musical_instrument", 1),
        ("sport", 1),
        ("game", 1),
    )
)
"""What topics and constraints lie below: things that people name, of which there are many kinds."""

TOPIC_WORDS = 20
"""Least words of a topic."""
CONSTRAINT_WORDS = 5
"""Least words of a constraint."""
MOST_FORBIDDEN = 0.5
"""Largest share of a topic's words that its constraint may forbid."""
PER_TOPIC = 15
"""Most constraints of one topic, or half of the items would be about animals."""
DEV_SHARE = 0.3
"""Share of the topics in dev."""
EXAMPLES = 3
"""Entries that a prompt shows."""
GLOSS = (20, 100)
"""Letters of a shown entry's explanation."""


@dataclass(frozen=True)
class Item:
    """One instruction, and how to tell whether a text follows it.

    Attributes:
        id: Split and number.
        topic: What to write about.
        constraint: What to leave out, a kind of the topic.
        prompt: What the model gets.
        topic_words: What is a kind of the topic; words that are mostly verbs or adjectives are left out.
        forbidden_words: The constraint and what is a kind of it.
    """

    id: str
    topic: str
    constraint: str
    prompt: str
    topic_words: tuple[str, ...]
    forbidden_words: tuple[str, ...]


def build(taxonomy: Taxonomy, split: Split, seed: int = 0, limit: int | None = None) -> list[Item]:
    """The items of a split, in an order that mixes topics.

    A topic is a concept with a common name and at least `TOPIC_WORDS` words below it; a constraint of it is one of
    those below with at least `CONSTRAINT_WORDS`, and at most half of the topic's. Topics and templates of dev and test
    are different ones.

    Args:
        taxonomy: The concepts below `ROOTS`.
        split: Which topics.
        seed: Of the split, and of all that is drawn.
        limit: Most items; the first ones of the same order. `None` is all.

    Raises:
        ValueError: No concept makes a topic.
    """
    rng = random.Random(f"cognac {seed}")
    topics = [concept for _, concept in sorted(taxonomy.concepts.items()) if _constraints(taxonomy, concept)]
    if not topics:
        raise ValueError(
            f"wordnet: expected concepts with {TOPIC_WORDS} words or more below them, got none. "
            "Use a whole WordNet database."
        )
    rng.shuffle(topics)
    border = round(len(topics) * DEV_SHARE)
    chosen = []
    for topic in topics[:border] if split == "dev" else topics[border:]:
        constraints = _constraints(taxonomy, topic)
        chosen += [(topic, each) for each in rng.sample(constraints, min(PER_TOPIC, len(constraints)))]
    rng.shuffle(chosen)
    made = ((topic, constraint, _entries(taxonomy, topic, constraint, rng)) for topic, constraint in chosen)
    shown = islice(((topic, constraint, lines) for topic, constraint, lines in made if len(lines) == EXAMPLES), limit)
    return [
        Item(
            f"{split}-{number:03d}",
            str(topic.title),
            str(constraint.title),
            rng.choice(TEMPLATES[split]).format(
                topic=topic.title, constraint=constraint.title, examples="\n".join(lines)
            ),
            tuple(_words(taxonomy, taxonomy.inside(topic.key), mostly_nouns=True)),
            tuple(_words(taxonomy, {*taxonomy.inside(constraint.key), constraint.key})),
        )
        for number, (topic, constraint, lines) in enumerate(shown)
    ]


def fingerprint(items: Sequence[Item]) -> str:
    """Eight letters that change with anything in the items."""
    content = json.dumps([[item.prompt, item.topic_words, item.forbidden_words] for item in items])
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def _constraints(taxonomy: Taxonomy, topic: Concept) -> list[Concept]:
    """Concepts that may be forbidden within a topic; none if it is none."""
    words = len(_words(taxonomy, taxonomy.inside(topic.key)))
    if topic.title is None or words < TOPIC_WORDS:
        return []
    below = [taxonomy.concepts[key] for key in sorted(taxonomy.inside(topic.key))]
    return [
        concept
        for concept in below
        if concept.title is not None
        and CONSTRAINT_WORDS <= len(_words(taxonomy, taxonomy.inside(concept.key))) <= MOST_FORBIDDEN * words
    ]


def _entries(taxonomy: Taxonomy, topic: Concept, constraint: Concept, rng: random.Random) -> list[str]:
    """Lines about kinds of a topic that say nothing of the constraint; fewer than wanted if there are no more."""
    forbidden = {*taxonomy.inside(constraint.key), constraint.key}
    barred = Matcher(_words(taxonomy, forbidden))
    keys = sorted(taxonomy.inside(topic.key) - forbidden)
    lines = (_entry(taxonomy.concepts[key]) for key in rng.sample(keys, len(keys)))
    return list(islice((line for line in lines if line and not barred.found(line)), EXAMPLES))


def _entry(concept: Concept) -> str | None:
    """A line of a glossary; `None` for what is rare or hard to explain shortly."""
    without = re.sub(r"\([^()]*\)", "", concept.gloss)
    gloss = re.sub(r"\s+(?=[,.])", "", " ".join(without.split(";")[0].split()))
    if concept.title is None or not GLOSS[0] <= len(gloss) <= GLOSS[1]:
        return None
    return f"{concept.title.capitalize()}: {gloss}"


def _words(taxonomy: Taxonomy, keys: Iterable[str], mostly_nouns: bool = False) -> list[str]:
    """Names of concepts, with their irregular plurals."""
    concepts = [taxonomy.concepts[key] for key in keys]
    words = {word for each in concepts for word in (each.nouns if mostly_nouns else each.words)}
    return sorted(words.union(*(taxonomy.plurals.get(word, ()) for word in words)))
