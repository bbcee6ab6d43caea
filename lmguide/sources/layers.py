"""Weaker read-outs of one model: its earlier layers, and itself with some blocks skipped."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from lmguide.contexts import DroppedBlocks, EarlyLayers


def candidate_layers(context: EarlyLayers, model: PreTrainedModel) -> tuple[int, ...]:
    """Indices of the hidden states a context names, 0 being the embedding output.

    "low" and "high" are every second layer of the lower or upper half (of the first or last twenty for models of more
    than forty); with tied embeddings the embedding output is left out of "low", because it only repeats the last token
    (2309.03883, section 3).

    Raises:
        ValueError: An index outside the model, or the last layer itself.
    """
    config = model.config.get_text_config(decoder=True)
    final = config.num_hidden_layers
    if not isinstance(context.layers, str):
        for layer in context.layers:
            if not 0 <= layer < final:
                raise ValueError(
                    f"layers: expected indices in [0, {final}), got {layer}. {final} is the final layer itself."
                )
        return context.layers
    first = 2 if config.tie_word_embeddings else 0
    half = final // 2 if final <= 40 else 20
    layers = range(first, half, 2) if context.layers == "low" else range(final - half if final > 40 else half, final, 2)
    if not layers:
        raise ValueError(
            f"layers: a model of {final} layers has no {context.layers!r} candidates. Give their indices, such as (1,)."
        )
    return tuple(layers)


def early_logits(model: PreTrainedModel, hidden_states: Sequence[Tensor], layers: Sequence[int]) -> Tensor:
    """Logits `[..., K, V]` of hidden states `[..., D]` at the given layers, through the language-model head."""
    head = model.get_output_embeddings()
    stacked = torch.stack([hidden_states[layer] for layer in layers], -2)
    logits: Tensor = head(stacked.to(head.weight.device))
    return logits


def without_blocks(model: PreTrainedModel, context: DroppedBlocks) -> PreTrainedModel:
    """The same model, sharing every weight, with some transformer blocks skipped.

    Args:
        model: The model; it is not touched.
        context: How many blocks to skip, and the seed of the choice.

    Returns:
        A shallow copy whose skipped blocks hand their input on.

    Raises:
        ValueError: The blocks cannot be found, or none may be skipped.
    """
    path, blocks = _blocks(model)
    if model.config.is_encoder_decoder and inspect.signature(blocks[0].forward).return_annotation is not torch.Tensor:
        raise ValueError(
            f"S2-Guidance: the blocks of {type(model).__name__} hand on more than hidden states: none can be skipped. "
            "Use CFG, or a model whose blocks do not."
        )
    kinds = [_kind(model, index) for index in range(len(blocks))]
    droppable = [index for index, kind in enumerate(kinds) if kind in kinds[:index]]
    count = min(len(droppable), max(1, round(context.fraction * len(blocks))))
    if not count:
        raise ValueError(
            f"fraction: a model of {len(blocks)} blocks has none to skip. S2-Guidance needs a deeper model."
        )
    order = torch.randperm(len(droppable), generator=torch.Generator().manual_seed(context.seed)).tolist()
    dropped = {droppable[place] for place in order[:count]}
    thinned = torch.nn.ModuleList(_Skipped(block) if index in dropped else block for index, block in enumerate(blocks))
    copied: PreTrainedModel = _replaced(model, path, thinned)
    return copied


class _Skipped(torch.nn.Module):
    """Hands its input on, and answers for the attributes of the block it stands for."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)  # not a submodule: its weights are not part of this model

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


def _blocks(model: PreTrainedModel) -> tuple[list[str], torch.nn.ModuleList]:
    """The list of decoder blocks and the attribute path that leads to it."""
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder = model.get_decoder()
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth and _within(decoder, module):
            return path.split("."), module
    raise ValueError(
        f"S2-Guidance: the blocks of {type(model).__name__} were not found. Its architecture is not supported."
    )


def _within(root: torch.nn.Module, module: torch.nn.Module) -> bool:
    return any(child is module for child in root.modules())


def _kind(model: PreTrainedModel, index: int) -> str:
    types = getattr(model.config.get_text_config(decoder=True), "layer_types", None)
    return types[index] if types else "attention"


def _replaced(model: torch.nn.Module, path: Sequence[str], value: torch.nn.Module) -> Any:
    """A copy of a module in which the submodule at a path is another one; everything else is shared."""
    clone = copy.copy(model)
    clone.__dict__["_modules"] = dict(model._modules)
    head, *rest = path
    clone._modules[head] = _replaced(model._modules[head], rest, value) if rest else value  # type: ignore[arg-type]
    return clone
