"""Classes of tokens against loops over tokens."""

from __future__ import annotations

import pytest
import torch

from lmguide.constraints.automaton.class_scores import ByClass

VOCAB, WIDTH = 40, 6


@pytest.fixture(params=[0.8, 0.2], ids=["most", "few"])
def classes(request: pytest.FixtureRequest) -> torch.Tensor:
    """Classes with most tokens or few of them in use; class 4 has no token."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(1, WIDTH, (VOCAB,), generator=generator)
    found[torch.rand(VOCAB, generator=generator) > request.param] = 0
    return found.masked_fill(found == 4, 5)


@pytest.fixture
def law() -> torch.Tensor:
    found = (3 * torch.randn(7, VOCAB, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    found[3, ::2] = -torch.inf
    return found


def test_by_class(classes: torch.Tensor, law: torch.Tensor) -> None:
    by_class = ByClass(classes, WIDTH)
    mass, tops, both, spread = by_class.mass(law), by_class.tops(law), by_class.mass_and_tops(law), by_class.spread(law)
    assert mass.dtype == torch.float64
    for k in range(1, WIDTH):
        tokens = (classes == k).nonzero()[:, 0].tolist()
        for row in range(len(law)):
            scores = sorted(((float(law[row, token]), -token) for token in tokens), reverse=True)
            inside = torch.tensor([score for score, _ in scores], dtype=torch.float64)
            wanted = inside.logsumexp(0) if tokens else mass.new_tensor(-torch.inf)
            torch.testing.assert_close(mass[row, k], wanted, atol=1e-6, rtol=1e-6)
            top = scores[0][0] if scores else -torch.inf
            assert float(tops.score[row, k]) == float(both[1].score[row, k]) == float(spread.top[row, k]) == top
            if top > -torch.inf:
                assert int(tops.token[row, k]) == int(both[1].token[row, k]) == -scores[0][1]
                share = (inside - inside.logsumexp(0)).exp()
                mean = (share * inside).nan_to_num(0.0).sum()
                torch.testing.assert_close(spread.mean[row, k], mean, atol=1e-5, rtol=1e-5)
            second = scores[1][0] if len(scores) > 1 else -torch.inf
            assert float(spread.second[row, k]) == second
    torch.testing.assert_close(both[0], mass)


def test_equal_scores_take_the_leftmost(classes: torch.Tensor) -> None:
    tops = ByClass(classes, WIDTH).tops(torch.zeros(2, VOCAB))
    for k in set(classes.tolist()) - {0}:
        assert tops.token[:, k].tolist() == [int((classes == k).nonzero()[0, 0])] * 2


def test_masses_too_small_for_their_floats(classes: torch.Tensor) -> None:
    """exp(-200) is nothing in float32, and still a mass."""
    law = torch.full((1, VOCAB), -200.0)
    count = torch.bincount(classes, minlength=WIDTH).double()
    torch.testing.assert_close(ByClass(classes, WIDTH).mass(law)[0, 1:], count.log()[1:] - 200.0)
