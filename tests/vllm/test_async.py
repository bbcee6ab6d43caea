"""Word lists and guides where tokens are sampled before the scheduler knows of them: asynchronous V1, and V2.

The engine is in this process, whose vLLM is changed for it. `make stress` runs it on both kinds of V2.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import pytest

import lmguide as lg
from tests.vllm.guide_models import additional_config, guided_kinds, save_guides
from tests.vllm.runners import make_engine

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.vllm.reference import Reference

pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
    pytest.mark.timeout(400, method="signal"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

RUNNER = os.environ.get("LMGUIDE_STRESS_RUNNER", "v1-async")
MOST_STEPS = 2000


def test_all_is_read_in_time_and_faults_end_their_requests_only(
    folder: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guides = save_guides(tmp_path)
    words = lg.WordGuidance(include=("whale", "captain"), exclude=("sea", "a"), exclude_at="boundary")
    kinds: list[Any] = [*guided_kinds(guides), ({"guidance": words.to_json()}, words), ({}, None)]
    crowd = reference.crowd(kinds, 2 * len(kinds), most=24)
    config = additional_config(guides)
    engine = make_engine(folder, RUNNER, monkeypatch, num_gpu_blocks_override=17, additional_config=config)
    assert engine.vllm_config.use_v2_model_runner == RUNNER.startswith("v2")
    assert engine.vllm_config.scheduler_config.async_scheduling == RUNNER.endswith("async")
    scheduler = engine.engine_core.engine_core.scheduler

    from vllm import SamplingParams

    from lmguide.vllm.rewards import Rewards

    def run(numbers: Iterable[int] = range(len(crowd)), **changes: Any) -> dict[int, Any]:
        done, steps = {}, 0
        for number in numbers:
            asked = crowd[number]
            params = SamplingParams(temperature=0, extra_args=dict(asked.sent), **{**asked.options, **changes})
            engine.add_request(f"r{number}", {"prompt_token_ids": asked.prompt}, params)
        while engine.has_unfinished_requests() and (steps := steps + 1) < MOST_STEPS:
            for output in engine.step():
                if output.finished:
                    done[int(output.request_id[1:])] = output.outputs[0]
        return done

    done = run()
    wrong = [asked for number, asked in enumerate(crowd) if not asked.answer.agrees(done[number].token_ids)]
    assert wrong == []
    assert not scheduler.total_counts["failed_requests"]

    law, calls = Rewards.law, iter(range(10**6))

    def faulty(self: Rewards, guide: str, batch: Any) -> Any:
        if guide == "smaller" and next(calls) >= 15:
            raise RuntimeError("no")
        return law(self, guide, batch)

    monkeypatch.setattr(Rewards, "law", faulty)
    done = run()
    failed = {number for number, output in done.items() if output.finish_reason == "error"}
    assert failed
    assert all("smaller" in str(crowd[number].sent) for number in failed)
    assert all(asked.answer.agrees(done[n].token_ids) for n, asked in enumerate(crowd) if n not in failed)
    # A fault on the very token that would have ended the request; a gate might be closed there.
    sure = {number for number in failed if '"threshold"' not in str(crowd[number].sent)}
    assert any("cfg" in str(crowd[number].sent) for number in sure)  # with a companion
    last = run(sure, max_tokens=1, min_tokens=0)
    assert {number: output.finish_reason for number, output in last.items()} == dict.fromkeys(sure, "error")
    assert scheduler.total_counts["failed_requests"] == len(failed) + len(sure)
    assert not scheduler.total_counts["lockstep_errors"]
