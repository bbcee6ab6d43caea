"""The closed form of guidance towards a mood: its limits, and every sentence of few words written out."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from lmguide.bundled import bundled
from lmguide.training import tales
from lmguide.training.mood_law import guided_mood

if TYPE_CHECKING:
    from collections.abc import Callable

GLAD, GRIM = tales.MOODS


@pytest.fixture(scope="module")
def spell() -> Callable[[str], list[int]]:
    _, tokenizer = bundled("tales")
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("writer", [0.5, 0.6, tales.AGREE])
def test_unguided_tales_are_those_of_the_corpus(spell: Callable[[str], list[int]], writer: float) -> None:
    """Half of the words are glad; two templates in four have an adverb beside their adjective."""
    law = guided_mood(0.0, spell, writer)
    assert (law.glad, law.mood_words) == pytest.approx((0.5, 1.5 * tales.SENTENCES))


def test_bayes_rule_on_a_perfect_writer_gives_the_glad_tales_of_the_corpus(spell: Callable[[str], list[int]]) -> None:
    law = guided_mood(1.0, spell, tales.AGREE)
    assert (law.glad, law.mood_words) == pytest.approx((tales.AGREE, 1.5 * tales.SENTENCES))


def test_stronger_guidance_writes_more_glad_words(spell: Callable[[str], list[int]]) -> None:
    shares = [guided_mood(strength, spell).glad for strength in (0, 0.5, 1, 2, 5, 10, 30)]
    assert shares == sorted(shares)
    assert shares[-1] < 0.9  # once the text has settled the mood nothing is left to gain


@pytest.mark.parametrize("writer", [0.0, 1.0, 1.5])
def test_a_writer_is_a_probability(spell: Callable[[str], list[int]], writer: float) -> None:
    with pytest.raises(ValueError, match="writer: expected a finite number above 0 and below 1"):
        guided_mood(1.0, spell, writer)


def written_out(strength: float, writer: float, spell: Callable[[str], list[int]]) -> tuple[float, float]:
    """Glad words and mood words of a tale, from all its sentences with all their words."""

    def chance(words: tuple[str, ...], mood: str, agree: float) -> float:
        return math.prod(agree if word == mood else 1 - agree for word in words)

    sentences: list[tuple[list[int], tuple[str, ...], float]] = []
    for template, topic in itertools.product(tales.TEMPLATES, tales.TOPICS.values()):
        slots = {"agent": topic.agents, "verb": topic.verbs, "object": topic.objects, "place": topic.places}
        for mood, other in itertools.product(tales.MOODS, repeat=2):
            if "{adverb}" not in template and mood != other:
                continue
            named = slots | {"adjective": tales.MOODS[mood].adjectives, "adverb": tales.MOODS[other].adverbs}
            named = {name: words for name, words in named.items() if f"{{{name}}}" in template}
            for choice in itertools.product(*named.values()):
                text = template.format(**dict(zip(named, choice, strict=True)))
                moods: tuple[str, ...] = (mood, other) if "adverb" in named else (mood,)
                size = math.prod(map(len, named.values())) * len(tales.TEMPLATES) * len(tales.TOPICS)
                sentences.append((spell(f" {text[0].upper()}{text[1:]}"), moods, 1 / size))

    def law(lead: int, agree: float) -> tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], float]]:
        """Probability of each beginning of a sentence, with glad in mind and with grim, after so many glad words."""
        of_glad = agree**lead / (agree**lead + (1 - agree) ** lead)
        with_glad: dict[tuple[int, ...], float] = defaultdict(float)
        with_grim: dict[tuple[int, ...], float] = defaultdict(float)
        for tokens, moods, share in sentences:
            for length in range(len(tokens) + 1):
                with_glad[tuple(tokens[:length])] += share * chance(moods, GLAD, agree) * of_glad
                with_grim[tuple(tokens[:length])] += share * chance(moods, GRIM, agree) * (1 - of_glad)
        return with_glad, with_grim

    leads, glad_words, all_words = {0: 1.0}, 0.0, 0.0
    for _ in range(tales.SENTENCES):
        then: dict[int, float] = defaultdict(float)
        for lead, share in leads.items():
            judged, written = law(lead, tales.AGREE), law(lead, writer)
            score = {
                x: (written[0][x] + written[1][x]) * (judged[0][x] / (judged[0][x] + judged[1][x])) ** strength
                for x in judged[0]
            }
            totals: dict[tuple[int, ...], float] = defaultdict(float)
            for x, value in score.items():
                totals[x[:-1]] += value if x else 0.0
            for tokens, moods, _ in sentences:
                steps = [tuple(tokens[: length + 1]) for length in range(len(tokens))]
                probability = share * math.prod(score[x] / totals[x[:-1]] for x in steps)
                glad_words += probability * moods.count(GLAD)
                all_words += probability * len(moods)
                then[lead + moods.count(GLAD) - moods.count(GRIM)] += probability
        leads = then
    return glad_words, all_words


@pytest.mark.parametrize(("strength", "writer"), [(1.0, 0.5), (5.0, 0.5), (5.0, 0.6), (2.0, tales.AGREE)])
def test_the_law_is_that_of_all_sentences(
    monkeypatch: pytest.MonkeyPatch, spell: Callable[[str], list[int]], strength: float, writer: float
) -> None:
    few = {
        name: replace(
            topic, agents=topic.agents[:2], verbs=topic.verbs[:1], objects=topic.objects[:1], places=topic.places[:2]
        )
        for name, topic in list(tales.TOPICS.items())[:2]
    }
    monkeypatch.setattr(tales, "TOPICS", few)
    monkeypatch.setattr(tales, "SENTENCES", 2)
    glad, words = written_out(strength, writer, spell)
    law = guided_mood(strength, spell, writer)
    assert (law.glad, law.mood_words) == pytest.approx((glad / words, words), rel=1e-9)
