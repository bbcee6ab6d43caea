"""The base of every constraint: which texts may be generated, as a description without tensors, and how they compose.

A constraint is a frozen dataclass. It says what a text must be; engines read it on a vocabulary and decide which
tokens may follow.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lmguide.checks import check_whole
from lmguide.serialization import Registry, from_dict, to_dict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self


class ConstraintError(RuntimeError):
    """A constraint failed while a text was being written: the engine gave up, or no token may follow.

    The message names the row and the text so far where they are known, and repeats what the engine said.
    """


@dataclass(frozen=True)
class Constraint:
    """Which texts may be generated.

    Subclasses are frozen dataclasses registered in `CONSTRAINTS`. They compose: `a + b` is one after the other, `a | b`
    either, `repeat(a, 1, 3)` several times. A plain string beside an operator is a `Literal`.
    """

    name: ClassVar[str]

    def grammar(self) -> Constraint:
        """The constraint in terms of those that `lower` knows; a kind of its own overrides this."""
        return self

    def __add__(self, other: Constraint | str) -> Sequence:
        """`self`, then `other`."""
        return Sequence((self, as_constraint(other)))

    def __radd__(self, other: str) -> Sequence:
        """`other`, then `self`."""
        return Sequence((as_constraint(other), self))

    def __or__(self, other: Constraint | str) -> Union:
        """`self` or `other`."""
        return Union((self, as_constraint(other)))

    def __ror__(self, other: str) -> Union:
        """`other` or `self`."""
        return Union((as_constraint(other), self))

    def to_dict(self) -> dict[str, Any]:
        """The constraint as a JSON-safe dictionary with its registered name under `"name"`."""
        return to_dict(self)

    def to_json(self) -> str:
        """The constraint as a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The constraint described by a dictionary of `to_dict`.

        Raises:
            ValueError: An unknown name or key, with the nearest known one, or a bad value.
            TypeError: Called on a constraint's own class with the description of another.
        """
        constraint = from_dict(CONSTRAINTS, data)
        if not isinstance(constraint, cls):
            raise TypeError(
                f"expected a description of {cls.__name__}, got one of {type(constraint).__name__}. "
                "Use Constraint.from_dict for any constraint."
            )
        return constraint

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The constraint described by a JSON object of `to_json`."""
        return cls.from_dict(json.loads(text))


CONSTRAINTS: Registry[Constraint] = Registry("constraint")


@CONSTRAINTS.register("literal")
@dataclass(frozen=True)
class Literal(Constraint):
    r"""Just this text.

    Args:
        text: Any text, quotes and newlines too; `""` is the empty text.

    Raises:
        TypeError: Not a string.
        ValueError: A lone surrogate, which no tokenizer can write.

    Example:
        >>> Literal("yes").to_dict()
        {'name': 'literal', 'text': 'yes'}
    """

    text: str

    def __post_init__(self) -> None:
        """Check the text."""
        check_text("text", self.text)


@CONSTRAINTS.register("sequence")
@dataclass(frozen=True)
class Sequence(Constraint):
    """One part after the other: `{x_1 x_2 ... : x_i in part_i}`.

    Where regular parts meet (`Literal`, `Choice`, `Regex` and what is made of them) that is exact. A part of another
    kind is read as a lexer reads: a regular part before it takes the longest text it can.

    Args:
        parts: Constraints, or strings for literals.

    Example:
        >>> Literal("id: ") + Literal("7")
        Sequence(parts=(Literal(text='id: '), Literal(text='7')))
    """

    parts: tuple[Constraint, ...]

    def __post_init__(self) -> None:
        """Check the parts; nested sequences become one."""
        object.__setattr__(self, "parts", _parts("parts", self.parts, Sequence))


@CONSTRAINTS.register("union")
@dataclass(frozen=True)
class Union(Constraint):
    """Any one of the parts.

    Args:
        parts: Constraints, or strings for literals; at least one.

    Example:
        >>> Literal("yes") | "no"
        Union(parts=(Literal(text='yes'), Literal(text='no')))
    """

    parts: tuple[Constraint, ...]

    def __post_init__(self) -> None:
        """Check the parts; nested unions become one."""
        object.__setattr__(self, "parts", _parts("parts", self.parts, Union))
        if not self.parts:
            raise ValueError("parts: expected at least one constraint, got none. No text would match.")


@CONSTRAINTS.register("repeat")
@dataclass(frozen=True)
class Repeat(Constraint):
    """The part several times in a row, each time anew.

    Args:
        part: A constraint, or a string for a literal.
        least: How often at least, 0 or more.
        most: How often at most; `None` is no bound.

    Raises:
        ValueError: `most` below `least`, or a negative number.

    Example:
        >>> repeat("na", 2, 4)
        Repeat(part=Literal(text='na'), least=2, most=4)
    """

    part: Constraint
    least: int = 0
    most: int | None = None

    def __post_init__(self) -> None:
        """Check part and bounds."""
        object.__setattr__(self, "part", as_constraint(self.part, "part"))
        check_whole("least", self.least, "0 makes the part optional.", least=0)
        if self.most is not None:
            check_whole("most", self.most, "None is no bound.", least=0)
            if self.most < self.least:
                raise ValueError(
                    f"most: expected at least {self.least}, the value of least, got {self.most}. Swap the two."
                )


def repeat(part: Constraint | str, least: int = 0, most: int | None = None) -> Repeat:
    """`part` from `least` to `most` times in a row; `most=None` is no bound.

    Example:
        >>> repeat("ab", 1).least
        1
    """
    return Repeat(as_constraint(part, "part"), least, most)


def optional(part: Constraint | str) -> Repeat:
    """`part` or nothing.

    Example:
        >>> optional(", please").most
        1
    """
    return repeat(part, 0, 1)


def as_constraint(value: Constraint | str, argument: str = "constraint") -> Constraint:
    """A constraint as it is, a string as a `Literal`.

    Raises:
        TypeError: Something else.
    """
    if isinstance(value, Constraint):
        return value
    if isinstance(value, str):
        return Literal(value)
    raise TypeError(
        f"{argument}: expected a constraint such as Regex('[0-9]+') or a string, got {type(value).__name__}. "
        "Constraint.from_dict reads a dictionary."
    )


def check_text(argument: str, value: object) -> None:
    """Refuse what is no text that could be written as UTF-8.

    Raises:
        TypeError: Not a string.
        ValueError: It has a lone surrogate.
    """
    if not isinstance(value, str):
        raise TypeError(f"{argument}: expected a string, got {type(value).__name__}. Give text.")
    for place, character in enumerate(value):
        if "\ud800" <= character <= "\udfff":
            raise ValueError(
                f"{argument}: expected text that UTF-8 can write, got the lone surrogate {character!r} at position "
                f"{place}. Remove it."
            )


def _parts(argument: str, given: object, kind: type[Sequence] | type[Union]) -> tuple[Constraint, ...]:
    if not isinstance(given, list | tuple):
        raise TypeError(f"{argument}: expected a list of constraints, got {type(given).__name__}. Put it into a list.")
    parts: list[Constraint] = []
    for each in given:
        part = as_constraint(each, argument)
        parts.extend(part.parts if isinstance(part, kind) else (part,))
    return tuple(parts)
