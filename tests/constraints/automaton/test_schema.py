"""Schemas as automata: no invalid document is among the texts, what is not honoured is refused by name."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from lmguide.constraints.automaton import json_values as values
from lmguide.constraints.automaton.dfa import Dfa, difference, intersection
from lmguide.constraints.automaton.formats import FORMATS, searched
from lmguide.constraints.automaton.schema import DEPTH, schema_dfa

if TYPE_CHECKING:
    from pathlib import Path

SUITE = "jsonschemasuite/tests/draft2020-12"


def written(value: Any) -> str:
    """A value in the one spelling that automata have, with spaces."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(name)}: {written(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return json.dumps(value, ensure_ascii=False)
    return values.plain(value)


def walked(dfa: Dfa, draws: random.Random, most: int = 60) -> str | None:
    """A random text of an automaton; `None` where it takes too long."""
    text, state, ranges = "", dfa.start, dfa.ranges()
    for _ in range(most):
        ways = [symbol for symbol in range(1, len(ranges)) if dfa.table[state, symbol]]
        if dfa.accept[state] and (not ways or draws.random() < 0.3):
            return text
        symbol = draws.choice(ways)
        low, high = draws.choice(ranges[symbol])
        text += chr(draws.randint(low, min(high, low + 90)))
        state = int(dfa.table[state, symbol])
    return None


@pytest.mark.slow
def test_suite(shared_data: Path) -> None:
    """JSON-Schema-Test-Suite, draft 2020-12: every schema is refused by name, or no invalid instance is accepted."""
    built = accepted = valid = 0
    for file in sorted((shared_data / SUITE).glob("*.json")):
        for case in json.loads(file.read_text(encoding="utf-8"), parse_float=Decimal):
            try:
                dfa = schema_dfa(json.dumps(case["schema"], default=float), True)
            except ValueError as error:
                assert str(error).startswith(("schema: ", "pattern: ")), error
                continue
            built += 1
            for test in case["tests"]:
                found = dfa.accepts(written(test["data"]))
                assert test["valid"] or not found, (file.name, case["description"], test["description"])
                valid, accepted = valid + test["valid"], accepted + (test["valid"] and found)
    assert built >= 140
    assert accepted / valid > 0.95  # the rest are members in another order or of other names, and loose formats


@pytest.mark.parametrize("bound", ["0", "5", "-5", "3.25", "-3.25", "10", "99", "-0.5", "0.05", "100"])
def test_bounds_of_numbers(bound: str) -> None:
    numbers = [Decimal(n) / d for n in range(-130, 131) for d in (1, 10)] + [
        Decimal(bound) + Decimal(n) / 1000 for n in (-1, 1)
    ]
    for inclusive in (True, False):
        above, below = values.above(Decimal(bound), inclusive), values.below(Decimal(bound), inclusive)
        for number in numbers:
            text, gap = values.plain(number), number - Decimal(bound)
            assert above.accepts(text) == (gap > 0 or (inclusive and gap == 0)), (text, inclusive)
            assert below.accepts(text) == (gap < 0 or (inclusive and gap == 0)), (text, inclusive)


def test_a_number_has_one_spelling() -> None:
    assert not any(values.numbers().accepts(text) for text in ("-0", "01", "1.0", "1.", ".5", "1e5", "+1", ""))
    assert [values.plain(Decimal(text)) for text in ("1.50", "-0.0", "1E+3", "1e-3")] == ["1.5", "0", "1000", "0.001"]


@pytest.mark.parametrize("divisor", [1, 3, 7, 12])
def test_multiples(divisor: int) -> None:
    dfa = values.multiples(divisor)
    assert all(dfa.accepts(str(number)) == (number % divisor == 0) for number in range(-150, 150))


