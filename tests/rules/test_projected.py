"""The projected rules against references in numpy, and their geometry."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from lmguide import rules
from tests.rules.examples import NINF, Row, assert_same_law, laws, rows


def centred(x: Row) -> Row:
    return np.asarray(x - x.mean())


def reference_apg(c: Row, u: Row, scale: float, eta: float, limit: float | None) -> Row:
    delta, direction = centred(c) - centred(u), centred(c) / np.linalg.norm(centred(c))
    if limit is not None:
        delta = delta * min(1.0, limit / np.linalg.norm(delta))
    parallel = (delta @ direction) * direction
    return np.asarray(c + (scale - 1) * (delta - parallel + eta * parallel))


def reference_tangential(c: Row, u: Row, scale: float) -> Row:
    x, y = centred(c), centred(u)
    leading = np.linalg.svd(np.stack([x, y]))[2][0]
    projected = (y @ leading) * leading
    return np.asarray(projected + scale * (x - projected))


def reference_rescale(g: Row, c: Row, rescale: float) -> Row:
    matched = centred(g) * c.std() / g.std()
    return np.asarray(rescale * matched + (1 - rescale) * centred(g))


@pytest.mark.parametrize(
    ("eta", "limit"), [(0.0, None), (0.4, None), (-1.0, None), (0.0, 2.5), (0.7, 5.0), (0.5, 14.0), (0.5, 1e6)]
)
def test_apg_is_the_reference(eta: float, limit: float | None) -> None:
    c, u = laws(30, 11, count=2)
    expected = rows([c, u], partial(reference_apg, scale=2.5, eta=eta, limit=limit))
    torch.testing.assert_close(rules.apg(c, u, 2.5, eta, limit), expected)


def test_apg_on_a_candidate_set_is_apg_of_the_candidates() -> None:
    c, u = laws(30, 11, count=2)
    candidates = torch.tensor([0, 2, 3, 7, 10])
    excluded = torch.ones(11, dtype=torch.bool).index_fill(0, candidates, False)
    for rule in (rules.apg, rules.tangential):
        masked = rule(c.masked_fill(excluded, NINF), u, 2.5)
        torch.testing.assert_close(masked[:, candidates], rule(c[:, candidates], u[:, candidates], 2.5))
        assert masked[:, excluded].isneginf().all()
    rescaled = rules.cfg_rescale(c.masked_fill(excluded, NINF), u, 0.6)
    torch.testing.assert_close(rescaled[:, candidates], rules.cfg_rescale(c[:, candidates], u[:, candidates], 0.6))


def test_apg_with_all_of_the_parallel_part_is_cfg() -> None:
    c, u = laws(30, 11, count=2)
    assert_same_law(rules.apg(c, u, 2.5, eta=1.0), rules.cfg(c, u, 2.5))
    assert_same_law(rules.apg(c, u, 0.0, eta=1.0), u)


def test_apg_moves_across_the_conditional_and_no_farther_than_the_limit() -> None:
    c, u = laws(30, 11, count=2)
    move = rules.apg(c, u, 2.0, eta=0.0) - c
    along = c - c.mean(-1, keepdim=True)
    torch.testing.assert_close((move * along).sum(-1), torch.zeros(30, dtype=torch.float64))
    limited = rules.apg(c, u, 2.0, eta=1.0, norm_threshold=0.25) - c
    torch.testing.assert_close(limited.norm(dim=-1), torch.full((30,), 0.25, dtype=torch.float64))


def test_tangential_is_the_singular_value_decomposition() -> None:
    c, u = laws(30, 11, count=2)
    assert_same_law(rules.tangential(c, u, 2.5), rows([c, u], partial(reference_tangential, scale=2.5)))


def test_tangential_of_sources_without_a_leading_direction() -> None:
    c, orthogonal, flat = torch.tensor([[1, -1, 0, 0], [0, 0, 1, -1], [0, 0, 0, 0]], dtype=torch.float64)
    assert_same_law(rules.tangential(c, c, 3.0), c)
    assert rules.tangential(c, orthogonal, 3.0).isfinite().all()
    assert_same_law(rules.tangential(c, flat, 3.0), 3 * c)
    assert_same_law(rules.tangential(flat, flat, 3.0), flat)


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescale_is_the_reference(rescale: float) -> None:
    c, u = laws(30, 11, count=2)
    guided = rules.cfg(c, u, 4.0)
    assert_same_law(
        rules.cfg_rescale(guided, c, rescale), rows([guided, c], partial(reference_rescale, rescale=rescale))
    )


def test_rescale_in_full_has_the_spread_of_the_conditional_and_the_order_of_the_guided() -> None:
    c, u = laws(30, 11, count=2)
    guided = rules.cfg(c, u, 4.0)
    result = rules.cfg_rescale(guided, c, 1.0)
    torch.testing.assert_close(result.std(-1), c.std(-1))
    torch.testing.assert_close(result.mean(-1), guided.mean(-1))
    assert torch.equal(result.argsort(-1), guided.argsort(-1))


def test_rescale_keeps_what_a_rule_has_cut() -> None:
    cond = torch.tensor([-0.1, -2.4, -9.0])
    guided = rules.contrastive(cond, torch.zeros(3).log_softmax(-1), 1.0)
    assert guided.isneginf().any()
    for rescale in (0.0, 0.5, 1.0):
        assert torch.equal(rules.cfg_rescale(guided, cond, rescale).isneginf(), guided.isneginf())


def test_rescale_of_scores_without_spread() -> None:
    flat, cond = torch.full((3,), -2.0), torch.tensor([-1.0, -2.0, -3.0])
    torch.testing.assert_close(rules.cfg_rescale(flat, cond, 1.0), flat)
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"expected rescale in \[0, 1\], got"):
            rules.cfg_rescale(flat, cond, wrong)
