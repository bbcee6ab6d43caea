"""Random numbers that depend on their own coordinates alone: row key, stream, step, column, token.

Counter-based: nothing is drawn one after another, so a row's noise is the same in any batch, on any device and
whichever positions are asked for. It knows no model, no order and no schedule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from lmguide.checks import check_whole

State: TypeAlias = tuple[Tensor, Tensor]
"""Two 32-bit words per row or position, int32: the hash of the coordinates so far."""

_WORD = 1 << 32
# Shifts and multipliers of triple32, a 32-bit finaliser of three rounds found by search for low avalanche bias
# (C. Wellons, hash-prospector). Written as signed numbers: int32 products wrap, so the low 32 bits are the same.
_MULTIPLIERS = tuple(number - _WORD if number >> 31 else number for number in (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB))
_SHIFTS = (17, 11, 15, 14)
# The state before anything is known of the coordinates: any two words will do (here digits of the golden ratio).
_START = (0x1E3779B9, 0x7F4A7C15)
_BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1."""


class RowNoise:
    """The noise of the rows of one call.

    A number is a hash of (row key, stream, step, column[, token]). Columns count from a row's first token, so that its
    padding does not matter either. Rows with equal keys have equal noise. A stream is a name for one use of the noise;
    numbers of different streams are independent.

    Args:
        keys: `[B]` int64, one key per row; see `keys_from`.
        first: `[B]` int64, the column of each row's first token; None is 0.

    Raises:
        TypeError: `keys` is not a tensor of int64.
        ValueError: `keys` is not one-dimensional.

    Example:
        >>> noise = RowNoise(torch.tensor([7, 8]))
        >>> alone = RowNoise(torch.tensor([8]))
        >>> torch.equal(noise.uniform("order", 0, 4, 9)[1:, 2:], alone.uniform("order", 0, 6, 9))
        True
    """

    def __init__(self, keys: Tensor, first: Tensor | None = None) -> None:
        if not isinstance(keys, Tensor) or keys.dtype != torch.int64:
            got = str(keys.dtype) if isinstance(keys, Tensor) else type(keys).__name__
            raise TypeError(f"keys: expected a tensor of int64, got {got}. Use keys_from to draw them.")
        if keys.dim() != 1:
            raise ValueError(f"keys: expected one key per row, [B], got the shape {list(keys.shape)}. Use keys_from.")
        self.keys = keys
        self.first = torch.zeros_like(keys) if first is None else first
        start = torch.full_like(keys, _START[0], dtype=torch.int32), torch.full_like(keys, _START[1], dtype=torch.int32)
        self._rows = _absorb(_absorb(start, _low_word(keys)), _low_word(keys >> 32))

    def uniform(self, stream: str, step: int, start: int, stop: int) -> Tensor:
        """Uniform numbers of the columns `[start, stop)`.

        Args:
            stream: What they are for.
            step: Number of the step, from 0.
            start: First column.
            stop: First column behind.

        Returns:
            `[B, stop - start]` float32 in (0, 1), both ends excluded. Small numbers are resolved to `2^-32`.
        """
        return _unit(self._words(stream, step, start, stop))

    def tokens(self, stream: str, step: int, start: int, stop: int, vocab_size: int) -> Tensor:
        """Token ids of the columns `[start, stop)`, uniform over the vocabulary: what uniform-noise models start from.

        Args:
            stream: What they are for; another one than that of `uniform`, with which they would go together.
            step: Number of the step, from 0.
            start: First column.
            stop: First column behind.
            vocab_size: `V`, at least 1.

        Returns:
            `[B, stop - start]` int64 in `[0, V)`.

        Raises:
            ValueError: `vocab_size` is below 1.
        """
        check_whole("vocab_size", vocab_size, "Give the number of tokens of the model.", least=1)
        words = self._words(stream, step, start, stop).to(torch.int64) & (_WORD - 1)
        return (words * vocab_size) >> 32

    def gumbel(self, rows: Tensor, columns: Tensor, step: int, vocab_size: int, stream: str = "token") -> Tensor:
        """Standard Gumbel numbers `-log(-log u)` for every token of some positions.

        `argmax(log p + gumbel)` is then a draw from `p`. Noise of low precision lowers the temperature without saying
        so (arXiv 2409.02908): a float32 uniform has 24 bits, so `-log(-log u)` stops at 16.6 and the rare tokens of a
        large vocabulary, each of which needs a rare large number to win, win too seldom. Here `1 - u` has 32 bits and
        enters through `log1p`, which reaches 22.9: tokens keep their probability down to about `1e-9`.

        Args:
            rows: `[n]` int64, row of each position.
            columns: `[n]` int64, its column of the canvas.
            step: Number of the step, from 0.
            vocab_size: `V`, at least 1.
            stream: What they are for.

        Returns:
            `[n, V]` float32. Temporary memory is about twice that; ask in chunks where it counts.

        Raises:
            ValueError: `vocab_size` is below 1.

        Example:
            >>> noise = RowNoise(torch.tensor([7, 8]))
            >>> noise.gumbel(torch.tensor([1, 0, 1]), torch.tensor([4, 4, 5]), 0, 10).shape
            torch.Size([3, 10])
        """
        check_whole("vocab_size", vocab_size, "Give the number of tokens of the model.", least=1)
        first, second = self._at(stream, step)
        first, second = _absorb((first[rows], second[rows]), (columns - self.first[rows]).to(torch.int32))
        words = torch.arange(vocab_size, dtype=torch.int32, device=rows.device) ^ first[:, None]
        # The second word enters in the middle. If it came before or after, positions whose first words differ in few
        # bits would have each other's numbers, in another order.
        words = _mix_inplace(words, second[:, None])
        return _unit(words).neg_().log1p_().neg_().log_().neg_()

    def _at(self, stream: str, step: int) -> State:
        state = self._rows
        for word in (*_stream_words(stream), step):
            state = _absorb(state, word)
        return state

    def _words(self, stream: str, step: int, start: int, stop: int) -> Tensor:
        first, second = self._at(stream, step)
        columns = torch.arange(start, stop, device=first.device) - self.first[:, None]
        return _absorb((first[:, None], second[:, None]), columns.to(torch.int32))[1]


