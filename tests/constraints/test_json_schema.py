"""Schemas: nothing invalid comes through, and what cannot be honoured is refused by name."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lmguide.constraints import JSON, JSONSchema, compile
from lmguide.constraints.json_schema import _all_but, check_finite, exclusive, subschemas
from tests.constraints.documents import ENFORCED, LLGUIDANCE_ALONE, REFUSED, documents
from tests.constraints.walks import BACKENDS, byte_vocabulary, takes, tales, walk

SUITE = Path(__file__).parents[2] / ".." / "shared" / "data" / "jsonschemasuite" / "tests" / "draft2020-12"
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


@cache
def _documents() -> list[tuple[Any, str]]:
    """Documents, each as JSON with and without spaces."""
    spelled = [(document, json.dumps(document, ensure_ascii=False)) for document in documents(100)]
    compact = [(each, json.dumps(each, ensure_ascii=False, separators=(",", ":"))) for each, _ in spelled]
    return spelled + [pair for pair, before in zip(compact, spelled, strict=True) if pair != before]


def _valid(schema: Any) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema, format_checker=FORMATS)


def _cases() -> list[Any]:
    both = [
        pytest.param(schema, backend, id=f"{backend}-{json.dumps(schema)}")
        for schema in ENFORCED
        for backend in BACKENDS
    ]
    return both + [
        pytest.param(schema, "llguidance", id=f"llguidance-{json.dumps(schema)}") for schema in LLGUIDANCE_ALONE
    ]


@pytest.mark.parametrize(("schema", "backend"), _cases())
def test_what_is_taken_is_valid(schema: Any, backend: str) -> None:
    constraint, validator = JSONSchema(schema), _valid(schema)
    taken = [document for document, text in _documents() if takes(constraint, text, backend)]
    assert taken
    assert [document for document in taken if not validator.is_valid(document)] == []


@pytest.mark.parametrize(("schema", "backend"), [case for case in _cases()[::3] if "pattern" not in str(case.id)])
def test_what_is_drawn_is_valid(schema: Any, backend: str) -> None:
    finished = 0
    for seed in range(6):
        try:
            text = walk(JSONSchema(schema), tales(), seed, backend)
        except AssertionError:  # cut: a text or a number that went on and on
            continue
        finished += 1
        assert _valid(schema).is_valid(json.loads(text)), text
    assert finished


@pytest.mark.parametrize("schema", LLGUIDANCE_ALONE, ids=json.dumps)
def test_xgrammar_is_not_given_what_it_would_drop(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"xgrammar.*backend='llguidance'"):
        compile(JSONSchema(schema), byte_vocabulary(), "xgrammar")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("word", REFUSED)
def test_what_neither_honours_is_refused_by_name(word: str, backend: str) -> None:
    with pytest.raises(ValueError, match=rf"^schema: expected .*{word}") as caught:
        compile(JSONSchema({"$defs": {"inner": REFUSED[word]}, "$ref": "#/$defs/inner"}), byte_vocabulary(), backend)
    assert "#/$defs/inner/" in str(caught.value)


UNSATISFIABLE = [
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "array", "minItems": 3, "maxItems": 2},
    False,
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("schema", UNSATISFIABLE, ids=json.dumps)
def test_a_schema_that_no_document_meets(schema: Any, backend: str) -> None:
    with pytest.raises(ValueError, match=r"expected .* got .*\. \w.*\.$"):
        compile(JSONSchema(schema), byte_vocabulary(), backend)


ENDLESS = [
    {"$ref": "#"},
    {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
]


@pytest.mark.parametrize("schema", ENDLESS, ids=json.dumps)
def test_a_schema_that_no_finite_document_meets(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"finite documents.*#/"):
        compile(JSONSchema(schema), byte_vocabulary())


def test_references_that_end() -> None:
    check_finite('{"type": "object", "properties": {"next": {"$ref": "#"}}}')
    check_finite('{"$ref": "#anchor", "$defs": {"a": {"$anchor": "anchor"}}}')
    check_finite('{"type": ["object", "null"], "properties": {"next": {"$ref": "#"}}, "required": ["next"]}')


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_name_cannot_come_again_with_an_escape(backend: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for text in ('{"a":1,"\\u0061":"x"}', '{"\\u0061":"x"}', '{"a":1,"a":"x"}', '{"b":1,"a":"x"}'):
        assert not takes(JSONSchema(schema), text, backend), text


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "keywords", [{}, {"maxLength": 2}, {"minLength": 1}, {"pattern": "^.*$"}, {"pattern": r"^\W?$"}]
)
def test_control_characters_are_escaped(keywords: dict[str, Any], backend: str) -> None:
    for code in range(32):
        assert not takes(JSONSchema({"type": "string", **keywords}), f'"{chr(code)}"', backend), code


def test_all_but_some_names() -> None:
    import re

    for names in ({"a"}, {"a", "ab", "b"}, {"", "x"}, {"\n", "]", "a-b"}):
        pattern = re.sub(r"\\x\{(\w+)\}", lambda found: re.escape(chr(int(found[1], 16))), _all_but(names))
        for text in (*names, "", "a", "aa", "abc", "c", "\n\n", "]x", "a-", "a-b-"):
            assert bool(re.fullmatch(pattern, text)) == (text not in names), (names, text)


def test_exclusive_alternatives() -> None:
    tagged = [{"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]} for k in "ab"]
    assert exclusive({}, tagged)
    assert exclusive({"$defs": {"a": tagged[0]}}, [{"$ref": "#/$defs/a"}, tagged[1]])
    assert not exclusive({}, [tagged[0], {**tagged[1], "required": []}])
    assert not exclusive({}, [{"type": "integer"}, {"type": "number"}])
    assert not exclusive({}, [{"const": 1}, {"const": 1.0}])
    assert not exclusive({}, [{"const": "a"}, {"enum": ["a", "b"]}])


def test_subschemas_are_not_looked_for_in_documents() -> None:
    schema = {"const": {"not": 1}, "properties": {"not": {"items": {"not": {}}}}, "examples": [{"not": 1}]}
    assert [place for place, part in subschemas(schema) if "not" in part] == ["#/properties/not/items"]


def test_a_dataclass_and_a_pydantic_model_are_schemas() -> None:
    pydantic = pytest.importorskip("pydantic")

    @dataclasses.dataclass
    class Point:
        x: int
        name: str | None = None

    model = pydantic.create_model("Point", x=(int, ...), name=(str | None, None))
    for kind in (Point, model):
        assert takes(JSONSchema(kind), '{"x": 1, "name": "a"}')
        assert takes(JSONSchema(kind), '{"x": 1}')
        assert not takes(JSONSchema(kind), '{"name": "a"}')


def test_a_union_of_pydantic_models_with_a_tag() -> None:
    pydantic = pytest.importorskip("pydantic")
    from typing import Annotated, Literal

    cat = pydantic.create_model("Cat", kind=(Literal["cat"], ...), lives=(int, ...))
    dog = pydantic.create_model("Dog", kind=(Literal["dog"], ...), name=(str, ...))
    pet = pydantic.create_model("Pet", pet=(Annotated[cat | dog, pydantic.Field(discriminator="kind")], ...))
    for backend in BACKENDS:
        assert takes(JSONSchema(pet), '{"pet": {"kind": "cat", "lives": 9}}', backend)
        assert not takes(JSONSchema(pet), '{"pet": {"kind": "dog", "lives": 9}}', backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_whitespace_has_a_bound(backend: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    assert takes(JSONSchema(schema), '{"a": [1, 2]}', backend)
    assert takes(JSONSchema(schema, whitespace="compact"), '{"a":[1,2]}', backend)
    assert not takes(JSONSchema(schema, whitespace="compact"), '{"a": [1,2]}', backend)
    for text in ('{"a":  [1]}', '{"a": [1,  2]}', "{  }", '{"a": [1]}  '):
        assert not takes(JSONSchema(schema), text, backend), text


def test_any_document() -> None:
    for document, text in _documents():
        assert takes(JSON(), text), document
    for text in ("", "01", "{'a': 1}", '{"a": 1,}', "[1 2]", "nul", '"\n"', "\ufeff1"):
        assert not takes(JSON(), text), text


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_suite_of_json_schema(backend: str) -> None:
    if not SUITE.is_dir():
        pytest.skip("JSON-Schema-Test-Suite is not at ../shared/data/jsonschemasuite")
    right, refused, wrong = 0, 0, []
    for file in (*sorted(SUITE.glob("*.json")), *sorted(SUITE.glob("optional/format/*.json"))):
        asserts = file.parent.name == "format"
        for group in json.loads(file.read_text(encoding="utf-8")):
            schema = group["schema"]
            try:
                constraint = JSONSchema({**schema, "type": "string"} if asserts else schema)
                compile(constraint, byte_vocabulary(), backend)
            except ValueError:
                refused += 1
                continue
            for test in group["tests"]:
                if takes(constraint, json.dumps(test["data"], ensure_ascii=False), backend):
                    right += test["valid"]
                    if not test["valid"] and not (asserts and not isinstance(test["data"], str)):
                        wrong.append((file.stem, test["description"]))
    assert wrong == []
    assert right > 100
    assert refused > 100  # loudly
