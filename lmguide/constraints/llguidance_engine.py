"""Constraints on llguidance: Earley's parser over lexemes, masks on the fly.

Its matchers never raise: after an error they allow only the end of the text. So every mask and every step here is
followed by a look at the error state.
"""

from __future__ import annotations

import ctypes
import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lmguide.constraints.base import Constraint, ConstraintError
from lmguide.constraints.descriptions import Grammar, JSONSchema
from lmguide.constraints.extras import grammar_extra
from lmguide.constraints.json_schema import check_finite, refusal
from lmguide.constraints.lowering import leaves, lower, read_grammar
from lmguide.constraints.spelling import check_forced, check_spelling, check_start, may_end
from lmguide.constraints.vocabulary import Vocabulary, bytes_vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


# The engine's own limits stop grammars of whole programming languages on large vocabularies (50,000 items a step). A
# step of some seconds that ends right is better than one that fails.
_LIMITS = {
    "max_items_in_row": 200_000,
    "initial_lexer_fuel": 100_000_000,
    "step_lexer_fuel": 100_000_000,
    "step_max_items": 50_000_000,
    "max_lexer_states": 2_000_000,
    "max_grammar_size": 5_000_000,
}


_DEAD = "no token may follow, and the text may not end here."


class LLGuidanceCompiled:
    """A constraint compiled by llguidance.

    Args:
        constraint: What texts must be.
        vocabulary: The model's tokens.

    Raises:
        ValueError: As `lmguide.constraints.compile`.
    """

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        for leaf in leaves(constraint):
            if isinstance(leaf, JSONSchema):
                check_finite(str(leaf.schema))
        lowered = lower(constraint, vocabulary)
        check_spelling(lowered.tree, vocabulary)
        matcher = _matcher(lowered.lark, vocabulary)
        if matcher.is_error():
            raise ValueError(_blame(constraint, vocabulary) or f"constraint: {_position(matcher)}")
        parts = leaves(constraint)
        grammars = [read_grammar(part)[1] for part in parts if isinstance(part, Grammar)]
        if grammars or (lowered.tree is None and len(parts) > 1):
            _check_lexing(lowered.lark, any(grammar.excludes for grammar in grammars))
        self._start = LLGuidanceMatcher(matcher, vocabulary)
        check_start(self._start, vocabulary)

    def start(self) -> LLGuidanceMatcher:
        """The state of an empty text."""
        return self._start.copy()


def _check_lexing(lark: str, excludes: bool) -> None:
    """Refuse terminals on which the engine would loop, and if they exclude texts, all of them; asked byte by byte."""
    vocabulary = bytes_vocabulary()
    matcher = _matcher(lark, vocabulary, forcing=False)
    if matcher.is_error():  # it names special tokens
        return
    start = LLGuidanceMatcher(matcher, vocabulary)
    check_forced(start.copy(), vocabulary)
    if excludes and not may_end(start, vocabulary):
        raise ValueError("constraint: expected a grammar that some text meets, got one that none does. Mend it.")


def _matcher(lark: str, vocabulary: Vocabulary, forcing: bool = True) -> Any:
    engine = grammar_extra("llguidance")
    # Where not every text can be written, forced text might not be: then tokens are masked one by one.
    options = '\n%llguidance {"no_forcing": true}\n' if vocabulary.missing_bytes or not forcing else ""
    return engine.LLMatcher(
        vocabulary.llguidance,
        engine.LLMatcher.grammar_from_lark(lark + options),
        log_level=0,
        limits=engine.LLParserLimits(**_LIMITS, verbose_errors=False),
    )


def _blame(constraint: Constraint, vocabulary: Vocabulary) -> str | None:
    """What the engine has against the first part that it refuses by itself."""
    for leaf in leaves(constraint):
        matcher = _matcher(lower(leaf, vocabulary).lark, vocabulary)
        if matcher.is_error():
            reason = _position(matcher)
            if isinstance(leaf, JSONSchema):
                return refusal(str(leaf.schema), reason.partition("failed to compile JSON schema: ")[2] or reason)
            return f"text: expected a grammar that llguidance can read, got one that is broken: {reason}. Mend it."
    return None


