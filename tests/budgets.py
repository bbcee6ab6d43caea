"""Predictors of lengths for tests, and the reward of a budget as it is written: one row and law by itself, no cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch

from tests.families import VOCAB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmguide.descriptions.budget import RunningText

LAYERS = (1, -1)
WIDTH = 32
"""Of the tiny models' states."""
RATE = 3.0
"""About half of the laws have a larger rate."""


@cache
def _maps() -> Tensor:
    return torch.randn(2, len(LAYERS) * WIDTH, VOCAB, generator=torch.Generator().manual_seed(7)) / 8


def laws(states: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and rate `[..., V]` from the states of the two layers, `[..., 2, D]`."""
    mean, rate = (torch.nn.functional.softplus(states.flatten(-2) @ each) for each in _maps())
    return (mean + 1) * (4 * rate + 0.1), 4 * rate + 0.1


@dataclass(frozen=True, eq=False)
class ByStates:
    """Gamma laws from hidden states, of the guided model or of another one."""

    reader: Any = None
    layers: tuple[int, ...] = LAYERS

    def gamma(self, text: RunningText) -> tuple[Tensor, Tensor]:
        assert text.states is not None
        return laws(text.states)


class ByText:
    """Log-probabilities from the last two tokens and the number of tokens."""

    def log_prob_within(self, text: RunningText, budget: Tensor) -> Tensor:
        ids = [row[mask.bool()].tolist() for row, mask in zip(text.ids, text.attention_mask, strict=True)]
        return torch.stack([by_text(row, float(left)) for row, left in zip(ids, budget, strict=True)])


def by_text(ids: Sequence[int], left: float) -> Tensor:
    generator = torch.Generator().manual_seed(sum(ids[-2:]) * 1000 + len(ids))
    return -torch.rand(VOCAB, generator=generator) * 20 / left


@lru_cache(maxsize=100_000)
def _states(model: Any, ids: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True).hidden_states
    return torch.stack([hidden[layer][0, -1] for layer in LAYERS])


def log_reward(model: Any, text: Sequence[int], left: int, min_rate: float | None = None) -> Tensor:
    """`log P(remaining tokens <= left)` for every next token, `[V]`, by `ByStates` on a model."""
    shape, rate = (law.double() for law in laws(_states(model, tuple(text))))
    within: Tensor = torch.distributions.Gamma(shape, rate).cdf(torch.tensor(math.log(left + 1)).double()).log()
    return (within if min_rate is None else within.where(rate >= min_rate, -math.inf)).float()
