"""What every refusal must be: of the right type, about the argument by name, and with a cure at its end."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CURE = re.compile(r"""[.] \w.*[.?]["']?$""", re.DOTALL)
"""The message ends with a sentence of its own."""


@contextmanager
def refused(argument: str, *words: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """A block that must raise: the message names the argument and holds the words, and its last sentence is a cure.

    Args:
        argument: The name with which the message must begin, or a word that it must hold at its start.
        *words: Patterns that must be found in the message too, such as the value that came.
        error: The type, exactly.
    """
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert type(caught.value) is error, f"{type(caught.value).__name__}: {message}"
    assert re.match(rf"(\w+: )?{argument}\b", message), f"does not begin with {argument!r}: {message}"
    for word in words:
        assert re.search(word, message), f"does not say {word!r}: {message}"
    assert CURE.search(message), f"has no cure at its end: {message}"
