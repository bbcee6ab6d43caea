"""Particles: texts written side by side under local masks, with the weights that make them samples of the right law."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmguide.search.allowed import Judge, draw_allowed

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.constraints.states import ConstraintState


class Particles:
    """Draws every row among its allowed tokens and weighs it by their mass; see `constrained_samples`.

    Args:
        state: The constraint's state of each row, or `None`.
        judge: The predicate, or `None`.
        rows: How many particles.
        ess_threshold: Resample where the effective sample size is below this share of the rows; 0 is never.
        generator: Of the draws.

    Attributes:
        log_weights: `[n]`, float64.
        log_mass: For each row, the log-mass of the allowed tokens at every step so far.
    """

    def __init__(
        self,
        state: ConstraintState | None,
        judge: Judge | None,
        rows: int,
        ess_threshold: float,
        generator: torch.Generator | None,
    ) -> None:
        self.state = state
        self.judge = judge
        self.ess_threshold = ess_threshold
        self.generator = generator
        self.log_weights = torch.zeros(rows, dtype=torch.float64)
        self.log_mass: list[tuple[float, ...]] = [()] * rows

    def __call__(self, generated: Tensor, scores: Tensor, finished: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """A step; see `lmguide.huggingface.particles.Draw`."""
        step = draw_allowed(self.state, self.judge, generated, scores, finished, self.generator)
        log_mass = step.log_mass.cpu()
        live = ~finished.cpu()
        self.log_weights = torch.where(live, self.log_weights + log_mass, self.log_weights)
        self.log_mass = [
            (*past, mass) if alive else past
            for past, mass, alive in zip(self.log_mass, log_mass.tolist(), live.tolist(), strict=True)
        ]
        ended = torch.isneginf(step.log_mass)
        order = self._resampled()
        return step.tokens, None if order is None else order.to(generated.device), ended

    def _resampled(self) -> Tensor | None:
        """Rows to go on with, where the weights have come to differ too much: systematic resampling."""
        if bool(torch.isneginf(self.log_weights).all()):
            return None
        shares = self.log_weights.softmax(0)
        rows = len(shares)
        if 1 / float(shares.square().sum()) >= self.ess_threshold * rows:
            return None
        start = torch.rand((), generator=self.generator, dtype=torch.float64)
        places = (torch.arange(rows, dtype=torch.float64) + start) / rows
        order = torch.searchsorted(shares.cumsum(0), places).clamp_max(rows - 1)
        mean = self.log_weights.logsumexp(0) - torch.tensor(rows, dtype=torch.float64).log()
        self.log_weights = mean.repeat(rows)
        self.log_mass = [self.log_mass[row] for row in order.tolist()]
        return order
