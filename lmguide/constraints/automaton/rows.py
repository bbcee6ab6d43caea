"""Rows of a canvas under one automaton: the law of what is open, given what stands before, between and behind it.

    p(x) ∝ ∏_i p_i(x_i) · 1[the row is accepted, or can be finished in the columns behind]

Marginals, draws and the likeliest row, exactly, whatever the order in which positions were decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lmguide.constraints.automaton.chain import Chain, Pass

_RANGE = 345.0
"""`-log 1e-150`: how far a sum may be below the largest terms and still be exact to the last digit, as what is lost in
`Chain.sums` is below `1e-308` of them."""


class Marginals(NamedTuple):
    """Sums over all rows that are allowed.

    Attributes:
        before: Log-weight of the columns before a place, by state there, `[W + 1, N, Q]`.
        behind: That of the columns behind it, `[W + 1, N, Q]`.
        total: Log-weight of all allowed rows, `[N]`; minus infinity where the law allows none.
    """

    before: Tensor
    behind: Tensor
    total: Tensor


class Paths(NamedTuple):
    """One row each.

    Attributes:
        classes: By column, `[W, N]`.
        possible: Whether the law allows it, `[N]`.
    """

    classes: Tensor
    possible: Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """W columns of N rows.

    Attributes:
        chain: The automaton.
        state: State before the first of its columns, `[N]`.
        able: States `[N, Q]` from which the rest of the row can be finished.
        begins: Places `[N]` at which the rows begin, from 0.
        ends: Places `[N]` before which what is decided here ends, at most W; `able` is about these.
        columns: W.
    """

    chain: Chain
    state: Tensor
    able: Tensor
    begins: Tensor
    ends: Tensor
    columns: int

    def marginals(self, mass: Tensor) -> Marginals:
        """Forward and backward sums.

        Args:
            mass: `log Σ_{v in k} p_i(v)`, `[W, N, K]`; 0 for the class of a token that stands and minus infinity for
                all others.
        """
        passes = [self._forward(mass), self._backward(mass)]
        found = self._marginals(*self.chain.sums(passes))
        most = mass.amax(2) + found.before[:-1].amax(2) + found.behind[1:].amax(2)
        least = most.masked_fill(~self._inside(), -torch.inf).amax(0) - _RANGE
        if bool((found.total >= least).all()):
            return found
        return self._marginals(*self.chain.sums(passes, in_logs=True))

    def draw(self, mass: Tensor, tops: Tensor, behind: Tensor | None = None) -> Paths:
        """A draw from the law of the rows.

        Args:
            mass: As for `marginals`.
            tops: The largest `log p_i(v) + g` of each class, with standard Gumbel noise g, `[W, N, K]`.
            behind: Of `marginals`, if they are known.
        """
        if behind is not None:
            return self._path(behind, tops)[0]
        way = self._backward(mass)
        (behind,) = self.chain.sums([way])
        found, states = self._path(behind, tops)
        there = behind[:-1].gather(2, states[:-1, :, None])[:, :, 0]
        least = mass.amax(2) + behind[1:].amax(2) - _RANGE
        if bool(((there >= least) | ~self._inside()).all()):
            return found
        (behind,) = self.chain.sums([way], in_logs=True)
        return self._path(behind, tops)[0]

    def best(self, tops: Tensor) -> Paths:
        """The likeliest row (Viterbi; DINGO, arXiv 2505.23061).

        Args:
            tops: The largest `log p_i(v)` of each class, `[W, N, K]`.
        """
        (behind,) = self.chain.best([self._backward(tops)])
        return self._path(behind, tops)[0]

    def _forward(self, scores: Tensor) -> Pass:
        held = self._places()[:, None] <= self.begins if bool((self.begins > 0).any()) else None
        return Pass(scores, self.chain.weights(self.state), False, held)

    def _backward(self, scores: Tensor) -> Pass:
        held = self._places()[:, None] >= self.ends if bool((self.ends < self.columns).any()) else None
        first = torch.zeros_like(self.able, dtype=torch.float64).masked_fill_(~self.able, -torch.inf)
        return Pass(scores, first, True, held)

    def _places(self) -> Tensor:
        return torch.arange(self.columns + 1, device=self.state.device)

    def _inside(self) -> Tensor:
        """Columns `[W, N]` of the rows."""
        columns = self._places()[:-1, None]
        return (columns >= self.begins) & (columns < self.ends)

    def _marginals(self, before: Tensor, behind: Tensor) -> Marginals:
        return Marginals(before, behind, self._total(behind))

    def _total(self, behind: Tensor) -> Tensor:
        rows = torch.arange(len(self.state), device=self.state.device)
        found: Tensor = behind[self.begins, rows, self.state]
        return found

    def _path(self, behind: Tensor, tops: Tensor) -> tuple[Paths, Tensor]:
        classes, states = self.chain.path(behind, tops, self.state, self.begins)
        return Paths(classes, self._total(behind) > -torch.inf), states
