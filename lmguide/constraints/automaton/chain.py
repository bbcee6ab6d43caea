"""Sums over all rows that an automaton accepts, and the best of them: forward and backward through the columns.

The law of a row is `∏_i p_i(x_i) · 1[x accepted]`. The automaton makes it a chain: what may stand behind a place
depends on the state there alone. The work is that of edges between states, not that of tokens.

It knows no model, no canvas and no law over the vocabulary: columns come as scores of classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lmguide.constraints.automaton.lift import TokenDfa

_LOWEST = torch.finfo(torch.float64).min
"""In the place of minus infinity where it is subtracted."""
_MOST_TERMS = 2**20
"""Numbers worked on at once, 8 MiB."""
FREE = -1
"""In the place of a class: any token may stand there."""


class Pass(NamedTuple):
    """One way through the W columns of N rows.

    Attributes:
        scores: Of classes, `[W, N, K]`, float64: the logarithm of the mass of a class, or the score of its best token.
        first: Log-weights of states `[N, Q]` where it begins: before the first column, or behind the last.
        backward: Whether it begins behind the last column.
        held: Places `[W + 1, N]`, from before the first column to behind the last, at which the weights are still those
            of `first`; `None` is only where it begins.
    """

    scores: Tensor
    first: Tensor
    backward: bool
    held: Tensor | None = None


class Chain:
    """The edges of an automaton over tokens, as tensors.

    Classes that lead between the same states wherever they lead are a *group*, summed once; between each two states
    there is one edge, of one group.

    Args:
        dfa: The automaton.
        device: Where its tensors are.
    """

    def __init__(self, dfa: TokenDfa, device: torch.device | str = "cpu") -> None:
        self.dfa = dfa
        self.table = torch.from_numpy(dfa.table.astype(np.int64)).to(device)
        self.classes = torch.from_numpy(dfa.classes.astype(np.int64)).to(device)
        self.accept = torch.from_numpy(dfa.accept).to(device)
        self.states, self.width = self.table.shape
        source, target, group, members = _edges(dfa)
        self._source, self._target, self._group = (torch.from_numpy(x).to(device) for x in (source, target, group))
        self._ways = [self._way(self._source, self._target), self._way(self._target, self._source)]
        self._member_group, self._member = torch.from_numpy(members).to(device)
        self._groups = int(members[0].max(initial=-1)) + 1
        self._finishing = [self.accept]

    def _way(self, first: Tensor, last: Tensor) -> _Way:
        """The edges forward or backward, in the order of the states they lead to."""
        order = last.argsort(stable=True)
        counts = torch.bincount(last, minlength=self.states)
        return _Way(first[order], last[order], self._group[order], counts)

    def weights(self, states: Tensor) -> Tensor:
        """Log-weights `[N, Q]` of rows in known states `[N]`: 0 there, minus infinity elsewhere."""
        found = torch.full((len(states), self.states), -torch.inf, dtype=torch.float64, device=self.table.device)
        return found.scatter_(1, states[:, None], 0.0)

    def sums(self, passes: Sequence[Pass], in_logs: bool = False) -> list[Tensor]:
        """The log-weights of states at every place, for each pass; all passes take their steps together.

        Forward, `a_0 = first` and `a_{i+1}(q') = log Σ exp(a_i(q) + scores_i(k))` over the states q and classes k that
        lead to q'. Backward, `b_W = first` and `b_i(q) = log Σ_k exp(scores_i(k) + b_{i+1}(δ(q, k)))`.

        Probabilities are summed, scaled anew at each place. What is below `1e-308` of the largest is lost there; see
        `lost`. With `in_logs` nothing is, at several times the cost.

        Args:
            passes: Of equal W and N.
            in_logs: Sum logarithms.

        Returns:
            For each pass `[W + 1, N, Q]`, by place from the first to the last.
        """
        if in_logs:
            return self._in_logs(passes, best=False)
        flat = _Flat(self, passes)
        scores = flat.scores()
        shift = scores.amax(2, keepdim=True).clamp_min(_LOWEST)
        mass = self._grouped((scores - shift).exp_(), "sum").flatten(1)
        start = flat.first.amax(1, keepdim=True).clamp_min(_LOWEST)
        first = (flat.first - start).exp_()
        found = first.new_empty(len(mass) + 1, *first.shape)
        scales = first.new_empty(len(mass) + 1, len(first), 1)
        found[0], scales[0] = first, start
        # written in place: memory taken anew at every step costs more than the sums
        terms, masses = (first.new_empty(len(flat.source)) for _ in range(2))
        for step in range(len(mass)):
            torch.index_select(found[step].flatten(), 0, flat.source, out=terms)
            torch.index_select(mass[step], 0, flat.group, out=masses)
            sums = torch.segment_reduce(terms.mul_(masses), "sum", offsets=flat.offsets, unsafe=True)
            total = found[step + 1].copy_(sums.view_as(first))
            largest = total.amax(1, keepdim=True)
            largest.masked_fill_(largest == 0, 1.0)
            total.div_(largest)
            scales[step + 1] = scales[step] + largest.log_() + shift[step]
            if flat.held is not None:
                total.copy_(torch.where(flat.held[step + 1], first, total))
                scales[step + 1] = torch.where(flat.held[step + 1], start, scales[step + 1])
        return flat.split(found.log_() + scales)

    def best(self, passes: Sequence[Pass]) -> list[Tensor]:
        """The same with the largest term in the place of the sum of all: the score of the best way."""
        return self._in_logs(passes, best=True)

    def _in_logs(self, passes: Sequence[Pass], best: bool) -> list[Tensor]:
        flat = _Flat(self, passes)
        scores = self._grouped(flat.scores(), "max" if best else "logsumexp").flatten(1)
        found = flat.first.new_empty(len(scores) + 1, *flat.first.shape)
        found[0] = flat.first
        terms, others = (found.new_empty(len(flat.source)) for _ in range(2))
        for step in range(len(scores)):
            torch.index_select(found[step].flatten(), 0, flat.source, out=terms)
            torch.index_select(scores[step], 0, flat.group, out=others)
            _reduced(terms.add_(others), flat.target, found[step + 1].view(-1), best)
            if flat.held is not None:
                found[step + 1] = torch.where(flat.held[step + 1], flat.first, found[step + 1])
        return flat.split(found)

    def path(self, behind: Tensor, tops: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """The classes along the best way: at each place the k with the largest `tops_i(k) + behind_{i+1}(δ(q, k))`.

        With `behind` of `best` over `tops` that is the likeliest row (Viterbi). With `behind` of sums, and `tops` to
        which each token's own Gumbel noise was added, it is a draw from the law of the rows.

        Args:
            behind: `[W + 1, N, Q]` of a backward pass.
            tops: `[W, N, K]`.
            state: State before each row's first column, `[N]`.
            begins: Place at which each row begins, `[N]`.

        Returns:
            Classes `[W, N]` and the states before each place `[W + 1, N]`; whatever they may be where a row has not
            begun, or behind places that were held.
        """
        classes, states = [], [state]
        for place in range(len(tops)):
            ahead = behind[place + 1].gather(1, self.table[state])
            chosen = (tops[place] + ahead).argmax(1)
            after = self.table[state, chosen]
            state = torch.where(begins <= place, after, state)
            classes.append(chosen)
            states.append(state)
        return torch.stack(classes), torch.stack(states)

    def class_weight(self, before: Tensor, behind: Tensor, classes: Tensor) -> Tensor:
        """What all else says of one class at some places: `log Σ_q exp(before(q) + behind(δ(q, k)))`.

        Args:
            before: Forward weights before each place, `[n, Q]`.
            behind: Backward weights behind it, `[n, Q]`.
            classes: k, `[n]`.

        Returns:
            `[n]`.
        """
        return (before + behind.gather(1, self.table.T[classes])).logsumexp(1)

    def class_weights(self, before: Tensor, behind: Tensor) -> Tensor:
        """The same for all classes at once, `[n, K]`; minus infinity for the class of tokens that lead nowhere."""
        most = max(1, _MOST_TERMS // max(1, len(self._source)))
        parts = zip(before.split(most), behind.split(most), strict=True)
        return torch.cat([self._class_weights(*part) for part in parts])

    def _class_weights(self, before: Tensor, behind: Tensor) -> Tensor:
        shifts = [each.amax(1, keepdim=True).clamp_min(_LOWEST) for each in (before, behind)]
        left, right = ((each - shift).exp_().T for each, shift in zip((before, behind), shifts, strict=True))
        terms = left.index_select(0, self._source).mul_(right.index_select(0, self._target))
        grouped = terms.new_zeros(self._groups, len(before)).index_add_(0, self._group, terms)
        found = terms.new_zeros(self.width, len(before))
        found.index_add_(0, self._member, grouped.index_select(0, self._member_group))
        return found.T.log() + shifts[0] + shifts[1]

    def advanced(self, state: Tensor, classes: Tensor) -> Tensor:
        """The states `[N]` behind columns of known classes `[W, N]`; where the class is `FREE`, the state stays."""
        for column in classes:
            state = torch.where(column == FREE, state, self.table[state, column.clamp_min(0)])
        return state

    def finishing(self, classes: Tensor, columns: Tensor) -> Tensor:
        """The states from which a row can be finished in the columns it has left.

        Args:
            classes: What stands in the columns behind a place, `[T, N]`; `FREE` where nothing does.
            columns: How many of them are the row's, from the first one, `[N]`, at most T.

        Returns:
            `[N, Q]` bool.
        """
        if bool((classes == FREE).all()):
            most = int(columns.max())
            while len(self._finishing) <= most:
                self._finishing.append(self._one_before(self._finishing[-1][None])[0])
            return torch.stack(self._finishing[: most + 1])[columns]
        able = self.accept.expand(len(columns), -1)
        for place in range(len(classes) - 1, -1, -1):
            column = classes[place]
            known = able.gather(1, self.table.T[column.clamp_min(0)])
            before = torch.where((column == FREE)[:, None], self._one_before(able), known)
            able = torch.where((place < columns)[:, None], before, able)
        return able

    def _grouped(self, values: Tensor, how: str) -> Tensor:
        """What classes have, `[W, N, K]`, by groups `[W, N, G]`: `"sum"`, `"max"` or `"logsumexp"`."""
        terms = values.index_select(2, self._member)
        if len(self._member) == self._groups:
            return terms
        shape = (*values.shape[:2], self._groups)
        counts = torch.bincount(self._member_group, minlength=self._groups).repeat(shape[0] * shape[1])
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))

        def reduced(terms: Tensor, how: str) -> Tensor:
            return torch.segment_reduce(terms.flatten(), how, offsets=offsets, unsafe=True).view(shape)

        if how != "logsumexp":
            return reduced(terms, how)
        shift = reduced(terms, "max").clamp_min(_LOWEST)
        return reduced((terms - shift.index_select(2, self._member_group)).exp_(), "sum").log_() + shift

    def _one_before(self, able: Tensor) -> Tensor:
        """The states from which one token leads to one of these, `[N, Q]`."""
        found = torch.zeros_like(able, dtype=torch.float32)
        return found.index_add_(1, self._source, able.index_select(1, self._target).float()) > 0


class _Way(NamedTuple):
    """Edges in one direction, `[E]`, in the order of `last`; and how many lead to each state, `[Q]`."""

    first: Tensor
    last: Tensor
    group: Tensor
    counts: Tensor


class _Flat:
    """Passes laid out side by side, as rows of one table of states."""

    def __init__(self, chain: Chain, passes: Sequence[Pass]) -> None:
        self._passes = passes
        count = len(passes[0].first)
        device = chain.table.device
        row = torch.arange(len(passes) * count, device=device)[:, None]
        ways = [chain._ways[each.backward] for each in passes for _ in range(count)]

        def laid(name: str, width: int) -> Tensor:
            """Numbers of states or groups, each row's behind those of the row before."""
            return (torch.stack([getattr(way, name) for way in ways]) + row * width).flatten()

        self.source, self.target = laid("first", chain.states), laid("last", chain.states)
        self.group = laid("group", chain._groups)
        counts = torch.stack([way.counts for way in ways]).flatten()
        self.offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        self.first = torch.cat([each.first for each in passes])
        self.held = self._held()

    def scores(self) -> Tensor:
        """Scores of classes `[W, P N, K]`, in the order in which the passes go."""
        return torch.cat([_turned(each.scores, each) for each in self._passes], 1)

    def split(self, weights: Tensor) -> list[Tensor]:
        """Weights `[W + 1, P N, Q]` by pass, by place from the first to the last."""
        parts = weights.split(len(self._passes[0].first), 1)
        return [_turned(part, each) for part, each in zip(parts, self._passes, strict=True)]

    def _held(self) -> Tensor | None:
        if all(each.held is None for each in self._passes):
            return None
        places, count = len(self._passes[0].scores) + 1, len(self._passes[0].first)
        none = torch.zeros(places, count, dtype=torch.bool, device=self.first.device)
        parts = [none if each.held is None else _turned(each.held, each) for each in self._passes]
        return torch.cat(parts, 1)[:, :, None]


