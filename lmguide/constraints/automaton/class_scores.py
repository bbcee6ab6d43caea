"""What laws over a vocabulary say of classes of tokens: their mass, their best token, and what statistics need.

The only work that goes by tokens. It knows no automaton, no row and no order of columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tops(NamedTuple):
    """The best token of each class, `[n, K]`.

    Attributes:
        score: Its score; minus infinity where a class has no token, or none that may be.
        token: The leftmost token with this score.
    """

    score: Tensor
    token: Tensor


class Spread(NamedTuple):
    """What the two likeliest tokens and the entropy of a law take of each class, `[n, K]`.

    Attributes:
        mean: `Σ_{v in k} p(v) log p(v) / Σ_{v in k} p(v)`, 0 where the class has no mass.
        top: The largest log-probability.
        second: That of the token next to it; minus infinity where there is none.
    """

    mean: Tensor
    top: Tensor
    second: Tensor


class ByClass:
    """Laws over V tokens as laws over K classes.

    Args:
        classes: The class of each token, `[V]`; tokens of class 0 are never wanted and not looked at.
        width: K.

    Example:
        >>> by_class = ByClass(torch.tensor([1, 0, 1, 2]), 3)
        >>> law = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
        >>> by_class.mass(law)[:, 1:].exp().float(), by_class.tops(law).token[:, 1:]
        (tensor([[0.4000, 0.4000]]), tensor([[2, 3]]))
    """

    def __init__(self, classes: Tensor, width: int) -> None:
        self.width = width
        live = classes.nonzero()[:, 0]
        # taking out the few that are wanted costs less than looking at all, up to about this share
        self._tokens = live if 2 * len(live) < len(classes) else None
        self._classes = classes if self._tokens is None else classes[live]

    def mass(self, log_probs: Tensor) -> Tensor:
        """`log Σ_{v in k} p(v)`, `[n, K]` in float64, from log-probabilities `[n, V]`."""
        shift, gaps = self._gaps(self._part(log_probs))
        return self._sum(gaps.exp_()).log().double() + shift

    def tops(self, scores: Tensor) -> Tops:
        """The best token of each class by its score, `[n, V]` to `[n, K]`."""
        part = self._part(scores)
        best = self._largest(part)
        return Tops(best.double(), self._leftmost(part == best.index_select(1, self._classes)))

    def mass_and_tops(self, log_probs: Tensor) -> tuple[Tensor, Tops]:
        """Both of one law, for less than one after the other."""
        part = self._part(log_probs)
        shift, gaps = self._gaps(part)
        token = self._leftmost(gaps == 0)
        mass = self._sum(gaps.exp_()).log().double() + shift
        return mass, Tops(shift.double().masked_fill(mass == -torch.inf, -torch.inf), token)

    def spread(self, log_probs: Tensor) -> Spread:
        """What statistics need of each class."""
        part = self._part(log_probs)
        shift, gaps = self._gaps(part)
        mass = gaps.exp()
        mean = self._sum(mass * part.clamp_min(torch.finfo(part.dtype).min)) / self._sum(mass)
        first = self._leftmost(gaps == 0)
        rest = log_probs.clone()
        rest.scatter_(1, first, -torch.inf)
        second = self._largest(self._part(rest))
        return Spread(mean.nan_to_num(0.0).double(), self._largest(part).double(), second.double())

    def _part(self, scores: Tensor) -> Tensor:
        return scores if self._tokens is None else scores.index_select(1, self._tokens)

    def _largest(self, part: Tensor) -> Tensor:
        found = part.new_full((len(part), self.width), -torch.inf)
        return found.scatter_reduce_(1, self._classes.expand_as(part), part, "amax")

    def _sum(self, part: Tensor) -> Tensor:
        return part.new_zeros(len(part), self.width).index_add_(1, self._classes, part)

    def _gaps(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """The largest of each class, and how far each token is below its own."""
        shift = self._largest(part).clamp_min(torch.finfo(part.dtype).min)
        return shift, part - shift.index_select(1, self._classes)

    def _leftmost(self, hits: Tensor) -> Tensor:
        """The first token of each class among hits; 0 where there is none."""
        rows, places = hits.nonzero().unbind(1)
        cells = rows * self.width + self._classes[places]
        tokens = places if self._tokens is None else self._tokens[places]
        most = torch.iinfo(torch.int64).max
        found = tokens.new_full((len(hits) * self.width,), most).scatter_reduce_(0, cells, tokens, "amin")
        return found.masked_fill_(found == most, 0).view(len(hits), self.width)
