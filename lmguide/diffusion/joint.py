"""Decisions under constraints: tokens of all open positions that are allowed together, and laws given that they are.

    p(x) ∝ ∏_i p_i(x_i) · 1[x allowed]

At temperature 0 the likeliest allowed row, else a draw from this law; how sure a position is, is its marginal. Whatever
an order commits of such a row, the rest of it is a completion that is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from lmguide.constraints.automaton.chain import FREE
from lmguide.constraints.automaton.class_scores import Spread, Tops
from lmguide.diffusion.decisions import NOTHING_LEFT, decide
from lmguide.diffusion.orders import Decisions
from lmguide.diffusion.sampling import draw

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from lmguide.constraints.automaton.rows import Marginals, Paths, Rows
    from lmguide.denoisers.guide import Law
    from lmguide.diffusion.decisions import Sampler
    from lmguide.diffusion.spans import SpanGroup
    from lmguide.sources.canvas import Canvas

EXCLUDED = -1e4
"""Log-probability of a token that guidance excludes, in a row in which the rest leaves no allowed text: as few of them
as can be are written."""


def decide_jointly(
    law: Law,
    canvas: Canvas,
    groups: Sequence[SpanGroup],
    wanted: Tensor,
    start: int,
    step: int,
    sampler: Sampler,
    filtered: bool,
    reads: frozenset[str],
) -> Decisions:
    """A token for every wanted position, those of a span allowed together, and what orders go by.

    Arguments are those of `decide`, and:

    Args:
        law: The guided laws of the step.
        canvas: The canvases; what stands on them is evidence.
        groups: Spans under constraints. Positions outside them are decided by themselves.
        wanted: Positions to decide, `[B, W]`.
        start: Column of the first of them.
        step: Number of the step, for the noise.
        sampler: How tokens are drawn. Temperature divides the guided law; top-k and top-p cut its marginals, given what
            is allowed. A row in which they leave no allowed text does without them.
        filtered: Statistics of the law after temperature and filters in the place of the one before.
        reads: Which of `second` and `entropy` are asked for.

    Raises:
        ValueError: A row without an allowed text of any probability, which only scores that are NaN leave.
    """
    shape, device = wanted.shape, wanted.device
    rest = wanted.clone()
    tokens = torch.full(shape, -1, dtype=torch.long, device=device)
    log_prob, top, second = (torch.full(shape, -torch.inf, device=device) for _ in range(3))
    found = Decisions(tokens, log_prob, top, second, torch.full(shape, torch.inf, device=device))
    for group in groups:
        mine = wanted[group.row] & group.inside(start, start + shape[1])
        spans = mine.any(1).nonzero()[:, 0]
        if not len(spans):
            continue
        rows, known = group.rows(canvas, spans, mine[spans], start)
        places = mine[spans].nonzero()
        where = group.row[spans][places[:, 0]], places[:, 1]
        decided = _Step(law, group, rows, known, places, where[0], start, step, sampler, filtered, reads).decide()
        for name, values in zip(("tokens", "log_prob", "top", "second", "entropy"), decided, strict=True):
            part = getattr(found, name)
            part[where] = values.to(part.dtype)
        rest[where] = False
    if not bool(rest.any()):
        return found
    alone = decide(law, rest, start, step, sampler, filtered, reads)
    names = ("tokens", "log_prob", "top", "second", "entropy")
    return replace(found, **{name: torch.where(rest, getattr(alone, name), getattr(found, name)) for name in names})


class _Reading(NamedTuple):
    """What the laws of P positions say of classes, `[P, K]`.

    Attributes:
        mass: Of the law that is drawn from.
        tops: Its best tokens, with noise where there is temperature.
        certain: Mass of the law that statistics are of; the same tensor where that is the same law.
        value: Log-probability of the best tokens under that law.
        spread: For its two likeliest tokens and its entropy, if they are asked for.
    """

    mass: Tensor
    tops: Tops
    certain: Tensor
    value: Tensor
    spread: Spread | None


@dataclass(frozen=True, eq=False)
class _Step:
    """The spans of one automaton at one step; `places` `[P, 2]` are the wanted positions as span and column."""

    law: Law
    group: SpanGroup
    rows: Rows
    known: Tensor
    places: Tensor
    canvas_rows: Tensor
    start: int
    step: int
    sampler: Sampler
    filtered: bool
    reads: frozenset[str]

    def decide(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Tokens, their log-probabilities, the largest two, and entropies, each `[P]`."""
        reading, paths, marginals = self._tried(None)
        possible = paths.possible & marginals.total.isfinite()
        if not bool(possible.all()):
            reading, paths, marginals = self._tried(~possible)
            if not bool((paths.possible & marginals.total.isfinite()).all()):
                raise ValueError(NOTHING_LEFT)
        span, column = self.places.unbind(1)
        chosen = paths.classes[column, span]
        before, behind = marginals.before[column, span], marginals.behind[column + 1, span]
        total = marginals.total[span]
        weight = self.group.chain.class_weight(before, behind, chosen) - total
        token, value = (each.gather(1, chosen[:, None])[:, 0] for each in (reading.tops.token, reading.value))
        log_prob = (value + weight).clamp_max(0.0)
        if reading.spread is None:
            none = torch.full_like(log_prob, -torch.inf)
            return token, log_prob, none, none, -none
        weights = self.group.chain.class_weights(before, behind) - total[:, None]
        return token, log_prob, *_statistics(reading, weights)

    def _tried(self, opened: Tensor | None) -> tuple[_Reading, Paths, Marginals]:
        """Rows under the laws; in spans that are `opened` no token is quite excluded."""
        if not self.sampler.cuts:
            reading = self._read(opened)
            return reading, *self._solved(reading)
        marginals = self.rows.marginals(self._columns(self._masses(opened)))
        span, column = self.places.unbind(1)
        weights = self.group.chain.class_weights(marginals.before[column, span], marginals.behind[column + 1, span])
        reading = self._read(opened, weights)
        paths, marginals = self._solved(reading)
        if bool(paths.possible.all()):
            return reading, paths, marginals
        kept, uncut = paths.possible[span][:, None], self._read(opened)
        reading = _chosen(kept, reading, uncut)
        return reading, *self._solved(reading)

    def _solved(self, reading: _Reading) -> tuple[Paths, Marginals]:
        mass, tops = self._columns(reading.mass), self._columns(reading.tops.score)
        same = reading.certain is reading.mass
        marginals = self.rows.marginals(mass if same else self._columns(reading.certain))
        if self.sampler.temperature == 0:
            return self.rows.best(tops), marginals
        return self.rows.draw(mass, tops, marginals.behind if same else None), marginals

    def _columns(self, values: Tensor) -> Tensor:
        """Scores of classes `[W, n, K]` from those of positions, what stands in a column as the only class there."""
        width = self.group.chain.width
        found = values.new_zeros(*self.known.shape, width)
        stands = self.known != FREE
        found.masked_fill_(stands[:, :, None], -torch.inf)
        found.scatter_(2, self.known.clamp_min(0)[:, :, None], 0.0)
        found[self.places[:, 1], self.places[:, 0]] = values
        return found

    def _laws(self, opened: Tensor | None) -> Iterator[tuple[Tensor, Tensor, slice, Tensor, Tensor]]:
        """Laws of some positions at a time, and the same after temperature; which they are, their rows and columns."""
        temperature, done = self.sampler.temperature, 0
        for part in self.law.chunks(self.places):
            here = slice(done, done + len(part))
            rows, columns, done = self.canvas_rows[here], part[:, 1] + self.start, done + len(part)
            law = self.law.at(rows, columns)[0]
            if opened is not None:
                law = torch.where(opened[part[:, 0], None], law.clamp_min(EXCLUDED), law)
            yield law, law if temperature in {0, 1} else law / temperature, here, rows, columns

    def _masses(self, opened: Tensor | None) -> Tensor:
        """Masses of classes under the law after temperature, `[P, K]`."""
        return torch.cat([self.group.by_class.mass(warm) for _, warm, *_ in self._laws(opened)])

    def _read(self, opened: Tensor | None, weights: Tensor | None = None) -> _Reading:
        """What laws say of classes; with `weights` `[P, K]` of all else after top-k and top-p of the marginals."""
        by_class, sampler, parts = self.group.by_class, self.sampler, []
        one_law = self.filtered or (sampler.temperature in {0, 1} and weights is None)
        for law, warm, here, rows, columns in self._laws(opened):
            if weights is not None:
                marginal = warm + weights[here][:, self.group.chain.classes].to(warm.dtype)
                cut = draw(marginal, 0.0, sampler.top_p, sampler.top_k)[1]
                warm = warm.masked_fill(cut == -torch.inf, -torch.inf)
            if sampler.temperature == 0:
                mass, tops = by_class.mass_and_tops(warm)
            else:
                noise = sampler.noise.gumbel(rows, columns, self.step, warm.shape[1])
                mass, tops = by_class.mass(warm), by_class.tops(noise.add_(warm))
            stat = warm if self.filtered else law
            certain = mass if one_law else by_class.mass(law)
            value = stat.gather(1, tops.token).double()
            parts.append((mass, *tops, certain, value, *(by_class.spread(stat) if self.reads else ())))
        mass, score, token, certain, value, *spread = (torch.cat(each) for each in zip(*parts, strict=True))
        return _Reading(
            mass, Tops(score, token), mass if one_law else certain, value, Spread(*spread) if self.reads else None
        )


def _chosen(kept: Tensor, reading: _Reading, other: _Reading) -> _Reading:
    """One reading where `kept`, `[P, 1]`, the other elsewhere."""

    def both(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(kept, first, second)

    mass = both(reading.mass, other.mass)
    spread = None
    if reading.spread is not None and other.spread is not None:
        spread = Spread(*map(both, reading.spread, other.spread))
    certain = mass if reading.certain is reading.mass else both(reading.certain, other.certain)
    tops = Tops(*map(both, reading.tops, other.tops))
    return _Reading(mass, tops, certain, both(reading.value, other.value), spread)


def _statistics(reading: _Reading, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two largest log-probabilities and the entropy of marginals, each `[P]`.

    The marginal of a token is its probability times what all else says of its class: `log p(v) + weights(k)`.
    """
    spread = reading.spread
    assert spread is not None
    best = (spread.top + weights).topk(min(2, weights.shape[1]), 1)
    beside = (spread.second + weights).gather(1, best.indices[:, :1])[:, 0]
    share = (reading.certain + weights).exp()
    entropy = -(share * (spread.mean + weights).nan_to_num(neginf=0.0)).sum(1)
    return best.values[:, 0], torch.maximum(best.values[:, -1], beside), entropy.clamp_min(0.0)
