r"""What each token of a vocabulary adds to a text, in bytes, and which tokens can stand where in a word.

Bytes, because a token may hold part of a character. A word character is one of `\w`; a special token is none.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SPECIAL = b"\0"
"""What a special token is taken to add: it ends words and is in none."""

_LONGEST_CHARACTER = 4
"""Bytes of UTF-8."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token of one byte, as SentencePiece writes it."""


class Spelling:
    """The tokens of a vocabulary as pieces of text.

    Attributes:
        texts: What each token adds; nothing for ids that no token has.
        after_word: Tokens that end a word before them: they begin with something that is no word character.

    Args:
        texts: What each token adds to a text.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = list(texts)
        self._heads = sorted((text, token) for token, text in enumerate(self.texts) if text)
        self._inside = sorted(
            (text[place:], token)
            for token, text in enumerate(self.texts)
            for place in range(1, len(text))
            if not ends_in_word(text[:place])
        )
        self._known = set(self.texts) - {b""}
        self._longest = max(map(len, self.texts))
        self.after_word = [token for token, text in enumerate(self.texts) if text and not begins_with_word(text)]

    def text(self, tokens: Iterable[int]) -> bytes:
        """The text of tokens."""
        return b"".join(self.texts[token] for token in tokens)

    def ending(self, rest: bytes, inside: bool = False) -> tuple[set[int], set[int]]:
        """Tokens that add what a word lacks: those that also add its end, and those after which it may go on.

        Args:
            rest: The letters that the word lacks.
            inside: Whether the letters begin within the token, at a word boundary, instead of at its beginning.
        """
        if not rest:
            return set(self.after_word), set()
        places = self._inside if inside else self._heads
        ended, open_ = set(), set()
        for text, token in places[bisect_left(places, (rest, -1)) :]:
            if not text.startswith(rest):
                break
            if text == rest:
                open_.add(token)
            elif not begins_with_word(text[len(rest) :]):
                ended.add(token)
        return ended, open_

    def spells(self, text: bytes) -> bool:
        """Whether some tokens in a row add just this."""
        reached = {0}
        for stop in range(1, len(text) + 1):
            starts = range(max(0, stop - self._longest), stop)
            if any(start in reached and text[start:stop] in self._known for start in starts):
                reached.add(stop)
        return len(text) in reached


def ends_in_word(text: bytes) -> bool:
    """Whether the last character is a word character; one that has only begun is none."""
    return _is_word(text[-_LONGEST_CHARACTER:].decode("utf-8", "replace")[-1:])


def begins_with_word(text: bytes) -> bool:
    """Whether the first character is a word character; one that has only begun is none."""
    return _is_word(text[:_LONGEST_CHARACTER].decode("utf-8", "replace")[:1])


_SPELLINGS: WeakKeyDictionary[Any, dict[int, Spelling]] = WeakKeyDictionary()


def spelling(tokenizer: Any, vocab_size: int) -> Spelling:
    """The tokens of a tokenizer, worked out once."""
    known = _SPELLINGS.setdefault(tokenizer, {})
    if vocab_size not in known:
        known[vocab_size] = Spelling(_texts(tokenizer, vocab_size))
    return known[vocab_size]


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _texts(tokenizer: Any, vocab_size: int) -> list[bytes]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # late: it loads much

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    count = min(len(tokenizer), vocab_size)
    names = tokenizer.convert_ids_to_tokens(list(range(count)))
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    special = set(tokenizer.all_special_ids)
    decoder = str(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", ""))
    by_bytes = "ByteLevel" in decoder
    plain = [] if by_bytes else _decoded(tokenizer, count)
    texts = []
    for token, name in enumerate(names):
        if token in special:
            texts.append(SPECIAL)
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
