"""Free text of at most so many tokens: counted here, since a grammar knows no tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmguide.constraints.base import Constraint, Literal, Sequence
from lmguide.constraints.descriptions import FreeText
from lmguide.constraints.lowering import core, leaves

if TYPE_CHECKING:
    from collections.abc import Sequence as Tokens

    import numpy as np
    from numpy.typing import NDArray

    from lmguide.constraints.engine import Compiled, Matcher
    from lmguide.constraints.vocabulary import Vocabulary


def with_budget(constraint: Constraint, compiled: Compiled, vocabulary: Vocabulary) -> Compiled:
    """The compiled constraint, with the token budget of its free text if it has one.

    Raises:
        ValueError: A budget on free text that is not at the beginning, behind literal text at most; or one whose
            trigger the vocabulary cannot spell.
    """
    limited = [leaf for leaf in leaves(constraint) if isinstance(leaf, FreeText) and leaf.max_tokens is not None]
    if not limited:
        return compiled
    kind = core(constraint)
    parts = [core(part) for part in (kind.parts if isinstance(kind, Sequence) else (kind,))]
    before = 0
    while before < len(parts) and isinstance(parts[before], Literal):
        before += 1
    if len(limited) > 1 or before == len(parts) or parts[before] is not limited[0]:
        raise ValueError(
            "max_tokens: expected on free text at the beginning, behind literal text at most, got it elsewhere. "
            "Leave it out there."
        )
    text = "".join(part.text for part in parts[:before] if isinstance(part, Literal))
    until, most = limited[0].until, limited[0].max_tokens
    assert most is not None
    closing: tuple[int, ...] = ()
    if until is not None:
        special = vocabulary.specials.get(until)
        closing = (special,) if special is not None else tuple(vocabulary.encode(until))
    spelled = b"" if until is None or until in vocabulary.specials else until.encode()
    return _Budgeted(compiled, vocabulary, len(text.encode()), most, closing, spelled)


@dataclass(frozen=True)
class _Budgeted:
    """Free text behind `skip` bytes ends after `most` tokens with the tokens `closing`, or with the text."""

    compiled: Compiled
    vocabulary: Vocabulary
    skip: int
    most: int
    closing: tuple[int, ...]
    trigger: bytes

    def start(self) -> _BudgetedMatcher:
        """The state of an empty text."""
        return _BudgetedMatcher(self.compiled.start(), self)


@dataclass
class _BudgetedMatcher:
    """The state of one text.

    Attributes:
        inner: The state without the budget.
        rule: The budget.
        written: The text so far, while the free text lasts.
        spent: Tokens of free text.
        left: Tokens of the closing still to come, once it has begun.
        over: Whether the free text has ended.
    """

    inner: Matcher
    rule: _Budgeted
    written: bytes = b""
    spent: int = 0
    left: tuple[int, ...] = ()
    over: bool = False

    def fill(self, out: NDArray[np.int32]) -> None:
        """Write which tokens may follow, as bits `[words]`."""
        if not self._must_close():
            self.inner.fill(out)
            return
        out[:] = 0
        for token in self.left[:1] or self.rule.vocabulary.eos:
            out.view("uint32")[token >> 5] |= 1 << (token & 31)

    def accept(self, token: int) -> bool:
        """Take a token, or leave the state as it is."""
        if self._must_close() and token not in (self.left[:1] or self.rule.vocabulary.eos):
            return False
        if not self.inner.accept(token):
            return False
        if not self.over:
            self._count(token)
        return True

    def _must_close(self) -> bool:
        """Whether the budget is spent and the closing may begin: not within a character."""
        if self.over or self.left or self.spent < self.rule.most:
            return bool(self.left)
        if not self.rule.closing:
            return self.inner.accepting()
        if self.inner.validate(self.rule.closing) == len(self.rule.closing):
            self.left = self.rule.closing
        return bool(self.left)

    def _count(self, token: int) -> None:
        self.written += self.rule.vocabulary.tokens[token]
        self.left = self.left[1:]
        free = self.written[self.rule.skip :]
        if token in self.rule.closing[:1] and not self.rule.trigger:
            self.over = True
        elif self.rule.trigger and self.rule.trigger in free:
            self.over, self.left = True, ()
        elif len(self.written) > self.rule.skip or (len(self.written) == self.rule.skip and self.spent):
            self.spent += 1

    def forced(self) -> list[int]:
        """The tokens that must follow."""
        return list(self.left) if self._must_close() else self.inner.forced()

    def copy(self) -> _BudgetedMatcher:
        """The same state, on its own."""
        return replace(self, inner=self.inner.copy())

    def accepting(self) -> bool:
        """Whether the text may end here."""
        return self.inner.accepting()

    def finished(self) -> bool:
        """Whether nothing but an end can follow."""
        return self.inner.finished() or (self._must_close() and not self.left)

    def validate(self, tokens: Tokens[int]) -> int:
        """How many of the tokens could follow in a row."""
        probe = self.copy()
        return next((index for index, token in enumerate(tokens) if not probe.accept(token)), len(tokens))
