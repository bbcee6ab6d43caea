"""Rows of token ids: left-padded, and checked where a user gave them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Rows:
    """Left-padded token ids.

    Attributes:
        ids: `[R, P]`, int64.
        mask: `[R, P]`, int64, 1 on tokens; each row ends with a 1.
    """

    ids: Tensor
    mask: Tensor

    def repeat(self, times: int) -> Rows:
        """Each row `times` times."""
        return self if times == 1 else Rows(self.ids.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0))

    def tokens(self) -> list[list[int]]:
        """The tokens of each row, without padding."""
        return [row[keep.bool()].tolist() for row, keep in zip(self.ids, self.mask, strict=True)]


def pack(rows: Sequence[Sequence[int]], device: torch.device | str) -> Rows:
    """Token lists as left-padded rows."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long, device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long, device=device)
    return Rows(ids, mask)


def checked(
    ids: object,
    mask: object,
    *,
    argument: str,
    batch: int,
    vocab_size: int,
    device: torch.device,
    pad_token_id: int | None = None,
    expanded: bool = False,
) -> Rows:
    """Token ids a user gave, checked and left-padded; right or interior padding is squeezed out.

    Args:
        ids: A tensor `[P]` or `[R, P]`, or (nested) sequences of ints; rows may differ in length.
        mask: Their mask, same shape, 1 on tokens; or `None`: padding is then inferred from leading `pad_token_id`s, as
            transformers does for the prompt.
        argument: The name to use in errors.
        batch: Prompts there are; the rows must be 1 or as many.
        vocab_size: Ids are below it.
        device: Where the prompt lives.
        pad_token_id: The padding token, if it can be told from real tokens.
        expanded: Whether any number of rows that divides `batch` will do.

    Raises:
        ValueError: A wrong shape, dtype, device, row count or id, an empty row, or a mask that does not fit; the
            argument is named.
    """
    if isinstance(ids, torch.Tensor):
        lists = _from_tensor(ids, mask, argument, device, pad_token_id)
    else:
        lists = _from_sequence(ids, mask, argument)
    if not lists or not all(lists):
        raise ValueError(
            f"{argument}: expected at least one token in every row, got an empty one. See EmptyPrompt and LastToken."
        )
    if len(lists) not in {1, batch} and not (expanded and batch % len(lists) == 0):
        raise ValueError(
            f"{argument}: expected 1 row or one per prompt ({batch}), got {len(lists)}. "
            "Give as many as there are prompts."
        )
    for row in lists:
        for token in row:
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"{argument}: expected ids in [0, {vocab_size}), got {token}. Use the model's own tokenizer."
                )
    return pack(lists, device)


def check_positions(model: PreTrainedModel, rows: Rows, new_tokens: int, argument: str) -> None:
    """Refuse a context that runs past the learned positions of a model, which would fail in the middle of an answer.

    Raises:
        ValueError: It does.
    """
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or model.config.is_encoder_decoder:
        return
    if getattr(config, "rope_parameters", None) is not None or getattr(config, "alibi", False):
        return  # positions are computed, not looked up
    longest = int(rows.mask.sum(1).max())
    if longest + new_tokens > limit:
        raise ValueError(
            f"{argument}: {longest} tokens and {new_tokens} new ones exceed the model's {limit} positions. "
            "Shorten it or max_new_tokens."
        )


def _from_tensor(
    ids: Tensor, mask: object, argument: str, device: torch.device, pad_token_id: int | None
) -> list[list[int]]:
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.dtype not in {torch.int32, torch.int64}:
        raise ValueError(
            f"{argument}: expected integer ids [rows, tokens], got {ids.dtype} of shape {list(ids.shape)}. "
            "Pass the tokenizer's input_ids."
        )
    if ids.device != device:
        raise ValueError(f"{argument}: expected it on {device} like the prompt, got {ids.device}. Move it with .to().")
    keep: Any = mask
    if mask is None:
        keep = torch.ones_like(ids) if pad_token_id is None else (ids != pad_token_id).long().cummax(-1).values
    else:
        keep = mask[None] if isinstance(mask, torch.Tensor) and mask.ndim == 1 else mask
        if not isinstance(keep, torch.Tensor) or keep.shape != ids.shape:
            got = list(keep.shape) if isinstance(keep, torch.Tensor) else type(keep).__name__
            raise ValueError(
                f"{argument}: its attention mask must be a tensor of its shape {list(ids.shape)}, got {got}. "
                "Pass the tokenizer's attention_mask."
            )
    return [row[flags.bool()].tolist() for row, flags in zip(ids, keep, strict=True)]


def _from_sequence(ids: object, mask: object, argument: str) -> list[list[int]]:
    if mask is not None:
        raise ValueError(
            f"{argument}: an attention mask goes with a tensor of ids, got {type(ids).__name__}. "
            "Leave the mask out: rows given as lists may differ in length."
        )
    items: list[Any] = list(ids) if isinstance(ids, Sequence) else [ids]
    nested = bool(items) and all(isinstance(row, Sequence) for row in items)
    lists = [list(row) for row in items] if nested else [items]
    if not all(isinstance(token, int) and not isinstance(token, bool) for row in lists for token in row):
        raise ValueError(f"{argument}: expected token ids, got {ids!r}. Pass the tokenizer's input_ids.")
    return lists
