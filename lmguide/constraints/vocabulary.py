"""The tokens of a model as bytes, in the forms the grammar engines read.

It knows a tokenizer and no model; bytes come from `lmguide.sources.vocabularies`.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lmguide.checks import check_whole
from lmguide.constraints.extras import grammar_extra
from lmguide.sources.vocabularies import token_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray


class Vocabulary:
    """What each token of a model adds to a text, which tokens end it, and how a text is cut into tokens.

    `Vocabulary.of_tokenizer` makes one from a tokenizer of transformers and remembers it.

    Attributes:
        tokens: The bytes of each token, `b""` for special tokens and unused ids: no constraint allows those.
        eos: The tokens that end a text.
        size: Width V of the model's logits; ids that the tokenizer does not have are never allowed.
        specials: Special tokens by their names, for triggers.

    Args:
        tokens: The bytes of each token; at most `size`.
        eos: One or more ids.
        size: Width of the logits; `None` is the number of tokens.
        encode: How the tokenizer cuts a text that stands behind another; `None` takes the longest token each time.
        specials: Special tokens by their names.
        tokenizer: The tokenizer itself, which llguidance may read by itself.

    Raises:
        ValueError: No token has bytes, an id is out of range, or there is no end.

    Example:
        >>> vocabulary = Vocabulary([b"a", b"b", b"ab", b""], eos=(3,))
        >>> vocabulary.encode("aab"), vocabulary.size
        ([0, 2], 4)
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        eos: Iterable[int],
        size: int | None = None,
        encode: Callable[[str], Sequence[int]] | None = None,
        specials: Mapping[str, int] | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.size = len(tokens) if size is None else size
        check_whole("vocab_size", self.size, "Give the width of the model's logits.", least=1)
        self.eos = tuple(dict.fromkeys(int(token) for token in eos))
        if not self.eos:
            raise ValueError("eos: expected the id of at least one token that ends a text, got none. Name one.")
        for token in self.eos:
            if not 0 <= token < self.size:
                raise ValueError(f"eos: expected ids from 0 to {self.size - 1}, got {token}. Name one of the model's.")
        self.tokens = [*tokens[: self.size], *[b""] * (self.size - len(tokens))]
        for token in self.eos:
            self.tokens[token] = b""
        if not any(self.tokens):
            raise ValueError(
                "vocabulary: expected tokens that spell text, got one without bytes. Use the model's own tokenizer."
            )
        self.specials = dict(specials or {})
        self._encode = encode
        self._tokenizer = tokenizer

    @classmethod
    def of_tokenizer(
        cls, tokenizer: Any, vocab_size: int | None = None, eos: int | Iterable[int] | None = None
    ) -> Vocabulary:
        """The vocabulary of a tokenizer, worked out once for each width and end.

        Args:
            tokenizer: A tokenizer of transformers: byte-level, SentencePiece, WordPiece or words.
            vocab_size: Width of the model's logits; `None` is the number of its tokens.
            eos: The id or ids that end a text; `None` is the tokenizer's own.

        Raises:
            ValueError: The tokenizer has no end and none is given, or no token spells text.
        """
        if eos is None:
            if tokenizer.eos_token_id is None:
                raise ValueError(
                    "eos: expected a tokenizer with an end-of-text token, got one without. Give the id as eos."
                )
            eos = tokenizer.eos_token_id
        ends = (eos,) if isinstance(eos, int) else tuple(eos)
        return _of_tokenizer(tokenizer, len(tokenizer) if vocab_size is None else vocab_size, ends)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text as the tokenizer cuts it behind other text, without special tokens.

        Raises:
            ValueError: No tokens spell it.
        """
        spelled = text.encode()
        if self._encode is not None:
            tokens = list(self._encode(text))
            if self.spell(tokens) == spelled:
                return tokens
        return self._longest(spelled, text)

    def spell(self, tokens: Iterable[int]) -> bytes:
        """The bytes of tokens in a row."""
        return b"".join(self.tokens[token] for token in tokens)

    @cached_property
    def words(self) -> int:
        """Words of 32 bits in a mask."""
        return -(-self.size // 32)

    @cached_property
    def eos_set(self) -> frozenset[int]:
        """The tokens that end a text, to look one up."""
        return frozenset(self.eos)

    @cached_property
    def eos_bits(self) -> NDArray[np.int32]:
        """A mask `[words]` that allows the ends alone."""
        bits = np.zeros(self.words, np.uint32)
        for token in self.eos:
            bits[token >> 5] |= np.uint32(1 << (token & 31))
        return bits.view(np.int32)

    @cached_property
    def missing_bytes(self) -> frozenset[int]:
        """Bytes of UTF-8 that no token is by itself; if there are none, every text can be written."""
        return _UTF8 - {token[0] for token in self.tokens if len(token) == 1}

    @cached_property
    def alphabet(self) -> frozenset[int]:
        """Bytes that occur in any token."""
        return frozenset(byte for token in self.tokens for byte in token)

    @cached_property
    def llguidance(self) -> Any:
        """The vocabulary as llguidance's `LLTokenizer`.

        Raises:
            ImportError: llguidance is not installed.
        """
        if (own := self._read_by_llguidance()) is not None:
            return own
        engine = grammar_extra("llguidance")
        names = {token: name for name, token in self.specials.items()}
        empty = [token for token, text in enumerate(self.tokens) if not text]
        texts = list(self.tokens)
        for token in empty:
            texts[token] = names.get(token, f"<|lmguide_unused_{token}|>").encode()
        return engine.LLTokenizer(
            engine.TokenizerWrapper(_Wrapped(self, texts, empty)), n_vocab=self.size, eos_token=list(self.eos)
        )

    def _read_by_llguidance(self) -> Any:
        """The tokenizer as llguidance reads it, which cuts texts three times as fast; if it means the same by it."""
        from transformers import PreTrainedTokenizerFast

        if not isinstance(self._tokenizer, PreTrainedTokenizerFast):
            return None
        reader = grammar_extra("llguidance.hf")
        try:
            own = reader.from_tokenizer(self._tokenizer, n_vocab=self.size, eos_token=list(self.eos))
        except ValueError:  # a kind of tokenizer that it does not know
            return None
        for token, text in enumerate(self.tokens):
            # 0xFF is in no text, and llguidance's mark of special tokens.
            read = b"" if own.is_special_token(token) else own.decode_bytes([token])
            if read != (b"" if text.startswith(b"\xff") else text):
                return None
        return own if all(own.tokenize_str(text) == self.encode(text) for text in _SAMPLES) else None

    @cached_property
    def xgrammar(self) -> Any:
        """The vocabulary as xgrammar's `TokenizerInfo`.

        Raises:
            ImportError: xgrammar is not installed.
        """
        engine = grammar_extra("xgrammar")
        return engine.TokenizerInfo(
            self.tokens, engine.VocabType.RAW, vocab_size=self.size, stop_token_ids=list(self.eos)
        )

    @cached_property
    def _heads(self) -> dict[bytes, int]:
        heads: dict[bytes, int] = {}
        for token, text in enumerate(self.tokens):
            heads.setdefault(text, token)
        heads.pop(b"", None)
        return heads

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._heads))

    def _longest(self, spelled: bytes, text: str) -> list[int]:
        """The longest token at each place, but never one that leads nowhere."""
        ways: list[int | None] = [None] * len(spelled) + [-1]  # the token taken at each place
        for place in range(len(spelled) - 1, -1, -1):
            for length in range(min(self._longest_token, len(spelled) - place), 0, -1):
                token = self._heads.get(spelled[place : place + length])
                if token is not None and ways[place + length] is not None:
                    ways[place] = token
                    break
        found, place = [], 0
        while place < len(spelled):
            token = ways[place]
            if token is None:
                raise ValueError(f"text: expected one that the vocabulary can spell, got {text!r}. Use other words.")
            found.append(token)
            place += len(self.tokens[token])
        return found


_UTF8 = frozenset(range(0xF5)) - {0xC0, 0xC1}
"""Bytes that occur in texts."""

_SAMPLES = ("a", " a", "a b", '{"name": 1.5}', "\n  é")
"""Texts on which another reading of a tokenizer is tried."""


@lru_cache(maxsize=8)  # asked for at every call
def _of_tokenizer(tokenizer: Any, size: int, ends: tuple[int, ...]) -> Vocabulary:
    texts = token_bytes(tokenizer, size)
    names = {name: token for token, name in _special_names(tokenizer).items() if token < size}
    return Vocabulary([text or b"" for text in texts], ends, size, _encoder(tokenizer), names, tokenizer)


@lru_cache(maxsize=1)
def bytes_vocabulary() -> Vocabulary:
    """Every byte is a token, and 256 ends a text: the smallest vocabulary in which all texts can be written."""
    return Vocabulary([*(bytes([byte]) for byte in range(256)), b""], eos=(256,))


class _Wrapped:
    """What llguidance asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary, texts: list[bytes], special: list[int]) -> None:
        self.eos_token_id = vocabulary.eos[0]
        self.bos_token_id = None
        self.tokens = texts
        self.special_token_ids = special
        self._vocabulary = vocabulary

    def __call__(self, text: bytes | str) -> list[int]:
        return self._vocabulary.encode(text.decode() if isinstance(text, bytes) else text)


def _special_names(tokenizer: Any) -> dict[int, str]:
    names = {token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return names | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


_ANCHORS = ("\n", ".", "a")
"""What a text is put behind to see how it is cut there; the first at which tokens end is taken."""


def _encoder(tokenizer: Any) -> Callable[[str], Sequence[int]]:
    """How a tokenizer cuts a text that stands behind another, where a beginning would add a space."""

    def cut(text: str) -> list[int]:
        try:
            found: list[int] = tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # what tokenizers raises where a word is unknown and no token stands for such words
            return []
        return found

    anchors = [(anchor, cut(anchor)) for anchor in _ANCHORS]
    plain = cut("a") == cut("\na")[len(cut("\n")) :]

    def encode(text: str) -> Sequence[int]:
        if plain:
            return cut(text)
        for anchor, head in anchors:
            row = cut(anchor + text)
            if row[: len(head)] == head:
                return row[len(head) :]
        return cut(text)

    return encode