def _position(matcher: Any) -> str:
    """The engine's message with its place in words."""
    return re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", _reason(matcher))


class LLGuidanceMatcher:
    """The state of one text; see `lmguide.constraints.engine.Matcher`."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary, ended: bool = False) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ended = ended

    def fill(self, out: NDArray[np.int32]) -> None:
        """Write which tokens may follow, as bits `[words]`."""
        self._matcher.unsafe_compute_mask_ptr(_address(out), out.nbytes)
        self.check(out)

    def check(self, out: NDArray[np.int32]) -> None:
        """Refuse a mask that is the engine's way to say that it gave up.

        Raises:
            ConstraintError: An error of the engine, or no token may follow.
        """
        self._check_error()
        if self._ended:
            out[:] = self._vocabulary.eos_bits
            return
        end = self._vocabulary.eos[0]
        if out[end >> 5] >> (end & 31) & 1 and not self._matcher.is_accepting():
            raise ConstraintError(_DEAD)

    def accept(self, token: int) -> bool:
        """Take a token, or leave the state as it is."""
        if token in self._vocabulary.eos_set:
            self._ended = self._ended or self.accepting()
            return self._ended
        taken = not self._ended and self._matcher.try_consume_tokens([token]) == 1
        self._check_error()
        return taken

    def forced(self) -> list[int]:
        """The tokens that must follow."""
        found: list[int] = [] if self._ended else self._matcher.compute_ff_tokens()
        self._check_error()
        return found

    def copy(self) -> LLGuidanceMatcher:
        """The same state, on its own."""
        return LLGuidanceMatcher(self._matcher.deep_copy(), self._vocabulary, self._ended)

    def accepting(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def finished(self) -> bool:
        """Whether nothing but an end can follow."""
        return self._ended or bool(self._matcher.is_stopped())

    def validate(self, tokens: Sequence[int]) -> int:
        """How many of the tokens could follow in a row."""
        if self._vocabulary.eos_set.isdisjoint(tokens):
            return 0 if self._ended else int(self._matcher.validate_tokens(list(tokens)))
        probe = self.copy()
        return next((index for index, token in enumerate(tokens) if not probe.accept(token)), len(tokens))

    def _check_error(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher)
            raise ConstraintError(_DEAD if reason.startswith("NoExtension") else f"llguidance gave up: {reason}.")


@lru_cache(maxsize=1)
def _executor() -> Any:
    return grammar_extra("llguidance").LLExecutor(num_threads=max(1, min(32, os.cpu_count() or 1)))


def fill_llguidance(rows: Sequence[tuple[int, LLGuidanceMatcher]], out: NDArray[np.int32]) -> None:
    """Fill rows of `out` `[rows, words]` in parallel.

    Raises:
        ConstraintError: As `LLGuidanceMatcher.fill`, with the row.
    """
    _executor().unsafe_compute_mask_ptr(
        [(matcher._matcher, row) for row, matcher in rows], _address(out), out.strides[0], len(out)
    )
    for row, matcher in rows:
        try:
            matcher.check(out[row])
        except ConstraintError as error:
            raise ConstraintError(f"row {row}: {error}") from None


def _address(out: NDArray[np.int32]) -> int:
    """Where contiguous bits begin; `out.ctypes.data` takes several times as long, a third of a light mask."""
    return ctypes.addressof(ctypes.c_char.from_buffer(out))  # type: ignore[arg-type]  # arrays are buffers


def _reason(matcher: Any) -> str:
    """The first line of the engine's message, and of what it says of a regular expression."""
    first, *lines = str(matcher.get_error()).splitlines()
    inner = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    return f"{first} {inner}".rstrip()
