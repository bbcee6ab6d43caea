"""What a model, its configuration and its tokenizer say about it, and what of that cannot be right."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lmguide.denoisers.families import Family

# Where configurations say how long a canvas may be; the first that is there counts.
_LENGTH_FIELDS = ("max_sequence_length", "max_position_embeddings", "model_length", "n_positions")


def unwrapped(model: Any) -> Any:
    """The model below `torch.compile` and adapters, whose forward has the arguments' names."""
    inner = getattr(model, "_orig_mod", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def parameters(model: Any) -> frozenset[str]:
    """The names of the arguments of its forward."""
    return frozenset(inspect.signature(model.forward).parameters)


def position_offset(model: Any) -> int:
    """The position of a row's first token: RoBERTa and its like count from behind the padding token's id."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def max_length(config: Any, offset: int) -> int | None:
    """How many columns a canvas may have; None if the configuration does not say."""
    for field in _LENGTH_FIELDS:
        length = getattr(config, field, None)
        if isinstance(length, int) and length > 0:
            return length - offset
    return None


def mask_token(family: Family, config: Any, tokenizer: Any, given: int | None) -> int | None:
    """The mask token: as given, or of the configuration, the family, the tokenizer; None with uniform noise.

    Raises:
        TypeError: what is given is not an int.
        ValueError: there is none, or one with uniform noise, outside of the vocabulary, or the one that pads.
    """
    if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
        raise TypeError(f"mask_token_id: expected an int, got {given!r}. Give the id of the mask token.")
    if family.noise == "uniform":
        if given is not None:
            raise ValueError(
                f"mask_token_id: expected None with uniform noise, got {given}. Undecided positions hold random tokens."
            )
        return None
    known = [given, getattr(config, "mask_token_id", None), family.mask_token_id]
    known.append(getattr(tokenizer, "mask_token_id", None))
    token = next((each for each in known if each is not None), None)
    if token is None:
        raise ValueError(
            f"mask_token_id: expected a token, got None, also from the configuration, the family {family.name!r} and "
            "the tokenizer. Give mask_token_id=..."
        )
    if not 0 <= token < config.vocab_size:
        raise ValueError(
            f"mask_token_id: expected an id below the size of the vocabulary, {config.vocab_size}, got {token}. "
            "Give mask_token_id=... of this checkpoint."
        )
    if token == getattr(config if tokenizer is None else tokenizer, "pad_token_id", None):
        raise ValueError(
            f"mask_token_id: expected another token than the one that pads, got {token} for both. "
            "Set tokenizer.pad_token to another token, the end of the sequence for example."
        )
    return int(token)


def check_attention(family: Family, config: Any) -> None:
    """Refuse attention that a mask of ours would not reach, or would wrongly widen.

    Raises:
        ValueError: the attention takes no mask `[B, 1, Q, L]`, or some layers have a sliding window.
    """
    if family.padding != "bias":
        return
    attention = getattr(config, "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        raise ValueError(
            f"model: expected attention that takes a mask [B, 1, Q, L], got {attention!r}. "
            'Load it with attn_implementation="sdpa".'
        )
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError(
            "model: expected layers that attend to the whole canvas, got some with a sliding window. "
            "Give a model without sliding windows."
        )
