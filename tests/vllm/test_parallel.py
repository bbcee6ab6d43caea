"""A model spread over two processes, by tensors or by layers, on the CPU: guided answers stay what they are."""

from __future__ import annotations

import importlib.util
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

import lmguide as lg
from tests.vllm.client import Client
from tests.vllm.guide_models import additional_config, guided_kinds, save_guides
from tests.vllm.reference import Reference
from tests.vllm.served import VOCAB, save_model, server, small

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

SEA, SPACE = "A tale of the sea:", "A tale of space: The captain"


@pytest.mark.timeout(400, method="signal")
@pytest.mark.parametrize("option", ["--tensor-parallel-size", "--pipeline-parallel-size"])
def test_two_processes(option: str, tmp_path: Path) -> None:
    # On a CPU a pipeline needs the warm-up that eager mode leaves out: vLLM makes room between its stages there.
    compilation = json.dumps({"mode": 2, "backend": "eager"})
    more = ("--no-enforce-eager", "--compilation-config", compilation) if "pipeline" in option else ()
    save_model(tmp_path)
    guides = save_guides(tmp_path / "guides")
    reference, draw = Reference(tmp_path), random.Random(0)
    words = lg.WordGuidance(include="whale", beta=6.0)
    methods: list[tuple[dict[str, Any], tuple[lg.Guidance, ...] | None]] = [
        *guided_kinds(guides),  # each process has the guides
        ({}, None),
        ({"guidance_scale": 3.0, "negative_prompt": SPACE}, (lg.CFG(3.0, SPACE),)),
        ({"guidance_scale": 0.5}, (lg.CFG(0.5),)),
        (
            {"guidance_scale": 3.0, "negative_prompt": SPACE, "entropy_threshold": 3.6},
            (lg.SelectiveCFG(3.0, SPACE, entropy_threshold=3.6),),
        ),
        ({"guidance": words.to_json()}, (words,)),
    ]
    requests, answers = [], []
    for number in range(2 * len(methods)):
        sent, method = methods[number % len(methods)]
        length = draw.choice([0, 1, 40, 150])  # the longest is in several chunks, of which a pipeline holds two
        prompt = reference.ids(SEA) + [draw.randrange(4, VOCAB) for _ in range(length)]
        least = 0 if number < len(methods) else 24  # with a minimum no conditional is parked
        requests.append((prompt, sent, {"max_tokens": 24, "min_tokens": least}))
        answers.append(reference.answer(prompt, method, 24, min_new_tokens=least))
    settings = json.dumps(additional_config(guides))
    options = (option, "2", *small(20), "--additional-config", settings, *more)
    with server(tmp_path, *options, seconds=250) as address:
        client = Client(address)
        got = client.many(requests)
        metrics = client.metrics()
    wrong = [
        request[1] for request, answer, tokens in zip(requests, answers, got, strict=True) if not answer.agrees(tokens)
    ]
    assert wrong == []
    assert metrics["lmguide:lockstep_errors_total"] == metrics["lmguide:failed_requests_total"] == 0
