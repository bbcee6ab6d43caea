"""Which keywords of a schema xgrammar enforces; the others it would drop silently, so they are refused by name.

It would let a property through a second time, its name written with an escape, and control characters as they are into
texts of bounded length. So beside `properties` there are no others, and bounds become patterns.

Measured on JSON-Schema-Test-Suite and on documents drawn at random; tests/constraints/test_json_schema.py repeats it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from lmguide.constraints.json_schema import mended, subschemas

_SILENT = {
    "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "discriminator",
    "examples", "readOnly", "title", "writeOnly",
}  # fmt: skip
"""Keywords that ask nothing of a document."""

_NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_ENFORCED: dict[str, tuple[frozenset[str], ...]] = {
    "array": (frozenset({"items", "prefixItems", "minItems", "maxItems"}),),
    "boolean": (frozenset(),),
    "integer": (_NUMBER,),
    "null": (frozenset(),),
    "number": (_NUMBER,),
    "object": (
        frozenset({"properties", "required", "additionalProperties"}),
        frozenset({"additionalProperties", "patternProperties"}),
    ),
    "string": (frozenset({"minLength", "maxLength"}), frozenset({"pattern"}), frozenset({"format"})),
}
"""For each type the keywords that are enforced beside each other."""

_KNOWN = {"type", *(key for each in _ENFORCED.values() for together in each for key in together)}
_FORMATS = {
    "duration", "email", "ipv4", "json-pointer", "relative-json-pointer", "uri", "uri-reference",
    "uri-template", "uuid",
}  # fmt: skip
_ALONE = ("$ref", "anyOf", "allOf")


def xgrammar_schema(schema: str) -> str:
    """A schema as xgrammar is given it.

    Args:
        schema: JSON text.

    Raises:
        ValueError: A keyword that xgrammar would not enforce, alone or beside others; with its place.

    Example:
        >>> xgrammar_schema('{"type": "array", "uniqueItems": true}')
        Traceback (most recent call last):
        ...
        ValueError: schema: expected keywords that xgrammar enforces, got 'uniqueItems' (#/uniqueItems). Leave it out, \
or use backend='llguidance'.
    """
    value = json.loads(schema)
    if isinstance(value, Mapping):
        value = mended(value, for_llguidance=False)
        for place, part in subschemas(value):
            _check(part, place)
            _close(cast("dict[str, Any]", part))
    return json.dumps(value)


def _close(schema: dict[str, Any]) -> None:
    """Leave no further properties, and no control characters, which it lets into texts whose length is bounded."""
    if "properties" in schema or "patternProperties" in schema:
        schema["additionalProperties"] = False
    if "minLength" in schema or "maxLength" in schema:
        least, most = schema.pop("minLength", 0), schema.pop("maxLength", "")
        if most != "" and most < least:
            raise ValueError(
                f"schema: expected one that some document meets, got minLength {least} above maxLength {most}. Mend it."
            )
        schema["pattern"] = rf'^[^\x00-\x1f"\\]{{{int(least)},{most if most == "" else int(most)}}}$'


_CONTROL = re.compile(r"\\[nrtfvc0]|\\x[01]|\\u00[01]|[\x00-\x1f]")
"""Control characters within a pattern, which xgrammar would write into a text as they are."""


def _check(schema: Mapping[str, Any], place: str) -> None:
    keys = [key for key in schema if key not in _SILENT]
    for key in _ALONE:
        if key in keys:
            if others := [other for other in keys if other != key]:
                raise _refused(f"{others[0]!r} beside {key!r}", f"{place}/{others[0]}")
            if key == "allOf" and len(schema[key]) > 1:
                raise _refused("'allOf' of several schemas", f"{place}/allOf")
            if key == "$ref" and schema[key] != "#" and not str(schema[key]).startswith("#/"):
                raise _refused("a '$ref' to another document", f"{place}/$ref")
            return
    if "const" in keys or "enum" in keys:
        key = "const" if "const" in keys else "enum"
        if others := [other for other in keys if other not in {key, "type"}]:
            raise _refused(f"{others[0]!r} beside {key!r}", f"{place}/{others[0]}")
        values = [schema[key]] if key == "const" else schema[key]
        if "type" in keys and not all(_is_of(value, schema["type"]) for value in values):
            raise _refused(f"{key!r} with a value that is not of the type", f"{place}/{key}")
        return
    for key in keys:
        if key not in _KNOWN:
            raise _refused(repr(key), f"{place}/{key}")
    others = [key for key in keys if key != "type"]
    if "type" not in keys:
        if others:
            raise _refused(f"{others[0]!r} without 'type'", f"{place}/{others[0]}")
        return
    types = [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])
    for kind in types:
        together = _ENFORCED.get(kind, ())
        mine = [key for key in others if any(key in each for each in together)]
        if mine and not any(each.issuperset(mine) for each in together):
            raise _refused(" beside ".join(map(repr, mine)), f"{place}/{mine[-1]}")
    for key in others:
        if not any(key in each for kind in types for each in _ENFORCED.get(kind, ())):
            raise _refused(f"{key!r} without its type", f"{place}/{key}")
    if "format" in keys and schema["format"] not in _FORMATS:
        raise _refused(f"the format {schema['format']!r}", f"{place}/format")
    if "properties" in keys and schema.get("additionalProperties", False) is not False:
        raise _refused("open 'additionalProperties' beside 'properties'", f"{place}/additionalProperties")
    if "pattern" in keys and _CONTROL.search(schema["pattern"]):
        raise _refused("a pattern with control characters", f"{place}/pattern")
    for name in schema.get("required", []):
        if name not in schema.get("properties", {}):
            raise _refused(f"the required property {name!r}, which 'properties' lacks,", f"{place}/required")


def _is_of(value: object, kind: object) -> bool:
    """Whether a value is of a type, or of one of several."""
    if isinstance(kind, list):
        return any(_is_of(value, each) for each in kind)
    if isinstance(value, bool):
        return kind == "boolean"
    names = {str: "string", list: "array", dict: "object", type(None): "null"}
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and value == int(value))
    return kind == names[type(value)]


def _refused(what: str, place: str) -> ValueError:
    return ValueError(
        f"schema: expected keywords that xgrammar enforces, got {what} ({place}). "
        "Leave it out, or use backend='llguidance'."
    )
