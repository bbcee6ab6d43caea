"""The byte tokenizer keeps every text, the word tokenizer every word; both are the same on every run."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from tokenizers import pre_tokenizers

from lmguide.training.tokenizer import train_tokenizer, word_tokenizer

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


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return word_tokenizer(["the sea", "fox", "A", ":", "."], r"the sea\b|\w+|[^\w\s]", 8)


@pytest.mark.parametrize(
    ("text", "tokens", "decoded"),
    [
        ("the sea: A fox.", ["the sea", ":", "A", "fox", "."], "the sea: A fox."),
        ("  the sea\n:A  fox .", ["the sea", ":", "A", "fox", "."], "the sea: A fox."),
        ("<|mask|><|mask|> fox <|mask|>.", ["<|mask|>", "<|mask|>", "fox", "<|mask|>", "."], None),
        ("", [], ""),
    ],
)
def test_words_are_tokens(words: PreTrainedTokenizerFast, text: str, tokens: list[str], decoded: str | None) -> None:
    ids = words(text)["input_ids"]
    assert words.convert_ids_to_tokens(ids) == tokens
    assert words.decode(ids) == ("<|mask|> <|mask|> fox <|mask|>." if decoded is None else decoded)


def test_masks_can_be_left_out_of_a_text(words: PreTrainedTokenizerFast) -> None:
    assert words.decode(words("A <|mask|> fox.")["input_ids"], skip_special_tokens=True) == "A fox."


@pytest.mark.parametrize("text", ["the lake", "a fox", "the", "fox, fox", "the seaside"])
def test_an_unknown_word_is_refused(words: PreTrainedTokenizerFast, text: str) -> None:
    with pytest.raises(Exception, match="Missing .UNK. token from the vocabulary"):
        words(text)


def test_without_spaces() -> None:
    digits = word_tokenizer("0123:", r"\S", 8, spaced=False)
    assert digits.decode(digits("01 23\n11:")["input_ids"]) == "012311:"


def test_special_tokens_and_padding_of_words(words: PreTrainedTokenizerFast) -> None:
    assert (words.pad_token_id, words.mask_token_id, words.bos_token_id, words.eos_token_id) == (0, 1, None, None)
    assert words.convert_ids_to_tokens(list(range(7))) == ["<|pad|>", "<|mask|>", "the sea", "fox", "A", ":", "."]
    assert words(["fox", "A fox."], padding=True)["input_ids"] == [[0, 0, 3], [4, 3, 6]]
    assert (len(words), words.model_max_length) == (7, 8)