def _turned(by_place: Tensor, each: Pass) -> Tensor:
    """By place in the order in which a pass goes, or back."""
    return by_place.flip(0) if each.backward else by_place


def _reduced(terms: Tensor, target: Tensor, out: Tensor, best: bool) -> None:
    """Terms `[E]` by their targets: the largest, or the logarithm of the sum of exponentials."""
    out.fill_(-torch.inf).scatter_reduce_(0, target, terms, "amax")
    if not best:
        shift = out.clamp_min(_LOWEST)
        parts = (terms - shift.index_select(0, target)).exp_()
        out.copy_(torch.zeros_like(shift).index_add_(0, target, parts).log_().add_(shift))


def _edges(dfa: TokenDfa) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Source, target and group of each edge, and the pairs of group and class `[2, P]`."""
    states, classes = (each.astype(np.int64) for each in dfa.table.nonzero())
    pairs = states * len(dfa.table) + dfa.table[states, classes]
    order = np.argsort(pairs, kind="stable")
    found, begin = np.unique(pairs[order], return_index=True)
    known: dict[bytes, int] = {}
    group = np.zeros(len(found), np.int64)
    members: list[NDArray[np.int64]] = []
    for place, part in enumerate(np.split(classes[order], begin[1:])):
        name = part.tobytes()
        if name not in known:
            known[name] = len(known)
            members.append(np.stack([np.full(len(part), known[name]), part]))
        group[place] = known[name]
    return found // len(dfa.table), found % len(dfa.table), group, np.concatenate(members, 1)
