"""Documents and scores of the task on JSON schemas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmguide.eval.harness.data import local_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAMES = "additionalProperties const enum exclusiveMaximum items maxLength maximum minItems minimum multipleOf pattern "
NAMES += "properties required type uniqueItems"
ADDRESS = (
    "https://raw.githubusercontent.com/json-schema-org/JSON-Schema-Test-Suite/44401e0c046704b476ec9d2e2fccdaee618f259d"
)
"""The suite, as its authors publish it (MIT)."""


def suite(**_: Any) -> Any:
    """Schemas of draft 7 that some value conforms to and some does not, with an example of each."""
    from datasets import Dataset, DatasetDict

    rows = []
    for name in NAMES.split():
        for group in _read(f"tests/draft7/{name}.json"):
            right = [test["data"] for test in group["tests"] if test["valid"]]
            if right and len(right) < len(group["tests"]):
                rows.append({"schema": json.dumps(group["schema"]), "example": json.dumps(right[0])})
    return DatasetDict({"test": Dataset.from_list(rows)})


def process(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the answer is JSON, and whether it conforms to the schema."""
    from jsonschema import Draft7Validator

    try:
        value = json.loads(results[0])
    except (ValueError, RecursionError):
        return {"json_validity": 0.0, "schema_compliance": 0.0}
    conforms = Draft7Validator(json.loads(doc["schema"])).is_valid(value)
    return {"json_validity": 1.0, "schema_compliance": float(conforms)}


def _read(path: str) -> Any:
    here = local_file(f"jsonschemasuite/{path}")
    if here is not None:
        return json.loads(here.read_text(encoding="utf-8"))
    from urllib.request import urlopen

    with urlopen(f"{ADDRESS}/{path}", timeout=60) as answer:
        return json.loads(answer.read())
