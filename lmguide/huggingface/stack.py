"""Several contexts of one model as the rows of one batch: the inputs of a forward pass that serves them all.

Rows stand in blocks of the batch size: the conditional first, then one block for each stacked source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import BaseModelOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmguide.sources.ids import Rows

PER_ROW_OUTPUTS = ("hidden_states", "attentions", "decoder_hidden_states", "decoder_attentions", "cross_attentions")


@dataclass(frozen=True)
class Stack:
    """Contexts of a decoder-only model that share one left-padded cache.

    Attributes:
        batch: Rows of each block.
        prompt_length: Tokens of the conditional's `input_ids` that are prompt.
        padding: Left padding of the conditional block in the cache.
        rows: The prompts of the other blocks, `[B, P]` each.
        length: Prompt positions of every row in the cache.
        with_positions: Whether the model takes `position_ids`.
        unpadded: Whether no row of any block but the conditional's own has padding; asked once, not at every step.
    """

    batch: int
    prompt_length: int
    padding: int
    rows: Sequence[Rows]
    length: int
    with_positions: bool
    unpadded: bool

    @property
    def blocks(self) -> int:
        """Blocks of rows, the conditional included."""
        return 1 + len(self.rows)

    def inputs(
        self, prepare: Callable[..., dict[str, Any]], input_ids: Tensor, fresh: int, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The model's inputs for the last `fresh` tokens of every block.

        Args:
            prepare: The model's own `prepare_inputs_for_generation`.
            input_ids: The conditional's tokens, `[B, L]`.
            fresh: Tokens the cache has not seen.
            arguments: Keyword arguments of the generation loop, with the conditional's mask and positions.
        """
        generated = input_ids[:, self.prompt_length :]
        arguments = tiled(arguments, self.batch, self.blocks)
        arguments["attention_mask"] = self._mask(arguments.get("attention_mask"), generated)
        if self.with_positions:
            arguments["position_ids"] = self._positions(arguments.get("position_ids"), generated, fresh)
        return prepare(generated.repeat(self.blocks, 1), next_sequence_length=fresh, **arguments)

    def _mask(self, cond: Tensor | None, generated: Tensor) -> Tensor | None:
        if cond is None and self.unpadded:
            return None
        new = torch.ones_like(generated)
        if cond is None:
            cond = new.new_ones(self.batch, self.length - self.padding + generated.shape[1])
        else:
            cond = cond[: self.batch].to(new.dtype)
        blocks = [torch.nn.functional.pad(cond, (self.padding, 0))]
        for rows in self.rows:
            mask = torch.nn.functional.pad(rows.mask, (self.length - rows.mask.shape[1], 0))
            blocks.append(torch.cat([mask, new], 1))
        return torch.cat(blocks)

    def _positions(self, cond: Tensor | None, generated: Tensor, fresh: int) -> Tensor:
        steps = torch.arange(generated.shape[1] - fresh, generated.shape[1], device=generated.device)
        if cond is None:
            cond = (self.length - self.padding + steps)[None]
        blocks = [cond[: self.batch, -fresh:].expand(self.batch, -1)]
        blocks += [rows.mask.sum(1, keepdim=True) + steps for rows in self.rows]
        return torch.cat(blocks)


@dataclass(frozen=True)
class EncoderStack:
    """Contexts of an encoder-decoder: one decoder prompt, one encoder output for each block.

    Attributes:
        batch: Rows of each block.
        blocks: Blocks of rows, the conditional included.
        hidden: Encoder outputs of all blocks, `[blocks * B, E, D]`, right-padded.
        mask: Their mask, `[blocks * B, E]`.
        width: Positions of the conditional's own encoder output.
    """

    batch: int
    blocks: int
    hidden: Any
    mask: Tensor
    width: int

    @classmethod
    def of(cls, outputs: Sequence[tuple[Tensor, Tensor]]) -> EncoderStack:
        """A stack of encoder outputs and masks, the conditional's first."""
        width = max(hidden.shape[1] for hidden, _ in outputs)
        hidden = torch.cat([torch.nn.functional.pad(h, (0, 0, 0, width - h.shape[1])) for h, _ in outputs])
        mask = torch.cat([torch.nn.functional.pad(m, (0, width - m.shape[1])) for _, m in outputs])
        return cls(outputs[0][0].shape[0], len(outputs), hidden, mask, outputs[0][0].shape[1])

    def inputs(
        self, prepare: Callable[..., dict[str, Any]], input_ids: Tensor, fresh: int | None, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The model's inputs for the last `fresh` tokens (`None`: all) of every block."""
        arguments = tiled(arguments, self.batch, self.blocks)
        arguments["encoder_outputs"] = BaseModelOutput(last_hidden_state=self.hidden)
        arguments["attention_mask"] = self.mask
        return prepare(input_ids.repeat(self.blocks, 1), next_sequence_length=fresh, **arguments)


def tiled(arguments: Mapping[str, Any], batch: int, blocks: int) -> dict[str, Any]:
    """Keyword arguments with every tensor that has one row per sequence repeated for each block."""
    return {
        key: value.repeat(blocks, *[1] * (value.ndim - 1))
        if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == batch
        else value
        for key, value in arguments.items()
    }


def first_block(outputs: Any, batch: int, padding: int, seen: int, encoder_width: int | None) -> None:
    """Keep the conditional's rows of hidden states and attentions in a model's output, in place.

    Args:
        outputs: The model's output.
        batch: Rows of the conditional.
        padding: Left padding of its rows in the cache, which attentions leave out.
        seen: Positions the cache has seen; a sliding layer attends to the last of them only.
        encoder_width: Positions of the conditional's own encoder output; `None` without an encoder.
    """
    for key in PER_ROW_OUTPUTS:
        if (values := outputs.get(key)) is None:
            continue
        kept = tuple(value[:batch] for value in values)
        if key == "attentions":
            kept = tuple(value[..., max(0, padding - max(0, seen - value.shape[-1])) :] for value in kept)
        elif key == "cross_attentions":
            kept = tuple(value[..., :encoder_width] for value in kept)
        outputs[key] = kept
