"""Laws that every rule keeps, run over one list of cases: a new rule is one line."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from lmguide import rules
from tests.rules.examples import NINF, assert_same_law, laws, with_holes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmguide.rules import Scale


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


def every_pattern(size: int, count: int, hole: float = NINF) -> list[Tensor]:
    """Sources [2 ** (size * count), size]: one row for each way to exclude tokens from each source."""
    patterns = torch.tensor(list(itertools.product([False, True], repeat=size * count))).unflatten(1, (count, size))
    base = laws(size, count=count, seed=9, dtype=torch.float32)
    return [each.masked_fill(patterns[:, k], hole) for k, each in enumerate(base)]


def cut(case: Case, first: Tensor) -> Tensor:
    return torch.where(rules.plausible(first, case.cut), first, NINF) if case.cut else first


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