def keys_from(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw the keys of the rows of a call.

    Args:
        generator: One generator, from which all keys are drawn; one generator per row, so that each row's answer
            depends on its own; None for torch's default generator of the CPU, which `torch.manual_seed` sets.
        batch: Number of rows.
        device: Where the keys are put; the generators may be elsewhere.

    Returns:
        `[batch]` int64, at least 0.

    Raises:
        TypeError: Neither a generator nor a sequence of them.
        ValueError: Not one generator per row.

    Example:
        >>> several = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        >>> alone = torch.Generator().manual_seed(6)
        >>> bool(keys_from(several, 2)[1] == keys_from(alone, 1)[0])
        True
    """
    if generator is None or isinstance(generator, torch.Generator):
        return _draw_keys(generator, batch).to(device)
    if not isinstance(generator, Sequence) or not all(isinstance(each, torch.Generator) for each in generator):
        raise TypeError(
            f"generator: expected a torch.Generator, one per row, or None, got {generator!r}. "
            "Use torch.Generator().manual_seed(0)."
        )
    if len(generator) != batch:
        raise ValueError(
            f"generator: expected one generator per row ({batch}), got {len(generator)}. Give one for the whole batch, "
            "or as many as there are rows."
        )
    return torch.cat([_draw_keys(each, 1).to(device) for each in generator])


def _draw_keys(generator: torch.Generator | None, count: int) -> Tensor:
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randint(torch.iinfo(torch.int64).max, (count,), generator=generator, device=device)


@lru_cache
def _stream_words(stream: str) -> tuple[int, int]:
    """Two words of a name. Python's own hash of a string differs from process to process."""
    digest = hashlib.sha256(stream.encode()).digest()
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:8], "little", signed=True)


def _absorb(state: State, word: Tensor | int) -> State:
    """One more coordinate: `a' = mix(a ^ word)`, `b' = mix(b + a')`; different words never meet again in `a'`."""
    first = _mix_inplace(state[0] ^ word)
    return first, _mix_inplace(state[1] + first)


def _mix_inplace(words: Tensor, between: Tensor | None = None) -> Tensor:
    """Mix the bits of int32 words by xor-shifts and products, in place; `between` is put in after the first product."""
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        words ^= _shifted(words, shift)
        words *= multiplier
        if between is not None:
            words ^= between
            between = None
    words ^= _shifted(words, _SHIFTS[-1])
    return words


def _shifted(words: Tensor, shift: int) -> Tensor:
    """The bits moved right, with zeros coming in: torch's own shift of a signed number brings in its sign."""
    return (words >> shift).bitwise_and_((1 << (32 - shift)) - 1)


def _low_word(numbers: Tensor) -> Tensor:
    """The low 32 bits of int64 numbers as int32, without a conversion that overflows."""
    return (((numbers + _WORD // 2) & (_WORD - 1)) - _WORD // 2).to(torch.int32)


def _unit(words: Tensor) -> Tensor:
    """`(w + 1/2) / 2^32` of the words as unsigned numbers, in (0, 1); float32 resolves small ones down to `2^-33`."""
    numbers = words.to(torch.float32).add_(0.5).mul_(1 / _WORD)
    numbers += numbers < 0
    return numbers.clamp_(max=_BELOW_ONE)
