"""From constraints to automata over bytes: which are regular, and how they compose."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from lmguide.constraints.automaton.dfa import Dfa, difference
from lmguide.constraints.automaton.json_values import text
from lmguide.constraints.automaton.nfa import of_tree, repeated, sequence, union
from lmguide.constraints.automaton.schema import schema_dfa
from lmguide.constraints.automaton.utf8 import ByteDfa, over_bytes
from lmguide.constraints.base import Constraint, Literal, Repeat, Sequence, Union
from lmguide.constraints.descriptions import Choice, FreeText, JSONSchema, Regex, Triggered
from lmguide.constraints.regex import EVERY, Alt, Chars, Rep, literal

if TYPE_CHECKING:
    from lmguide.constraints.regex import Node


@lru_cache(maxsize=64)  # of a megabyte at most, mostly of some kilobytes
def byte_dfa(constraint: Constraint) -> ByteDfa:
    """The automaton of the texts that a constraint allows, over the bytes of UTF-8.

    `Literal`, `Choice`, `Regex`, `JSONSchema`, `JSON`, `FreeText`, `Triggered`, and sequences, unions and repetitions
    of these.

    Args:
        constraint: Which texts.

    Raises:
        ValueError: It is no such constraint, it allows no text, a keyword of a schema is not honoured, or the
            automaton grows too large.

    Example:
        >>> greeting = byte_dfa(Literal("Hello, ") + Choice(("world", "moon")))
        >>> greeting.accepts(b"Hello, moon"), greeting.accepts(b"Hello, ")
        (True, False)
    """
    dfa = character_dfa(constraint)
    if dfa.empty:
        raise ValueError(
            f"constraint: expected one that some text meets, got {constraint}, which none does. Loosen it."
        )
    return over_bytes(dfa)


def character_dfa(constraint: Constraint) -> Dfa:
    """The same over characters; it may accept nothing.

    Raises:
        ValueError: As `byte_dfa`, but for what allows no text.
    """
    if isinstance(constraint, Triggered):
        called = sequence([_free(constraint.trigger), character_dfa(constraint.constraint)])
        quiet = difference(_free(None), sequence([_free(constraint.trigger), _free(None)]))
        return sequence([repeated(called, 0, None), quiet]) if constraint.repeat else union([called, quiet])
    while (lowered := constraint.grammar()) is not constraint:
        constraint = lowered
    if (tree := _tree(constraint)) is not None:
        return of_tree(tree)
    if isinstance(constraint, JSONSchema):
        return schema_dfa(str(constraint.schema), constraint.whitespace == "flexible")
    if isinstance(constraint, FreeText) and constraint.max_tokens is None:
        return _free(constraint.until)
    if isinstance(constraint, Sequence | Union):
        parts = [character_dfa(part) for part in constraint.parts]
        return sequence(parts) if isinstance(constraint, Sequence) else union(parts)
    if isinstance(constraint, Repeat):
        return repeated(character_dfa(constraint.part), constraint.least, constraint.most)
    what = "max_tokens of FreeText" if isinstance(constraint, FreeText) else type(constraint).__name__
    raise ValueError(
        f"constraint: expected what an automaton can read, got {what}. Use Regex, JSONSchema, JSON, Choice, Literal, "
        "FreeText and what is composed of them."
    )


def _tree(constraint: Constraint) -> Node | None:
    """Constraints that are patterns themselves."""
    if isinstance(constraint, Literal):
        return literal(constraint.text)
    if isinstance(constraint, Choice):
        return Alt(tuple(map(literal, constraint.options)))
    return constraint.tree if isinstance(constraint, Regex) else None


def _free(until: str | None) -> Dfa:
    """Any text, up to the first occurrence of a trigger."""
    anything = of_tree(Rep(Chars(EVERY), 0, None))
    if until is None:
        return anything
    ended = sequence([anything, text(until)])
    return difference(ended, sequence([ended, of_tree(Rep(Chars(EVERY), 1, None))]))
