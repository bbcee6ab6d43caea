r"""Finding words in a text between word boundaries, `\b` of regular expressions, with their plurals."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lmguide.descriptions.words import forms

if TYPE_CHECKING:
    from collections.abc import Iterable

_PIECE = re.compile(r"\w+|[^\w\s'\u2019-]")


class Matcher:
    """Words and their plurals, whatever their capitals; "cat" is in "cats" and "cat's", and is not in "category".

    The parts of a word of several parts may be joined by a space, a hyphen or an apostrophe.

    Args:
        words: The words, irregular plurals included.

    Example:
        >>> Matcher(["cat", "polar bear", "mouse", "mice"]).found("Polar-bears chase a cat's mice.")
        ('polar bears', 'cat', 'mice')
        >>> Matcher(["cat", "polar bear"]).found("A category of polar, bear")
        ()
    """

    def __init__(self, words: Iterable[str]) -> None:
        every = {form.lower() for word in words for form in forms(word, variants=True)}
        self._known = {tuple(_PIECE.findall(form)) for form in every} - {()}
        self._longest = max(map(len, self._known), default=0)

    def found(self, text: str) -> tuple[str, ...]:
        """The words that stand in a text, in order, each once; those within longer ones are left out."""
        pieces = _PIECE.findall(text.lower())
        found: list[str] = []
        start = 0
        while start < len(pieces):
            sizes = range(min(self._longest, len(pieces) - start), 0, -1)
            size = next((n for n in sizes if tuple(pieces[start : start + n]) in self._known), 0)
            if size:
                found.append(" ".join(pieces[start : start + size]))
            start += size or 1
        return tuple(dict.fromkeys(found))
