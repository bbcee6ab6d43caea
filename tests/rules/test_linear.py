"""The linear rules against references as the papers write them, cases by hand, and each other."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from lmguide import rules
from lmguide.measures import entropy, kl_divergence
from tests.rules.examples import NINF, Row, assert_same_law, laws, rows


def test_one_contrast_serves_a_whole_batch() -> None:
    cond, uncond = laws(4, 5, count=2)
    expected = rules.cfg(cond, uncond[:1].expand(4, 5), 1.5)
    assert torch.equal(rules.cfg(cond, uncond[:1], 1.5), expected)
    assert torch.equal(rules.cfg(cond, uncond[0], 1.5), expected)
    with pytest.raises(ValueError, match="broadcast to the first"):
        rules.cfg(cond[0], uncond, 1.5)


def test_cfg_is_the_formula() -> None:
    c, u = laws(30, 11, count=2)
    torch.testing.assert_close(rules.cfg(c, u, 1.7), rows([c, u], lambda c, u: u + 1.7 * (c - u)))


def test_cfg_by_hand() -> None:
    # c² / u = (.25 / .8, .25 / .2), normalised.
    guided = rules.cfg(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.8, 0.2]).log(), 2.0).softmax(-1)
    torch.testing.assert_close(guided, torch.tensor([0.2, 0.8]))


def test_guidance_sharpens_and_attraction_flattens_a_flat_contrast() -> None:
    c = laws(30, 11, count=1)[0]
    flat = torch.zeros_like(c).log_softmax(-1)
    for scale in (0.5, 1.5, 3.0):
        # Against a uniform contrast, guidance is temperature 1 / γ.
        assert_same_law(rules.cfg(c, flat, scale), scale * c)
    plain = entropy(c)
    assert (entropy(rules.normalize(rules.cfg(c, flat, 1.5))) < plain).all()
    assert (entropy(rules.normalize(rules.cfg(c, flat, 0.5))) > plain).all()


def test_damping_is_cfg_at_a_weaker_scale() -> None:
    c, u = laws(30, 11, count=2)
    scale = 1 + 2.0 * torch.exp(-0.7 * kl_divergence(c, u))
    torch.testing.assert_close(rules.divergence_damped(c, u, 3.0, 0.7), rules.cfg(c, u, scale))
    torch.testing.assert_close(rules.divergence_damped(c, u, 3.0, 0.0), rules.cfg(c, u, 3.0))


def test_damping_of_an_infinite_divergence() -> None:
    c, u = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.0, 0.5, 0.5]).log()
    assert torch.equal(rules.divergence_damped(c, u, 3.0, 0.1), c)
    assert torch.equal(rules.divergence_damped(c, u, 3.0, 0.0), rules.cfg(c, u, 3.0))
    with pytest.raises(ValueError, match="expected damping of 0 or more, got -1"):
        rules.divergence_damped(c, u, 3.0, -1.0)


def test_contrastive_forms() -> None:
    e, a = laws(30, 11, count=2)
    torch.testing.assert_close(rules.contrastive(e, a, 0.5, plausibility=0.0), rules.cfg(e, a, 1.5))
    torch.testing.assert_close(rules.contrastive(e, a, 1.0, 0.0, "original"), e - a)
    torch.testing.assert_close(rules.contrastive(e, a, 0.3, 0.0, "original"), e - 0.3 * a)


def test_contrastive_cuts_what_the_expert_finds_implausible() -> None:
    e, a = laws(30, 11, count=2)
    result = rules.contrastive(e, a, 1.0, plausibility=0.25)
    probability = e.exp()
    assert torch.equal(result > NINF, probability >= 0.25 * probability.amax(-1, keepdim=True))
    assert (result > NINF).any(-1).all()


def test_contrastive_amateur_temperature() -> None:
    e, a = laws(30, 11, count=2)
    sharper = (a / 0.5).log_softmax(-1)
    expected = rules.contrastive(e, sharper, 0.5)
    torch.testing.assert_close(rules.contrastive(e, a, 0.5, amateur_temperature=0.5), expected)
    assert (expected.softmax(-1) - rules.contrastive(e, a, 0.5).softmax(-1)).abs().max() > 0.01


def test_contrastive_refusals() -> None:
    e, a = laws(3, 5, count=2)
    with pytest.raises(ValueError, match="expected form 'reasoning' or 'original', got 'orginal'"):
        rules.contrastive(e, a, form="orginal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected amateur_temperature above 0, got 0"):
        rules.contrastive(e, a, amateur_temperature=0.0)
    with pytest.raises(ValueError, match=r"expected plausibility in \[0, 1\], got 2"):
        rules.contrastive(e, a, plausibility=2.0)


def test_dexperts_by_hand() -> None:
    # .5 (.6 / .3) : .5 (.4 / .7) = 1 : 2/7.
    base, expert, antiexpert = (torch.tensor(p).log() for p in ([0.5, 0.5], [0.6, 0.4], [0.3, 0.7]))
    expected = torch.tensor([7 / 9, 2 / 9])
    torch.testing.assert_close(rules.dexperts(base, expert, antiexpert, 1.0).softmax(-1), expected)


def test_weighted_contains_the_others() -> None:
    c, u, s = laws(30, 11, count=3)
    torch.testing.assert_close(rules.weighted(c, [u], [-0.5]), rules.cfg(c, u, 1.5))
    torch.testing.assert_close(rules.weighted(c, [u, s], [-0.5, 0.2]), 1.3 * c - 0.5 * u + 0.2 * s)
    torch.testing.assert_close(rules.weighted(c, [u, s], [0.25, 0.75]), 0.25 * u + 0.75 * s)
    assert torch.equal(rules.weighted(c, [], []), c)
    with pytest.raises(ValueError, match="expected one weight for each other source, got 2 sources and 1 weights"):
        rules.weighted(c, [u, s], [1.0])
    with pytest.raises(ValueError, match=r"expected a finite weights\[1\], got nan"):
        rules.weighted(c, [u, s], [1.0, math.nan])


def test_s2_is_the_formula() -> None:
    c, u, s = laws(30, 11, count=3)
    torch.testing.assert_close(rules.s2(c, u, s, 1.5, 0.25), u + 1.5 * (c - u) - 0.25 * (s - c))
    torch.testing.assert_close(rules.s2(c, u, s, 1.5, 0.25), rules.weighted(c, [u, s], [-0.5, -0.25]))


def reference_dola(final: Row, *early: Row, alpha: float) -> Row:
    def kl(p: Row, q: Row) -> float:
        return float((np.exp(p) * (p - q)).sum())

    def js(p: Row, q: Row) -> float:
        middle = np.log((np.exp(p) + np.exp(q)) / 2)
        return (kl(p, middle) + kl(q, middle)) / 2

    chosen = max(early, key=lambda layer: js(final, layer))
    return np.where(np.exp(final) >= alpha * np.exp(final).max(), final - chosen, NINF)


def test_dola_is_the_reference_and_chooses_a_layer_for_each_row() -> None:
    final, *early = laws(60, 11, count=5)
    result = rules.dola(final, torch.stack(early, -2), plausibility=0.1)
    torch.testing.assert_close(result, rows([final, *early], partial(reference_dola, alpha=0.1)))
    single = [rules.dola(final, layer.unsqueeze(-2), plausibility=0.1) for layer in early]
    chosen = {next(k for k, each in enumerate(single) if torch.equal(each[row], result[row])) for row in range(60)}
    assert chosen == {0, 1, 2, 3}


def test_dola_refusals() -> None:
    final, early = laws(3, 5, count=2)
    for wrong in (early, early[:0].unsqueeze(-2), early.unsqueeze(0), torch.zeros(3, 0, 5)):
        with pytest.raises(ValueError, match=r"expected early layers \[\.\.\., K, V\] with K >= 1 for a final layer"):
            rules.dola(final, wrong)
