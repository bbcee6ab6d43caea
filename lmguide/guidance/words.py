"""Rewards of words: what the answer should have and what it must not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lmguide.descriptions.words import WordLists, Words
from lmguide.guidance.base import GUIDANCE
from lmguide.guidance.rewards import Reward, add_reward

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmguide.contexts import Context
    from lmguide.rules import Scale


@GUIDANCE.register("word_guidance")
@dataclass(frozen=True)
class WordGuidance(Reward):
    """Words to include and words to exclude: `c(v) + scale * (beta [v in include] - alpha [v in exclude])`.

    CognacGen, Chen et al., 2212.10466, with the word lists given. No forward pass is added to a step. The published
    README says that its alpha is for inclusion and its beta for exclusion; its code does the reverse, and so do the
    values it recommends. Here as in the code: `beta` favours, `alpha` forbids.

    Args:
        include: As in `WordLists`.
        exclude: As in `WordLists`.
        beta: As in `WordLists`; published 5.
        alpha: As in `WordLists`; published 100.
        variants: As in `WordLists`.
        exclude_at: As in `WordLists`.
        scale: Strength of both, one for all or one per prompt; 0 is off.

    Raises:
        ValueError: No words, one in both lists, a number out of range, or a gate or schedule that compares two laws.
        TypeError: Words that are no text.

    Example:
        >>> WordGuidance(include="whale", exclude=("cat", "dog")).sources()["reward"].exclude
        ('cat', 'dog')
    """

    include: Words = ()
    exclude: Words = ()
    beta: float = 5.0
    alpha: float = 100.0
    variants: bool = True
    exclude_at: Literal["expected", "boundary", "last_token"] = "expected"
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        """Check the values, and keep words in the form that contexts have them."""
        super().__post_init__()
        lists = self._lists()
        object.__setattr__(self, "include", lists.include)
        object.__setattr__(self, "exclude", lists.exclude)

    def sources(self) -> Mapping[str, Context]:
        """The words, as `reward`."""
        return {"reward": self._lists()}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`add_reward`."""
        return add_reward(cond, sources["reward"], strength)

    def _lists(self) -> WordLists:
        return WordLists(self.include, self.exclude, self.beta, self.alpha, self.variants, self.exclude_at)
