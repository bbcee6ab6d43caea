"""The bundled guides for the mood keep the promise of their closed form, alone and beside classifier-free guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import lmguide as lg
from lmguide.training import tales
from lmguide.training.mood_law import guided_mood
from scripts.measure_mood import Measured, measure, writer_of

if TYPE_CHECKING:
    from collections.abc import Sequence

FEW, MORE, MANY = 160, 480, 1280
"""Tales for one measurement: standard errors of 0.009, 0.005 and 0.003 of a guided share of glad words."""
SEED = 500
CFG = lg.CFG(2.0, "A tale:")


def judges(name: str, **more: object) -> lg.Guidance:
    """A bundled guide at strength 5, wanted glad."""
    if name == "gedi":
        return lg.GeDi("bundled/mood_gedi", " glad", omega=5.0, **more)  # type: ignore[arg-type]
    return lg.CAIF("bundled/mood_classifier", "glad", alpha=5.0, top_k=20, **more)  # type: ignore[arg-type]


def shares(methods: Sequence[lg.Guidance], count: int = FEW, **call: int) -> Measured:
    return measure(methods, count, SEED, **call)


def bounds(strength: float) -> tuple[float, float]:
    """Shares of glad words by a perfect judge: of a writer that knows nothing of moods, and of a perfect one."""
    _, tokenizer = lg.bundled("tales")

    def spell(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return guided_mood(strength, spell).glad, guided_mood(strength, spell, tales.AGREE).glad


def test_without_a_guide_half_of_the_words_are_glad() -> None:
    assert shares([]).glad == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("strength", [1.0, 5.0])
def test_an_exact_posterior_gives_the_closed_form(strength: float) -> None:
    low, high = bounds(strength)
    found = shares([lg.GeDi("bundled/mood_gedi", " glad", omega=strength)])
    assert low - 0.04 < found.glad < high + 0.02
    assert found.grammatical > 0.95


def test_a_classifier_of_prefixes_gives_it_too() -> None:
    low, high = bounds(5.0)
    assert low - 0.06 < shares([judges("caif")]).glad < high + 0.02


def test_grim_is_as_far_as_glad() -> None:
    low, high = bounds(5.0)
    found = shares([lg.GeDi("bundled/mood_gedi", " grim")])
    assert 1 - high - 0.02 < found.glad < 1 - low + 0.04


@pytest.mark.parametrize("agree", [0.5, 0.586, 0.7])
def test_what_a_writer_knows_is_found_from_its_next_words(agree: float) -> None:
    known = {}
    for lead in range(6):
        glad = agree**lead / (agree**lead + (1 - agree) ** lead)
        known[lead] = (glad * agree + (1 - glad) * (1 - agree), 100)
    assert writer_of(known) == pytest.approx(agree, abs=1e-9)


@pytest.mark.slow
def test_bar_of_gedi() -> None:
    """Issue: at least 0.78 glad words at omega 5, and 0.95 of the sentences grammatical."""
    found = shares([judges("gedi")], MANY)
    assert found.glad >= 0.78
    assert found.grammatical >= 0.95


@pytest.mark.slow
def test_bar_of_caif() -> None:
    assert shares([judges("caif")], MORE).glad >= 0.70


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more", "cut", "least"),
    [
        ("gedi", {}, 0, 0.75),
        ("caif", {"rest": "mean"}, 0, 0.70),
        # What is no candidate is excluded, which alone makes sentences off the topic rarer.
        ("caif", {}, 20, 0.70),
    ],
)
def test_bar_beside_classifier_free_guidance(name: str, more: dict[str, str], cut: int, least: float) -> None:
    """Sentences stay as often on the topic as with CFG alone."""
    alone = shares([CFG], MORE, top_k=cut)
    both = shares([CFG, judges(name, **more)], MORE)
    assert both.on_topic == pytest.approx(alone.on_topic, abs=0.07)
    assert both.glad >= least
