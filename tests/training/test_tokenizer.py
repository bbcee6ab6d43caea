"""The tokenizer keeps every text unchanged and is the same on every run."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from tokenizers import pre_tokenizers

from lmguide.training.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS = ["the fox chased the owl", "the owl chased the fox", "a fox"] * 10


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 280, 64)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "the fox",
        "  two  spaces , and a comma .",
        "tabs\tand\r\nlines\n\n",
        "naïve café, Ωμέγα, 漢字, 🦊👩‍🚀",
        "\x00\x01\x7f\u200b\ufeff",
        '{"json": [1, 2.5e-3, null]}',
    ],
)
def test_texts_survive(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_random_unicode_survives(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    for _ in range(200):
        points = [
            rng.choice([rng.randrange(0x80), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]) for _ in range(20)
        ]
        text = "".join(map(chr, points))
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_every_byte_is_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert len(alphabet) == 256
    assert set(alphabet) <= set(tokenizer.get_vocab())


def test_special_tokens_and_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<|bos|>", "<|eos|>", "<|pad|>", "<|mask|>"]
    rows = tokenizer(["the fox chased", "a"], padding=True)
    assert rows["input_ids"][1][0] == tokenizer.pad_token_id == 2
    assert rows["attention_mask"][1][0] == 0


def test_training_is_deterministic() -> None:
    first, second = (train_tokenizer(TEXTS, 280, 64).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected vocab_size of at least 260, got 259"):
        train_tokenizer(TEXTS, 259, 64)
