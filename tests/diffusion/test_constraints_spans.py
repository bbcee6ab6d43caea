"""One step under constraints, on laws made by hand: statistics of marginals, and columns that nobody looks at yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide.constraints import Regex
from lmguide.diffusion.decisions import Sampler
from lmguide.diffusion.joint import decide_jointly
from lmguide.diffusion.noise import RowNoise, keys_from
from lmguide.diffusion.spans import Span, SpanGroup, group_spans
from lmguide.sources.canvas import Canvas
from tests.denoisers.models import MASK, PAD, VOCAB
from tests.diffusion.constrained import END, TEXT, Row, all_answers, law_of_rows, marginals

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmguide.diffusion.orders import Decisions

COLUMNS = 4
TOKENS = [b"" if not 4 <= token < 4 + len(TEXT) else TEXT[token - 4].encode() for token in range(VOCAB)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMGUIDE_CACHE", str(tmp_path))


class GivenLaw:
    """Laws `[B, L, V]` that are there already, a few positions at a time."""

    def __init__(self, laws: torch.Tensor) -> None:
        self.laws = laws

    def at(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.laws[rows, columns].clone(), None

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        return torch.split(positions, 3)


def canvas(rows: int = 2) -> Canvas:
    ids = torch.full((rows, COLUMNS), MASK)
    return Canvas(ids, torch.ones_like(ids), torch.zeros_like(ids).bool(), torch.ones_like(ids).bool(), MASK)


def laws(rows: int = 2) -> torch.Tensor:
    return (2 * torch.randn(rows, COLUMNS, VOCAB, generator=torch.Generator().manual_seed(0))).log_softmax(-1)


def bound(pattern: str, where: Canvas) -> list[SpanGroup]:
    spans = [Span(row, 0, COLUMNS, Regex(pattern)) for row in range(len(where.ids))]
    return group_spans(spans, where, TOKENS, (END,), (PAD,), (MASK,))


def decided(pattern: str, where: Canvas, wanted: torch.Tensor) -> Decisions:
    sampler = Sampler(0.0, None, None, torch.tensor([], dtype=torch.long), MASK, RowNoise(keys_from(None, 2)))
    given: Any = GivenLaw(laws())
    return decide_jointly(
        given, where, bound(pattern, where), wanted, 0, 1, sampler, False, frozenset({"second", "entropy"})
    )


def assert_statistics(found: Decisions, row: int, law: dict[Row, float], places: Sequence[int]) -> None:
    shares = marginals(law, len(next(iter(law))))
    best = max(law, key=lambda each: law[each])
    for place in places:
        wanted = shares[place]
        entropy = -(wanted * wanted.clamp_min(1e-300).log()).sum()
        assert int(found.tokens[row, place]) == best[place]
        names = ("log_prob", "top", "second", "entropy")
        values = torch.stack([getattr(found, name)[row, place] for name in names]).double()
        values[:3] = values[:3].exp()
        expected = torch.stack([wanted[best[place]], *wanted.topk(2).values, entropy])
        torch.testing.assert_close(values, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pattern", ["[0123]{1,8}", "(12|0)*3?", "0?(12|34)+"])
@pytest.mark.parametrize("stands", [None, "0"])
def test_statistics(pattern: str, stands: str | None) -> None:
    """The two likeliest tokens of a marginal may be of one class, or of two."""
    where, standing = canvas(), list[int | None]([None] * COLUMNS)
    if stands is not None:
        token = standing[0] = 4 + TEXT.index(stands)
        where.ids[:, 0], where.undecided[:, 0] = token, False
    found = decided(pattern, where, where.undecided)
    for row in range(2):
        law = law_of_rows(all_answers(pattern, COLUMNS, standing), laws()[row].double(), standing)
        assert_statistics(found, row, law, [place for place in range(COLUMNS) if standing[place] is None])


def test_columns_that_are_not_looked_at() -> None:
    """A beginning counts once if it can be finished, however many ways there are to finish it."""
    pattern = "0(1|12|[ab]+)*|4[567]{3}"
    where = canvas()
    wanted = torch.zeros_like(where.undecided)
    wanted[0, :1] = True  # one row decides its first column alone, as the seed of a block is
    wanted[1, :2] = True
    found = decided(pattern, where, wanted)
    for row, count in enumerate((1, 2)):
        every = {answer[:count] for answer in all_answers(pattern, COLUMNS, [None] * COLUMNS)}
        law = law_of_rows(sorted(every), laws()[row].double(), [None] * COLUMNS)
        assert_statistics(found, row, law, range(count))
        assert not wanted[row, count:].any()
    assert (found.tokens[~wanted] == -1).all()


def test_what_stands_behind_a_window_counts() -> None:
    where = canvas()
    comma = 4 + TEXT.index(",")
    where.ids[:, 3], where.undecided[:, 3] = comma, False
    (group,) = bound("[ab]+,[12]*|1{3},?|a{2}", where)
    able = group.able(where, torch.arange(2), torch.tensor([2, 2]))  # one column is open, the comma stands in the next
    table, classes, start = group.chain.table, group.chain.classes, group.chain.dfa.start
    after = {text: int(table[start, classes[4 + TEXT.index(text)]]) for text in ("a", "1", "ab", "2")}
    two = int(table[after["1"], classes[4 + TEXT.index("1")]])
    assert able[0, [after["a"], after["ab"], two]].all()
    assert not able[0, [after["1"], after["2"]]].any()
