"""Laws that every rule keeps, run over one list of cases; then each rule against a reference one can read."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from lmguide import rules
from lmguide.measures import entropy, kl_divergence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmguide.rules import Scale

NINF = -math.inf


@dataclass(frozen=True)
class Case:
    """One way to use a rule, with its sources in a list: the first decides, the others contrast.

    `off` is the strength that gives the first source back, `uncond_at` the one that gives the second back. `cut` is the
    plausibility cut on top of that. `gauge_free`: a constant added to a source moves the result by a constant only.
    """

    name: str
    rule: Callable[[Sequence[Tensor], Scale], Tensor]
    sources: int = 2
    off: float = 1.0
    uncond_at: float | None = None
    cut: float = 0.0
    gauge_free: bool = True
    masks_everywhere: bool = False


def _weighted(s: Sequence[Tensor], strength: Scale) -> Tensor:
    return rules.weighted(s[0], list(s[1:]), [-1 * strength, 0.5 * strength])


CASES = [
    Case("cfg", lambda s, g: rules.cfg(s[0], s[1], g), uncond_at=0.0),
    Case("cfg_rescale", lambda s, g: rules.cfg_rescale(s[0], s[1], g), off=0.0, masks_everywhere=True),
    Case("apg", lambda s, g: rules.apg(s[0], s[1], g)),
    Case("apg eta", lambda s, g: rules.apg(s[0], s[1], g, eta=0.3)),
    Case("apg norm", lambda s, g: rules.apg(s[0], s[1], g, eta=-0.5, norm_threshold=0.7)),
    Case("tangential", lambda s, g: rules.tangential(s[0], s[1], g)),
    Case("damped", lambda s, g: rules.divergence_damped(s[0], s[1], g, 0.8), gauge_free=False),
    Case("damped by 0", lambda s, g: rules.divergence_damped(s[0], s[1], g, 0.0), uncond_at=0.0),
    Case("contrastive", lambda s, b: rules.contrastive(s[0], s[1], b), off=0.0, cut=0.1),
    Case("contrastive uncut", lambda s, b: rules.contrastive(s[0], s[1], b, plausibility=0), off=0.0),
    Case("contrastive original", lambda s, b: rules.contrastive(s[0], s[1], b, 0.2, "original"), off=0.0, cut=0.2),
    Case("contrastive heat", lambda s, b: rules.contrastive(s[0], s[1], b, 0, amateur_temperature=0.5), off=0.0),
    Case("dexperts", lambda s, a: rules.dexperts(s[0], s[1], s[2], a), sources=3, off=0.0),
    Case("weighted", _weighted, sources=3, off=0.0),
    Case("s2", lambda s, g: rules.s2(s[0], s[1], s[2], g, g - 1), sources=3),
    Case("s2 without sub", lambda s, g: rules.s2(s[0], s[1], s[2], g, 0.0), sources=3, uncond_at=0.0),
    Case("s2 without uncond", lambda s, w: rules.s2(s[0], s[1], s[2], 1.0, w), sources=3, off=0.0),
    Case("dola", lambda s, w: rules.dola(s[0], torch.stack(list(s[1:]), -2), w), 3, off=0.0, cut=0.1, gauge_free=False),
    Case("dola uncut", lambda s, w: rules.dola(s[0], torch.stack(list(s[1:]), -2), w, 0), 3, off=0.0, gauge_free=False),
]

all_rules = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
STRENGTHS = [-2.0, 0.0, 0.3, 1.0, 1.5, 40.0]


def strengths(case: Case) -> list[float]:
    return [value for value in STRENGTHS if 0 <= value <= 1] if case.name == "cfg_rescale" else STRENGTHS


def laws(*shape: int, count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random log-probs, one tensor for each source."""
    generator = torch.Generator().manual_seed(seed)
    raw = [3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [each.log_softmax(-1).to(dtype) for each in raw]


def with_holes(sources: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """The same sources with about a third of the tokens of each excluded, and the rest normalised again."""
    generator = torch.Generator().manual_seed(seed)
    return [rules.normalize(s.masked_fill(torch.rand(s.shape, generator=generator) < 1 / 3, NINF)) for s in sources]


def every_pattern(size: int, count: int, hole: float = NINF) -> list[Tensor]:
    """Sources [2 ** (size * count), size]: one row for each way to exclude tokens from each source."""
    patterns = torch.tensor(list(itertools.product([False, True], repeat=size * count))).unflatten(1, (count, size))
    base = laws(size, count=count, seed=9, dtype=torch.float32)
    return [each.masked_fill(patterns[:, k], hole) for k, each in enumerate(base)]


def cut(case: Case, first: Tensor) -> Tensor:
    return torch.where(rules.plausible(first, case.cut), first, NINF) if case.cut else first


def assert_same_law(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(rules.normalize(actual), rules.normalize(expected), rtol=1e-9, atol=1e-9)


@all_rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_off_gives_the_first_source_bit_for_bit(case: Case, dtype: torch.dtype) -> None:
    sources = laws(40, 13, count=case.sources, dtype=dtype)
    for strength in (case.off, torch.full((40,), case.off), torch.tensor(case.off), torch.tensor([case.off])):
        assert torch.equal(case.rule(sources, strength), cut(case, sources[0]))
    holes = with_holes(sources)
    result = case.rule(holes, case.off)
    excluded = torch.stack(holes).isneginf().any(0) if case.masks_everywhere else torch.zeros_like(result).bool()
    assert torch.equal(result, cut(case, holes[0]).masked_fill(excluded, NINF))


@all_rules
def test_a_strength_that_is_not_off_does_something(case: Case) -> None:
    sources = laws(40, 13, count=case.sources)
    assert (case.rule(sources, 0.5).softmax(-1) - sources[0].softmax(-1)).abs().amax() > 0.01


@all_rules
def test_rows_that_are_off_are_untouched_by_the_others(case: Case) -> None:
    sources = laws(6, 13, count=case.sources, dtype=torch.float32)
    scale = torch.tensor([case.off, 0.5, case.off, 0.9, 0.2, case.off])
    result = case.rule(sources, scale)
    off = scale == case.off
    assert torch.equal(result[off], cut(case, sources[0])[off])
    for row in (~off).nonzero().flatten().tolist():
        alone = case.rule([source[row] for source in sources], scale[row].item())
        torch.testing.assert_close(result[row], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.uncond_at is not None], ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gives_the_other_source_bit_for_bit(case: Case, dtype: torch.dtype) -> None:
    sources = laws(40, 13, count=case.sources, dtype=dtype)
    assert case.uncond_at is not None
    for strength in (case.uncond_at, torch.full((40,), case.uncond_at)):
        assert torch.equal(case.rule(sources, strength), sources[1])


@all_rules
def test_constants_added_to_logits_do_not_matter(case: Case) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = [3 * torch.randn(20, 13, generator=generator, dtype=torch.float64) for _ in range(case.sources)]
    moved = [each + 50 * torch.randn(20, 1, generator=generator, dtype=torch.float64) for each in logits]
    plain = case.rule([each.log_softmax(-1) for each in logits], 0.7)
    torch.testing.assert_close(case.rule([each.log_softmax(-1) for each in moved], 0.7), plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [case for case in CASES if case.gauge_free], ids=lambda case: case.name)
def test_constants_added_to_log_probs_do_not_matter(case: Case) -> None:
    generator = torch.Generator().manual_seed(2)
    sources = laws(20, 13, count=case.sources)
    moved = [each + 5 * torch.randn(20, 1, generator=generator, dtype=torch.float64) for each in sources]
    for strength in strengths(case):
        assert_same_law(case.rule(moved, strength), case.rule(sources, strength))


@all_rules
def test_rows_do_not_see_each_other(case: Case) -> None:
    sources = with_holes(laws(7, 13, count=case.sources))
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    for strength in strengths(case):
        batch = case.rule(sources, strength)
        for row in range(7):
            alone = case.rule([source[row] for source in sources], strength)
            torch.testing.assert_close(batch[row], alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            case.rule([s[order] for s in sources], strength), batch[order], rtol=1e-12, atol=1e-12
        )


@all_rules
def test_any_leading_dimensions(case: Case) -> None:
    sources = laws(2, 3, 4, 13, count=case.sources)
    scale = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    flat = case.rule([each.flatten(0, 2) for each in sources], scale.flatten())
    result = case.rule(sources, scale)
    assert result.shape == (2, 3, 4, 13)
    torch.testing.assert_close(result.flatten(0, 2), flat, rtol=1e-12, atol=1e-12)
    by_column = case.rule(sources, scale[0, 0])
    torch.testing.assert_close(by_column, case.rule(sources, scale[0, 0].expand(2, 3, 4)), rtol=1e-12, atol=1e-12)


@all_rules
def test_the_order_of_the_vocabulary_does_not_matter(case: Case) -> None:
    sources = with_holes(laws(7, 13, count=case.sources))
    order = torch.randperm(13, generator=torch.Generator().manual_seed(5))
    for strength in strengths(case):
        expected = case.rule(sources, strength)[:, order]
        torch.testing.assert_close(case.rule([s[:, order] for s in sources], strength), expected, rtol=1e-9, atol=1e-9)


@all_rules
@pytest.mark.parametrize("hole", [NINF, torch.finfo(torch.float32).min], ids=["-inf", "finfo.min"])
def test_every_pattern_of_masks(case: Case, hole: float) -> None:
    sources = every_pattern(3, case.sources, hole)
    masked = torch.stack([source == hole for source in sources])
    kept = cut(case, sources[0])
    undefined = masked[1:].all(0) if case.name.startswith("dola") else masked[1:].any(0)
    for strength in strengths(case):
        result = case.rule(sources, strength)
        assert not result.isnan().any()
        assert not result.isposinf().any()
        assert torch.equal(result[masked[0]], kept[masked[0]])
        if case.masks_everywhere:
            assert (result[undefined] == NINF).logical_or(masked[0][undefined]).all()
        else:
            assert torch.equal(result[undefined], kept[undefined])
        # Nothing else is excluded but by the cut.
        assert torch.equal(result.isneginf(), kept.isneginf() | (undefined & case.masks_everywhere & ~masked[0]))


@all_rules
def test_computes_in_float32_or_better(case: Case) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        sources = laws(5, 13, count=case.sources, dtype=dtype)
        result = case.rule(sources, 0.7)
        assert result.dtype == torch.float32
        assert torch.equal(result, case.rule([each.float() for each in sources], 0.7))
        scale = torch.full((5,), 0.7, dtype=dtype)
        assert case.rule(sources, scale).dtype == torch.float32
    double = laws(5, 13, count=case.sources)
    assert case.rule(double, 0.7).dtype == torch.float64
    assert case.rule([double[0].float(), *double[1:]], 0.7).dtype == torch.float64
    with pytest.raises(TypeError, match=r"expected floating-point log-probs, got torch\.int64"):
        case.rule([each.long() for each in double], 0.7)


@all_rules
def test_nan_is_not_swallowed(case: Case) -> None:
    for broken in range(case.sources):
        sources = laws(2, 5, count=case.sources)
        # Not at a token that the cut removes.
        sources[broken][0, sources[0][0].argmax()] = math.nan
        result = case.rule(sources, 0.7)
        assert result[0].isnan().any()
        assert not result[1].isnan().any()


@all_rules
def test_inputs_are_left_as_they_are(case: Case) -> None:
    sources = with_holes(laws(5, 13, count=case.sources))
    before = [each.clone() for each in sources]
    case.rule(sources, 0.7)
    for each, copy in zip(sources, before, strict=True):
        assert torch.equal(each, copy)


@all_rules
def test_refusals(case: Case) -> None:
    sources = laws(4, 5, count=case.sources)
    for strength in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"expected .*, got -?(nan|inf)\. Use "):
            case.rule(sources, strength)
    for shape in ((3,), (4, 1), (4, 5), (2, 4)):
        with pytest.raises(ValueError, match=r"to broadcast to \[4\], got .* Give one entry per row"):
            case.rule(sources, torch.ones(shape))
    if not case.name.startswith("dola"):
        with pytest.raises(
            ValueError, match=r"expected every source to broadcast to the first, \[4, 5\], got \[3, 5\]"
        ):
            case.rule([sources[0], *(each[:3] for each in sources[1:])], 0.5)
        with pytest.raises(ValueError, match="one vocabulary size V"):
            case.rule([sources[0], *(each[:, :3] for each in sources[1:])], 0.5)


def test_one_contrast_serves_a_whole_batch() -> None:
    cond, uncond = laws(4, 5, count=2)
    expected = rules.cfg(cond, uncond[:1].expand(4, 5), 1.5)
    assert torch.equal(rules.cfg(cond, uncond[:1], 1.5), expected)
    assert torch.equal(rules.cfg(cond, uncond[0], 1.5), expected)
    with pytest.raises(ValueError, match="broadcast to the first"):
        rules.cfg(cond[0], uncond, 1.5)


# References: one row of log-probs at a time, in numpy, as the papers write them.

Row = np.ndarray


def rows(sources: Sequence[Tensor], reference: Callable[..., Row]) -> Tensor:
    return torch.from_numpy(np.stack([reference(*row) for row in zip(*(s.numpy() for s in sources), strict=True)]))


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


def reference_dola(final: Row, *early: Row, alpha: float) -> Row:
    def kl(p: Row, q: Row) -> float:
        return float((np.exp(p) * (p - q)).sum())

    def js(p: Row, q: Row) -> float:
        middle = np.log((np.exp(p) + np.exp(q)) / 2)
        return (kl(p, middle) + kl(q, middle)) / 2

    chosen = max(early, key=lambda layer: js(final, layer))
    return np.where(np.exp(final) >= alpha * np.exp(final).max(), final - chosen, NINF)


def test_cfg_is_the_formula() -> None:
    c, u = laws(30, 11, count=2)
    torch.testing.assert_close(rules.cfg(c, u, 1.7), rows([c, u], lambda c, u: u + 1.7 * (c - u)))


def test_cfg_by_hand() -> None:
    # c² / u = (.25 / .8, .25 / .2), normalised.
    guided = rules.cfg(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.8, 0.2]).log(), 2.0).softmax(-1)
    torch.testing.assert_close(guided, torch.tensor([0.2, 0.8]))


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


