"""Schemas of one feature each, and documents drawn at random, for the tests of what an engine lets through."""

from __future__ import annotations

import random
from typing import Any

TEXTS = [
    "", "a", "b", "ab", "aaa", "abcd", "1", "12", "2024-02-31", "2024-02-29", "2023-02-29", "2100-02-29",
    "12:00:00Z", "\x01", "a\t",
    "22:59:60Z", "joe@example.com", "2024-01-15T12:00:00Z",
    "2023-02-29T12:00:00Z", "x@y.z", "\u00e9", "\U0001f600", " ", "A_", "-1", '"',
    "\\", "/", "127.0.0.1", "999.1.1.1", "::1", "123e4567-e89b-12d3-a456-426614174000", "http://a.b/c", "P1D", "a\nb",
    "xn--x", "a" * 64, "foo-bar",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 5, 10, 100, 1.5, -0.5, 0.1, 0.01, 2.5, 12345678901, 4, 6, -10, 99.99]
NAMES = ["a", "b", "c", "ab", "aa", "x"]


def documents(count: int) -> list[Any]:
    """The texts and numbers, and `count` documents that hold them."""
    draw = random.Random(3)
    special = [
        [1, 1],
        [1, 2],
        ["a", "a"],
        [1, "a", True],
        [[], []],
        {"a": 1},
        {"a": 2},
        {"a": 1, "b": 2},
        {"b": 1, "a": "x"},
        {"a": {"a": 1}},
    ]
    return [*TEXTS, *NUMBERS, True, False, None, [], {}, *special, *(_document(draw, 0) for _ in range(count))]


def _document(draw: random.Random, depth: int) -> Any:
    kind = draw.random()
    if kind < 0.3 or depth > 2:
        return draw.choice([*TEXTS, *NUMBERS])
    if kind < 0.4:
        return draw.choice([True, False, None])
    if kind < 0.65:
        return [_document(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(NAMES): _document(draw, depth + 1) for _ in range(draw.randrange(4))}


def _of(kind: str | list[str], **keywords: Any) -> dict[str, Any]:
    return {"type": kind, **keywords}


INTEGER, STRING = _of("integer"), _of("string")

ENFORCED: list[Any] = [
    {}, True, INTEGER, STRING, _of("number"), _of("boolean"), _of("null"), _of("array"), _of("object"),
    _of(["string", "null"]), _of(["integer", "string"], minimum=3), _of(["object", "null"], properties={"a": INTEGER}),
    _of("string", minLength=2), _of("string", maxLength=2), _of("string", minLength=1, maxLength=3),
    _of("string", pattern="^a"), _of("string", pattern="b$"), _of("string", pattern="^[a-z]{2,3}$"),
    _of("string", pattern="^(a|b)$"), _of("string", pattern="^[^a]*$"), _of("string", format="email"),
    _of("string", format="uuid"), _of("string", format="ipv4"), _of("string", format="duration"),
    _of("string", format="uri"), _of("integer", minimum=3), _of("number", maximum=3),
    _of("number", exclusiveMinimum=1.5),
    _of("integer", exclusiveMaximum=3), _of("integer", minimum=-5, maximum=12),
    _of("number", minimum=-1.5, maximum=1.5),
    _of("array", items=INTEGER), _of("array", items=INTEGER, minItems=2), _of("array", items=STRING, maxItems=2),
    _of("array", minItems=1), _of("array", maxItems=1), _of("array", prefixItems=[INTEGER, STRING]),
    _of("array", prefixItems=[INTEGER], items=False), _of("array", items=False), _of("array", uniqueItems=False),
    _of("object", properties={"a": INTEGER}), _of("object", properties={"a": INTEGER, "b": STRING}, required=["b"]),
    _of("object", properties={"a": INTEGER}, required=["a"], additionalProperties=False),
    _of("object", additionalProperties=INTEGER),
    _of("object", patternProperties={"^a": INTEGER}, additionalProperties=False),
    {"const": 1}, {"const": "a"}, {"const": {"a": 1}}, {"enum": [1, "a", None]}, _of("string", enum=["a", "ab"]),
    {"anyOf": [INTEGER, _of("string", minLength=2)]}, {"allOf": [INTEGER]}, {"oneOf": [INTEGER, STRING]},
    {"oneOf": [{"const": 1}, {"const": 2}]},
    {"oneOf": [_of("object", properties={"a": {"const": k}}, required=["a"]) for k in (1, 2)]},
    {"$ref": "#/$defs/x", "$defs": {"x": INTEGER}}, _of("object", properties={"a": {"$ref": "#"}}),
]  # fmt: skip
"""What both engines enforce."""

LLGUIDANCE_ALONE: list[Any] = [
    {"minimum": 3}, {"minLength": 2}, {"required": ["a"]}, {"properties": {"a": INTEGER}}, {"items": INTEGER},
    _of("string", pattern="^a", maxLength=2), _of("string", format="date"), _of("string", format="date-time"),
    _of("string", format="time"), _of("string", format="hostname"), _of("string", format="ipv6"),
    _of("string", format="date", minLength=1), _of("integer", multipleOf=2), _of("number", multipleOf=0.5),
    _of("integer", minimum=1.5, maximum=5.5), _of("object", required=["a"]), _of("object", minProperties=2),
    _of("object", maxProperties=1), _of("object", properties={"a": INTEGER}, additionalProperties=STRING),
    _of("object", properties={"a": INTEGER, "ab": INTEGER}, additionalProperties=STRING),
    _of("object", properties={"a": False}), _of("string", enum=["a", 1]), {"enum": [1, 2], "minimum": 2},
    {"anyOf": [INTEGER], "minimum": 3},
    _of("object", properties={"a": {}}, anyOf=[{"required": ["a"]}, {"required": ["b"]}]),
    _of("integer", anyOf=[{"minimum": 5}, {"maximum": 1}]), {"allOf": [INTEGER, {"minimum": 3}]},
    {"allOf": [_of("object", properties={k: INTEGER}, required=[k]) for k in ("a", "b")]},
    {"$ref": "#/$defs/x", "$defs": {"x": INTEGER}, "minimum": 3}, _of("integer", another=1),
]  # fmt: skip
"""What llguidance enforces and xgrammar would not."""

REFUSED: dict[str, Any] = {
    "uniqueItems": _of("array", uniqueItems=True), "contains": _of("array", contains=INTEGER),
    "minContains": _of("array", minContains=2), "unevaluatedItems": _of("array", unevaluatedItems=False),
    "propertyNames": _of("object", propertyNames={"maxLength": 1}), "not": {"not": STRING},
    "dependentRequired": _of("object", dependentRequired={"a": ["b"]}), "if": {"if": INTEGER, "then": {"minimum": 3}},
    "dependentSchemas": _of("object", dependentSchemas={"a": {"required": ["b"]}}),
    "unevaluatedProperties": _of("object", properties={"a": {}}, unevaluatedProperties=False),
    "oneOf": {"oneOf": [INTEGER, {"minimum": 2}]}, "iri": _of("string", format="iri"),
    "int32": _of("string", format="int32"),
}  # fmt: skip
"""What neither engine enforces, by the word that the refusal names."""
