"""A specification of a text with counters, as a constraint: it is generated, drawn and checked."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from lmguide.constraints.base import CONSTRAINTS, Constraint, check_text
from lmguide.constraints.ccfg.bounds import compile_bounds
from lmguide.constraints.ccfg.parametric import UnfitError, parametric
from lmguide.constraints.ccfg.program import End, ReadNode, RunNode, TextNode, compile_program
from lmguide.constraints.ccfg.recogniser import Place, Reading, Recogniser, State
from lmguide.constraints.ccfg.sampler import sample
from lmguide.constraints.ccfg.specification import read
from lmguide.constraints.descriptions import Grammar


@dataclass(frozen=True)
class Verdict:
    """Whether a text is as a specification says, and if not, where it goes wrong; true if it is.

    Attributes:
        valid: Whether it is.
        position: Where the first wrong character stands, from 0; the length of the text if it ends too early.
        line: The same as a line, from 1.
        column: And a column, from 1.
        reason: What was expected there, and what came.
    """

    valid: bool
    position: int | None = None
    line: int | None = None
    column: int | None = None
    reason: str = ""

    def __bool__(self) -> bool:
        """Whether the text is valid."""
        return self.valid


@CONSTRAINTS.register("ccfg")
@dataclass(frozen=True)
class CCFG(Constraint):
    r"""Texts of a context-free grammar with counters: `n`, then exactly `n` items; values in ranges; relations.

    Lines are rules, `name: ...`, of which the first is the whole text, or relations such as `1 <= a < b <= 10^9`. A
    name without a rule is a whole number that is read there. `item[n]` is the item n times, `item[n; " "]` with blanks
    in between, `item[1..n]` from once to n times. `docs/ccfg.md` has the rest.

    What is generated is valid, and whatever can still become valid may follow: between its bounds a number may be
    anything, and a specification where that could lead to a dead end is refused.

    Args:
        specification: Rules and relations.

    Raises:
        TypeError: Not a string.
        ValueError: A broken specification, or one with a number that might be left without a value; with the line.

    Example:
        >>> points = CCFG('''
        ...     start: n "\\n" (x " " y "\\n")[n]
        ...     1 <= n <= 3
        ...     0 <= x < y <= 9
        ... ''')
        >>> bool(points.check("2\n0 1\n3 9\n")), points.check("2\n0 1\n3 3\n").reason
        (True, "expected y from 4 to 9, got '3'")
        >>> points.sample(seed=4)
        '1\n1 8\n'
    """

    specification: str

    def __post_init__(self) -> None:
        """Read the specification once."""
        check_text("specification", self.specification)
        self.recogniser  # noqa: B018 (reads it, and refuses it)

    @cached_property
    def recogniser(self) -> Recogniser:
        """What reads texts of the specification."""
        specification = read(self.specification)
        program = compile_program(specification)
        return Recogniser(program, compile_bounds(specification, program))

    @cached_property
    def lowered(self) -> Grammar | str:
        """The specification in llguidance's parametric rules, or the reason why it does not fit into them."""
        try:
            return Grammar(parametric(self.recogniser.program, self.recogniser.bounds))
        except UnfitError as reason:
            return str(reason)

    def grammar(self) -> Constraint:
        """The specification in parametric rules if it fits; else itself, which is no part of other constraints."""
        return self if isinstance(self.lowered, str) else self.lowered

    def check(self, text: str) -> Verdict:
        """Whether a text is valid, and where it goes wrong.

        Args:
            text: Any text.

        Returns:
            The verdict, which is true if the text is valid.

        Raises:
            TypeError: Not a string.
            ValueError: A lone surrogate in it.
            ConstraintError: The specification is so ambiguous that the text can be read in over 10,000 ways.
        """
        check_text("text", text)
        data = text.encode()
        state, count = self.recogniser.start().read(data)
        if count == len(data) and state.accepting:
            return Verdict(True)
        position = len(data[:count].decode(errors="ignore"))
        before = text[:position]
        got = repr(text[position]) if position < len(text) else "the end of the text"
        reason = f"expected {_expected(state, self.recogniser)}, got {got}"
        column = position - (before.rfind("\n") + 1) + 1
        return Verdict(False, position, before.count("\n") + 1, column, reason)

    def sample(self, seed: int | random.Random | None = None) -> str:
        """A valid text: each number, count and alternative drawn evenly from what it may be, from left to right.

        Args:
            seed: A seed, a generator that goes on, or `None` for chance.
        """
        return sample(self.recogniser, seed if isinstance(seed, random.Random) else random.Random(seed))


def _expected(state: State, recogniser: Recogniser) -> str:
    """What may follow, in words."""
    return " or ".join(dict.fromkeys(map(_words, recogniser.pending(state))))


def _words(place: Place) -> str:
    node, at = place.node, place.at
    if isinstance(node, ReadNode) and isinstance(at, Reading):
        return f"{node.name} from {at.low} to {at.high}"
    if isinstance(node, TextNode) and isinstance(at, int):
        return repr(node.text[at:].decode(errors="replace"))
    if isinstance(node, RunNode):
        return f"one of {''.join(map(chr, sorted(node.letters)))!r}"
    return "the end of the text" if isinstance(node, End) else "more"
