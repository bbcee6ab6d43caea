"""What a text may be: a pattern, a schema, one of some words, a grammar, free text up to a trigger."""

from __future__ import annotations

import os
import typing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmguide.checks import check_whole
from lmguide.constraints.base import CONSTRAINTS, Constraint, Repeat, Sequence, Union, as_constraint, check_text
from lmguide.constraints.json_schema import schema_text
from lmguide.constraints.regex import Node, translate

if typing.TYPE_CHECKING:
    from collections.abc import Mapping

Whitespace = typing.Literal["compact", "flexible"]


@CONSTRAINTS.register("regex")
@dataclass(frozen=True)
class Regex(Constraint):
    r"""Texts that `re.fullmatch(pattern, text)` accepts, with Python's meaning of every class.

    So `\d` is every Unicode digit and `\w` every Unicode letter or digit; write `[0-9]`, or `(?a)` in front, for ASCII.
    `.` is any character but a line break; `(?s)` in front makes it any. Greedy and lazy quantifiers are one.

    Args:
        pattern: A pattern of Python's `re`, with flags as `(?i)`, `(?s)`, `(?x)`, `(?a)`. `^` and `$` may stand at the
            ends. Lookaround, backreferences, `\b`, conditions, atomic groups and possessive quantifiers are refused.

    Raises:
        TypeError: Not a string.
        ValueError: A broken or refused pattern, with the position, or one that no text matches.

    Example:
        >>> Regex(r"[0-9]{4}-[0-9]{2}")
        Regex(pattern='[0-9]{4}-[0-9]{2}')
    """

    pattern: str

    def __post_init__(self) -> None:
        """Read the pattern once."""
        check_text("pattern", self.pattern)
        self.tree  # noqa: B018 (reads it, and refuses it)

    @cached_property
    def tree(self) -> Node:
        """The pattern as a tree of character sets."""
        return translate(self.pattern)


@CONSTRAINTS.register("json_schema")
@dataclass(frozen=True)
class JSONSchema(Constraint):
    """JSON documents that are valid under a schema, draft 2020-12.

    Properties come in the order of the schema. Keywords that a backend cannot honour are refused by name when the
    constraint is compiled, never half enforced; see docs/constraints.md for the list of each.

    Args:
        schema: A dictionary, `True`, JSON text, a pydantic model or a dataclass. Kept as JSON text.
        whitespace: `"flexible"` allows one space after `:` and `,`, `"compact"` none. There is no unbounded whitespace,
            in which a model could lose itself.

    Raises:
        TypeError: Something else.
        ValueError: Broken JSON, with the position, or options of an engine among the keywords.

    Example:
        >>> JSONSchema({"type": "integer"}).schema
        '{"type": "integer"}'
    """

    schema: str | Mapping[str, Any] | bool | type[Any]
    whitespace: Whitespace = "flexible"

    def __post_init__(self) -> None:
        """Write the schema as JSON."""
        object.__setattr__(self, "schema", schema_text(self.schema))
        if self.whitespace not in typing.get_args(Whitespace):
            raise ValueError(
                f"whitespace: expected 'compact' or 'flexible', got {self.whitespace!r}. Use 'flexible' if unsure."
            )


@CONSTRAINTS.register("json")
@dataclass(frozen=True)
class JSON(Constraint):
    """Any JSON document.

    Args:
        whitespace: As in `JSONSchema`.

    Example:
        >>> JSON().to_dict()
        {'name': 'json', 'whitespace': 'flexible'}
    """

    whitespace: Whitespace = "flexible"

    def grammar(self) -> Constraint:
        """The schema that allows everything."""
        return JSONSchema(True, self.whitespace)


