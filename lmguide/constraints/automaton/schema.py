"""JSON Schema, draft 2020-12, as an automaton: what it honours exactly, and by name what it does not.

Every text is valid under the schema. Not every valid document is among the texts: values are spelled in one way
(`json_values`), members come in the order of the schema, an object with `properties` has no others unless
`additionalProperties` says so, and what nests without bound is nested at most `DEPTH` deep.
"""

from __future__ import annotations

import json
from decimal import Decimal
from functools import reduce
from typing import Any

from lmguide.constraints.automaton import json_values as values
from lmguide.constraints.automaton.dfa import Dfa, difference, intersection
from lmguide.constraints.automaton.nfa import union
from lmguide.constraints.automaton.schema_keywords import (
    ANNOTATIONS,
    SCALARS,
    TYPED,
    about,
    bad,
    check_keyword,
    count,
    listed,
    numbers,
    strings,
    types_of,
)

DEPTH = 3
"""How often a definition may stand within itself, and how deep a value that may be anything is nested."""


def schema_dfa(schema: str, space: bool) -> Dfa:
    """The automaton of the documents of a schema.

    Args:
        schema: JSON text.
        space: Whether a space may stand behind a comma and a colon.

    Raises:
        ValueError: A keyword that is not honoured, or a value that is none of its own; with the place in the schema.

    Example:
        >>> pair = schema_dfa('{"properties": {"a": {"type": "integer", "minimum": 7}}, "required": ["a"]}', True)
        >>> pair.accepts('{"a": 10}'), pair.accepts('{"a": 6}')
        (True, False)
    """
    return _Reader(json.loads(schema, parse_float=Decimal), space).language(None, "#", DEPTH)


