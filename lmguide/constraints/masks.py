"""Packed bits applied to scores: minus infinity where a token may not follow.

Bits are little-endian words of 32: token `v` is bit `v % 32` of word `v // 32`, as llguidance and xgrammar write them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    Fill = Callable[[Tensor, Tensor], None]

_SPARSE_WORDS = 1 / 8
"""Rows with at most this share of words in use are filled and a few scores put back: the faster way up to half a
thousand tokens of 131,072, as measured."""

_WHOLE = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
"""Whole numbers of the same width: NumPy has no bfloat16."""

_compiled: dict[tuple[str, torch.dtype], Fill] = {}
"""What `compile_masks` has made, by device and type."""


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
        ValueError: Shapes that do not belong together, or scores that a gradient is to pass through.

    Example:
        >>> bits = np.array([[0b101]], dtype=np.int32)
        >>> apply_bits(torch.zeros(1, 4), bits).tolist()
        [[0.0, -inf, 0.0, -inf]]
    """
    if scores.dim() != 2 or bits.ndim != 2 or scores.shape[0] != len(bits):
        raise ValueError(
            f"bits: expected one row for each of the scores {tuple(scores.shape)}, got {bits.shape}. "
            "Give scores [B, V] and bits [B, words]."
        )
    if scores.requires_grad and torch.is_grad_enabled():
        raise ValueError("scores: expected ones without a gradient, got some that have one. Give scores.detach().")
    fill = _compiled.get((scores.device.type, scores.dtype))
    if fill is not None and not _has_usual_shape(scores):
        fill = None
    if not scores.is_cpu:
        _apply_at_once(scores, bits, constrained, fill or _unpack_and_fill)
        return scores
    # In 16 bits the compiled function takes twice as long as filling, and otherwise as long.
    if fill is not None and _pays(constrained) and (scores.itemsize > 2 or not _few_allowed(bits).any()):
        _apply_at_once(scores, bits, constrained, fill)
        return scores
    few = _few_allowed(bits) & (scores.stride(1) == 1)
    if constrained is None:
        constrained = np.ones(len(bits), dtype=np.bool_)
    sparse, dense = constrained & few, constrained & ~few
    _apply_sparse(scores, bits, np.flatnonzero(sparse))
    if fill is not None and _pays(dense):
        _apply_at_once(scores, bits, dense, fill)
    else:
        _apply_dense(scores, bits, np.flatnonzero(dense))
    return scores