@CONSTRAINTS.register("choice")
@dataclass(frozen=True)
class Choice(Constraint):
    """One of some texts.

    Args:
        options: The texts; at least one.

    Raises:
        TypeError: Not a list of strings.
        ValueError: None, or one twice.

    Example:
        >>> Choice(["yes", "no"])
        Choice(options=('yes', 'no'))
    """

    options: tuple[str, ...] | list[str]

    def __post_init__(self) -> None:
        """Check the options."""
        if isinstance(self.options, str) or not isinstance(self.options, list | tuple):
            raise TypeError(
                f"options: expected a list of strings, got {type(self.options).__name__}. Put the texts into a list."
            )
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options:
            raise ValueError("options: expected at least one text, got none. No text would match.")
        seen = set()
        for index, option in enumerate(self.options):
            check_text(f"options[{index}]", option)
            if option in seen:
                raise ValueError(f"options: expected different texts, got {option!r} twice. Give it once.")
            seen.add(option)


@CONSTRAINTS.register("grammar")
@dataclass(frozen=True)
class Grammar(Constraint):
    r"""The language of a context-free grammar, from its rule `start`, or `root` in GBNF.

    Args:
        text: The grammar, in llguidance's dialect of Lark or in GBNF (rules with `::=`), or the path of a file of one,
            as a `Path`. Kept as text.

    Raises:
        TypeError: Neither text nor path.
        ValueError: The file cannot be read.

    Example:
        >>> Grammar('start: "a" start "b" | ""').text
        'start: "a" start "b" | ""'
    """

    text: str | os.PathLike[str]

    def __post_init__(self) -> None:
        """Read the file."""
        if isinstance(self.text, os.PathLike):
            try:
                object.__setattr__(self, "text", Path(self.text).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"text: expected a file that can be read, got {self.text}: {error}. Mend it."
                ) from None
        check_text("text", self.text)


@CONSTRAINTS.register("free_text")
@dataclass(frozen=True)
class FreeText(Constraint):
    """Any text, up to and with the first occurrence of a trigger.

    `FreeText(until="</think>") + JSONSchema(schema)` lets a model reason first.

    Args:
        until: The text, or the name of a special token, that ends it. `None`: it goes on to the end of the answer, and
            nothing but free text can stand behind it.
        max_tokens: After so many tokens the text is ended: by the trigger, or, without one, by the end of the answer.
            A character that has begun is finished first. `None` is no bound. Only at the beginning of an answer, or
            behind literal text.

    Special tokens that a model writes are no text, and not allowed; end it by their names instead.

    Raises:
        ValueError: An empty trigger.

    Example:
        >>> FreeText(until="</think>").until
        '</think>'
    """

    until: str | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Check trigger and bound."""
        if self.until is not None:
            check_trigger("until", self.until)
        if self.max_tokens is not None:
            check_whole("max_tokens", self.max_tokens, "None is no bound.", least=0)


@CONSTRAINTS.register("triggered")
@dataclass(frozen=True)
class Triggered(Constraint):
    """Any text; but wherever a trigger occurs, what follows it must be as the constraint says.

    The form of tool calls: `Triggered("<tool_call>", JSONSchema(call) + "</tool_call>", repeat=True)`. A text without
    the trigger is allowed.

    Args:
        trigger: A text, or the name of a special token.
        constraint: What follows it.
        repeat: Whether free text and further triggers may follow; if not, the answer ends with the constrained part.

    Example:
        >>> Triggered("CALL ", Choice(["f()", "g()"])).repeat
        False
    """

    trigger: str
    constraint: Constraint
    repeat: bool = False

    def __post_init__(self) -> None:
        """Check the parts."""
        check_trigger("trigger", self.trigger)
        object.__setattr__(self, "constraint", as_constraint(self.constraint))

    def grammar(self) -> Constraint:
        """Free text up to the trigger and the constrained part, in a row; then free text."""
        call = Sequence((FreeText(self.trigger), self.constraint))
        if not self.repeat:
            return Union((call, FreeText()))
        return Sequence((Repeat(call), FreeText()))


def check_trigger(argument: str, value: object) -> None:
    """Refuse what cannot be a trigger."""
    check_text(argument, value)
    if not value:
        raise ValueError(f"{argument}: expected a text that triggers, got an empty one. Give for example '</think>'.")
