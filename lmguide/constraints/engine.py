"""What an engine offers: a constraint compiled for a vocabulary, and the state of one text under it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from lmguide.constraints.base import Constraint, ConstraintError, as_constraint
from lmguide.constraints.budget import with_budget
from lmguide.constraints.ccfg.description import CCFG
from lmguide.constraints.ccfg.engine import CCFGCompiled
from lmguide.constraints.llguidance_engine import LLGuidanceCompiled, LLGuidanceMatcher, fill_llguidance
from lmguide.constraints.xgrammar_engine import XGrammarCompiled, XGrammarMatcher, fill_xgrammar
from lmguide.serialization import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lmguide.constraints.vocabulary import Vocabulary


class Matcher(Protocol):
    """The state of one text: what has been accepted so far and what may follow."""

    def fill(self, out: NDArray[np.int32]) -> None:
        """Write which tokens may follow, as bits.

        Token `v` is bit `v % 32` of word `v // 32`. The bits of the end tokens are set iff the text may end here.

        Args:
            out: `[words]`, contiguous; every word is written.

        Raises:
            ConstraintError: The engine gave up, or no token may follow.
        """

    def accept(self, token: int) -> bool:
        """Take a token; `False` leaves the state as it was, because the token may not follow."""

    def forced(self) -> list[int]:
        """The tokens that must follow, as the tokenizer cuts them; none where there is a choice."""

    def copy(self) -> Matcher:
        """The same state, on its own from now on."""

    def accepting(self) -> bool:
        """Whether the text may end here."""

    def finished(self) -> bool:
        """Whether nothing but an end can follow, or an end was taken."""

    def validate(self, tokens: Sequence[int]) -> int:
        """How many of these tokens could follow in a row; the state stays as it is."""


class Compiled(Protocol):
    """A constraint on a vocabulary."""

    def start(self) -> Matcher:
        """The state of an empty text."""


BACKENDS = ("llguidance", "xgrammar")
_MOST_COMPILED = 256  # as many constraints as a busy server sees at a time; a compiled one holds up to some megabytes
_compiled: OrderedDict[tuple[Constraint, Vocabulary, str], Compiled] = OrderedDict()
_lock = threading.Lock()


def compile(constraint: Constraint | str, vocabulary: Vocabulary, backend: str | None = None) -> Compiled:
    """A constraint made ready for a vocabulary; the latest 256 are remembered.

    Args:
        constraint: What texts must be.
        vocabulary: The model's tokens.
        backend: `"llguidance"`, the default, or `"xgrammar"`, which reads fewer kinds of constraints.

    Raises:
        ValueError: A broken pattern, schema or grammar, with position and reason; what the backend cannot honour, by
            name; a constraint that no text meets, or that no tokens of the vocabulary can spell.
        ImportError: The backend is not installed.

    Example:
        >>> from lmguide.constraints import Regex, Vocabulary
        >>> digits = Vocabulary([b"1", b"2", b"12", b""], eos=(3,))
        >>> matcher = compile(Regex("[0-9]{2}"), digits).start()
        >>> matcher.accept(2), matcher.accepting(), matcher.accept(0)
        (True, True, False)
    """
    constraint = as_constraint(constraint)
    name = check_backend(backend)
    key = (constraint, vocabulary, name)
    with _lock:
        if key in _compiled:
            _compiled.move_to_end(key)
            return _compiled[key]
    engine = XGrammarCompiled if name == "xgrammar" else LLGuidanceCompiled
    if isinstance(constraint, CCFG) and constraint.grammar() is constraint and name == "llguidance":
        made: Compiled = CCFGCompiled(constraint.recogniser, vocabulary)
    else:
        made = with_budget(constraint, engine(constraint, vocabulary), vocabulary)
    with _lock:
        _compiled[key] = made
        while len(_compiled) > _MOST_COMPILED:
            _compiled.popitem(last=False)
    return made


def check_backend(backend: str | None) -> str:
    """The name of an engine; `None` is the default.

    Raises:
        ValueError: There is none of that name.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(
            f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}. {did_you_mean(backend, BACKENDS)}"
        )
    return backend or BACKENDS[0]


def fill_batch(matchers: Sequence[Matcher | None], out: NDArray[np.int32]) -> None:
    """`matchers[row].fill(out[row])` for every row, in parallel; rows without a matcher are left as they are.

    Args:
        matchers: One for each row, or `None`.
        out: Bits `[rows, words]`, contiguous.

    Raises:
        ConstraintError: As `Matcher.fill`, with the row.
    """
    ours: list[tuple[int, LLGuidanceMatcher]] = []
    theirs: list[tuple[int, XGrammarMatcher]] = []
    for row, matcher in enumerate(matchers):
        if isinstance(matcher, LLGuidanceMatcher) and len(matchers) > 1:
            ours.append((row, matcher))
        elif isinstance(matcher, XGrammarMatcher):
            theirs.append((row, matcher))
        elif matcher is not None:
            try:
                matcher.fill(out[row])
            except ConstraintError as error:
                raise ConstraintError(f"row {row}: {error}") from None
    if ours:
        fill_llguidance(ours, out)
    if theirs:
        fill_xgrammar(theirs, out)
