"""Schemas as users have them, as JSON text, and what each backend cannot honour in them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote


def schema_text(schema: object) -> str:
    """A schema as JSON text.

    Args:
        schema: A dictionary, a boolean, JSON text, a pydantic model, or a dataclass.

    Raises:
        TypeError: Something else, or a value JSON cannot write.
        ValueError: Broken JSON, with the position; or a key for an engine instead of a validator.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"schema: expected JSON, got text broken at line {error.lineno}, column {error.colno}: {error.msg}. "
                "Mend it."
            ) from None
    elif isinstance(schema, type):
        schema = _of_class(schema)
    if not isinstance(schema, Mapping | bool):
        raise TypeError(
            f"schema: expected a dictionary, JSON text, a pydantic model or a dataclass, got {type(schema).__name__}. "
            'Give for example {"type": "object"}.'
        )
    check_options(schema, "schema")
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"schema: expected what JSON can write, got a value it cannot: {error}. Replace it.") from None


_OPTIONS = "x-guidance"


def check_options(schema: object, argument: str) -> None:
    """Refuse a schema that sets options of llguidance, some of which would enforce it by half.

    Raises:
        ValueError: It does.
    """
    if isinstance(schema, Mapping) and _OPTIONS in schema:
        raise ValueError(
            f"{argument}: expected keywords of JSON Schema, got {_OPTIONS!r}, which sets options of an engine. "
            "Remove it."
        )


def _of_class(cls: type) -> Any:
    if hasattr(cls, "model_json_schema"):
        return cls.model_json_schema()
    if not dataclasses.is_dataclass(cls):
        raise TypeError(
            f"schema: expected a pydantic model or a dataclass, got the class {cls.__name__}. "
            "Give its schema as a dictionary."
        )
    try:
        from pydantic import TypeAdapter
    except ImportError as error:
        raise ImportError("a dataclass as schema needs pydantic. Run: pip install lmguide[grammar]") from error
    return TypeAdapter(cls).json_schema()


_ONE = ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
_LIST = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_MAP = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
"""Keywords whose value is a schema, a list of them, or schemas by name."""


