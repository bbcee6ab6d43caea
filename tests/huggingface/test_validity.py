"""Whatever a model says: an answer that has ended is valid. A model of random weights says anything.

The schemas are those of JSON-Schema-Test-Suite, and some made of the documents of JSONTestSuite.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import regex  # type: ignore[import-untyped]

import lmguide as lg
from lmguide.constraints import compile
from lmguide.constraints.vocabulary import Vocabulary
from tests.families import made

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("llguidance", reason="the grammar engines are an extra: pip install lmguide[grammar]")

ROWS = 32


def shape(value: Any) -> dict[str, Any]:
    """A schema of documents built as this one."""
    if isinstance(value, dict):
        properties = {name: shape(each) for name, each in value.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(value),
            "additionalProperties": False,
        }
    if isinstance(value, list):
        return {"type": "array", "prefixItems": [*map(shape, value)], "items": False, "minItems": len(value)}
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return {"type": kinds[type(value)]}


def suite(folder: Path) -> list[Any]:
    """The schemas of JSON-Schema-Test-Suite, draft 2020-12, each once."""
    files = sorted((folder / "jsonschemasuite" / "tests" / "draft2020-12").glob("*.json"))
    found = [group["schema"] for file in files for group in json.loads(file.read_text(encoding="utf-8"))]
    return [*{json.dumps(each, sort_keys=True): each for each in found}.values()]


def derived(folder: Path) -> list[Any]:
    """Schemas of the documents of JSONTestSuite that every parser must take."""
    found = []
    for file in sorted((folder / "jsontestsuite").rglob("y_*.json")):
        value = json.loads(file.read_bytes())
        found += [{"const": value}, shape(value)]
    return [*{json.dumps(each): each for each in found}.values()]


def doubles(value: Any) -> str:
    """A document with its numbers in double precision, as JSON: Python by itself tells 1230...0 from 1.23e67."""
    return json.dumps(json.loads(json.dumps(value), parse_int=float), sort_keys=True)


def const(validator: Any, wanted: Any, found: Any, schema: Any) -> Any:
    """`const`, on numbers as most readers have them."""
    if doubles(found) != doubles(wanted):
        yield jsonschema.ValidationError(f"{found!r} is not {wanted!r}")


def pattern(validator: Any, wanted: str, text: Any, schema: Any) -> Any:
    """`pattern` with the classes `\\p{...}`, which Python's own module lacks."""
    if isinstance(text, str) and not regex.search(wanted, text):
        yield jsonschema.ValidationError(f"{text!r} does not match {wanted!r}")


VALIDATOR: Any = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": pattern, "const": const})


@pytest.mark.slow
@pytest.mark.parametrize(("source", "backend", "least"), [
    (suite, "llguidance", 160), (suite, "xgrammar", 50), (derived, "llguidance", 100), (derived, "xgrammar", 50)
])  # fmt: skip
def test_every_answer_that_ends_is_valid(source: Any, backend: str, least: int, shared_data: Path) -> None:
    _, tokenizer = lg.bundled("tales")
    vocabulary = Vocabulary.of_tokenizer(tokenizer, len(tokenizer))
    taken = []
    for schema in source(shared_data):
        try:
            compile(lg.JSONSchema(schema), vocabulary, backend)
        except ValueError:
            continue
        taken.append(schema)
    model: Any = made("llama", vocab_size=len(tokenizer))
    guided = lg.guide(model, lg.JSON(), tokenizer, backend=backend)
    ended = 0
    for start in range(0, len(taken), ROWS):
        schemas = taken[start : start + ROWS]
        inputs = tokenizer(["A tale of the sea:"] * len(schemas), return_tensors="pt")
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        constraints = [*map(lg.JSONSchema, schemas)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # answers that are cut
            rows = guided.generate(
                **inputs, **ends, constraint=constraints, close=True, do_sample=True, top_k=0, max_new_tokens=80
            )
        for schema, row in zip(schemas, rows[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            if tokenizer.eos_token_id in row:
                ended += 1
                text = vocabulary.spell(row[: row.index(tokenizer.eos_token_id)])
                VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).validate(json.loads(text))
    print(f"{backend}: {len(taken)} schemas taken, {ended} answers ended, all valid")
    assert ended >= least
