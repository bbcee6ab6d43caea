"""Other models as sources: loaded by name, and refused if their vocabulary is another one."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lmguide.bundled import PREFIX, bundled

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
    other, tokenizer_of_other = opened(context.model, context.tokenizer, model, model.config.is_encoder_decoder)
    if other.config.is_encoder_decoder != model.config.is_encoder_decoder:
        raise ValueError(
            "model: expected the same kind of model, but one is an encoder-decoder and the other is not. "
            "Use two of one kind."
        )
    check_vocabulary(model, tokenizer, other, tokenizer_of_other)
    return other


def opened(
    given: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None,
    like: PreTrainedModel,
    encoder_decoder: bool,
    argument: str = "model",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A model and its tokenizer, loaded where it is a name, and on the device of another model.

    Args:
        given: The model, or its name or path.
        tokenizer: Its tokenizer, if known; loaded with the model where that is a name.
        like: The model beside which it runs: it gives the device, and the dtype of what is loaded.
        encoder_decoder: Of which kind a model is loaded.
        argument: The name to use in errors.

    Raises:
        ValueError: It is on another device.
        TypeError: It is no model.
    """
    other: Any = given
    if isinstance(other, str):
        other, loaded = _load(other, encoder_decoder, like.dtype)
        other = other.to(like.device)
        tokenizer = tokenizer or loaded
    if not hasattr(other, "generation_config") or not callable(other):
        raise TypeError(
            f"{argument}: expected a transformers model or its name, got {type(other).__name__}. "
            "Load it with from_pretrained."
        )
    if other.device != like.device:
        raise ValueError(
            f"{argument}: expected it on {like.device} like the guided one, got {other.device}. Move it with .to()."
        )
    checked: PreTrainedModel = other
    return checked, tokenizer


def check_vocabulary(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    other: Any,
    other_tokenizer: PreTrainedTokenizerBase | None,
    argument: str = "model",
) -> None:
    """Refuse a model whose token ids mean something else.

    With both tokenizers every token is compared; otherwise only the sizes can be. Errors begin with `argument`.

    Raises:
        ValueError: They differ.
    """
    if tokenizer is not None and other_tokenizer is not None:
        mine, theirs = (_tokens_by_id(t) for t in (tokenizer, other_tokenizer))
        for index in sorted(mine.keys() | theirs.keys()):
            if mine.get(index) != theirs.get(index):
                raise ValueError(
                    f"{argument}: expected the same vocabulary, but token {index} is {mine.get(index)!r} in the guided "
                    f"model and {theirs.get(index)!r} in the other. Use a model of the same family."
                )
        return
    sizes = [_vocab_size(m.config) for m in (model, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{argument}: expected the same vocabulary size, {sizes[0]}, got {sizes[1]}. If the tokenizers agree and "
            "only the padding of the embedding differs, pass both tokenizers so that this can be checked."
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
    if name.startswith(PREFIX):
        return bundled(name.removeprefix(PREFIX), dtype)
    kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(name, dtype=dtype).eval(), AutoTokenizer.from_pretrained(name)
