"""Constraints on xgrammar, the second backend: patterns, schemas and plain grammars.

It is faster on plain schemas and slower to compile. What it would drop silently is refused before it sees it.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lmguide.constraints.base import Constraint, ConstraintError
from lmguide.constraints.descriptions import Grammar, JSONSchema
from lmguide.constraints.extras import grammar_extra
from lmguide.constraints.lark_text import check_lark
from lmguide.constraints.lowering import core, regular
from lmguide.constraints.regex import Alt, Chars, Node, Ranges, Rep
from lmguide.constraints.spelling import check_spelling, check_start
from lmguide.constraints.xgrammar_schema import xgrammar_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lmguide.constraints.vocabulary import Vocabulary


class XGrammarCompiled:
    """A constraint compiled by xgrammar.

    Args:
        constraint: What texts must be.
        vocabulary: The model's tokens.

    Raises:
        ValueError: As `lmguide.constraints.compile`; also kinds of constraints and keywords of schemas that xgrammar
            does not enforce.
    """

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        engine = grammar_extra("xgrammar")
        compiler = engine.GrammarCompiler(vocabulary.xgrammar, max_threads=os.cpu_count() or 1, cache_enabled=False)
        kind, tree = core(constraint), regular(constraint)
        check_spelling(tree, vocabulary)
        try:
            if tree is not None:
                self._compiled = compiler.compile_grammar(f"root ::= {ebnf(tree)}")
            elif isinstance(kind, JSONSchema):
                self._compiled = _schema(compiler, kind)
            elif isinstance(kind, Grammar) and kind is constraint:  # other kinds lower to llguidance's own dialect
                self._compiled = _grammar(compiler, str(kind.text))
            else:
                raise ValueError(
                    "backend: expected a pattern, a schema or a grammar for xgrammar, got "
                    f"{type(constraint).__name__}. Use backend='llguidance'."
                )
        except RuntimeError as error:
            raise ValueError(
                f"constraint: expected one that xgrammar can read, got one that it refuses: {_message(error)}. "
                "Mend it, or use backend='llguidance'."
            ) from None
        self._vocabulary = vocabulary
        check_start(self.start(), vocabulary)

    def start(self) -> XGrammarMatcher:
        """The state of an empty text."""
        return XGrammarMatcher(grammar_extra("xgrammar").GrammarMatcher(self._compiled), self._vocabulary)


class XGrammarMatcher:
    """The state of one text; see `lmguide.constraints.engine.Matcher`."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary, ended: bool = False) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ended = ended

    def fill(self, out: NDArray[np.int32]) -> None:
        """Write which tokens may follow, as bits `[words]`."""
        if not self._ended:
            self._matcher.fill_next_token_bitmask(out[None])
        self.check(out)

    def check(self, out: NDArray[np.int32]) -> None:
        """Refuse a mask that allows nothing.

        Raises:
            ConstraintError: No token may follow.
        """
        if self._ended:
            out[:] = self._vocabulary.eos_bits
            return
        if beyond := self._vocabulary.size % 32:
            out[-1] &= (1 << beyond) - 1  # it sets bits of no token
        if not out.any():
            raise ConstraintError("no token may follow, and the text may not end here.")

    def accept(self, token: int) -> bool:
        """Take a token, or leave the state as it is."""
        if token in self._vocabulary.eos_set:
            self._ended = self._ended or self.accepting()
            return self._ended
        return not self._ended and bool(self._matcher.accept_token(token))

    def forced(self) -> list[int]:
        """The tokens that must follow; the last of a forced text is left open, since it may be part of a longer one."""
        try:
            text = "" if self._ended else self._matcher.find_jump_forward_string()
        except UnicodeDecodeError:  # within a character
            return []
        if not text:
            return []
        tokens = self._vocabulary.encode(text)
        after = self.copy()
        return tokens if all(map(after.accept, tokens)) and after.finished() else tokens[:-1]

    def copy(self) -> XGrammarMatcher:
        """The same state, on its own."""
        return XGrammarMatcher(self._matcher.fork(), self._vocabulary, self._ended)

    def accepting(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_completed())

    def finished(self) -> bool:
        """Whether nothing but an end can follow."""
        if self._ended or not self.accepting():
            return self._ended
        out = np.empty(self._vocabulary.words, np.int32)
        self.fill(out)
        return bool((out == self._vocabulary.eos_bits).all())

    def validate(self, tokens: Sequence[int]) -> int:
        """How many of the tokens could follow in a row."""
        probe = self.copy()
        return next((index for index, token in enumerate(tokens) if not probe.accept(token)), len(tokens))


@lru_cache(maxsize=1)
def _batch() -> Any:
    return grammar_extra("xgrammar").BatchGrammarMatcher(max_threads=os.cpu_count() or 1)


def fill_xgrammar(rows: Sequence[tuple[int, XGrammarMatcher]], out: NDArray[np.int32]) -> None:
    """Fill rows of `out` `[rows, words]` in parallel.

    Raises:
        ConstraintError: As `XGrammarMatcher.fill`, with the row.
    """
    going = [(row, matcher._matcher) for row, matcher in rows if not matcher._ended]
    if going:
        indices, matchers = zip(*going, strict=True)
        _batch().batch_fill_next_token_bitmask(list(matchers), out, list(indices))
    for row, matcher in rows:
        try:
            matcher.check(out[row])
        except ConstraintError as error:
            raise ConstraintError(f"row {row}: {error}") from None


def _schema(compiler: Any, constraint: JSONSchema) -> Any:
    schema = xgrammar_schema(str(constraint.schema))
    spaces: dict[str, Any] = {"any_whitespace": False, "separators": (",", ":")}
    if constraint.whitespace == "flexible":
        spaces = {"any_whitespace": True, "max_whitespace_cnt": 1}
    return compiler.compile_json_schema(schema, strict_mode=False, **spaces)


def _grammar(compiler: Any, text: str) -> Any:
    if "::=" in text:
        return compiler.compile_grammar(text)
    check_lark(text)
    return compiler.compile_lark(text)


def ebnf(tree: Node) -> str:
    r"""The text of a tree in xgrammar's EBNF.

    Example:
        >>> print(ebnf(Rep(Chars(((97, 99), (47, 47))), 1, None)))
        [\U00000061-\U00000063\U0000002f]{1,}
    """
    if isinstance(tree, Chars):
        return _set(tree.ranges)
    if isinstance(tree, Rep):
        return f"{_grouped(tree.part)}{{{tree.least},{'' if tree.most is None else tree.most}}}"
    if isinstance(tree, Alt):
        return "(" + " | ".join(map(ebnf, tree.parts)) + ")"
    return " ".join(map(ebnf, tree.parts)) or '""'


def _grouped(tree: Node) -> str:
    return ebnf(tree) if isinstance(tree, Chars | Alt) else f"({ebnf(tree)})"


def _set(ranges: Ranges) -> str:
    inner = "".join(f"\\U{low:08x}" + (f"-\\U{high:08x}" if high > low else "") for low, high in ranges)
    return f"[{inner}]"


def _message(error: RuntimeError) -> str:
    """What xgrammar says, without the time and the place in its own source."""
    return re.sub(r"^\[[^\]]*\] \S+:\d+: ", "", str(error)).strip().partition("\n")[0].rstrip(".")
