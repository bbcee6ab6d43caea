"""Whether a vocabulary can spell what a constraint wants, asked before a model runs."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from lmguide.constraints.base import ConstraintError
from lmguide.constraints.regex import Node, Ranges, complement, merged, simplified

if TYPE_CHECKING:
    from lmguide.constraints.engine import Matcher
    from lmguide.constraints.vocabulary import Vocabulary

_MOST_STATES = 2000
"""States looked at in search of a text that can be spelled; at ten microseconds each that is no wait."""

_MOST_DRAWN = 300
"""Bytes drawn in search of a place from which text is forced without end."""

_MOST_FORCED = 20_000
"""Bytes of forced text followed; no template is as long, and it takes a tenth of a second."""

_UNSPELLABLE = (
    "constraint: expected one that some tokens of the vocabulary spell, got one that none do{}. "
    "Use what its tokens can write, or another tokenizer."
)


def check_spelling(tree: Node | None, vocabulary: Vocabulary) -> None:
    """Refuse a regular expression that needs a character which no token has.

    Raises:
        ValueError: It does.
    """
    if tree is not None and vocabulary.missing_bytes and simplified(tree, alphabet(vocabulary)) is None:
        raise ValueError(_UNSPELLABLE.format(": a character of every text is in no token"))


def check_start(matcher: Matcher, vocabulary: Vocabulary) -> None:
    """Refuse a constraint that no tokens spell.

    Where every byte is a token, a look at the first step tells. Elsewhere texts are searched for one that may end, not
    for ever: if the search finds none in time, the constraint passes.

    Raises:
        ValueError: There is none.
    """
    out = np.empty(vocabulary.words, np.int32)
    try:
        matcher.copy().fill(out)
    except ConstraintError as error:
        raise ValueError(_UNSPELLABLE.format(f": {str(error).rstrip('.')}")) from None
    if not vocabulary.missing_bytes:
        return
    if not may_end(matcher, vocabulary):
        raise ValueError(_UNSPELLABLE.format(", however it begins"))


def may_end(matcher: Matcher, vocabulary: Vocabulary) -> bool:
    """Whether some tokens lead to a place where the text may end; `True` too if the search takes too long."""
    out = np.empty(vocabulary.words, np.int32)
    waiting: list[tuple[Matcher, list[int]]] = [(matcher, [])]
    state: Matcher | None = matcher.copy()
    for _ in range(_MOST_STATES):
        if state is not None:
            if state.accepting():
                return True
            try:
                state.fill(out)
                allowed = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))
                waiting.append((state, allowed.tolist()))
            except ConstraintError:  # nothing may follow here
                pass
        while waiting and not waiting[-1][1]:
            waiting.pop()
        if not waiting:
            return False
        before, tokens = waiting[-1]
        state = before.copy()
        if not state.accept(tokens.pop()):
            state = None
    return True


def check_forced(start: Matcher, vocabulary: Vocabulary) -> None:
    """Refuse a constraint that forces text without end: an engine would follow it for ever.

    Looked for at the beginning, and along texts drawn at random. So a rare place deep in it may be missed.

    Raises:
        ValueError: Such a place is found.
    """
    draw = random.Random(0)
    out = np.empty(vocabulary.words, np.int32)
    matcher, run, choices = start.copy(), 0, 0
    while choices < _MOST_DRAWN:
        try:
            matcher.fill(out)
        except ConstraintError:
            return
        allowed = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))
        run = run + 1 if len(allowed) == 1 else 0
        choices += len(allowed) > 1 or matcher.finished()
        if run == _MOST_FORCED:
            raise ValueError(
                "constraint: expected texts that end, got a part that takes all that could end it: patterns and "
                "terminals take the longest text they can. Let it exclude what follows it."
            )
        if matcher.finished():
            matcher, run = start.copy(), 0
        else:
            matcher.accept(int(draw.choice(allowed)))


def alphabet(vocabulary: Vocabulary) -> Ranges:
    """Characters whose bytes occur in tokens; beyond ASCII all of them, if any byte beyond it does."""
    written = merged((byte, byte) for byte in vocabulary.alphabet if byte < 0x80)
    beyond = any(byte >= 0x80 for byte in vocabulary.alphabet)
    return merged((*written, *complement(((0, 0x7F),)))) if beyond else written
