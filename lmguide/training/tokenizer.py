"""The byte-level tokenizer of the bundled models. Knows the corpus only as strings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable

SPECIAL_TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>", "mask_token": "<|mask|>"}


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that puts `<|bos|>` first and pads on the left.

    All 256 bytes are tokens, so every text survives encoding and decoding unchanged and character-level constraints
    can be met; `<|mask|>` is there for the diffusion models that share the vocabulary.

    Args:
        texts: The corpus to learn merges from.
        vocab_size: Tokens in all; at least the 256 bytes and the 4 special tokens.
        max_length: The longest sequence the model is trained for, in tokens.

    Raises:
        ValueError: If the vocabulary cannot hold the bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"expected vocab_size of at least {smallest}, got {vocab_size}. Raise vocab_size.")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return wrap(core, max_length)


def wrap(core: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """Return the transformers tokenizer around a trained `core`."""
    bos = SPECIAL_TOKENS["bos_token"]
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, core.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )
