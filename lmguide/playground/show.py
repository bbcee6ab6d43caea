"""Answers as pieces of HTML: the heat map, what guidance did in a line, the legend. It knows no web framework."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from lmguide.pages import template

if TYPE_CHECKING:
    from lmguide.playground.answers import Answers

STEPS = (0.0, 0.05, 0.2, 0.5, 1.0, 3.0)
"""Nats that the legend shows."""


def heat(divergence: float) -> float:
    """How hot a token is, `sqrt(1 - exp(-KL))`: 0 where nothing moved, and always below 1.

    No two laws of this divergence differ by more in the probability of any set of tokens (Bretagnolle and Huber). The
    scale is fixed, so that two settings can be compared by eye.

    Args:
        divergence: Nats.

    Example:
        >>> heat(0.0), round(heat(0.5), 2)
        (0.0, 0.63)
    """
    return math.sqrt(-math.expm1(-max(divergence, 0.0)))


def columns(answers: Answers, writing: bool) -> tuple[str, str, str]:
    """Both answers, the guided one as a heat map, and what stands below them. All text is escaped.

    Args:
        answers: As far as they are.
        writing: Whether there is more to come.
    """
    page = _page()
    guided = [vars(token) | {"heat": heat(token.divergence)} for token in answers.guided]
    return (
        str(page.answer("Unguided", [vars(token) for token in answers.unguided], "lmg-unguided", writing)),
        str(page.answer("Guided", guided, "lmg-guided", writing)),
        f"{page.told(answers.stats, guided)}{legend()}",
    )


def legend() -> str:
    """What the colours mean."""
    return str(_page().legend([(f"{step:g}", heat(step)) for step in STEPS]))


@functools.cache
def _page() -> Any:
    return template("playground.html").module
