"""Sums, marginals, draws and best rows against all rows, one by one."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lmguide.constraints import Regex
from lmguide.constraints.automaton.chain import FREE, Chain, Pass
from lmguide.constraints.automaton.class_scores import ByClass
from lmguide.constraints.automaton.ends import with_ends
from lmguide.constraints.automaton.rows import Marginals, Paths, Rows
from lmguide.constraints.automaton.store import token_dfa

TOKENS = [b"a", b"b", b"ab", b"ba", b"c", b""]
END, VOCAB = 5, 6
PATTERNS = ["(ab)*c?|b+", "(a|b)*a(a|b)(c|a)*", "c{1,3}", "[^c]*", "(ab|ba|c)+"]


class Case(NamedTuple):
    """A chain, laws `[W, N, V]`, and what stands, `FREE` where nothing does, `[W, N]`."""

    chain: Chain
    laws: Tensor
    stands: Tensor

    @property
    def by_class(self) -> ByClass:
        return ByClass(self.chain.classes, self.chain.width)

    def columns(self, values: Tensor) -> Tensor:
        """Scores of classes where the token that stands is the only one."""
        found = values.view(*self.stands.shape, -1).clone()
        for (place, row), token in np.ndenumerate(self.stands.numpy()):
            if token != FREE:
                found[place, row] = -torch.inf
                found[place, row, self.chain.classes[token]] = 0.0
        return found

    @property
    def mass(self) -> Tensor:
        return self.columns(self.by_class.mass(self.laws.flatten(0, 1)))

    @property
    def tops(self) -> Tensor:
        return self.columns(self.by_class.tops(self.laws.flatten(0, 1)).score)

    def rows(self, begins: int = 0, ends: int | None = None, able: Tensor | None = None) -> Rows:
        columns, count = self.stands.shape
        full = torch.full((count,), columns if ends is None else ends)
        state = torch.full((count,), self.chain.dfa.start)
        able = self.chain.accept.expand(count, -1) if able is None else able
        return Rows(self.chain, state, able, torch.full((count,), begins), full, columns)

    def all_rows(self, row: int, first: int = 0, last: int | None = None) -> dict[tuple[int, ...], float]:
        """Every allowed row of tokens with its log-probability; what stands costs nothing."""
        places = range(first, len(self.stands) if last is None else last)
        found = {}
        for tokens in itertools.product(range(VOCAB), repeat=len(places)):
            stand = [int(self.stands[place, row]) for place in places]
            if self.chain.dfa.accepts(tokens) and all(s in {FREE, t} for s, t in zip(stand, tokens, strict=True)):
                score = sum(
                    float(self.laws[place, row, token])
                    for place, token, s in zip(places, tokens, stand, strict=True)
                    if s == FREE
                )
                found[tokens] = score
        return found


def case(pattern: str, columns: int = 4, rows: int = 3, spread: float = 1.0, fixed: bool = True) -> Case:
    chain = Chain(with_ends(token_dfa(Regex(pattern), TOKENS), [END]))
    generator = torch.Generator().manual_seed(0)
    laws = (torch.randn(columns, rows, VOCAB, generator=generator, dtype=torch.float64) * spread).log_softmax(-1)
    stands = torch.full((columns, rows), FREE)
    found = Case(chain, laws, stands)
    if fixed:  # the second row has some columns of one of its texts already
        first = sorted(found.all_rows(1))[1]
        stands[1, 1], stands[3, 1] = first[1], first[3]
    return found


def tokens_of(case: Case, paths: Paths, scores: Tensor) -> Tensor:
    tops = case.by_class.tops(scores.flatten(0, 1)).token.view(*case.stands.shape, -1)
    found = tops.gather(2, paths.classes[:, :, None])[:, :, 0]
    return torch.where(case.stands == FREE, found, case.stands)


def distribution(rows: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    total = float(torch.tensor(list(rows.values()), dtype=torch.float64).logsumexp(0))
    return {row: float(np.exp(score - total)) for row, score in rows.items()}


@pytest.mark.parametrize("in_logs", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_sums(pattern: str, in_logs: bool) -> None:
    the = case(pattern)
    rows = the.rows()
    before, behind = the.chain.sums([rows._forward(the.mass), rows._backward(the.mass)], in_logs)
    for row in range(3):
        total = torch.tensor(list(the.all_rows(row).values()), dtype=torch.float64).logsumexp(0)
        torch.testing.assert_close(behind[0, row, the.chain.dfa.start], total)
        for place in range(5):  # the whole is the same wherever it is taken
            torch.testing.assert_close((before[place, row] + behind[place, row]).logsumexp(0), total)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_viterbi_is_the_best_of_all_rows(pattern: str) -> None:
    the = case(pattern)
    found = tokens_of(the, the.rows().best(the.tops), the.laws)
    for row in range(3):
        every = the.all_rows(row)
        assert tuple(found[:, row].tolist()) == max(every, key=lambda tokens: every[tokens])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_marginals_are_those_of_all_rows(pattern: str) -> None:
    the = case(pattern)
    marginals = the.rows().marginals(the.mass)
    for row in range(3):
        shares = distribution(the.all_rows(row))
        for place in (place for place in range(4) if the.stands[place, row] == FREE):
            before, behind = marginals.before[place, row, None], marginals.behind[place + 1, row, None]
            weights = the.chain.class_weights(before, behind)[0] - marginals.total[row]
            found = (the.laws[place, row] + weights[the.chain.classes]).exp()
            wanted = [sum(p for r, p in shares.items() if r[place] == v) for v in range(VOCAB)]
            torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0)
            for k in range(1, the.chain.width):
                one = the.chain.class_weight(before, behind, torch.tensor([k]))[0] - marginals.total[row]
                torch.testing.assert_close(one, weights[k])


@pytest.mark.parametrize("pattern", PATTERNS[:3])
@pytest.mark.parametrize("shared", [True, False])
def test_draws_are_from_the_law_of_the_rows(pattern: str, shared: bool) -> None:
    """Shares of 4,000 draws against the closed form: each within 5 standard deviations, and together by chi-square."""
    the, count = case(pattern, rows=1, fixed=False), 4000
    many = Case(the.chain, the.laws.expand(-1, count, -1), the.stands.expand(-1, count))
    noise = -torch.rand(many.laws.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log()
    noisy = many.laws - noise.log()
    rows = many.rows()
    behind = rows.marginals(many.mass).behind if shared else None
    paths = rows.draw(many.mass, many.by_class.tops(noisy.flatten(0, 1)).score.view(4, count, -1), behind)
    assert bool(paths.possible.all())
    drawn = [tuple(row) for row in tokens_of(many, paths, noisy).T.tolist()]
    wanted = distribution(the.all_rows(0))
    assert set(drawn) <= set(wanted)
    square = sum((drawn.count(row) - count * p) ** 2 / (count * p) for row, p in wanted.items())
    freedom = len(wanted) - 1
    assert abs(square - freedom) < 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(("begins", "ends"), [(0, 3), (1, 4), (2, 3), (1, 1)])
def test_rows_within_the_columns(begins: int, ends: int) -> None:
    the = case("(ab)*c?|b+", fixed=False)
    rows = the.rows(begins, ends)
    marginals, best = rows.marginals(the.mass), rows.best(the.tops)
    found = tokens_of(the, best, the.laws)[begins:ends]
    for row in range(3):
        every = the.all_rows(row, begins, ends)
        torch.testing.assert_close(
            float(marginals.total[row]), float(torch.tensor(list(every.values()), dtype=torch.float64).logsumexp(0))
        )
        assert tuple(found[:, row].tolist()) == max(every, key=lambda tokens: every[tokens])


def test_what_is_behind_counts_by_whether_it_can_be_finished() -> None:
    """Two columns are looked at, two are not: each beginning that some ending completes counts once."""
    the = case("(a|b)*a(a|b)(c|a)*", fixed=False)
    able = the.chain.finishing(torch.full((2, 3), FREE), torch.tensor([2, 2, 2]))
    narrow = Case(the.chain, the.laws[:2], the.stands[:2])
    total = narrow.rows(able=able).marginals(narrow.mass).total
    beginnings = {row[:2] for row in the.all_rows(0)}
    scores = [sum(float(the.laws[i, 0, token]) for i, token in enumerate(row)) for row in beginnings]
    torch.testing.assert_close(float(total[0]), float(torch.tensor(scores, dtype=torch.float64).logsumexp(0)))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_finishing(pattern: str) -> None:
    """From which states so many columns can be filled, with and without tokens that stand in them."""
    chain = case(pattern).chain
    stands = torch.tensor([[FREE, FREE, FREE], [FREE, 0, FREE], [FREE, FREE, END]])
    columns = torch.tensor([3, 2, 3])
    classes = torch.where(stands == FREE, FREE, chain.classes[stands])
    for given in (torch.full_like(stands, FREE), stands):
        found = chain.finishing(torch.where(given == FREE, FREE, classes), columns)
        for row in range(3):
            for state in range(1, chain.states):
                ends = False
                for tokens in itertools.product(range(VOCAB), repeat=int(columns[row])):
                    after = state
                    for token in tokens:
                        after = int(chain.table[after, chain.classes[token]])
                    fits = all(int(given[i, row]) in {FREE, token} for i, token in enumerate(tokens))
                    ends = ends or (fits and bool(chain.accept[after]))
                assert bool(found[row, state]) == ends


def test_states_behind_what_stands() -> None:
    chain = case("(ab)*c?").chain
    classes = torch.stack([chain.classes[[2, 0]], torch.tensor([FREE, int(chain.classes[1])])])
    found = chain.advanced(torch.full((2,), chain.dfa.start), classes)
    assert chain.accept[found].tolist() == [True, True]
    assert chain.table[found, chain.classes[1]].tolist() == [0, 0]


@pytest.mark.parametrize("columns", [60, 400])
def test_probabilities_beyond_what_doubles_hold(columns: int) -> None:
    """The law is all but sure of what is not allowed, at every column, by more than 1e-308 in all."""
    chain = Chain(with_ends(token_dfa(Regex("a*c|(ab)+"), TOKENS), [END]))
    laws = torch.tensor([-1e-3, -9.0, -30.0, -1.0, -40.0, -50.0], dtype=torch.float64).expand(columns, 2, -1)
    the = Case(chain, laws, torch.full((columns, 2), FREE))
    # n columns of: text of m tokens, then ends. a^i c; and ab pairs as one token or as two
    ends = [-50.0 * (columns - m) for m in range(columns + 1)]
    first = [-1e-3 * (m - 1) - 40.0 + ends[m] for m in range(1, columns + 1)]
    pairs = []
    for m in range(1, columns + 1):
        for doubles in range(m // 2 + 1):  # so many pairs of two tokens, the rest of one
            singles = m - 2 * doubles
            ways = torch.lgamma(torch.tensor([doubles + singles + 1.0, doubles + 1.0, singles + 1.0]).double())
            pairs.append(float(ways[0] - ways[1] - ways[2]) - 9.001 * doubles - 30.0 * singles + ends[m])
    wanted = torch.tensor(first + pairs, dtype=torch.float64).logsumexp(0)
    marginals: Marginals = the.rows().marginals(the.mass)
    torch.testing.assert_close(marginals.total, wanted.expand(2))
    noisy = the.columns(the.by_class.tops(the.laws.flatten(0, 1)).score)
    paths = the.rows().draw(the.mass, noisy)
    tokens = tokens_of(the, paths, the.laws)
    assert all(chain.dfa.accepts(row) for row in tokens.T.tolist())


def test_doubles_lose_nothing_that_counts() -> None:
    """A way that all but dies at first and is the only one to end: summed as probabilities it would be lost."""
    chain = Chain(token_dfa(Regex("c[ab]*c|a[ab]*"), TOKENS))
    laws = torch.full((3, 1, VOCAB), -1.0, dtype=torch.float64)
    laws[0, 0, 4] = -900.0  # c
    stands = torch.tensor([[FREE], [FREE], [4]])
    the = Case(chain, laws, stands)
    rows = the.rows()
    (plain,) = chain.sums([rows._backward(the.mass)])
    assert float(plain[0, 0, chain.dfa.start]) == -torch.inf
    total = rows.marginals(the.mass).total
    torch.testing.assert_close(float(total[0]), -900.0 - 1.0 + float(np.log(4)))
    paths = rows.draw(the.mass, the.tops)
    assert bool(paths.possible.all())
    assert chain.dfa.accepts(tokens_of(the, paths, the.laws)[:, 0].tolist())


def test_no_allowed_row() -> None:
    the = case("c{1,3}", fixed=False)
    laws = the.laws.clone()
    laws[:, 1, 4] = -torch.inf
    none = Case(the.chain, laws, the.stands)
    assert none.rows().best(none.tops).possible.tolist() == [True, False, True]
    assert none.rows().draw(none.mass, none.tops).possible.tolist() == [True, False, True]
    assert none.rows().marginals(none.mass).total.isfinite().tolist() == [True, False, True]


def test_passes_go_together_or_alone() -> None:
    the = case("(ab)*c?|b+")
    rows = the.rows(1, 3)
    ways = [rows._forward(the.mass), rows._backward(the.mass), rows._backward(the.mass * 0.5)]
    for together, way in zip(the.chain.sums(ways), ways, strict=True):
        torch.testing.assert_close(together, the.chain.sums([way])[0])
    assert isinstance(ways[0], Pass)
