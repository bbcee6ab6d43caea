"""What a caller of `generate` asks for, checked and made whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmguide.checks import check_whole
from lmguide.sources.canvas import Canvas

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.denoisers import Denoiser


@dataclass(frozen=True)
class Prompts:
    """Canvases before the first step.

    Attributes:
        canvas: Prompts and undecided answers, or the given canvases.
        prompt_length: Columns of the prompt; 0 where canvases were given to be filled in.
    """

    canvas: Canvas
    prompt_length: int


def lay_out(
    denoiser: Denoiser, input_ids: object, attention_mask: object, new_tokens: int | None, infill: bool
) -> Prompts:
    """Put prompts and room for answers on canvases.

    Args:
        denoiser: The model.
        input_ids: Prompts `[B, P]`, or canvases with mask tokens where `infill`.
        attention_mask: Their mask, `[B, P]`; `None` is all ones.
        new_tokens: Columns of the answer; `None` with `infill`.
        infill: Whether the mask tokens in `input_ids` are to be filled in.

    Raises:
        ValueError: Bad ids or mask, mask tokens where there should be none, or none where there should be some.
    """
    ids = _ids(denoiser, input_ids)
    mask = _mask(ids, attention_mask)
    mask_id = denoiser.mask_token_id
    masked = torch.zeros_like(ids, dtype=torch.bool) if mask_id is None else (ids == mask_id) & mask.bool()
    if infill:
        if new_tokens is not None:
            raise ValueError(
                "max_new_tokens: a canvas that is filled in has its length already. Leave it out, or put mask tokens "
                "at the end of the canvas."
            )
        if not masked.any(1).all():
            raise ValueError(
                "input_ids: expected mask tokens to fill in on every canvas, got a canvas without. "
                f"Put token {mask_id} where text is wanted, or leave infill out."
            )
        return Prompts(Canvas(ids, mask, mask.bool() & ~masked, masked, mask_id), 0)
    if masked.any():
        raise ValueError(
            f"input_ids: the prompt holds mask tokens ({mask_id}). Pass infill=True to have them filled in, or remove "
            "them."
        )
    assert new_tokens is not None
    answer = ids.new_full((ids.shape[0], new_tokens), 0 if mask_id is None else mask_id)
    given = torch.nn.functional.pad(mask.bool(), (0, new_tokens))
    undecided = torch.nn.functional.pad(torch.zeros_like(mask, dtype=torch.bool), (0, new_tokens), value=True)
    mask = torch.nn.functional.pad(mask, (0, new_tokens), value=1)
    return Prompts(Canvas(torch.cat([ids, answer], 1), mask, given, undecided, mask_id), ids.shape[1])


def check_lengths(
    denoiser: Denoiser, length: int, answer: int, block_length: int | None, steps: int | None
) -> tuple[int | None, int]:
    """The block length and the steps of each block.

    Args:
        denoiser: The model.
        length: Columns of the canvas.
        answer: Columns of the answer.
        block_length: As asked for.
        steps: Of the whole answer, as asked for; `None` is one for each column.

    Raises:
        ValueError: Too long a canvas, blocks that do not fit the answer, or steps that do not fit the blocks.
    """
    limit = denoiser.max_length
    if limit is not None and length > limit:
        raise ValueError(
            f"max_new_tokens: prompt and answer have {length} columns, but the model's context has {limit}. "
            "Shorten the prompt or max_new_tokens."
        )
    family = denoiser.family
    if block_length is not None:
        check_whole("block_length", block_length, "Give the columns of a block, 32 for example.", least=1)
    if steps is not None:
        check_whole("steps", steps, "Give the number of denoising steps, 128 for example.", least=1)
    if family.attention == "full":
        block = block_length or answer
        if answer % block:
            raise ValueError(
                f"block_length: expected a divisor of the answer's {answer} columns, got {block}. "
                "Change it or max_new_tokens."
            )
        blocks = answer // block
    else:
        block = block_length or family.block_length or answer
        if family.block_length is not None and family.block_length % block:
            raise ValueError(
                f"block_length: expected a divisor of the model's block of {family.block_length}, got {block}. "
                "Change it or leave it out."
            )
        blocks = -(-answer // block)
        if steps is None:
            return block_length, block
    steps = answer if steps is None else steps
    if steps % blocks:
        raise ValueError(
            f"steps: expected a multiple of the {blocks} blocks, got {steps}. "
            f"Use {max(1, round(steps / blocks)) * blocks}."
        )
    return block_length, steps // blocks


def token_list(argument: str, tokens: object, vocab_size: int) -> list[int]:
    """One token id, several or none as a list.

    Raises:
        ValueError: Not ids of the vocabulary.
    """
    items: list[Any] = [] if tokens is None else list(tokens) if isinstance(tokens, Sequence) else [tokens]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab_size:
            raise ValueError(
                f"{argument}: expected token ids in [0, {vocab_size}), got {item!r}. Use the model's own tokenizer."
            )
    return items


def _ids(denoiser: Denoiser, ids: object) -> Tensor:
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.dtype not in {torch.int32, torch.int64}:
        got = f"{ids.dtype} of shape {list(ids.shape)}" if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(
            f"input_ids: expected integer ids [rows, tokens], got {got}. Pass the tokenizer's input_ids with "
            "return_tensors='pt'."
        )
    if ids.device != denoiser.device:
        raise ValueError(
            f"input_ids: expected it on {denoiser.device} like the model, got {ids.device}. Move it with .to()."
        )
    if not ids.numel():
        raise ValueError("input_ids: expected at least one token, got none. Start from a beginning-of-sequence token.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= denoiser.vocab_size:
        raise ValueError(
            f"input_ids: expected ids in [0, {denoiser.vocab_size}), got {low if low < 0 else high}. "
            "Use the model's own tokenizer."
        )
    return ids.long()


def _mask(ids: Tensor, mask: object) -> Tensor:
    if mask is None:
        return torch.ones_like(ids)
    if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape or mask.device != ids.device:
        got = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask: expected a tensor of shape {list(ids.shape)} beside input_ids, got {got}. "
            "Pass the tokenizer's attention_mask."
        )
    mask = (mask != 0).long()
    if not mask[:, -1].all() or (mask.diff(dim=1) < 0).any():
        raise ValueError(
            "attention_mask: expected padding on the left alone, got some to the right of a token. "
            "Tokenize with padding_side='left'."
        )
    return mask
