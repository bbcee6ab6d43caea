"""Layout of a batch of canvases: where its rows begin, its positions, its blocks and the masks that follow.

Made once per attention mask and shape, so that a step of a decoding loop makes no mask and asks the device nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.denoisers.families import Family

# Masks kept for a layout: those of a window's first and further calls.
_MASKS_KEPT = 2
# Layouts kept: the branches of a guided call differ in their padding.
_LAYOUTS_KEPT = 8


class Layout:
    """What the padding of a batch means for a family.

    Args:
        family: The family.
        attention_mask: `[B, L]`, 1 at real tokens, or None if all are real.
        rows: B.
        length: L.
        device: Where masks and positions are to be.
        dtype: The model's, for masks that are added to scores.

    Raises:
        ValueError: a row has no real token, or has padding between real tokens, or the family takes no padding.
    """

    def __init__(
        self,
        family: Family,
        attention_mask: Tensor | None,
        rows: int,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.family, self.rows, self.length, self.device, self.dtype = family, rows, length, device, dtype
        self.real, self.begins = (None, [0]) if attention_mask is None else _read(attention_mask.to(device), family)
        # Columns at which rows begin, `[B]`, and positions counted from there, `[B, L]`; of one row without padding.
        if self.real is None:
            self.begin = torch.zeros(1, dtype=torch.int64, device=device)
            self.positions = torch.arange(length, device=device)[None]
        else:
            self.begin = self.real.long().argmax(-1)
            self.positions = (self.real.cumsum(-1) - 1).clamp_min(0)
        self._masks: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()

    @property
    def padded(self) -> bool:
        """Whether some row has padding."""
        return self.real is not None

    def block_start(self, column: int) -> int:
        """The first column of the block that holds `column`, the least over the rows."""
        starts = [begin + self._block(column, begin) * self._length() for begin in self.begins if begin <= column]
        return min(starts, default=column)

    def block_stop(self, column: int) -> int:
        """The column behind the block that holds `column`, the most over the rows, and at most L."""
        return min(self.length, max(begin + (self._block(column, begin) + 1) * self._length() for begin in self.begins))

    def positions_of(self, first: int, behind: int, offset: int = 0) -> Tensor:
        """Positions of the columns `[first, behind)` for every row, `[B, behind - first]`, counted from `offset`."""
        positions = self.positions[:, first:behind].expand(self.rows, -1)
        return positions + offset if offset else positions

    def mask(self, first: int, behind: int, keys: int) -> Tensor | None:
        """Who sees whom, in the family's form.

        Padding is hidden as a key only: what is computed at padding is finite and goes nowhere.

        Args:
            first: First column that is run.
            behind: The column behind the last that is run.
            keys: Columns `[0, keys)` are there to be seen.

        Returns:
            None where the model is to be told nothing; `[B, keys]` for `"keys"`; otherwise `[B, 1, behind - first,
            keys]`, bool for `"pairs"`, of the model's dtype for `"bias"`.
        """
        form, blocks = self.family.padding, self.family.attention == "block_causal"
        if form == "none" or (form != "bias" and not blocks and self.real is None):
            return None
        key = (first, behind, keys)
        if key not in self._masks:
            while len(self._masks) >= _MASKS_KEPT:
                self._masks.popitem(last=False)
            self._masks[key] = self._make(first, behind, keys, blocks)
        return self._masks[key]

    def _make(self, first: int, behind: int, keys: int, blocks: bool) -> Tensor:
        if self.family.padding == "keys" and self.real is not None:
            return self.real[:, :keys].long()
        seen = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=self.device)
        if self.real is not None:
            seen = self.real[:, None, None, :keys]
        if blocks:
            block = self.positions // self._length()
            seen = seen & (block[:, None, first:behind, None] >= block[:, None, None, :keys])
        if self.family.padding == "bias":
            lowest = torch.finfo(self.dtype).min
            seen = torch.zeros_like(seen, dtype=self.dtype).masked_fill_(~seen, lowest)
        return seen.expand(self.rows, 1, behind - first, keys)

    def _block(self, column: int, begin: int) -> int:
        return max(column - begin, 0) // self._length()

    def _length(self) -> int:
        assert self.family.block_length is not None
        return self.family.block_length


class Layouts:
    """The layouts of the last few attention masks and shapes that were seen."""

    def __init__(self, family: Family, device: torch.device, dtype: torch.dtype) -> None:
        self.family, self.device, self.dtype = family, device, dtype
        self._kept: OrderedDict[tuple[int, ...], tuple[Tensor | None, Layout]] = OrderedDict()

    def of(self, attention_mask: Tensor | None, rows: int, length: int) -> Layout:
        """The layout of a batch, made anew only for a mask that is another object, or was written to, or a new shape.

        Raises:
            ValueError: the mask has another shape, or what `Layout` refuses.
        """
        key = (rows, length, 0, 0)
        if attention_mask is not None:
            # The counter of writes; tensors made in inference mode have none.
            written = -1 if attention_mask.is_inference() else attention_mask._version
            key = (rows, length, id(attention_mask), written)
        if (kept := self._kept.get(key)) is not None:
            return kept[1]
        if attention_mask is not None and attention_mask.shape != (rows, length):
            raise ValueError(
                f"attention_mask: expected the shape of the canvas, {(rows, length)}, got "
                f"{tuple(attention_mask.shape)}. Give 1 for every real token, masked ones included, and 0 for padding."
            )
        layout = Layout(self.family, attention_mask, rows, length, self.device, self.dtype)
        while len(self._kept) >= _LAYOUTS_KEPT:
            self._kept.popitem(last=False)
        self._kept[key] = (attention_mask, layout)  # held, so that its id is not given to another tensor
        return layout


def _read(attention_mask: Tensor, family: Family) -> tuple[Tensor | None, list[int]]:
    """The mask as bool, or None if all tokens are real; and the columns at which rows begin, each once."""
    real = attention_mask != 0
    rises = real[:, :1].sum(-1) + (real[:, 1:] & ~real[:, :-1]).sum(-1)
    # One question to the device for all that must be known.
    facts = torch.stack([real.all(-1).long(), rises, real.long().argmax(-1)]).tolist()
    if all(facts[0]):
        return None, [0]
    if any(count != 1 for count in facts[1]):
        raise ValueError(
            "attention_mask: expected real tokens without a gap in every row, got a row "
            f"{'without any' if 0 in facts[1] else 'with padding between them'}. Pad the prompts on the left."
        )
    if family.padding == "none":
        raise ValueError(
            f"attention_mask: expected no padding, got some: a model of the family {family.name!r} cannot be told of "
            "it. Decode prompts of different lengths one at a time."
        )
    return real, sorted(set(facts[2]))
