"""Which columns are decoded together, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from lmguide.denoisers import Family
    from lmguide.sources.canvas import Canvas


@dataclass(frozen=True)
class Window:
    """Columns that are decoded at a time.

    Attributes:
        start: First column.
        stop: First column behind.
        mine: Columns of each row's own block, `[B, stop - start]`; blocks stand in different columns where a model's
            blocks count from the first token of prompts of different length.
        seeds: The first column of each row's block, `[B, stop - start]`, for models that decide it by the block before;
            `None` for others.
    """

    start: int
    stop: int
    mine: Tensor
    seeds: Tensor | None = None


def windows(canvas: Canvas, prompt_length: int, block_length: int | None, family: Family) -> Iterator[Window]:
    """The windows of an answer, from left to right.

    Blocks of `block_length` columns from the start of the answer; for a block-causal family, whose blocks count from
    each row's first token, `block_length` divides the family's and the first block is what the prompt leaves of one.

    Args:
        canvas: The canvases.
        prompt_length: Columns of the prompt; 0 where a canvas is filled in.
        block_length: Columns of a block; `None` is the whole answer at once, or the family's own.
        family: The model's family.
    """
    batch, length = canvas.ids.shape
    columns = torch.arange(length, device=canvas.ids.device)
    if family.attention == "full":
        width = block_length or length - prompt_length
        for start in range(prompt_length, length, width):
            stop = min(start + width, length)
            yield Window(start, stop, canvas.ids.new_ones((batch, stop - start), dtype=torch.bool))
        return
    width = block_length or family.block_length or length
    first_token = (1 - canvas.attention_mask).sum(1, keepdim=True)  # left padding
    block = (columns - first_token) // width
    begin = (prompt_length - first_token).clamp_min(0) // width
    number = block - begin  # [B, L]: which of a row's answer blocks a column is in
    answer = (columns >= prompt_length) & (columns >= first_token)
    for index in range(int(number.max()) + 1):
        own = (number == index) & answer
        inside = own.any(0).nonzero()
        start, stop = int(inside[0]), int(inside[-1]) + 1
        seeds = None
        if family.seeds_block:
            starts = (columns - first_token) % (family.block_length or width) == 0
            seeds = (own & starts)[:, start:stop]
        yield Window(start, stop, own[:, start:stop], seeds)