def test_guidance_sharpens_and_attraction_flattens_a_flat_contrast() -> None:
    c = laws(30, 11, count=1)[0]
    flat = torch.zeros_like(c).log_softmax(-1)
    for scale in (0.5, 1.5, 3.0):
        # Against a uniform contrast, guidance is temperature 1 / γ.
        assert_same_law(rules.cfg(c, flat, scale), scale * c)
    plain = entropy(c)
    assert (entropy(rules.normalize(rules.cfg(c, flat, 1.5))) < plain).all()
    assert (entropy(rules.normalize(rules.cfg(c, flat, 0.5))) > plain).all()


def test_plausible_is_relative_to_the_likeliest() -> None:
    law = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25]]).log()
    assert rules.plausible(law, 0.0).tolist() == [[True, True, True, False], [True] * 4]
    assert rules.plausible(law, 0.4).tolist() == [[True, True, False, False], [True] * 4]
    assert rules.plausible(law, 1.0).tolist() == [[True, False, False, False], [True] * 4]
    assert not rules.plausible(torch.full((3,), NINF), 0.1).any()
    torch.testing.assert_close(rules.plausible(law + 7.0, 0.4), rules.plausible(law, 0.4))


def test_normalize() -> None:
    scores = torch.tensor([[1.0, 2.0, NINF], [NINF, NINF, NINF]])
    result = rules.normalize(scores)
    torch.testing.assert_close(result[0].exp(), torch.tensor([1 / (1 + math.e), math.e / (1 + math.e), 0.0]))
    assert result[1].isneginf().all()
    assert torch.equal(result[:1], scores[:1].log_softmax(-1))
    assert rules.normalize(torch.tensor([math.nan, 0.0])).isnan().all()
    assert rules.normalize(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
