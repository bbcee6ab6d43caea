"""Templates: text that stands, with fields that are filled in, each under its own constraint (S3, arXiv 2507.04504)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lmguide.checks import check_whole
from lmguide.constraints import Constraint, JSONSchema, Regex, parse_constraint
from lmguide.constraints.base import as_constraint, check_text
from lmguide.constraints.json_schema import schema_text

MARK = re.compile(r"\{\{(\w(?:[\w.\[\]-]*\w)?)\}\}")
_ANYTHING = Regex("(?s).*")
_PLAIN = {"type", "properties", "required", "additionalProperties", "title", "description", "$schema", "$id"}
_SHARED = ("$defs", "definitions")


@dataclass(frozen=True)
class Field:
    """What is filled in at one place of a template.

    Args:
        constraint: What it must be; `None` is any text, a string the form of `lg.parse_constraint`.
        length: Columns it has. A shorter text is followed by null tokens, which are taken out of the result. Or several
            lengths, of which the one is taken at which the model is surest of what it would write; there is then no
            null token.
        example: A text of the field's kind; `None` is a short one that it may be. The template is cut into tokens with
            the examples in their places, so that tokens on a field's border are those of a text with a value.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: A length below 1, or no example.

    Example:
        >>> Field("json", length=8, example="[1]").length
        8
    """

    constraint: Constraint | str | None = None
    length: int | tuple[int, ...] = 16
    example: str | None = None

    def __post_init__(self) -> None:
        """Check all."""
        given = self.constraint
        if isinstance(given, str):
            object.__setattr__(self, "constraint", parse_constraint(given))
        elif given is not None:
            as_constraint(given)
        lengths = list(self.length) if isinstance(self.length, list | tuple) else [self.length]
        if not lengths:
            raise ValueError("length: expected one length or several, got none. Give the columns of the field.")
        for each in lengths:
            check_whole("length", each, "Give the columns of the field.", least=1)
        if isinstance(self.length, list | tuple):
            object.__setattr__(self, "length", tuple(self.length) if len(lengths) > 1 else lengths[0])
        if self.example is not None:
            check_text("example", self.example)
        if self.example == "":
            raise ValueError("example: expected a text, got an empty one. Give one of the field's kind.")


class ExactField(Field):
    """A field whose text fills its columns."""


@dataclass(frozen=True)
class Template:
    """Text that stands on a canvas, with fields.

    Args:
        text: The text, with `{{name}}` where a field is. There must be text between two fields.
        fields: What each field is; those that are not named here are any text of 16 columns.
        null: Name of the token that follows a text which is shorter than its field; `None` is the padding token, or
            the end-of-text token. It stands nowhere else in a field.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: No field in the text, one twice, one that is not in the text, or two without text between them.

    Example:
        >>> template = Template("Name: {{name}}, age: {{age}}", {"age": Field(Regex("[0-9]+"), 3, "7")})
        >>> template.names, template.filled({"name": "Ada", "age": "36"})
        (('name', 'age'), 'Name: Ada, age: 36')
    """

    text: str
    fields: Mapping[str, Field] = field(default_factory=dict)
    null: str | None = None

    def __post_init__(self) -> None:
        """Check the text against the fields."""
        check_text("text", self.text)
        if not isinstance(self.fields, Mapping) or not all(isinstance(each, Field) for each in self.fields.values()):
            raise TypeError(
                f"fields: expected a dictionary of Field, got {self.fields!r}. Write "
                "{'age': Field(Regex('[0-9]+'), length=3)}."
            )
        if not self.names:
            raise ValueError("text: expected a field such as {{name}} in it, got none. Mark what is to be filled in.")
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(f"text: expected each field once, got {name!r} twice. Give them different names.")
        for name in self.fields:
            if name not in self.names:
                raise ValueError(
                    f"fields: expected fields of the text, {', '.join(self.names)}, got {name!r}. Put it into the text."
                )
        if not all(MARK.split(self.text)[2:-1:2]):
            raise ValueError("text: expected text between two fields, got two in a row. Make them one.")
        known = {name: self.fields.get(name, Field()) for name in self.names}
        object.__setattr__(self, "fields", known)

    @classmethod
    def of_schema(
        cls,
        schema: Any,
        length: int | tuple[int, ...] | Mapping[str, int | tuple[int, ...]] = 16,
        null: str | None = None,
    ) -> Template:
        """The template of the JSON documents of a schema.

        Braces, keys and separators stand; each value that is no object with properties is a field under its own part
        of the schema. All properties are there, in the order of the schema. A field is named by the way to it.

        Args:
            schema: As `JSONSchema` takes it: of an object with properties.
            length: Columns of each field, or a dictionary of them by field; those not named have 16.
            null: As in `Template`.

        Raises:
            ValueError: Not the schema of an object with properties, or a length for a field that there is not.

        Example:
            >>> person = {"type": "object", "properties": {"name": {"type": "string"}, "born": {"type": "integer"}}}
            >>> Template.of_schema(person, length={"born": 4}).text
            '{"name": {{name}}, "born": {{born}}}'
        """
        whole = json.loads(schema_text(schema))
        if not _has_members(whole):
            raise ValueError(
                "schema: expected that of an object with properties alone, got another. "
                "Use generate(constraint=JSONSchema(...))."
            )
        shared = {name: whole[name] for name in _SHARED if name in whole}
        parts: dict[str, Any] = {}
        text = _serialised(whole, "", parts)
        lengths = dict(length) if isinstance(length, Mapping) else dict.fromkeys(parts, length)
        for name in lengths:
            if name not in parts:
                raise ValueError(f"length: expected fields of {', '.join(parts)}, got {name!r}. Name one of them.")
        fields = {
            name: Field(
                JSONSchema({**shared, **part} if isinstance(part, dict) else part),
                lengths.get(name, 16),
            )
            for name, part in parts.items()
        }
        return cls(text, fields, null)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, in the order of the text."""
        return tuple(MARK.findall(self.text))

    @property
    def pieces(self) -> list[str]:
        """Text and names of fields in turns, text first and last."""
        return MARK.split(self.text)

    @property
    def undecided(self) -> list[str]:
        """Fields of several lengths."""
        return [name for name, each in self.fields.items() if isinstance(each.length, tuple)]

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with values in the place of fields."""
        return MARK.sub(lambda match: values[match[1]], self.text)

    def longest(self) -> Template:
        """The same, fields of several lengths as long as they may be, with null tokens behind shorter texts."""
        fields = {
            name: replace(each, length=max(each.length)) if isinstance(each.length, tuple) else each
            for name, each in self.fields.items()
        }
        return replace(self, fields=fields)

    def with_length(self, name: str, length: int) -> Template:
        """The same with one field of just so many tokens."""
        return replace(self, fields={**self.fields, name: ExactField(**vars(self.fields[name]) | {"length": length})})


@dataclass(frozen=True)
class Filled:
    """A template that was filled in.

    Attributes:
        text: The whole text, without null tokens.
        values: The text of each field.
    """

    text: str
    values: dict[str, str]


def _has_members(schema: Any) -> bool:
    """Whether a schema is that of an object with properties, and says nothing else."""
    return (
        isinstance(schema, dict)
        and schema.get("type") == "object"
        and bool(schema.get("properties"))
        and isinstance(schema["properties"], dict)
        and set(schema) <= _PLAIN | set(_SHARED)
        and set(schema.get("required", ())) <= set(schema["properties"])
    )


def _serialised(schema: dict[str, Any], way: str, parts: dict[str, Any]) -> str:
    """The text of an object, fields for its values; `parts` gets the schema of each."""
    members = []
    for key, part in schema["properties"].items():
        name = f"{way}.{key}" if way else key
        if _has_members(part):
            value = _serialised(part, name, parts)
        else:
            if not MARK.fullmatch("{{" + name + "}}"):
                raise ValueError(
                    f"schema: expected names of letters, digits, '_' and '-' in a template, got {key!r}. Write the "
                    "template by hand."
                )
            parts[name], value = part, "{{" + name + "}}"
        members.append(f"{json.dumps(key)}: {value}")
    return "{" + ", ".join(members) + "}"
