"""Every guidance method beside its law on plain log-probabilities. A new method is one line in `METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch

import lmguide as lg
from lmguide import rules
from tests.families import VOCAB, tiny
from tests.huggingface.reference import Law, View, next_token, thinned

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide import Guidance
    from tests.families import Model

SCALE = 2.5
SUFFIX = (5, 7)
PASSAGE = (11, 12, 13)
"""Tokens that every prompt of the matrix contains, for the methods that take a passage out."""


@dataclass(frozen=True)
class Setting:
    """The models and prompts of one cell of the matrix."""

    family: str
    prompts: Sequence[Sequence[int]]
    negatives: Sequence[Sequence[int]]

    @property
    def model(self) -> Model:
        return tiny(self.family)

    @property
    def expert(self) -> Model:
        return tiny(self.family, 1)

    @property
    def amateur(self) -> Model:
        return tiny(self.family, 2)

    @property
    def negative(self) -> Any:
        """The negatives as a method takes them."""
        return tuple(map(tuple, self.negatives))

    @cached_property
    def threshold(self) -> float:
        """An entropy, in nats, that about half of the model's steps exceed."""
        return _median_entropy(self.model, tuple(self.prompts[0]))

    def law(self, method: str) -> Law:
        """The law of a method in this setting."""
        score = METHODS[method][1]
        negatives = self.negatives if len(self.negatives) > 1 else list(self.negatives) * len(self.prompts)

        def law(row: int, answer: list[int]) -> Tensor:
            view = View(self.model, self.prompts[row], negatives[row], answer)
            return score(self, view.of(self.model), view)

        return law


@lru_cache
def _median_entropy(model: Model, prompt: tuple[int, ...]) -> float:
    answer: list[int] = []
    entropies = []
    for _ in range(9):
        logp = next_token(model, prompt, answer)
        entropies.append(_entropy(logp))
        answer.append(int(logp.argmax()))
    return sorted(entropies)[4] - 1e-3


def _entropy(logp: Tensor) -> float:
    return float(-(logp.exp() * logp).sum())


def _plausible(scores: Tensor, by: Tensor, share: float) -> Tensor:
    return scores.masked_fill(by.exp() < share * by.exp().max(), -torch.inf)


def _dola(setting: Setting, c: Tensor, view: View, layers: Sequence[int]) -> Tensor:
    """Minus the early layer with the largest Jensen-Shannon divergence from the last."""

    def divergence(early: Tensor) -> float:
        middle = (c.exp() + early.exp()).log() - torch.tensor(2.0).log()
        return sum(float((p.exp() * (p - middle)).sum()) / 2 for p in (c, early))

    chosen = max((view.early(layer) for layer in layers), key=divergence)
    return _plausible(c - chosen, c, 0.1)


def _random(row: Sequence[int], draw: int = 0) -> list[int]:
    """The tokens that `RandomPrompt` draws with seed 0 for the first prompt of a batch."""
    generator = torch.Generator().manual_seed(draw)
    return torch.randint(VOCAB, (len(row),), generator=generator).tolist()


def _shuffled(setting: Setting, row: Sequence[int]) -> list[int]:
    """The prompt with all but its last token in the order that `ShuffledPrompt` draws with seed 0."""
    generator = torch.Generator().manual_seed(0)
    for prompt in setting.prompts:
        order = torch.randperm(len(prompt) - 1, generator=generator).tolist()
        if prompt is row:
            return [*(row[place] for place in order), row[-1]]
    raise AssertionError("the row is none of the setting's")


def _cut(row: Sequence[int]) -> list[int]:
    """A prompt without the passage."""
    start = next(i for i in range(len(row)) if tuple(row[i : i + len(PASSAGE)]) == PASSAGE)
    return [*row[:start], *row[start + len(PASSAGE) :]]


Score = Callable[[Setting, "Tensor", View], "Tensor"]
METHODS: dict[str, tuple[Callable[[Setting], "Guidance | list[Guidance]"], Score]] = {}