def compile_masks(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
    """Have `torch.compile` make the masks of this process faster; they are the same, bit for bit.

    To be called once, before the first text is written, where masks of several rows are a matter: it takes some
    seconds. From then on `apply_bits`, and with it all constraints, use what was compiled for scores of this type on
    this kind of device. One row by itself, and scores that are not contiguous, are masked without. Another number of
    threads of torch (`torch.set_num_threads`) makes it compile once more, so set that before.

    Args:
        dtype: Of the scores: that of the model's logits, which `generate` of transformers makes float32.
        device: Where the scores are; `"cuda"` is any CUDA device.

    Raises:
        ValueError: The type is not one of floating point.
        RuntimeError: `torch.compile` does not work here, most often because there is no C++ compiler.

    Example:
        >>> compile_masks(torch.float32)  # doctest: +SKIP
    """
    if dtype not in _WHOLE:
        names = ", ".join(map(str, _WHOLE))
        raise ValueError(f"dtype: expected one of {names}, got {dtype}. Give the type of the model's logits.")
    device = torch.device(device)
    if (device.type, dtype) in _compiled:
        return
    compiled: Fill = torch.compile(_unpack_and_fill, dynamic=True)

    def fill(scores: Tensor, words: Tensor) -> None:
        # Of no history: views, and tensors made in another mode, would be compiled when they are met.
        compiled(scores.new_empty(0).set_(scores), words)  # type: ignore[call-overload]  # torch's stub lacks tensors

    bits = np.zeros((24, 4096), dtype=np.int32)  # of a usual size: the compiler looks at it
    try:
        for width in (131072, 131072 - 17):  # whole words, and others
            _apply_at_once(torch.zeros(24, width, dtype=dtype, device=device), bits, None, fill)
    except Exception as error:  # of any kind: the compiler's, the linker's, Triton's, a device that is not there
        reason = " ".join(str(error).split())[:300]
        raise RuntimeError(
            f"compile_masks: expected torch.compile to work on {device}, got {type(error).__name__}: {reason} "
            "Install a C++ compiler and Python's headers (Debian: g++ python3-dev), or leave out compile_masks."
        ) from error
    _compiled[device.type, dtype] = fill


def _pays(constrained: NDArray[np.bool_] | None) -> bool:
    """Whether so many rows are to be masked that all at once are faster than those by themselves."""
    return constrained is None or 2 * int(np.count_nonzero(constrained)) >= len(constrained)


def _has_usual_shape(scores: Tensor) -> bool:
    """Whether it is one that was compiled: other strides, one row or one word would be compiled when they are met."""
    rows, width = scores.shape
    return rows > 1 and width > 64 and scores.is_contiguous()


def _few_allowed(bits: NDArray[np.int32]) -> NDArray[np.bool_]:
    """In which rows `[B]` few words are in use, as far as some of them tell; it is a matter of speed alone."""
    looked_at = bits[:, ::61] != 0
    few: NDArray[np.bool_] = looked_at.sum(axis=1) <= looked_at.shape[1] * _SPARSE_WORDS
    return few


def _apply_sparse(scores: Tensor, bits: NDArray[np.int32], rows: NDArray[np.intp]) -> None:
    """Keep the few scores that are allowed, fill, and put them back."""
    if not len(rows):
        return
    width, stride = scores.shape[1], scores.stride(0)
    every = len(rows) == len(bits)
    # np.flatnonzero and np.divmod are several times as fast as np.nonzero.
    row, word = np.divmod(np.flatnonzero((bits if every else bits[rows]) != 0), bits.shape[1])
    row = rows[row]
    bit = np.flatnonzero(np.unpackbits(bits[row, word].view(np.uint8), bitorder="little").view(np.bool_))
    token = word[bit >> 5] * 32 + (bit & 31)
    place = (row[bit >> 5] * stride + token)[token < width]
    # NumPy picks single numbers several times as fast as torch.
    numbers = scores.detach().view(_WHOLE[scores.dtype])
    flat = numbers.as_strided(((len(scores) - 1) * stride + width,), (1,)).numpy()
    kept = flat[place]
    if every:
        scores.fill_(-torch.inf)
    else:
        scores[torch.from_numpy(rows)] = -torch.inf
    flat[place] = kept


def _apply_dense(scores: Tensor, bits: NDArray[np.int32], rows: NDArray[np.intp]) -> None:
    """The lesser of score and bound, whose bounds of eight tokens at a time are looked up by byte.

    Read as whole numbers without a sign, minus infinity is the greatest number and 0 the least; NumPy compares those
    four times as fast as torch compares bfloat16.
    """
    if not len(rows):
        return
    width = min(scores.shape[1], 32 * bits.shape[1])
    if scores.shape[1] > width:
        scores[torch.from_numpy(rows), width:] = -torch.inf
    table = _bounds(scores.dtype)
    unsigned = f"u{scores.dtype.itemsize}"
    numbers = scores.detach().view(_WHOLE[scores.dtype]).numpy().view(unsigned)[:, :width]
    eights = np.empty(-(-width // 8), dtype=table.dtype)
    bounds = eights.view(unsigned)[:width]
    octets = bits.view(np.uint8)[:, : len(eights)]
    for row in rows:
        np.take(table, octets[row], out=eights, mode="clip")  # clip: no buffer between
        np.maximum(numbers[row], bounds, out=numbers[row])


@lru_cache(maxsize=4)
def _bounds(dtype: torch.dtype) -> NDArray[np.void]:
    """For each byte its eight bounds: 0 where the bit is 1, minus infinity where it is 0."""
    bits = torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"))
    bounds = torch.zeros(256, 8, dtype=dtype).masked_fill_(bits == 0, -torch.inf)
    return bounds.view(torch.uint8).numpy().view(f"V{8 * dtype.itemsize}").reshape(-1)


def _apply_at_once(scores: Tensor, bits: NDArray[np.int32], constrained: NDArray[np.bool_] | None, fill: Fill) -> None:
    """All rows by one function, on the device of the scores; those without a constraint with all bits set."""
    count = -(-scores.shape[1] // 32)
    if constrained is not None or bits.shape[1] != count or not bits.flags.c_contiguous:
        given, bits = bits, empty_bits(len(bits), count, scores.device)
        bits[:, : given.shape[1]] = given[:, :count]
        if constrained is not None:
            bits[~constrained] = -1
    with torch.inference_mode():
        words = torch.from_numpy(bits)
        fill(scores, words if scores.is_cpu else words.to(scores.device, non_blocking=True))


def _unpack_and_fill(scores: Tensor, words: Tensor) -> None:
    """Scores `[B, V]` become minus infinity in place where words `[B, ceil(V / 32)]` have no bit."""
    bit = torch.arange(32, dtype=torch.int32, device=words.device)
    banned = ((words[:, :, None] >> bit) & 1).eq(0).flatten(1)[:, : scores.shape[1]]
    scores.masked_fill_(banned, -torch.inf)
