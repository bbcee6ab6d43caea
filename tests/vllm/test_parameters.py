"""What requests ask for: flat arguments read as methods, and refused where they cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest

import lmguide as lg
from lmguide.guidance import GUIDANCE
from lmguide.vllm.parameters import KEYS, REWARDS, UNSERVED, Requested, read

READ: dict[str, tuple[dict[str, Any], lg.Guidance]] = {
    "scale": ({"guidance_scale": 2}, lg.CFG(2)),
    "method": ({"guidance": "apg:guidance_scale=3,eta=0.5"}, lg.APG(3, eta=0.5)),
    "guide": ({"guidance": "contrastive:model=small"}, lg.Contrastive("small")),
    "json": ({"guidance": lg.TangentialCFG(2.0).to_json()}, lg.TangentialCFG(2.0)),
    "object": ({"guidance": lg.PREADD(2.0, "Sad!")}, lg.PREADD(2.0, "Sad!")),
    "scale of a method": ({"guidance": "tangential_cfg", "guidance_scale": 4}, lg.TangentialCFG(4)),
    "threshold": ({"guidance_scale": 2, "entropy_threshold": 1}, lg.CFG(2, gate=lg.Entropy(1))),
    "threshold of a method": (
        {"guidance": "suffix_cfg:suffix=[1]", "entropy_threshold": 0.5},
        lg.SuffixCFG(suffix=(1,), entropy_threshold=0.5),
    ),
    "gates": (
        {"guidance_scale": 2, "guidance_gate": "period:every=2", "entropy_threshold": 1},
        lg.CFG(2, gate=lg.Period(2) & lg.Entropy(1)),
    ),
    "schedule": ({"guidance_scale": 2, "guidance_schedule": "linear"}, lg.CFG(2, schedule=lg.Linear())),
    "several": (
        {"guidance_scale": 3, "negative_prompts": ["a", "b"]},
        lg.PromptMixture(("a", "b"), (-0.5, -0.5), scale=2),
    ),
    "several with weights": (
        {"guidance_scale": 3, "negative_prompts": ["a", "b"], "negative_weights": [1, 0.25]},
        lg.PromptMixture(("a", "b"), (-1.0, -0.25), scale=2),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_methods(name: str) -> None:
    arguments, method = READ[name]
    assert read(arguments) == Requested((method,), None)


def test_one_negative_prompt_of_weight_one_is_cfg() -> None:
    found = read({"guidance_scale": 3, "negative_prompts": ["a"]})
    assert found is not None
    mixture = found.methods[0]
    assert isinstance(mixture, lg.PromptMixture)
    assert (mixture.scale, mixture.weights) == (2, (-1.0,))  # c + 2 (-1) (u - c) = u + 3 (c - u)


@pytest.mark.parametrize("arguments", [None, {}, {"session_id": "a"}, {"guidance_scale": 1.0, "negative_prompt": "a"}])
def test_requests_without_guidance(arguments: dict[str, Any] | None) -> None:
    assert read(arguments) is None


NEGATIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({"negative_prompt": "a"}, {"prompt": "a", "mask": None}),
    "ids": ({"negative_prompt_ids": [4, 5]}, {"prompt": [4, 5], "mask": None, "argument": "negative_prompt_ids"}),
    "messages": (
        {"negative_messages": '[{"role": "user", "content": "a"}]'},
        {"prompt": [{"role": "user", "content": "a"}], "mask": None},
    ),
}


@pytest.mark.parametrize("name", NEGATIVES)
def test_negative_prompts(name: str) -> None:
    arguments, negative = NEGATIVES[name]
    assert read({"guidance_scale": 2, **arguments}) == Requested((lg.CFG(2),), negative)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "text for a number": ({"guidance_scale": "2"}, "guidance_scale: expected a finite number"),
    "truth for a number": ({"guidance_scale": True}, "guidance_scale: expected a finite number"),
    "not a number": ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number"),
    "misspelt": ({"guidance_scal": 2}, "Did you mean 'guidance_scale'"),
    "private": ({"guidance_scale": 2, "_lmguide_row": {}}, "_lmguide_row: keys that begin with"),
    "no strength": ({"negative_prompt": "a"}, "negative_prompt: given without a strength"),
    "no text": ({"guidance_scale": 2, "negative_prompt": ""}, "negative_prompt: expected a text"),
    "no ids": ({"guidance_scale": 2, "negative_prompt_ids": [1.5]}, "negative_prompt_ids: expected a list"),
    "broken messages": ({"guidance_scale": 2, "negative_messages": "[{"}, "negative_messages: broken JSON"),
    "no messages": ({"guidance_scale": 2, "negative_messages": "[]"}, "negative_messages: expected a list"),
    "two negatives": ({"guidance_scale": 2, "negative_prompt": "a", "negative_prompt_ids": [1]}, "got both"),
    "texts that are none": ({"guidance_scale": 2, "negative_prompts": [1]}, "negative_prompts: expected a list"),
    "weights": ({"guidance_scale": 2, "negative_prompts": ["a"], "negative_weights": [1, 2]}, "negative_weights: exp"),
    "weights alone": ({"guidance_scale": 2, "negative_weights": [1]}, "negative_weights: given without"),
    "threshold": ({"guidance_scale": 2, "entropy_threshold": -1}, "entropy_threshold: expected a finite number"),
    "gate": ({"guidance_scale": 2, "guidance_gate": "perod"}, "guidance_gate: expected the name of a gate"),
    "schedule": ({"guidance_scale": 2, "guidance_schedule": "linear:frst=0"}, "guidance_schedule: linear: expected"),
    "method": ({"guidance": "apgg"}, "guidance: expected the name of a guidance"),
    "field": ({"guidance": "apg:etta=1"}, "Did you mean 'eta'"),
    "no method": ({"guidance": []}, "guidance: expected at least one method"),
    "two lists": ({"guidance": "apg", "negative_prompts": ["a"]}, "negative_prompts: does not go with guidance"),
    "early layers": ({"guidance": "dola"}, "guidance: dola reads early layers of the served model"),
    "dropped blocks": ({"guidance": "s2"}, "guidance: s2 runs the served model without some of its blocks"),
    "questions": ({"guidance": "verifier_guidance:avoid=dog"}, "verifier_guidance asks the served model questions"),
    "ends of words": ({"guidance": "word_guidance:exclude=sea"}, "exclude_at: 'expected' asks the model how likely"),
    "other context": (
        {"guidance": '{"name": "cfg", "negative_prompt": {"name": "dropped_blocks"}}'},
        "cfg needs DroppedBlocks",
    ),
    "reward": ({"guidance": "rewarded_samples:reward=os:system"}, "guidance: rewarded_samples draws canvases"),
    "one for each row": ({"guidance": "cfg:guidance_scale=[1, 2]"}, "guidance_scale: expected one number"),
    "nothing to replace": ({"guidance": "tpg", "negative_prompt": "a"}, "none of the methods has one"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    arguments, words = BAD[name]
    with pytest.raises(ValueError, match=r"\w") as error:
        read(arguments)
    assert words in str(error.value)


def test_every_key_is_read() -> None:
    """A key that nobody reads would be ignored silently."""
    seen = {key for arguments, _ in READ.values() for key in arguments}
    seen |= {key for arguments, _ in NEGATIVES.values() for key in arguments}
    assert set(KEYS) <= seen


def test_every_method_is_served_or_refused_by_name() -> None:
    served = ("autoguidance", "contrastive", "dexperts", "proxy_tuning", *REWARDS)
    prompts = {name for name in GUIDANCE.names() if GUIDANCE.get(name).__module__.endswith("prompts")}
    assert sorted([*served, *prompts, *UNSERVED]) == sorted(GUIDANCE.names())


def test_every_described_method_of_prompts_fits_in_flat_arguments() -> None:
    methods = [lg.CFG(2.0, "a"), lg.SelectiveCFG(2.0), lg.APG(), lg.ICG(), lg.TPG(), lg.CAD(2.0), lg.PREADD()]
    arguments = {"guidance": [method.to_json() for method in methods]}
    assert all(isinstance(json.loads(text), dict) for text in arguments["guidance"])
    found = read(arguments)
    assert found is not None
    assert found.methods == tuple(methods)
