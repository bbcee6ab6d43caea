"""Scores of texts, against plain regular expressions and closed forms."""

from __future__ import annotations

import math
import re

import pytest

from lmguide.descriptions.words import forms
from lmguide.eval.cognac import Item, Mean, difference, score
from lmguide.eval.cognac.matching import Matcher
from lmguide.eval.cognac.scores import perplexity, ratio, repetition

WORDS = ("cat", "polar bear", "six-shooter", "fox", "yak's milk", "berry", "mice")
TEXTS = (
    "Cats and a category, a bobcat.",
    "the POLAR BEARS; a polar, bear",
    "A polar-bear cub's six-shooters",
    "six shooters",
    "foxes! foxy box",
    "yak's milk or yaks milk",
    "berries and strawberries",
    "mice, mouse",
    "",
    "a cat's cat-like cat",
    "polar\nbear",
    "un\u00e9cat",
)


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_found_where_a_regular_expression_with_boundaries_finds_them(text: str) -> None:
    for word in WORDS:
        ways = (
            re.sub(r"[ '-]", "[\\\\s'-]", re.escape(form).replace(r"\ ", " ").replace(r"\-", "-"))
            for form in forms(word, True)
        )
        pattern = re.compile(rf"\b(?:{'|'.join(ways)})\b", re.IGNORECASE)
        assert bool(Matcher([word]).found(text)) == bool(pattern.search(text)), word


def test_each_word_once_in_the_order_of_the_text() -> None:
    matcher = Matcher(["bear", "polar bear", "cat"])
    assert matcher.found("A cat, a polar bear. Bears, cats, a CAT.") == ("cat", "polar bear", "bears", "cats")
    assert Matcher([]).found("a cat") == ()


@pytest.mark.parametrize(
    ("text", "on_topic", "violated"),
    [
        ("An owl.", True, False),
        ("A poodle and an owl.", True, True),
        ("Dogs!", False, True),
        ("Nothing.", False, False),
    ],
)
def test_following_is_to_be_on_topic_and_not_to_violate(text: str, on_topic: bool, violated: bool) -> None:
    item = Item("dev-000", "animal", "dog", "", ("owl", "poodle"), ("dog", "poodle"))
    found = score(item, text)
    assert (found.on_topic, found.violated) == (on_topic, violated)
    assert found.on_topic_not_violated == (on_topic and not violated)
    assert (bool(found.topic_words), bool(found.forbidden_words)) == (on_topic, violated)


def test_repetition_is_the_share_of_pieces_that_are_no_news() -> None:
    text = "a b a b a"
    assert [repetition(text, size) for size in (1, 2, 3, 4, 5, 6)] == pytest.approx(
        [1 - 2 / 5, 1 - 2 / 4, 1 - 2 / 3, 0, 0, 0]
    )
    item = Item("dev-000", "animal", "dog", "", ("owl",), ("dog",))
    assert score(item, text).repetition == tuple(repetition(text, size) for size in (1, 2, 3, 4))


def test_means_have_the_standard_error_of_a_share() -> None:
    values = [1.0] * 30 + [0.0] * 70
    mean = Mean.of(values)
    assert mean.value == pytest.approx(0.3)
    assert mean.error == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert Mean.of([2.0]) == Mean(2.0, 0.0)


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    nats = [1.0, 2.0, 3.0]
    found = perplexity(nats)
    assert found.value == pytest.approx(math.exp(2))
    assert found.error == pytest.approx(math.exp(2) / math.sqrt(3))


def test_a_ratio_of_sums_has_the_error_of_its_remainders() -> None:
    parts, wholes = [3.0, 5.0, 1.0, 9.0], [1.0, 2.0, 1.0, 4.0]
    rest = [part - 18 / 8 * whole for part, whole in zip(parts, wholes, strict=True)]
    assert ratio(parts, wholes) == Mean(18 / 8, Mean.of(rest).error / 2)
    assert ratio(parts, [1.0] * 4) == Mean.of(parts)


def test_the_difference_is_over_the_items_of_both() -> None:
    found = difference({"a": True, "b": True, "c": False, "d": True}, {"a": False, "b": True, "c": False})
    assert found == Mean.of([1.0, 0.0, 0.0])
    assert difference({"a": True}, {"b": True}) is None