def subschemas(schema: object, at: str = "#") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A schema and all schemas within it, each with its place as a JSON pointer.

    Example:
        >>> [place for place, _ in subschemas({"properties": {"a": {"items": {}}}, "default": {"items": {}}})]
        ['#', '#/properties/a', '#/properties/a/items']
    """
    if not isinstance(schema, Mapping):
        return
    yield at, schema
    for key, value in schema.items():
        if key in _ONE and isinstance(value, Mapping):
            yield from subschemas(value, f"{at}/{key}")
        elif key in _LIST and isinstance(value, list):
            for index, item in enumerate(value):
                yield from subschemas(item, f"{at}/{key}/{index}")
        elif key in _MAP and isinstance(value, Mapping):
            for name, item in value.items():
                yield from subschemas(item, f"{at}/{key}/{name.replace('~', '~0').replace('/', '~1')}")


def places(schema: object, key: str, value: object = None) -> Iterator[str]:
    """Where a keyword stands in a schema, with this value if one is given, as JSON pointers."""
    for place, part in subschemas(schema):
        if key in part and (value is None or part[key] == value):
            yield f"{place}/{key}"


def llguidance_schema(schema: str, whitespace: str) -> str:
    """A schema as llguidance is given it: with its options for whitespace, and what it would read too loosely mended.

    Args:
        schema: JSON text.
        whitespace: As in `JSONSchema`.
    """
    value = json.loads(schema)
    if value is False:
        return "false"
    space = " ?" if whitespace == "flexible" else ""
    options = {"whitespace_flexible": False, "item_separator": f",{space}", "key_separator": f":{space}"}
    return json.dumps({_OPTIONS: options, **({} if value is True else mended(value, for_llguidance=True))})


def mended(root: Mapping[str, Any], for_llguidance: bool) -> dict[str, Any]:
    r"""The same schema in keywords that engines read rightly.

    `oneOf` whose alternatives exclude each other becomes `anyOf`, and keywords that say nothing are left out. For
    llguidance, formats that it reads too loosely get a pattern beside them (29 February in other years, leap seconds at
    any time, long or encoded host names), and names of further properties become patterns: it would let a property
    through a second time, its name written with an escape, `"\u0061"` for `"a"`.
    """

    def mend(schema: Any) -> Any:
        if not isinstance(schema, Mapping):
            return schema
        found: dict[str, Any] = {}
        for key, value in schema.items():
            if key == "uniqueItems" and value is False:
                continue
            if key in _ONE and isinstance(value, Mapping):
                found[key] = mend(value)
            elif key in _LIST and isinstance(value, list):
                found[key] = [mend(item) for item in value]
            elif key in _MAP and isinstance(value, Mapping):
                found[key] = {name: mend(item) for name, item in value.items()}
            else:
                found[key] = value
        either = schema.get("oneOf")
        if isinstance(either, list) and "anyOf" not in found and exclusive(root, either):
            found = {"anyOf" if key == "oneOf" else key: value for key, value in found.items()}
        if for_llguidance:
            if strict := _STRICT.get(str(found.get("format"))):
                found["allOf"] = [*found.get("allOf", []), strict]
            found = _closed(found)
        return found

    for place, part in subschemas(root):
        if for_llguidance and "patternProperties" in part and part.get("additionalProperties", True) is not False:
            raise ValueError(
                f"schema: expected 'additionalProperties': false beside 'patternProperties' ({place}), got other names "
                "too, which llguidance cannot tell apart. Add it."
            )
    made: dict[str, Any] = mend(root)
    return made


_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = rf"(?:[0-9]{{4}}-(?:(?:0[13-9]|1[0-2])-[0-9]{{2}}|02-(?:[01][0-9]|2[0-8]))|{_LEAP}-02-29)"
_TIME = r"[0-9]{2}:[0-9]{2}:[0-5][0-9]"
_LABEL = "[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
_STRICT = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}"},
    "date-time": {"pattern": f"^{_DATE}[Tt]{_TIME}"},
    "hostname": {"pattern": rf"^{_LABEL}(?:\.{_LABEL})*$", "maxLength": 253},
}
"""What llguidance lacks, measured on JSON-Schema-Test-Suite; the engine checks the rest of each format itself."""


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with a pattern for further properties where `additionalProperties` would speak of them."""
    names = {*schema.get("properties", {}), *schema.get("required", [])}
    rest = schema.get("additionalProperties", True)
    if not names or rest is False or "patternProperties" in schema:
        return schema
    pattern = {"patternProperties": {"" if rest is True else f"^{_all_but(names)}$": rest}}
    found: dict[str, Any] = {}
    for key, value in schema.items():  # their place counts: the engine merges keywords in the order of the schema
        found |= {key: value} if key != "additionalProperties" else {}
        if key == ("properties" if "properties" in schema else "required"):
            found |= {**pattern, "additionalProperties": False}
    return found


def _all_but(names: set[str]) -> str:
    """A regular expression of every text but these, without lookahead: a text that leaves all names may go on."""
    heads: dict[str, set[str]] = {}
    for name in names - {""}:
        heads.setdefault(name[0], set()).add(name[1:])
    ways = [f"[^{''.join(map(_escaped, sorted(heads)))}](?s:.*)" if heads else "(?s:.+)"]
    ways += [_escaped(head) + _all_but(tails) for head, tails in sorted(heads.items())]
    return f"(?:{'|'.join(ways)}){'' if '' in names else '?'}"


def _escaped(character: str) -> str:
    return f"\\x{{{ord(character):x}}}"


def exclusive(root: object, alternatives: list[Any]) -> bool:
    """Whether no document meets two of the alternatives, told by types or by a constant, maybe of a property.

    Example:
        >>> exclusive({}, [{"type": "integer"}, {"type": "string"}]), exclusive({}, [{"const": 1}, {"minimum": 1}])
        (True, False)
    """
    parts = [_dereferenced(root, part) for part in alternatives]
    if not all(isinstance(part, Mapping) for part in parts):
        return False
    types = [_types(part) for part in parts]
    if all(types) and _apart(types):
        return True
    if _apart(values := [_values(part) for part in parts]) and all(values):
        return True
    if any(part.get("type") != "object" for part in parts):
        return False
    shared = set.intersection(*(set(part.get("required", [])) & set(part.get("properties", {})) for part in parts))
    for name in shared:
        values = [_values(_dereferenced(root, part["properties"][name])) for part in parts]
        if all(values) and _apart(values):
            return True
    return False


