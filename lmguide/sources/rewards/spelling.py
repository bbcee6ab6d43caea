r"""What each token of a vocabulary adds to a text, in bytes, and which tokens can stand where in a word.

Bytes, because a token may hold part of a character. A word character is one of `\w`; a special token is none.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lmguide.sources.vocabularies import token_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SPECIAL = b"\0"
"""What a special token is taken to add: it ends words and is in none."""

_LONGEST_CHARACTER = 4
"""Bytes of UTF-8."""


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
        known[vocab_size] = Spelling([SPECIAL if text is None else text for text in token_bytes(tokenizer, vocab_size)])
    return known[vocab_size]


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
