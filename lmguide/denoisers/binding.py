"""From contexts to the canvases and models that stand for them beside the conditional's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from lmguide import contexts
from lmguide.denoisers.denoiser import Denoiser
from lmguide.denoisers.families import family_of
from lmguide.denoisers.loading import load
from lmguide.denoisers.reading import unwrapped
from lmguide.sources.canvas import mask_prompt
from lmguide.sources.ids import Rows
from lmguide.sources.layers import without_blocks
from lmguide.sources.models import check_vocabulary
from lmguide.sources.rows import RowBuilder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmguide.denoisers.caches import CanvasCache
    from lmguide.sources.canvas import Canvas


@dataclass
class Source:
    """A model and what it sees in the place of the conditional's canvas.

    Attributes:
        denoiser: The model.
        attention_mask: `[B, L']`.
        prompt: Another prompt, `[B, P']`, in front of the answer; `None` keeps the canvas' own.
        masked: Whether the given tokens are masked.
    """

    denoiser: Denoiser
    attention_mask: Tensor
    prompt: Tensor | None = None
    masked: bool = False

    def ids(self, canvas: Canvas, ids: Tensor, prompt_length: int) -> Tensor:
        """The source's canvas `[B, L']`, whose answer is that of `ids`."""
        if self.masked:
            assert self.denoiser.mask_token_id is not None
            return mask_prompt(canvas, ids, self.denoiser.mask_token_id)
        return ids if self.prompt is None else torch.cat([self.prompt, ids[:, prompt_length:]], 1)


def denoiser_of(model: Any, tokenizer: Any = None) -> Denoiser:
    """A model as a denoiser, its family recognised.

    Args:
        model: A `Denoiser`, or a model whose family is recognised from its configuration.
        tokenizer: Where the mask token is known to it alone.

    Raises:
        ValueError: The family is not recognised, or the model is none for `Denoiser`.
    """
    if isinstance(model, Denoiser):
        return model
    inner = unwrapped(model) if isinstance(model, torch.nn.Module) else model
    if hasattr(inner, "config"):
        try:
            family_of(inner)
        except ValueError as error:
            raise ValueError(
                f"model: expected a denoising model of a known family, got {type(inner).__name__}. "
                'Say its family first: Denoiser(model, family="bidirectional") for a decoder trained to denoise with '
                "full attention, or another name of FAMILIES."
            ) from error
    return Denoiser(model, tokenizer=tokenizer)


@dataclass
class Stack:
    """Sources of one model that run as one batch.

    Attributes:
        denoiser: The model.
        attention_mask: `[n B, W]`, the widest canvas' columns, padded on the left.
        width: Columns.
        offset: Columns by which the answer stands further right than on the conditional's canvas; may be negative.
        cache: Keys and values outside the window, if they are kept.
    """

    denoiser: Denoiser
    attention_mask: Tensor
    width: int
    offset: int
    cache: CanvasCache | None


def bind_canvas(
    context: contexts.Context,
    denoiser: Denoiser,
    canvas: Canvas,
    prompt_length: int,
    tokenizer: Any = None,
    negative: Mapping[str, Any] | None = None,
) -> Source:
    """The model and the canvas of a context.

    Args:
        context: The context; not a reward's.
        denoiser: The guided model.
        canvas: The canvases as they are at the start.
        prompt_length: Columns of the prompt; 0 where a canvas is filled in.
        tokenizer: For prompts in text.
        negative: Arguments of `RowBuilder.negative`, to take the place of a `NegativePrompt`'s own.

    Raises:
        ValueError: The context makes no sense on a canvas, or cannot be made from what there is.
    """
    mask = canvas.attention_mask
    match context:
        case contexts.MaskedPrompt():
            return _masked_prompt(denoiser, mask)
        case contexts.NegativePrompt(prompt=None) if negative is None and denoiser.mask_token_id is not None:
            return _masked_prompt(denoiser, mask)
        case contexts.RemaskedCanvas():
            _check_mask_token(context, denoiser)
            return Source(denoiser, mask)
        case contexts.OtherModel():
            return Source(_other(context, denoiser, tokenizer), mask)
        case contexts.DroppedBlocks():
            model: Any = denoiser.model
            thinned = without_blocks(model, context)
            return Source(Denoiser(thinned, denoiser.family, mask_token_id=denoiser.mask_token_id), mask)
        case contexts.Suffix() | contexts.EarlyLayers():
            raise ValueError(
                f"{type(context).__name__}: it reads a cache or layers that only a model which writes from left to "
                "right has. Use CFG, AdaptiveCFG or AutoGuidance on a canvas."
            )
    if not prompt_length:
        raise ValueError(
            f"{type(context).__name__}: a canvas that is filled in has no prompt to replace. Use MaskedPrompt, "
            "AdaptiveCFG or another model."
        )
    rows = _builder(denoiser, canvas, prompt_length, tokenizer)
    replaced = negative if isinstance(context, contexts.NegativePrompt) else None
    found = rows.negative(**replaced) if replaced else rows(context)
    found = found.repeat(canvas.ids.shape[0]) if found.ids.shape[0] == 1 else found
    answer = mask[:, prompt_length:]
    width, limit = found.ids.shape[1] + answer.shape[1], denoiser.max_length
    if limit is not None and width > limit:
        argument = (replaced or {}).get("argument", "negative_prompt")
        raise ValueError(
            f"{argument}: with the answer it has {width} columns, but the model's context has {limit}. "
            "Shorten it or the answer."
        )
    return Source(denoiser, torch.cat([found.mask, answer], 1), prompt=found.ids)


def _masked_prompt(denoiser: Denoiser, mask: Tensor) -> Source:
    _check_mask_token(contexts.MaskedPrompt(), denoiser)
    return Source(denoiser, mask, masked=True)


def _check_mask_token(context: contexts.Context, denoiser: Denoiser) -> None:
    if denoiser.mask_token_id is None:
        raise ValueError(
            f"{type(context).__name__}: expected a model with a mask token, got {denoiser.family.name}, which denoises "
            "random tokens. Give a negative prompt instead."
        )


def _builder(denoiser: Denoiser, canvas: Canvas, prompt_length: int, tokenizer: Any) -> RowBuilder:
    prompt = Rows(canvas.ids[:, :prompt_length], canvas.attention_mask[:, :prompt_length])
    config = getattr(denoiser.model, "generation_config", None) or GenerationConfig()
    vocabulary = SimpleNamespace(
        vocab_size=denoiser.vocab_size, bos_token_id=getattr(denoiser.model.config, "bos_token_id", None)
    )
    model: Any = SimpleNamespace(
        generation_config=config, config=SimpleNamespace(get_text_config=lambda decoder=True: vocabulary)
    )
    return RowBuilder(prompt, canvas.ids.shape[0], model, tokenizer or denoiser.tokenizer, canvas.ids.device)


@lru_cache(maxsize=4)  # asked for at every call, and by every guide of a likelihood
def _load(name: str, dtype: torch.dtype, device: torch.device) -> Denoiser:
    return load(name, dtype=dtype, device=device)


def _other(context: contexts.OtherModel, denoiser: Denoiser, tokenizer: Any) -> Denoiser:
    given: Any = context.model
    if isinstance(given, str):
        other = _load(given, denoiser.dtype, denoiser.device)
    elif isinstance(given, Denoiser):
        other = given
    else:
        other = Denoiser(given, denoiser.family, mask_token_id=denoiser.mask_token_id)
    if other.device != denoiser.device:
        raise ValueError(
            f"model: expected it on {denoiser.device} like the guided one, got {other.device}. Move it with .to()."
        )
    if other.mask_token_id != denoiser.mask_token_id:
        raise ValueError(
            f"model: expected the guided model's mask token {denoiser.mask_token_id}, got {other.mask_token_id}. "
            "Both must denoise the same canvas; pick two models of one family."
        )
    check_vocabulary(denoiser.model, tokenizer or denoiser.tokenizer, other.model, context.tokenizer or other.tokenizer)
    return other