class _Reader:
    def __init__(self, root: Any, space: bool) -> None:
        self.root, self.space = root, space
        self._memo: dict[tuple[str, int], Dfa] = {}

    def language(self, schema: Any, where: str, left: int) -> Dfa:
        """The documents of a schema that stands at a place, `None` for the one of the place itself."""
        schema = self.root if schema is None else schema
        if isinstance(schema, bool):
            return values.anything(DEPTH, self.space) if schema else union([])
        if not isinstance(schema, dict):
            raise bad(where, "a schema, an object or a boolean", schema)
        for keyword in schema:
            check_keyword(keyword, where, schema[keyword])
        parts = list(self._conjuncts(schema, where, left))
        return reduce(intersection, parts) if parts else values.anything(DEPTH, self.space)

    def _conjuncts(self, schema: dict[str, Any], where: str, left: int) -> list[Dfa]:
        """What must hold together."""
        parts = []
        combined = [name for name in ("$ref", "allOf", "anyOf", "oneOf") if name in schema]
        if sum(self._describes_members({name: schema[name]}) for name in combined) + about(schema, "object") > 1:
            raise ValueError(
                f"schema: expected the members of an object in one place, got them in several that all hold ({where}: "
                f"{', '.join(combined)}). Write them into one schema."
            )
        if "enum" in schema or "const" in schema:
            options = listed(schema, "enum", where) if "enum" in schema else [schema["const"]]
            parts.append(union([values.value(option, self.space) for option in options]))
        if "enum" in schema and "const" in schema:
            parts.append(values.value(schema["const"], self.space))
        if "type" in schema or any(about(schema, kind) for kind in TYPED):
            parts.append(union([self._typed(kind, schema, where, left) for kind in sorted(types_of(schema, where))]))
        if "$ref" in schema:
            parts.append(self._referred(schema["$ref"], where, left))
        for name in ("allOf", "anyOf"):
            if name in schema:
                branches = self._branches(schema, name, where, left)
                parts.append(reduce(intersection, branches) if name == "allOf" else union(branches))
        if "oneOf" in schema:
            parts.append(self._one_of(schema, where, left))
        return parts

    def _branches(self, schema: dict[str, Any], name: str, where: str, left: int) -> list[Dfa]:
        given = listed(schema, name, where)
        if name == "allOf" and sum(map(self._describes_members, given)) > 1:
            raise ValueError(
                f"schema: expected the members of an object in one place, got them in several of {where}/allOf. "
                "Write them into one schema."
            )
        return [self.language(each, f"{where}/{name}/{place}", left) for place, each in enumerate(given)]

    def _one_of(self, schema: dict[str, Any], where: str, left: int) -> Dfa:
        """What exactly one branch allows: branches that exclude each other by type or by a member, or scalars."""
        given = [self._resolved(each) for each in listed(schema, "oneOf", where)]
        branches = self._branches(schema, "oneOf", where, left)
        kept = list(branches)
        for first in range(len(given)):
            for second in range(len(given)):
                if first == second or self._apart(given[first], given[second], where, left):
                    continue
                if not all(types_of(each, where) <= SCALARS for each in (given[first], given[second])):
                    raise ValueError(
                        f"schema: expected branches of oneOf that a type or a required member tells apart, got "
                        f"{where}/oneOf/{first} and {second}, which may both hold. Use anyOf."
                    )
                kept[first] = difference(kept[first], branches[second])
        return union(kept)

    def _apart(self, first: Any, second: Any, where: str, left: int) -> bool:
        """Whether no value is valid under both, as far as that is plain to see."""
        if not isinstance(first, dict) or not isinstance(second, dict):
            return False
        kinds = [types_of(each, where) for each in (first, second)]
        if not kinds[0] & kinds[1]:
            return "number" not in kinds[0] | kinds[1] or "integer" not in kinds[0] | kinds[1]
        if kinds != [{"object"}, {"object"}]:
            return False
        shared = set(first.get("required", ())) & set(second.get("required", ()))
        for name in sorted(shared & set(first.get("properties", ())) & set(second.get("properties", ()))):
            inner = [self._resolved(each["properties"][name]) for each in (first, second)]
            if all(isinstance(each, dict) and types_of(each, where) <= SCALARS for each in inner):
                languages = [self.language(each, where, left) for each in inner]
                if intersection(*languages).empty:
                    return True
        return False

    def _typed(self, kind: str, schema: dict[str, Any], where: str, left: int) -> Dfa:
        """The values of one type."""
        if kind in {"integer", "number"}:
            return numbers(kind, schema, where)
        if kind == "string":
            return strings(schema, where)
        if kind == "array":
            return self._array(schema, where, left)
        if kind == "object":
            return self._object(schema, where, left)
        return values.text("null") if kind == "null" else values.pattern("true|false")

    def _array(self, schema: dict[str, Any], where: str, left: int) -> Dfa:
        items = schema.get("items", True)
        if isinstance(items, list):
            raise bad(f"{where}/items", "one schema for all items, and prefixItems for the first ones", items)
        given = listed(schema, "prefixItems", where) if "prefixItems" in schema else []
        prefix = [self.language(each, f"{where}/prefixItems/{place}", left) for place, each in enumerate(given)]
        least, most = count(schema, "minItems", where), count(schema, "maxItems", where)
        rest = None
        if items is not False and (most is None or most > len(prefix)):
            rest = self.language(items, f"{where}/items", left)
        return values.array(prefix, rest, least or 0, most, self.space)

    def _object(self, schema: dict[str, Any], where: str, left: int) -> Dfa:
        named, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(named, dict):
            raise bad(f"{where}/properties", "an object", named)
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise bad(f"{where}/required", "a list of names", required)
        others = schema.get("additionalProperties", not named)
        rest = None if others is False else self.language(others, f"{where}/additionalProperties", left)
        members = [
            (name, self.language(each, f"{where}/properties/{name}", left), name in required)
            for name, each in named.items()
        ]
        for name in required:
            if name not in named:
                if rest is None:
                    raise ValueError(
                        f"schema: expected required members among the properties, got {name!r} ({where}/required), "
                        "which no other keyword describes. Add it to properties."
                    )
                members.append((name, rest, True))
        return values.members(members, rest, self.space)

    def _referred(self, reference: Any, where: str, left: int) -> Dfa:
        """What a definition stands for; of one that stands within itself, nothing once it is deep enough."""
        target = self._target(reference, where)
        if self._recursive(reference):
            left -= 1
        if left < 0:
            return union([])
        if (reference, left) not in self._memo:
            self._memo[reference, left] = self.language(target, reference, left)
        return self._memo[reference, left]

    def _target(self, reference: Any, where: str) -> Any:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise bad(f"{where}/$ref", "a place within the schema such as #/$defs/name", reference)
        found = self.root
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            key: Any = int(name) if isinstance(found, list) and name.isdigit() else name
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                raise bad(f"{where}/$ref", "a place that the schema has", reference) from None
        return found

    def _recursive(self, reference: str) -> bool:
        seen: set[str] = set()
        waiting = _references(self._target(reference, "#"))
        while waiting:
            found = waiting.pop()
            if found == reference:
                return True
            if found not in seen:
                seen.add(found)
                waiting += _references(self._target(found, "#"))
        return False

    def _resolved(self, schema: Any) -> Any:
        """What a schema that is nothing but a reference refers to."""
        seen = 0
        while isinstance(schema, dict) and set(schema) - ANNOTATIONS == {"$ref"} and seen < 100:
            schema, seen = self._target(schema["$ref"], "#"), seen + 1
        return schema

    def _describes_members(self, schema: Any, depth: int = 0) -> bool:
        """Whether a schema, or one that it is combined of, says what members an object has."""
        if isinstance(schema, list):
            return any(self._describes_members(each, depth) for each in schema)
        if not isinstance(schema, dict) or depth > DEPTH:
            return False
        if about(schema, "object"):
            return True
        inner = [schema[name] for name in ("allOf", "anyOf", "oneOf") if name in schema]
        if "$ref" in schema:
            inner.append(self._target(schema["$ref"], "#"))
        return any(self._describes_members(each, depth + 1) for each in inner)


def _references(schema: Any) -> list[str]:
    """All references in a schema and within it."""
    if isinstance(schema, list):
        return [found for each in schema for found in _references(each)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
    return own + [found for each in schema.values() for found in _references(each)]
