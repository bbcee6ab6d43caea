"""The tokenizers of the bundled models: one of bytes, one of whole words. Knows the corpora only as strings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable

SPECIAL_TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>", "mask_token": "<|mask|>"}


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that puts `<|bos|>` first and pads on the left.

    All 256 bytes are tokens, so every text survives encoding and decoding unchanged and character-level constraints
    can be met.

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
    bos = SPECIAL_TOKENS["bos_token"]
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, core.token_to_id(bos))]
    )
    return _wrap(core, max_length, SPECIAL_TOKENS)


def word_tokenizer(
    vocabulary: Iterable[str], token: str, max_length: int, *, spaced: bool = True
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words that puts nothing in front and pads on the left.

    `<|pad|>` and `<|mask|>` are its only special tokens, 0 and 1; the vocabulary follows in its order. There is no
    token for unknown words: `tokenizer("...")` raises on one, where a model that never saw it could only guess.

    Args:
        vocabulary: All other tokens.
        token: Regular expression of one token. What it leaves over, such as whitespace, is dropped.
        max_length: The longest sequence the model is trained for, in tokens.
        spaced: Decode with a space before each token that is no full stop or colon; or with no spaces at all.
    """
    special = {kind: SPECIAL_TOKENS[kind] for kind in ("pad_token", "mask_token")}
    ids = {word: index for index, word in enumerate(dict.fromkeys([*special.values(), *vocabulary]))}
    core = Tokenizer(models.WordLevel(ids))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(token), behavior="removed", invert=True)
    # The decoder of WordPiece writes spaces and takes that before a full stop away; no token begins with its prefix.
    words = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")])
    core.decoder = words if spaced else decoders.Fuse()
    return _wrap(core, max_length, special)


def _wrap(core: Tokenizer, max_length: int, special: dict[str, str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **special,
    )
