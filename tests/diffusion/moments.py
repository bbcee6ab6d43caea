"""Steps of made-up windows, for the tests of orders, correctors and early commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmguide.diffusion.noise import RowNoise
from lmguide.diffusion.orders import Decisions, Moment
from lmguide.measures import entropy

if TYPE_CHECKING:
    from torch import Tensor

VOCAB = 12
ROWS, WIDTH = 6, 9
QUOTAS = [0, 1, 2, 20, 3, 2]
"""One number per row: nothing, something, more than there are."""


def case(seed: int) -> tuple[Decisions, Tensor]:
    """Candidates of `ROWS` windows, every other time drawn with a temperature, and open positions."""
    tokens = random_tokens(ROWS, WIDTH, seed) if seed % 2 else None
    return decisions_of(random_laws(ROWS, WIDTH, seed), tokens), random_open(ROWS, WIDTH, seed)


def decisions_of(logp: Tensor, tokens: Tensor | None = None) -> Decisions:
    """What is known of laws `[B, W, V]`, when their likeliest tokens or `tokens` `[B, W]` were drawn."""
    tokens = logp.argmax(-1) if tokens is None else tokens
    top, second = logp.topk(2).values.unbind(-1)
    return Decisions(tokens, logp.gather(-1, tokens[..., None])[..., 0], top, second, entropy(logp))


def random_laws(rows: int, width: int, seed: int, sharpness: float = 6.0) -> Tensor:
    """Log-probabilities `[B, W, V]` from flat to sharp, so that thresholds and bounds fall among them."""
    generator = torch.Generator().manual_seed(seed)
    spread = sharpness * torch.rand(rows, width, 1, generator=generator)
    return (spread * torch.randn(rows, width, VOCAB, generator=generator)).log_softmax(-1)


def random_tokens(rows: int, width: int, seed: int) -> Tensor:
    """Tokens as a high temperature would draw them: often not the likeliest."""
    return torch.randint(VOCAB, (rows, width), generator=torch.Generator().manual_seed(seed))


def random_open(rows: int, width: int, seed: int) -> Tensor:
    """Undecided positions: all of the first row, none of the last, half of the others."""
    open_ = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    open_[0], open_[-1] = True, False
    return open_


def moment_of(
    open_: Tensor,
    quota: list[int] | Tensor | None = None,
    *,
    step: int = 1,
    steps: int = 4,
    fraction: float = 0.25,
    keys: Tensor | None = None,
) -> Moment:
    """A step of a window; rows have the keys 0, 1, ... if none are given."""
    noise = RowNoise(torch.arange(len(open_)) if keys is None else keys)
    quota = torch.full((len(open_),), 2) if quota is None else torch.as_tensor(quota)
    return Moment(
        open=open_,
        quota=quota,
        steps_left=steps - step,
        fraction=fraction,
        uniform=lambda stream: noise.uniform(stream, step, 0, open_.shape[1]),
        step=step,
    )


def rows_of(decisions: Decisions, rows: Tensor) -> Decisions:
    """Some rows alone."""
    each = (decisions.tokens, decisions.log_prob, decisions.top, decisions.second, decisions.entropy)
    return Decisions(*(statistic[rows] for statistic in each))
