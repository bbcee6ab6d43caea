"""Keys and values of a canvas, for models that denoise a part of it at a time.

A cache of transformers' kind: layers hand it the keys and values of the columns that are run, and get those of the
whole canvas. Which columns to run is decided here; running them is the denoiser's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import Cache

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.denoisers.families import Attention
    from lmguide.denoisers.layouts import Layout


class Span(NamedTuple):
    """Columns `[first, behind)` that are run, seeing columns `[0, keys)`."""

    first: int
    behind: int
    keys: int


class CanvasCache(Cache):
    """Keys and values of every layer for a batch of canvases; made by ``Denoiser.new_cache``.

    With full attention every key depends on every token, so the cache is approximate (Fast-dLLM, arXiv 2505.22618).
    The first call of a window runs the whole canvas and stores it, and is exact. Further calls run the columns from
    the window on (``"prefix"``) or those of the window (``"dual"``) and see the stored rest as it was then.

    With block-causal attention it is exact. What is before the window's first block is final and runs once; the first
    call of a window starts at the first column that was not final before, further calls at the window's first block.

    Families with a shift also run the column before the window, which scores its first token.

    Rows are independent, so branches of a guided call can be stacked in one cache, padded on the left.

    Args:
        attention: The family's.
        kind: ``"prefix"`` or ``"dual"``.

    Attributes:
        window: The columns of the window that was begun, or None.

    Example:
        >>> cache = CanvasCache("full", "dual")
        >>> cache.begin_block(4, 8)
        >>> cache.window
        (4, 8)
    """

    def __init__(self, attention: Attention, kind: str) -> None:
        super().__init__(layers=[])
        self.attention, self.kind = attention, kind
        self.window: tuple[int, int] | None = None
        self._keys: list[Tensor | None] = []
        self._values: list[Tensor | None] = []
        self._shape = (0, 0)  # rows and columns of the canvas that was last run
        self._begun = 0  # block-causal: what is before the block of this column is stored, and final
        self._fresh = False  # full: whether the window's first call has been
        self._span = Span(0, 0, 0)
        self._updated = 0

    def begin_block(self, start: int, stop: int) -> None:
        """Begin the window ``[start, stop)``, or refresh it.

        Tokens before ``start`` must not change until another window begins; for block-causal families not even then,
        unless that one begins before them.

        Args:
            start: First column of the window.
            stop: The column behind its last.

        Raises:
            ValueError: the window is empty or negative.
        """
        if not 0 <= start < stop:
            raise ValueError(f"start, stop: expected 0 <= start < stop, got {start} and {stop}. Give the window.")
        self._begun = min(start, self._begun)
        self.window, self._fresh = (start, stop), False

    def span(self, layout: Layout, start: int, stop: int, low: int, high: int) -> Span:
        """What to run for the columns `[start, stop)`, whose logits stand at `[low, high)`.

        Raises:
            ValueError: no window was begun, the columns are not in it, or the batch has another shape than before.
        """
        if self.window is None or (self.attention == "full" and not self._covers(self.window, start, stop)):
            raise ValueError(
                f"cache: expected columns of the window {self.window}, got [{start}, {stop}). "
                "Call cache.begin_block(start, stop) when a window begins."
            )
        rows, length = layout.rows, layout.length
        if self._shape[0] not in (0, rows):
            raise ValueError(
                f"cache: expected the {self._shape[0]} rows it holds, got {rows}. "
                "Call cache.keep_rows(rows) when rows leave, or make a new cache."
            )
        if self.attention == "block_causal":
            behind = layout.block_stop(high - 1)
            self._span = Span(min(layout.block_start(self._begun), low), behind, behind)
        elif not self._fresh:
            self._span = Span(0, length, length)
        else:
            if self._shape[1] != length:
                raise ValueError(
                    f"cache: expected the {self._shape[1]} columns it holds, got {length}. "
                    "Call cache.begin_block(start, stop) when the canvas grows."
                )
            first = max(self.window[0] - int(layout.family.shift), 0)
            self._span = Span(first, length if self.kind == "prefix" else self.window[1], length)
        self._updated = 0
        self._layout = layout
        return self._span

    def ran(self, span: Span) -> None:
        """Note that the columns of a span have been run.

        Raises:
            ValueError: the model's layers did not use the cache.
        """
        if not self._updated:
            raise ValueError("cache: expected layers that store keys and values, got none. Decode without a cache.")
        assert self.window is not None
        self._fresh, self._begun = True, min(self.window[0], span.behind)
        self._shape = (self._layout.rows, self._layout.length)

    def keep_rows(self, rows: Tensor) -> None:
        """Keep some rows, in the order given.

        Args:
            rows: Indices ``[b]``, int64.
        """
        for states in (self._keys, self._values):
            states[:] = [None if each is None else each.index_select(0, rows.to(each.device)) for each in states]
        self._shape = (int(rows.shape[0]), self._shape[1])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values ``[B, H, Q, D]`` of the columns that are run; those of all that are seen.

        Called by the layers of the model.
        """
        while len(self._keys) <= layer_idx:
            self._keys.append(None)
            self._values.append(None)
        self._updated += 1
        keys = self._keys[layer_idx] = self._write(self._keys[layer_idx], key_states)
        values = self._values[layer_idx] = self._write(self._values[layer_idx], value_states)
        if self._span.first == 0 and self._span.behind == self._span.keys:
            return key_states, value_states
        return keys[:, :, : self._span.keys], values[:, :, : self._span.keys]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many columns are seen beyond those that are run."""
        return self._span.keys - (self._span.behind - self._span.first)

    def __len__(self) -> int:
        """How many layers have stored something."""
        return len(self._keys)

    def _covers(self, window: tuple[int, int], start: int, stop: int) -> bool:
        return window[0] <= start and (self.kind == "prefix" or stop <= window[1])

    def _write(self, room: Tensor | None, states: Tensor) -> Tensor:
        first, behind, keys = self._span
        need = max(keys, self._layout.length)
        if room is None or room.shape[2] < need:
            grown = states.new_zeros(*states.shape[:2], need, states.shape[3])
            if room is not None:
                grown[:, :, : room.shape[2]] = room
            room = grown
        room[:, :, first:behind] = states
        return room
