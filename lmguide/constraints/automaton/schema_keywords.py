"""The keywords of JSON Schema one by one: which there are, what types they are about, and those about scalars."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from lmguide.constraints.automaton import json_values as values
from lmguide.constraints.automaton.dfa import Dfa, intersection
from lmguide.constraints.automaton.formats import FORMATS, searched
from lmguide.constraints.automaton.nfa import of_tree, union
from lmguide.constraints.regex import EVERY, Chars, Rep
from lmguide.serialization import did_you_mean

MOST_DIVISOR = 1000
"""Largest divisor of `multipleOf`; an automaton has a state for each remainder."""

ANNOTATIONS = frozenset(
    {
        *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"),
        *("deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType", "contentSchema"),
    }
)
"""Keywords that say nothing about what is valid."""

TYPED = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "integer": frozenset[str](),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
"""Types, and the keywords that are about one of them."""

COMBINED = frozenset({"type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf"})
KEYWORDS = COMBINED.union(*TYPED.values())
"""Keywords that are honoured; all others are refused by name."""

SCALARS = frozenset(TYPED) - {"array", "object"}
"""Types of values that hold no others."""


def check_keyword(keyword: str, where: str, value: Any) -> None:
    """Refuse a keyword that is neither honoured nor an annotation.

    Raises:
        ValueError: It is; its name and place are in the message.
    """
    if keyword in KEYWORDS | ANNOTATIONS or (keyword == "uniqueItems" and value is False):
        return
    raise ValueError(
        f"schema: expected keywords that an automaton can honour, got {keyword!r} ({where}). "
        f"{did_you_mean(keyword, sorted(KEYWORDS))} Leave it out, or check it afterwards."
    )


def about(schema: dict[str, Any], kind: str) -> bool:
    """Whether a keyword of this schema is about values of a type."""
    return bool(TYPED[kind] & set(schema))


def types_of(schema: Any, where: str) -> set[str]:
    """The types of the values that a schema allows, as far as it says."""
    if not isinstance(schema, dict):
        return set(TYPED)
    if "type" not in schema and ("enum" in schema or "const" in schema):
        return {_type_of(each) for each in schema.get("enum", [schema.get("const")])}
    given = schema.get("type", sorted(set(TYPED) - {"integer"}))
    kinds = [given] if isinstance(given, str) else given
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in TYPED for kind in kinds):
        raise bad(f"{where}/type", f"one or several of {', '.join(sorted(TYPED))}", given)
    return set(kinds)


def _type_of(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "boolean"
    kinds: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "number")


def numbers(kind: str, schema: dict[str, Any], where: str) -> Dfa:
    """The numbers or integers that a schema allows."""
    found = values.integers() if kind == "integer" else values.numbers()
    for keyword, side in (("minimum", values.above), ("maximum", values.below)):
        exclusive = f"exclusive{keyword.capitalize()}"
        for name, inclusive in ((keyword, True), (exclusive, False)):
            if name in schema:
                found = intersection(found, side(_number(schema, name, where), inclusive))
    if "multipleOf" in schema:
        divisor = _number(schema, "multipleOf", where)
        places = max(1, -int(divisor.normalize().as_tuple().exponent))
        if divisor > 0 and divisor == divisor.to_integral_value() and divisor <= MOST_DIVISOR:
            found = intersection(found, values.multiples(int(divisor)))
        elif divisor > 0 and divisor == Decimal(1).scaleb(-places):
            found = intersection(found, values.pattern(rf"-?[0-9]+(\.[0-9]{{1,{places}}})?"))
        else:
            wanted = f"an integer from 1 to {MOST_DIVISOR}, or 0.1, 0.01 and so on"
            raise bad(f"{where}/multipleOf", wanted, schema["multipleOf"])
    return found


def strings(schema: dict[str, Any], where: str) -> Dfa:
    """The strings that a schema allows."""
    if not about(schema, "string"):
        return values.strings()
    least, most = count(schema, "minLength", where), count(schema, "maxLength", where)
    if most is not None and most < (least or 0):
        return union([])
    content = of_tree(Rep(Chars(EVERY), least or 0, most))
    if "pattern" in schema:
        try:
            content = intersection(content, searched(schema["pattern"]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"schema: {where}/pattern: {error}") from None
    if "format" in schema:
        if (name := schema["format"]) not in FORMATS:
            raise bad(f"{where}/format", f"one of {', '.join(sorted(FORMATS))}", name)
        content = intersection(content, values.pattern(FORMATS[name]))
    return values.quoted(content)


def _number(schema: dict[str, Any], name: str, where: str) -> Decimal:
    given = schema[name]
    if isinstance(given, bool) or not isinstance(given, int | Decimal):
        raise bad(f"{where}/{name}", "a number", given)
    return Decimal(given)


def count(schema: dict[str, Any], name: str, where: str) -> int | None:
    """A keyword that counts, if it is there."""
    if name not in schema:
        return None
    given = schema[name]
    if isinstance(given, bool) or not isinstance(given, int | Decimal) or given < 0 or given != int(given):
        raise bad(f"{where}/{name}", "a whole number from 0", given)
    return int(given)


def listed(schema: dict[str, Any], name: str, where: str) -> list[Any]:
    """A keyword that is a list."""
    if not isinstance(schema[name], list) or not schema[name]:
        raise bad(f"{where}/{name}", "a list of at least one", schema[name])
    found: list[Any] = schema[name]
    return found


def bad(where: str, wanted: str, got: Any) -> ValueError:
    """What to say of a value that is none of its keyword's."""
    shown = re.sub(r"Decimal\('([^']*)'\)", r"\1", repr(got))
    return ValueError(f"schema: expected {wanted}, got {shown} ({where}). Mend it.")
