"""Packed bits do to scores what `masked_fill` does, for every density, width and type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from lmguide.constraints.masks import _apply_at_once, _unpack_and_fill, apply_bits, empty_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _case(
    rows: int, width: int, share: float, dtype: torch.dtype
) -> tuple[torch.Tensor, NDArray[np.int32], torch.Tensor]:
    """Scores, bits, and which tokens are allowed."""
    generator = np.random.default_rng(5)
    allowed = generator.random((rows, width)) < share
    bits = np.packbits(np.pad(allowed, ((0, 0), (0, -width % 32))), axis=1, bitorder="little").view(np.int32)
    return torch.from_numpy(generator.normal(size=(rows, width))).to(dtype), bits, torch.from_numpy(allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [0.0, 1e-3, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("width", [1, 31, 32, 33, 5000])
def test_the_same_as_masked_fill(width: int, share: float, dtype: torch.dtype) -> None:
    scores, bits, allowed = _case(5, width, share, dtype)
    scores[0, 0] = -0.0
    expected = scores.masked_fill(~allowed, -torch.inf)
    found = apply_bits(scores, bits)
    assert found is scores
    assert torch.equal(found, expected)
    assert torch.equal(torch.signbit(found), torch.signbit(expected))  # also of zero


def test_every_row_in_its_own_way() -> None:
    scores, bits, allowed = _case(6, 5000, 0.5, torch.float32)
    bits[[1, 4]] = 0
    bits[4, 7] = 0b1001
    allowed[[1, 4]] = False
    allowed[4, [7 * 32, 7 * 32 + 3]] = True
    assert torch.equal(apply_bits(scores.clone(), bits), scores.masked_fill(~allowed, -torch.inf))


@pytest.mark.parametrize("share", [1e-3, 0.5])
def test_rows_without_a_constraint_stay(share: float) -> None:
    scores, bits, allowed = _case(4, 3000, share, torch.float32)
    constrained = np.array([True, False, True, False])
    expected = scores.masked_fill(~allowed & torch.from_numpy(constrained)[:, None], -torch.inf)
    assert torch.equal(apply_bits(scores.clone(), bits, constrained), expected)
    assert torch.equal(apply_bits(scores.clone(), bits, np.zeros(4, dtype=bool)), scores)


def test_scores_beyond_the_bits_are_never_allowed() -> None:
    scores = torch.zeros(2, 70)
    found = apply_bits(scores, np.full((2, 2), -1, dtype=np.int32), np.array([True, False]))
    assert (found[0, :64] == 0).all()
    assert torch.isneginf(found[0, 64:]).all()
    assert (found[1] == 0).all()


def test_scores_narrower_than_the_bits() -> None:
    bits = np.full((1, 4), -1, dtype=np.int32)
    assert torch.equal(apply_bits(torch.zeros(1, 33), bits), torch.zeros(1, 33))


def test_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"^bits: expected one row for each"):
        apply_bits(torch.zeros(2, 32), np.zeros((3, 1), dtype=np.int32))
    with pytest.raises(ValueError, match=r"^bits: expected one row for each"):
        apply_bits(torch.zeros(32), np.zeros((1, 1), dtype=np.int32))


def test_scores_with_a_gradient() -> None:
    bits = np.zeros((1, 1), dtype=np.int32)
    tracked = torch.zeros(1, 32, requires_grad=True)
    with pytest.raises(ValueError, match=r"^scores: expected ones without a gradient, got some that have one\. Give"):
        apply_bits(tracked.clone(), bits)
    with torch.no_grad():
        assert torch.isneginf(apply_bits(tracked.clone(), bits)).all()


def test_empty_bits_allow_nothing() -> None:
    assert torch.isneginf(apply_bits(torch.zeros(2, 64), empty_bits(2, 2))).all()


@pytest.mark.parametrize("share", [1e-3, 0.5])
def test_scores_that_are_a_view(share: float) -> None:
    scores, bits, allowed = _case(4, 3000, share, torch.float32)
    expected = scores.masked_fill(~allowed, -torch.inf)
    wide = torch.zeros(4, 4000)
    wide[:, :3000] = scores
    assert torch.equal(apply_bits(wide[:, :3000], bits), expected)
    assert (wide[:, 3000:] == 0).all()
    assert torch.equal(apply_bits(scores.T.contiguous().T, bits), expected)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [1, 3]])
def test_unpacked_where_the_scores_are(rows: list[int]) -> None:
    scores, bits, allowed = _case(4, 3001, 0.5, torch.float32)
    expected = scores.clone()
    expected[rows] = expected[rows].masked_fill(~allowed[rows], -torch.inf)
    _apply_at_once(scores, bits, np.isin(np.arange(4), rows), _unpack_and_fill)  # as on another device
    assert torch.equal(scores, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("share", [1e-3, 0.5])
def test_the_same_on_a_device(share: float) -> None:
    scores, bits, allowed = _case(4, 5001, share, torch.float32)
    buffer = empty_bits(len(bits), bits.shape[1], "cuda")
    buffer[:] = bits
    constrained = np.array([True, True, False, True])
    expected = scores.masked_fill(~allowed & torch.from_numpy(constrained)[:, None], -torch.inf)
    assert torch.equal(apply_bits(scores.cuda(), buffer, constrained).cpu(), expected)
