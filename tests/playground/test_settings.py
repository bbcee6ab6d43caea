"""Settings become the method and the constraint they say, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

import lmguide as lg
from lmguide.guidance import GUIDANCE
from lmguide.playground import METHODS, Settings, takes_negative

CHAT = ({"role": "system", "content": "No."}, {"role": "user", "content": "x"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, lg.CFG(1.5)),
        ({"guidance_scale": 3.0, "negative_prompt": "No."}, lg.CFG(3.0, "No.")),
        ({"entropy_threshold": 0.5}, lg.CFG(1.5, gate=lg.Entropy(0.5))),
        ({"negative_prompt": "No.", "chat": True}, lg.CFG(1.5, CHAT)),
        ({"method": "selective_cfg", "entropy_threshold": 0.5}, lg.SelectiveCFG(1.5, entropy_threshold=0.5)),
        ({"method": "selective_cfg"}, lg.SelectiveCFG(1.5, entropy_threshold=0.0)),
        ({"method": "suffix_cfg", "negative_prompt": "No."}, lg.SuffixCFG(1.5, "No.", entropy_threshold=0.0)),
        ({"method": "suffix_cfg", "negative_prompt": "No.", "chat": True}, lg.SuffixCFG(1.5, "No.", 0.0)),
        ({"method": "tpg", "guidance_scale": 2.0}, lg.TPG(2.0)),
    ],
)
def test_settings_are_a_method(given: dict[str, Any], expected: lg.Guidance) -> None:
    assert Settings("x", **given).guidance() == expected


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_there_and_off_at_one(method: str) -> None:
    assert GUIDANCE.get(method).strength_field == "guidance_scale"
    assert not Settings("x", method=method, guidance_scale=1.0).guidance().enabled
    assert Settings("x", method=method, guidance_scale=1.5, negative_prompt="y" * takes_negative(method)).guidance()


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("none", "[0-9", None),
        ("regex", "[0-9]+", lg.Regex("[0-9]+")),
        ("JSON schema", '{"type": "integer"}', lg.JSONSchema({"type": "integer"})),
        ("grammar", 'start: "a"', lg.Grammar('start: "a"')),
    ],
)
def test_settings_are_a_constraint(kind: str, text: str, expected: lg.Constraint | None) -> None:
    assert Settings("x", constraint_kind=kind, constraint=text).rule() == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": ""}, "prompt: expected a text"),
        ({"method": "dola"}, "method: expected one of cfg, "),
        ({"method": "tpg", "negative_prompt": "No."}, "negative_prompt: tpg has none"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number"),
        ({"entropy_threshold": -1.0}, "entropy_threshold: expected a finite number at least 0"),
        ({"temperature": -1.0}, "temperature: expected"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number"),
        ({"seed": -1}, "seed: expected a whole number"),
        ({"seed": 2**63}, "seed: expected a whole number below"),
        ({"seed": None}, "seed: expected a whole number"),
        ({"constraint_kind": "regex"}, "constraint: expected a regex, got an empty text"),
        ({"constraint_kind": "regex", "constraint": "[0-9"}, "pattern: "),
        ({"constraint_kind": "JSON schema", "constraint": "{"}, "schema: "),
        ({"constraint_kind": "sql", "constraint": "x"}, "constraint_kind: expected one of none, regex"),
    ],
)
def test_bad_settings_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Settings(**{"prompt": "x", **given})
