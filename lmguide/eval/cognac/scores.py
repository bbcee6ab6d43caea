"""How well texts follow their instructions, one by one and on average."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from lmguide.eval.cognac.matching import Matcher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmguide.eval.cognac.items import Item

LONGEST = 4
"""Words of the longest pieces whose repetition is measured."""


@dataclass(frozen=True)
class Score:
    """What a text has of what it is to have, and of what it is not.

    Attributes:
        on_topic: Whether it names a kind of the topic.
        violated: Whether it names the constraint or a kind of it.
        on_topic_not_violated: Whether the instruction is followed: the former and not the latter.
        repetition: Shares of its pieces of one to four words that stand there for a second time or more.
        topic_words: The kinds of the topic that it names.
        forbidden_words: What it names of the constraint.
    """

    on_topic: bool
    violated: bool
    on_topic_not_violated: bool
    repetition: tuple[float, ...]
    topic_words: tuple[str, ...]
    forbidden_words: tuple[str, ...]


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error; the error of a single value is 0."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of some values.

        Example:
            >>> Mean.of([0, 1, 1, 0])
            Mean(value=0.5, error=0.28867513459481287)
        """
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), error)


def score(item: Item, text: str) -> Score:
    """How well a text follows an item's instruction.

    Example:
        >>> from lmguide.eval.cognac.items import Item
        >>> item = Item("dev-000", "animal", "dog", "...", ("cat", "dog", "poodle"), ("dog", "poodle"))
        >>> score(item, "Cats are not dogged.").on_topic_not_violated, score(item, "Cats, poodles").forbidden_words
        (True, ('poodles',))
    """
    topic, forbidden = _matcher(item.topic_words).found(text), _matcher(item.forbidden_words).found(text)
    return Score(
        on_topic=bool(topic),
        violated=bool(forbidden),
        on_topic_not_violated=bool(topic) and not forbidden,
        repetition=tuple(repetition(text, size) for size in range(1, LONGEST + 1)),
        topic_words=topic,
        forbidden_words=forbidden,
    )


def repetition(text: str, size: int) -> float:
    """seq-rep-n, `1 - distinct / all` of the pieces of so many words; 0 for a shorter text.

    Welleck et al., 1908.04319.

    Example:
        >>> repetition("a cat and a cat", 1), repetition("a cat and a cat", 2)
        (0.4, 0.25)
    """
    words = text.split()
    pieces = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def perplexity(nats: Sequence[float]) -> Mean:
    """`exp` of the mean of some texts' nats per token, with the error to first order."""
    mean = Mean.of(nats)
    return Mean(math.exp(mean.value), math.exp(mean.value) * mean.error)


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Mean:
    """The sum of some numbers by that of others, with the error to first order.

    Example:
        >>> ratio([2, 4], [1, 2]), ratio([1, 5], [1, 1]).value
        (Mean(value=2.0, error=0.0), 3.0)
    """
    value = sum(parts) / sum(wholes)
    rest = Mean.of([part - value * whole for part, whole in zip(parts, wholes, strict=True)])
    return Mean(value, rest.error / statistics.fmean(wholes))


def difference(answers: Mapping[str, bool], others: Mapping[str, bool]) -> Mean | None:
    """How much more often something is so in some answers than in others to the same items, by their ids."""
    both = [float(answers[name]) - others[name] for name in answers if name in others]
    return Mean.of(both) if both else None


@lru_cache(maxsize=64)  # the items of a topic share its words
def _matcher(words: tuple[str, ...]) -> Matcher:
    return Matcher(words)
