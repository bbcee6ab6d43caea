"""What guidance towards a mood does to the tales in closed form, if its judge is perfect. Knows no model.

Holds for every method that adds `strength * log P(glad | text, v)` to the score of a token v: GeDi with the exact
posterior, FUDGE and CAIF.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmguide.checks import check_number
from lmguide.training import tales

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WANTED, OTHER = tales.MOODS
"""Glad and grim."""


@dataclass(frozen=True)
class MoodLaw:
    """What tales hold on average.

    Attributes:
        glad: Share of the mood words that are glad.
        mood_words: Mood words of a tale.
    """

    glad: float
    mood_words: float


@dataclass
class _Prefix:
    """A sentence as far as it has been written: how likely it is, and what may follow.

    Attributes:
        judged: Its probability in a tale of either mood.
        written: The same in the tales that the writer has in mind.
        words: The moods of its words, where it is a whole sentence.
        then: The next token → the longer prefix.
    """

    judged: list[float] = field(default_factory=lambda: [0.0, 0.0])
    written: list[float] = field(default_factory=lambda: [0.0, 0.0])
    words: tuple[str, ...] | None = None
    then: dict[int, _Prefix] = field(default_factory=dict)


def guided_mood(strength: float, spell: Callable[[str], Sequence[int]], writer: float = 0.5) -> MoodLaw:
    """Return what is left of the moods when a perfect judge guides the writing of a tale towards glad words.

    With a = `AGREE`, and d more glad than grim words in the text, Bayes' rule gives the judge

        P(glad | text) = a^d / (a^d + (1 - a)^d)

    and inside a sentence, whose first tokens x may be those of glad and of grim words,

        P(glad | text, x) = a^d p(x | glad) / (a^d p(x | glad) + (1 - a)^d p(x | grim))

    Guidance draws each token v from `p(v) P(glad | text, v)^strength` up to a constant. Whoever acts, does, is done to
    and stands where tells no mood, so one word stands for all of them, and 264 sentences are left to sum over; d is all
    that the next sentence needs to know of those before.

    Args:
        strength: omega of GeDi, alpha of CAIF, lambda of FUDGE. At 1 a perfect writer writes glad tales as the corpus
            has them: `glad` is `AGREE`.
        spell: A text → its tokens, without special ones: guidance works token by token, and the moods of some words
            show in their second. No word of a mood may begin with the token of a word that tells none in its place.
        writer: What the guided model knows of the moods: the probability that, in its mind, a mood word agrees with
            the mood of its tale, in (0, 1). `AGREE` is a perfect model; at 0.5 no mood word tells it anything of the
            next. The bundled `tales` is nearer to that.

    Raises:
        ValueError: If `writer` is no probability between 0 and 1.

    Example:
        >>> from lmguide.bundled import bundled
        >>> _, tokenizer = bundled("tales")
        >>> spell = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        >>> [round(guided_mood(strength, spell, tales.AGREE).glad, 3) for strength in (0, 1, 5)]
        [0.5, 0.75, 0.877]
        >>> [round(guided_mood(strength, spell).glad, 3) for strength in (0, 1, 5)]
        [0.5, 0.664, 0.784]
    """
    check_number("writer", writer, "Use 0.5 for a model that knows nothing of moods.", above=0, below=1)
    start = _tree(spell, writer)
    evidence = math.log(tales.AGREE / (1 - tales.AGREE))
    belief = math.log(writer / (1 - writer))
    ahead = {0: 1.0}  # glad words less grim ones before the sentence → probability
    glad = total = 0.0
    for _ in range(tales.SENTENCES):
        then: dict[int, float] = defaultdict(float)
        for lead, share in ahead.items():
            odds, own_odds = math.exp(evidence * lead), math.exp(belief * lead)
            for words, probability in _written(start, share, strength, odds, own_odds):
                of_wanted = words.count(WANTED)
                then[lead + 2 * of_wanted - len(words)] += probability
                glad += probability * of_wanted
                total += probability * len(words)
        ahead = then
    return MoodLaw(glad / total, total)


def _written(
    prefix: _Prefix, share: float, strength: float, odds: float, own_odds: float
) -> Iterator[tuple[tuple[str, ...], float]]:
    """The sentences that go on from a prefix: the moods of their words, and their probabilities, `share` in all.

    Args:
        prefix: Where to go on.
        share: Its probability.
        strength: Of guidance.
        odds: Glad against grim before the sentence, as the judge sees it.
        own_odds: The same, as the writer sees it.
    """
    if prefix.words is not None:
        yield prefix.words, share
        return
    scores = {}
    for token, longer in prefix.then.items():
        glad, grim = odds * longer.judged[0], longer.judged[1]
        scores[token] = (own_odds * longer.written[0] + longer.written[1]) * (glad / (glad + grim)) ** strength
    for token, score in scores.items():
        yield from _written(prefix.then[token], share * score / sum(scores.values()), strength, odds, own_odds)


def _tree(spell: Callable[[str], Sequence[int]], writer: float) -> _Prefix:
    """All sentences, one word standing for all that tell no mood, as a tree of their tokens."""
    start = _Prefix()
    for text, words, count in _sentences():
        prefixes = [start]
        for token in spell(text):
            prefixes.append(prefixes[-1].then.setdefault(token, _Prefix()))
        prefixes[-1].words = words
        for prefix in prefixes:
            for law, agree in ((prefix.judged, tales.AGREE), (prefix.written, writer)):
                for place, mood in enumerate(tales.MOODS):
                    law[place] += math.prod(agree if word == mood else 1 - agree for word in words) / count
    return start


def _sentences() -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Sentences behind a space, the moods of their words, and out of how many of these moods each is one."""
    words = next(iter(tales.TOPICS.values()))
    plain = {
        "agent": words.agents[0],
        "verb": words.verbs[0],
        "object": words.objects[0],
        "place": words.places[0],
    }
    for template in tales.TEMPLATES:
        has_adverb = "{adverb}" in template
        for mood, of_mood in tales.MOODS.items():
            for adjective in of_mood.adjectives:
                if not has_adverb:
                    text = template.format(adjective=adjective, **plain)
                    yield _begun(text), (mood,), len(tales.TEMPLATES) * len(of_mood.adjectives)
                    continue
                for other, of_other in tales.MOODS.items():
                    for adverb in of_other.adverbs:
                        text = template.format(adjective=adjective, adverb=adverb, **plain)
                        count = len(tales.TEMPLATES) * len(of_mood.adjectives) * len(of_other.adverbs)
                        yield _begun(text), (mood, other), count


def _begun(text: str) -> str:
    return f" {text[0].upper()}{text[1:]}"
