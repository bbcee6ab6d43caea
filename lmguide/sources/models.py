"""Other models as sources: loaded by name, and refused if their vocabulary is another one."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.contexts import OtherModel


def resolve(context: OtherModel, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedModel:
    """The model of a context, checked to share the vocabulary of `model`.

    Args:
        context: The description.
        model: The model being guided.
        tokenizer: Its tokenizer, if known.

    Raises:
        ValueError: The vocabularies differ; the first differing token is named.
        TypeError: The context holds something that is no model.
    """
    other: Any = context.model
    other_tokenizer = context.tokenizer
    if isinstance(other, str):
        other, loaded = _load(other, model.config.is_encoder_decoder, model.dtype)
        other = other.to(model.device)
        other_tokenizer = other_tokenizer or loaded
    if not hasattr(other, "generation_config") or not callable(other):
        raise TypeError(
            f"model: expected a transformers model or its name, got {type(other).__name__}. "
            "Load it with from_pretrained."
        )
    if other.config.is_encoder_decoder != model.config.is_encoder_decoder:
        raise ValueError(
            "model: expected the same kind of model, but one is an encoder-decoder and the other is not. "
            "Use two of one kind."
        )
    if other.device != model.device:
        raise ValueError(
            f"model: expected it on {model.device} like the guided one, got {other.device}. Move it with .to()."
        )
    check_vocabulary(model, tokenizer, other, other_tokenizer)
    checked: PreTrainedModel = other
    return checked


def check_vocabulary(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    other: Any,
    other_tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Refuse a model whose token ids mean something else.

    With both tokenizers every token is compared; otherwise only the sizes can be.

    Raises:
        ValueError: They differ.
    """
    if tokenizer is not None and other_tokenizer is not None:
        mine, theirs = (_tokens_by_id(t) for t in (tokenizer, other_tokenizer))
        for index in sorted(mine.keys() | theirs.keys()):
            if mine.get(index) != theirs.get(index):
                raise ValueError(
                    f"model: expected the same vocabulary, but token {index} is {mine.get(index)!r} in the guided "
                    f"model and {theirs.get(index)!r} in the other. Use a model of the same family."
                )
        return
    sizes = [_vocab_size(m.config) for m in (model, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"model: expected the same vocabulary size, {sizes[0]}, got {sizes[1]}. If the tokenizers agree and only "
            "the padding of the embedding differs, pass both tokenizers so that this can be checked."
        )


def fitted(logits: Tensor, vocab_size: int) -> Tensor:
    """Logits cut, or filled with minus infinity, to a vocabulary size.

    Models of one tokenizer may pad their embeddings differently.
    """
    missing = vocab_size - logits.shape[-1]
    if missing > 0:
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
    return logits[..., :vocab_size] if missing < 0 else logits


def _vocab_size(config: Any) -> int:
    described = getattr(config, "get_text_config", None)  # a remote class may bring a configuration without
    return int((config if described is None else described(decoder=True)).vocab_size)


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


@lru_cache(maxsize=4)  # a guide is asked for at every generate call; loading it each time would dwarf the call
def _load(name: str, encoder_decoder: bool, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(name, dtype=dtype).eval(), AutoTokenizer.from_pretrained(name)
