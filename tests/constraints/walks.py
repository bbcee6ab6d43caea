"""Small vocabularies, and random texts under a constraint, for the tests of this folder."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

import lmguide as lg
from lmguide.constraints import Vocabulary, compile

if TYPE_CHECKING:
    from lmguide.constraints import Constraint, Matcher

BACKENDS = ("llguidance", "xgrammar")


@cache
def byte_vocabulary() -> Vocabulary:
    """Every byte is a token; two ends; the model's logits are wider than the tokenizer."""
    return Vocabulary([*(bytes([byte]) for byte in range(256)), b"", b""], eos=(256, 257), size=300)


@cache
def tales() -> Vocabulary:
    """The bundled byte-level tokenizer: 512 tokens, all bytes among them."""
    return Vocabulary.of_tokenizer(lg.bundled("tales")[1])


def allowed(matcher: Matcher, vocabulary: Vocabulary) -> list[int]:
    """The tokens whose bits are set."""
    out = np.full(vocabulary.words, -1, dtype=np.int32)
    matcher.fill(out)
    bits = np.unpackbits(out.view(np.uint8), bitorder="little")
    assert not bits[vocabulary.size :].any()
    return [int(token) for token in np.flatnonzero(bits)]


def walk(constraint: Constraint, vocabulary: Vocabulary, seed: int, backend: str | None = None, most: int = 300) -> str:
    """A text drawn token by token, each as likely as the others; `most` tokens at the longest, then cut."""
    draw = random.Random(seed)
    matcher = compile(constraint, vocabulary, backend).start()
    tokens: list[int] = []
    while len(tokens) < most:
        token = draw.choice(allowed(matcher, vocabulary))
        assert matcher.accept(token)
        if token in vocabulary.eos:
            return vocabulary.spell(tokens).decode()
        tokens.append(token)
    raise AssertionError(f"expected an end within {most} tokens: {vocabulary.spell(tokens)!r}")


def takes(constraint: Constraint, text: str, backend: str | None = None) -> bool:
    """Whether a text, byte by byte, is one of the constraint's."""
    matcher = compile(constraint, byte_vocabulary(), backend).start()
    return all(matcher.accept(byte) for byte in text.encode()) and matcher.accepting()


def generated(matcher: Matcher, vocabulary: Vocabulary, begun: bytes = b"") -> set[str]:
    """Every text that the masks of a matcher lead to."""
    found = set()
    for token in allowed(matcher, vocabulary):
        after = matcher.copy()
        assert after.accept(token)
        if token in vocabulary.eos:
            found.add(begun.decode())
        else:
            found |= generated(after, vocabulary, begun + vocabulary.tokens[token])
    return found
