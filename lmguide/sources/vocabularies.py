"""From the tokens of one vocabulary to those of another that are spelled the same."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

ROLES = ("eos_token_id", "bos_token_id", "pad_token_id")
"""Tokens that mean the same however they are spelled."""


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
