"""What the tokens of a vocabulary spell, and those of another vocabulary that are spelled the same."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

ROLES = ("eos_token_id", "bos_token_id", "pad_token_id")
"""Tokens that mean the same however they are spelled."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token of one byte, as SentencePiece writes it."""


@lru_cache(maxsize=4)  # asked for at every call
def shared_tokens(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, vocab_size: int, other_size: int
) -> Tensor:
    """For each token of a vocabulary the id of its counterpart in another, or -1.

    A counterpart is spelled the same, where the marks of a word's beginning, `\u0120` of byte-level and `\u2581` of
    SentencePiece vocabularies, are one; or it has the same role: end, beginning, padding.

    Args:
        tokenizer: The tokenizer of the one.
        other: That of the other.
        vocab_size: Tokens of the one, V.
        other_size: Ids of the other are below it.

    Returns:
        Ids `[V]`, int64.

    Raises:
        ValueError: They share no token.
    """
    theirs = {token: index for token, index in other.get_vocab().items() if index < other_size}
    folded = {_fold(token): index for token, index in theirs.items()}
    found = torch.full((vocab_size,), -1, dtype=torch.long)
    for token, index in tokenizer.get_vocab().items():
        if index < vocab_size:
            found[index] = theirs.get(token, folded.get(_fold(token), -1))
    if bool((found < 0).all()):
        raise ValueError(
            "map_vocabulary: expected vocabularies that share tokens, but not one is spelled the same. "
            "Use a guide with the guided model's tokenizer."
        )
    for role in ROLES:
        mine, same = getattr(tokenizer, role, None), getattr(other, role, None)
        if mine is not None and same is not None and mine < vocab_size and found[mine] < 0:
            found[mine] = same
    return found


def _fold(token: str) -> str:
    return token.replace("\u2581", "\u0120")


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes | None]:
    """What each token adds to a text in which something stands before it, in bytes.

    Byte-level vocabularies, SentencePiece with bytes such as `<0x0A>`, and whatever else `decode` can write: there a
    token adds what decoding it behind a word adds.

    Args:
        tokenizer: A tokenizer of transformers.
        vocab_size: Ids, V; the model's, which may be more than the tokenizer has.

    Returns:
        A list of V: the bytes; `None` for special tokens, which are no text; `b""` for ids that no token has.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # late: it loads much

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    count = min(len(tokenizer), vocab_size)
    names = tokenizer.convert_ids_to_tokens(list(range(count)))
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    special = set(tokenizer.all_special_ids)
    decoder = str(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", ""))
    by_bytes = "ByteLevel" in decoder
    plain = [] if by_bytes else _decoded(tokenizer, count)
    texts: list[bytes | None] = []
    for token, name in enumerate(names):
        if token in special:
            texts.append(None)
        elif name is None:
            texts.append(b"")
        elif token in added:
            texts.append(added[token].encode())
        elif by_bytes:
            texts.append(bytes(byte_of[character] for character in name if character in byte_of))
        elif byte := _BYTE.fullmatch(name):
            texts.append(bytes([int(byte[1], 16)]))
        else:
            texts.append(plain[token].encode())
    return texts + [b""] * (vocab_size - count)


def _decoded(tokenizer: Any, count: int) -> list[str]:
    """What each token adds behind a word, by decoding both."""

    def decode(rows: list[list[int]]) -> list[str]:
        found: list[str] = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        return found

    alone = decode([[token] for token in range(count)])
    special = set(tokenizer.all_special_ids)
    words = (token for token, text in enumerate(alone) if text.strip().isalnum() and token not in special)
    anchor = next(words, None)
    if anchor is None:
        return alone
    start = alone[anchor]
    pairs = decode([[anchor, token] for token in range(count)])
    return [pair[len(start) :] if pair.startswith(start) else text for pair, text in zip(pairs, alone, strict=True)]
