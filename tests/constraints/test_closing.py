"""A way to a complete text, where there is one that the search should find."""

from __future__ import annotations

import json

import pytest

import lmguide as lg
from lmguide.constraints.closing import Closing
from lmguide.constraints.engine import compile
from lmguide.constraints.vocabulary import Vocabulary

pytest.importorskip("llguidance", reason="the grammar engines are an extra: pip install lmguide[grammar]")

VOCABULARY = Vocabulary.of_tokenizer(lg.bundled("tales")[1])
SCHEMA = lg.JSONSchema(
    {
        "type": "object",
        "properties": {"names": {"type": "array", "items": {"type": "string"}}, "sum": {"type": "integer"}},
        "required": ["names", "sum"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("constraint", "begun", "most"),
    [
        (SCHEMA, "", 40),
        (SCHEMA, '{"names": ["Anna", "Ber', 14),
        (SCHEMA, '{"names": [], "sum": 1', 2),
        (lg.JSON(), '[[[{"a": "b', 8),
        (lg.Regex("a{12}"), "aaa", 10),
        (lg.Regex("([0-9]{3}-)*x"), "12", 4),
        (lg.Grammar('start: "(" start ")" | "x"'), "(((", 6),
    ],
)
def test_a_way_is_found_and_leads_to_the_end(constraint: lg.Constraint, begun: str, most: int) -> None:
    matcher = compile(constraint, VOCABULARY).start()
    assert all(matcher.accept(token) for token in VOCABULARY.encode(begun))
    way = Closing(VOCABULARY).way(matcher, most)
    assert way is not None
    assert len(way) <= most
    *tokens, end = way
    assert end in VOCABULARY.eos
    follower = matcher.copy()
    assert all(follower.accept(token) for token in tokens)
    assert follower.accepting()
    if isinstance(constraint, lg.JSON | lg.JSONSchema):
        json.loads(begun + VOCABULARY.spell(tokens).decode())


def test_there_is_no_way_in_too_few_tokens() -> None:
    assert Closing(VOCABULARY).way(compile(SCHEMA, VOCABULARY).start(), 5) is None
