"""Packed bits applied to scores: minus infinity where a token may not follow.

Bits are little-endian words of 32: token `v` is bit `v % 32` of word `v // 32`, as llguidance and xgrammar write them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_SPARSE_WORDS = 1 / 8
"""Rows with at most this share of words in use are filled and a few scores put back: the faster way up to half a
thousand tokens of 131,072, as measured."""


def empty_bits(rows: int, words: int, device: torch.device | str = "cpu") -> NDArray[np.int32]:
    """Bits `[rows, words]`, all 0; in pinned memory where they go to a CUDA device, so that the copy need not wait."""
    pinned = torch.device(device).type == "cuda"
    found: NDArray[np.int32] = torch.zeros(rows, words, dtype=torch.int32, pin_memory=pinned).numpy()
    return found


def apply_bits(scores: Tensor, bits: NDArray[np.int32], constrained: NDArray[np.bool_] | None = None) -> Tensor:
    """Set `scores[b, v]` to minus infinity where bit `v` of row `b` is 0; in place.

    Allowed scores stay as they are, bit for bit.

    Args:
        scores: `[B, V]`, floating point, on any device.
        bits: `[B, words]`; scores beyond its bits become minus infinity.
        constrained: Rows `[B]` that have a constraint; `None` is all of them. The others are left as they are.

    Returns:
        `scores` itself.

    Raises:
        ValueError: Shapes that do not belong together.

    Example:
        >>> bits = np.array([[0b101]], dtype=np.int32)
        >>> apply_bits(torch.zeros(1, 4), bits).tolist()
        [[0.0, -inf, 0.0, -inf]]
    """
    if scores.dim() != 2 or bits.ndim != 2 or len(scores) != len(bits):
        raise ValueError(
            f"bits: expected one row for each of the scores {tuple(scores.shape)}, got {bits.shape}. "
            "Give scores [B, V] and bits [B, words]."
        )
    rows = np.arange(len(bits)) if constrained is None else np.flatnonzero(constrained)
    if not len(rows):
        return scores
    covered = min(scores.shape[1], 32 * bits.shape[1])
    if scores.shape[1] > covered:
        scores[torch.from_numpy(rows).to(scores.device), covered:] = -torch.inf
    if scores.device.type != "cpu":
        _apply_by_shift(scores[:, :covered], bits, rows)
        return scores
    used = bits[:, : -(-covered // 32)] != 0
    sparse = (np.array([*map(np.count_nonzero, used)]) <= used.shape[1] * _SPARSE_WORDS) & (scores.stride(1) == 1)
    _apply_sparse(scores[:, :covered], bits, rows[sparse[rows]], used)
    _apply_dense(scores[:, :covered], bits, rows[~sparse[rows]])
    return scores


def _apply_sparse(scores: Tensor, bits: NDArray[np.int32], rows: NDArray[np.intp], used: NDArray[np.bool_]) -> None:
    """Keep the few scores that are allowed, fill, and put them back."""
    if not len(rows):
        return
    width, stride = scores.shape[1], scores.stride(0)
    row, word = np.divmod(np.flatnonzero(used[rows]), used.shape[1])  # several times as fast as np.nonzero
    row = rows[row]
    bit = np.flatnonzero(np.unpackbits(bits[row, word].view(np.uint8), bitorder="little").view(np.bool_))
    token = word[bit >> 5] * 32 + (bit & 31)
    place = (row[bit >> 5] * stride + token)[token < width]
    # NumPy picks single numbers several times as fast as torch; whole numbers of the same width stand in for bfloat16.
    numbers = scores.detach().view(_WHOLE[scores.dtype.itemsize])
    flat = numbers.as_strided(((len(scores) - 1) * stride + width,), (1,)).numpy()
    kept = flat[place]
    if len(rows) == len(scores):
        scores.fill_(-torch.inf)
    else:
        scores[torch.from_numpy(rows)] = -torch.inf
    flat[place] = kept


_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _apply_dense(scores: Tensor, bits: NDArray[np.int32], rows: NDArray[np.intp]) -> None:
    """The lesser of score and bound, whose bounds of eight tokens at a time are looked up by byte."""
    if not len(rows):
        return
    width = scores.shape[1]
    count = -(-width // 8)
    table = _bounds(scores.dtype)
    bounds = torch.empty(count * 8, dtype=scores.dtype)
    eights = bounds.view(torch.uint8).numpy().view(table.dtype)
    for row in rows:
        np.take(table, bits[row].view(np.uint8)[:count], out=eights, mode="clip")  # clip: no buffer between
        torch.minimum(scores[row], bounds[:width], out=scores[row])


@lru_cache(maxsize=4)
def _bounds(dtype: torch.dtype) -> NDArray[np.void]:
    """For each byte its eight bounds: infinity where the bit is 1, minus infinity where it is 0."""
    bits = torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"))
    bounds = torch.where(bits.bool(), torch.inf, -torch.inf).to(dtype)
    return bounds.view(torch.uint8).numpy().view(f"V{8 * dtype.itemsize}").reshape(-1)


def _apply_by_shift(scores: Tensor, bits: NDArray[np.int32], rows: NDArray[np.intp]) -> None:
    """Unpack where the scores are."""
    packed = torch.from_numpy(bits).to(scores.device, non_blocking=True)
    shifts = torch.arange(32, dtype=torch.int32, device=scores.device)
    banned = ((packed[:, :, None] >> shifts) & 1).eq(0).flatten(1)[:, : scores.shape[1]]
    if len(rows) < len(scores):
        constrained = torch.zeros(len(scores), dtype=torch.bool)
        constrained[torch.from_numpy(rows)] = True
        banned = banned & constrained.to(scores.device)[:, None]
    scores.masked_fill_(banned, -torch.inf)