def _types(schema: Mapping[str, Any]) -> set[str]:
    given = schema.get("type", [])
    found = {given} if isinstance(given, str) else set(given)
    return found | {"integer"} if "number" in found else found


def _values(schema: Any) -> set[str]:
    """The documents a schema allows, as JSON, if it names them; numbers are written as one."""
    if not isinstance(schema, Mapping) or not ("const" in schema or "enum" in schema):
        return set()
    listed = [schema["const"]] if "const" in schema else schema["enum"]
    if any(isinstance(value, float | list | Mapping) for value in listed):
        return set()  # 1.0 is 1, also within documents
    return {json.dumps(value) for value in listed}


def _apart(sets: list[set[str]]) -> bool:
    return sum(map(len, sets)) == len(set().union(*sets))


def _dereferenced(root: object, schema: Any) -> Any:
    seen = set()
    while isinstance(schema, Mapping) and isinstance(pointer := schema.get("$ref"), str) and pointer not in seen:
        seen.add(pointer)
        if len(schema) > 1 or (target := _resolved(root, pointer)) is None:
            return schema
        schema = target
    return schema


def refusal(schema: str, reason: str) -> str:
    """What llguidance says of a schema, as one sentence with the place where it can be told.

    Args:
        schema: JSON text.
        reason: Its message.
    """
    value = json.loads(schema)
    if reason.startswith("Unimplemented keys: "):
        keys = json.loads(reason.removeprefix("Unimplemented keys: "))
        where = ", ".join(f"{key!r} ({next(places(value, key), '#')})" for key in keys)
        return (
            f"schema: expected keywords that llguidance can honour, got {where}. "
            "Leave them out and check the document afterwards, or say the same in other keywords."
        )
    if reason.startswith("oneOf "):
        where = next(places(value, "oneOf"), "#")
        return (
            f"schema: expected a oneOf whose alternatives exclude each other, got one at {where} that llguidance "
            "cannot tell apart. Use anyOf, or give each alternative a property with a const of its own."
        )
    if reason.startswith("Unknown format: "):
        name = reason.removeprefix("Unknown format: ")
        where = next(places(value, "format", name), "#")
        return (
            f"schema: expected a format that llguidance knows, got {name!r} ({where}). Use a pattern, or leave it out."
        )
    if reason.startswith("Unsatisfiable schema: "):
        return (
            "schema: expected one that some document meets, got one that none does: "
            f"{reason.removeprefix('Unsatisfiable schema: ')}. Mend it."
        )
    return f"schema: expected one that llguidance can honour, got one that it refuses: {reason.rstrip('.')}. Mend it."


def check_finite(schema: str) -> None:
    """Refuse a schema in which something refers to itself so that no finite document meets it.

    Raises:
        ValueError: There is such a part; with its place.

    Example:
        >>> check_finite('{"type": "array", "items": {"$ref": "#"}}')
    """
    root = json.loads(schema)
    for place, part in subschemas(root):
        if "$ref" in part and not _finite(root, part, frozenset()):
            raise ValueError(
                f"schema: expected one that finite documents meet, got one that needs itself at {place}/$ref. "
                "Make the property optional, or add an alternative that ends."
            )


def _finite(root: object, schema: object, active: frozenset[str]) -> bool:
    """Whether a finite document may meet a schema; only references among what is required are followed."""
    if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
        return True
    needed: list[object] = []
    if isinstance(pointer := schema.get("$ref"), str):
        if pointer in active:
            return False
        target = _resolved(root, pointer)
        if target is not None and not _finite(root, target, active | {pointer}):
            return False
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        needed += [properties[name] for name in schema.get("required", []) if name in properties]
    if schema.get("type") == "array" and (least := schema.get("minItems", 0)):
        prefix = schema.get("prefixItems", [])[:least]
        needed += [*prefix, *([schema.get("items", True)] if least > len(prefix) else [])]
    needed += schema.get("allOf", [])
    either = [schema[key] for key in ("anyOf", "oneOf") if schema.get(key)]
    return all(_finite(root, part, active) for part in needed) and all(
        any(_finite(root, part, active) for part in parts) for parts in either
    )


def _resolved(root: object, pointer: str) -> object:
    """What a pointer of the same document leads to; `None` elsewhere."""
    if pointer != "#" and not pointer.startswith("#/"):
        return None
    found = root
    for step in pointer.removeprefix("#").split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found