def test_texts_of_a_schema_are_documents_of_it() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 3, "pattern": '^[a-c"\\n]'},
            "age": {"type": "integer", "minimum": 18, "exclusiveMaximum": 100},
            "tags": {"type": "array", "items": {"enum": ["x", 1.5, None, [True]]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["age", "tags"],
        "additionalProperties": {"type": "boolean"},
    }
    dfa, draws = schema_dfa(json.dumps(schema), True), random.Random(0)
    texts = [text for _ in range(300) if (text := walked(dfa, draws)) is not None]
    assert len(set(texts)) > 100
    for text in texts:
        document = json.loads(text)
        assert 18 <= document["age"] < 100
        assert 1 <= len(document["tags"]) <= 3
        assert all(tag in ["x", 1.5, None, [True]] for tag in document["tags"])
        if "name" in document:
            assert 1 <= len(document["name"]) <= 3
            assert document["name"][0] in 'abc"\n'
        assert all(isinstance(document[name], bool) for name in set(document) - {"name", "age", "tags"})


def test_definitions_within_themselves() -> None:
    """A list of lists, as deep as a definition may stand within itself."""
    schema = {"$ref": "#/$defs/nest", "$defs": {"nest": {"type": "array", "items": {"$ref": "#/$defs/nest"}}}}
    dfa = schema_dfa(json.dumps(schema), False)
    deep = "[" * DEPTH + "]" * DEPTH
    assert dfa.accepts("[[],[[]]]")
    assert dfa.accepts(deep)
    assert not dfa.accepts(f"[{deep}]")


def test_one_of() -> None:
    told = {"oneOf": [{"type": "integer", "maximum": 5}, {"type": "number", "minimum": 3}, {"type": "string"}]}
    dfa = schema_dfa(json.dumps(told), True)
    assert [dfa.accepts(text) for text in ("2", "4", "4.5", "6", '"a"')] == [True, False, True, True, True]

    def kind(name: str) -> dict[str, Any]:
        return {"type": "object", "properties": {"kind": {"const": name}, name: {}}, "required": ["kind"]}

    assert schema_dfa(json.dumps({"oneOf": [kind("a"), kind("b")]}), True).accepts('{"kind": "b", "b": 1}')
    with pytest.raises(ValueError, match="0 and 1, which may both hold"):
        schema_dfa(json.dumps({"oneOf": [kind("a"), kind("a")]}), True)


def test_formats_are_of_the_calendar() -> None:
    dates = values.pattern(FORMATS["date"])
    assert all(dates.accepts(day) for day in ("2024-02-29", "2000-02-29", "0001-01-01", "9999-12-31"))
    assert not any(dates.accepts(day) for day in ("2023-02-29", "1900-02-29", "0000-01-01", "2023-04-31", "2023-13-01"))


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [("a", {"a", "xa", "ax"}), ("^a", {"a", "ax"}), ("a$", {"a", "xa"}), ("^(a|b)$", {"a", "b"}), (r"\$", {"$"})],
)
def test_patterns_are_searched(pattern: str, texts: set[str]) -> None:
    dfa = searched(pattern)
    assert {text for text in ("a", "b", "xa", "ax", "$", "xb") if dfa.accepts(text)} == texts


@pytest.mark.parametrize("pattern", ["^a|b$", "a|^b", "(^a)", "a(?=b)", "(", r"\p{L}"])
def test_patterns_that_cannot_be_searched(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"schema: #/pattern: pattern: expected"):
        schema_dfa(json.dumps({"pattern": pattern}), True)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {}}, r"got 'not' \(#\)"),
        ({"properties": {"a": {"uniqueItems": True}}}, r"got 'uniqueItems' \(#/properties/a\)"),
        ({"minLenght": 1}, "Did you mean 'minLength'"),
        ({"type": "strin"}, r"got 'strin' \(#/type\)"),
        ({"minLength": -1}, r"a whole number from 0, got -1 \(#/minLength\)"),
        ({"minimum": "1"}, r"a number, got '1' \(#/minimum\)"),
        ({"multipleOf": 1.5}, r"got 1.5 \(#/multipleOf\)"),
        ({"format": "email"}, r"got 'email' \(#/format\)"),
        ({"$ref": "other.json"}, r"got 'other.json' \(#/\$ref\)"),
        ({"$ref": "#/$defs/no"}, r"got '#/\$defs/no' \(#/\$ref\)"),
        ({"enum": []}, r"a list of at least one, got \[\] \(#/enum\)"),
        ({"items": [{}]}, "prefixItems"),
        ({"required": ["a"], "additionalProperties": False}, r"got 'a' \(#/required\)"),
        ({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, "members of an object in one place"),
        ({"allOf": [{"required": ["a"]}, {"required": ["b"]}]}, "in several of #/allOf"),
        ({"const": Decimal("1e999")}, "at most 400 digits"),
        ({"properties": []}, r"an object, got \[\]"),
        ({"required": "a"}, "a list of names"),
        ({"items": 1}, r"a schema, an object or a boolean, got 1 \(#/items\)"),
    ],
)
def test_what_is_refused(schema: dict[str, Any], message: str) -> None:
    text = json.dumps(schema, default=str).replace('"1E+999"', "1e999")
    with pytest.raises(ValueError, match=message):
        schema_dfa(text, True)


def test_sets_of_values() -> None:
    few, many = values.pattern("[0-9]"), values.integers()
    assert difference(few, many).empty
    assert intersection(few, many).accepts("7")
    assert not difference(many, few).accepts("7")
    assert difference(many, few).accepts("77")
