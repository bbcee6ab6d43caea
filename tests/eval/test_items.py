"""The items: what they ask for can be done, shows how, and can be told from what must not be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from lmguide.eval import cognac
from lmguide.eval.cognac import items as building
from lmguide.eval.cognac.matching import Matcher
from lmguide.eval.cognac.templates import TEMPLATES
from tests.refusals import refused

if TYPE_CHECKING:
    from lmguide.eval.cognac import Item, Taxonomy
    from lmguide.eval.cognac.templates import Split


@pytest.fixture(autouse=True)
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics that a small taxonomy has."""
    if "wordnet" not in request.fixturenames:
        monkeypatch.setattr(building, "TOPIC_WORDS", 6)
        monkeypatch.setattr(building, "CONSTRAINT_WORDS", 1)
        monkeypatch.setattr(building, "DEV_SHARE", 0.5)


def holds(item: Item, taxonomy: Taxonomy, split: Split) -> None:
    """What is true of every item."""
    by_title = {concept.title: concept for concept in taxonomy.concepts.values() if concept.title}
    topic, constraint = by_title[item.topic], by_title[item.constraint]
    below = taxonomy.inside(topic.key)
    assert constraint.key in below
    assert item.id.startswith(split)
    assert not re.search(r"[{}]|None", item.prompt)
    shown = [
        line
        for line in item.prompt.splitlines()
        if re.match(r"[A-Z][a-z' -]+: \S", line) and not line.startswith("Task:")
    ]
    assert len(shown) == building.EXAMPLES
    for line in shown:
        concept = by_title[line.partition(":")[0].lower()]
        assert concept.key in below - taxonomy.inside(constraint.key) - {constraint.key}
        assert not Matcher(item.forbidden_words).found(line)
        assert not re.search(r"[();]| ,|  ", line)
    assert item.constraint in item.forbidden_words
    around = item.prompt
    for line in shown:
        around = around.replace(line, "")
    assert item.topic in around
    assert item.constraint in around
    assert around.strip() in {
        template.format(topic=item.topic, constraint=item.constraint, examples="\n\n").strip()
        for template in TEMPLATES[split]
    }


def test_items_ask_for_kinds_of_a_topic_without_one_of_them(everything: Taxonomy) -> None:
    both: dict[Split, list[Item]] = {split: cognac.build(everything, split) for split in ("dev", "test")}
    for split, items in both.items():
        assert items
        for item in items:
            holds(item, everything, split)
    dev, test = both["dev"], both["test"]
    assert not {item.topic for item in dev} & {item.topic for item in test}
    animal = next(item for item in [*dev, *test] if item.topic == "animal" and item.constraint == "cat")
    assert {"mouse", "mice", "goose", "geese", "german shepherd", "kitten"} <= set(animal.topic_words)
    assert not {"duck", "bat", "young", "animal"} & set(animal.topic_words)
    assert set(animal.forbidden_words) == {"cat", "tabby", "tomcat", "alley cat", "persian cat", "kitten"}


def test_the_same_items_every_time_and_the_first_of_them(everything: Taxonomy) -> None:
    items = cognac.build(everything, "dev")
    assert cognac.build(everything, "dev") == items
    assert cognac.build(everything, "dev", limit=2) == items[:2]
    assert cognac.build(everything, "dev", seed=1) != items
    prints = {cognac.fingerprint(some) for some in (items, items[:2], cognac.build(everything, "dev", seed=1))}
    assert len(prints) == 3
    assert cognac.fingerprint(cognac.build(everything, "dev")) in prints


def test_a_taxonomy_without_topics_is_refused(everything: Taxonomy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "TOPIC_WORDS", 1000)
    with refused("wordnet", "1000"):
        cognac.build(everything, "dev")


@pytest.mark.slow
def test_the_real_items(wordnet: Taxonomy) -> None:
    dev, test = cognac.build(wordnet, "dev"), cognac.build(wordnet, "test")
    splits: dict[Split, list[Item]] = {"dev": dev, "test": test}
    for split, items in splits.items():
        for item in items:
            holds(item, wordnet, split)
            assert len(item.topic_words) >= 15
    assert (len(dev), len(test)) == (72, 197)
    assert (cognac.fingerprint(dev), cognac.fingerprint(test)) == ("0274c4be", "65105148"), "all have the same items"
    assert max(sum(item.topic == each.topic for item in test) for each in test) <= building.PER_TOPIC
