"""Many requests, few seats and a cache so small that preemption never ends; `make stress` runs it for many seeds.

Every answer is compared with the Hugging Face engine's, and nothing may be left behind in the engine.
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import lmguide as lg
from tests.vllm import runners
from tests.vllm.client import Client
from tests.vllm.reference import Reference
from tests.vllm.served import VOCAB, server, small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lmguide import Guidance

SEEDS = int(os.environ.get("LMGUIDE_STRESS_SEEDS", "20"))
RUNNER = os.environ.get("LMGUIDE_STRESS_RUNNER", "v1")
SPARES = not RUNNER.endswith("async")
"""Whether companions run only where their conditional asks for them."""
PARKS = RUNNER == "v1"
"""Whether a conditional that has asked for companions need not compute its last token again."""
SOAK = int(os.environ.get("LMGUIDE_SOAK_REQUESTS", "1000"))
MOST_STEPS = 20_000
LONGEST = 110
SETTINGS: dict[str, dict[str, Any]] = {
    "first come": {"scheduling_policy": "fcfs", "num_gpu_blocks_override": 19},
    "priorities": {"scheduling_policy": "priority", "num_gpu_blocks_override": 19},
    "no prefix cache": {"scheduling_policy": "fcfs", "num_gpu_blocks_override": 19, "enable_prefix_caching": False},
    "roomier": {"scheduling_policy": "priority", "num_gpu_blocks_override": 40},
}


@pytest.fixture
def make_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    engines = []

    def make(**options: Any) -> Any:
        engines.append(runners.make_engine(folder, RUNNER, monkeypatch, **options))
        return engines[-1]

    yield make
    for engine in engines:  # one that is left to the garbage collector takes the next one's process groups with it
        engine.engine_core.shutdown()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.timeout(3600, method="signal")
def test_nothing_breaks_under_pressure(folder: Path, setting: str, make_engine: Callable[..., Any]) -> None:
    engine, reference = make_engine(**SETTINGS[setting]), Reference(folder)
    for seed in range(SEEDS):
        _run(engine, reference, seed, setting)


@pytest.mark.skipif(not SPARES, reason="companions always run")
@pytest.mark.timeout(600, method="signal")
def test_a_firing_computes_nothing_twice(make_engine: Callable[..., Any]) -> None:
    engine, draw, answered = make_engine(num_gpu_blocks_override=40), random.Random(0), 70

    from vllm import SamplingParams

    from lmguide.vllm.groups import is_companion

    scheduler = engine.engine_core.engine_core.scheduler
    prompt, negative, schedule = _ids(draw, 41), _ids(draw, 37), scheduler.schedule
    planned: list[dict[str, int]] = []

    def noting(*args: Any) -> Any:
        output = schedule(*args)
        planned.append(dict(output.num_scheduled_tokens))
        return output

    scheduler.schedule = noting

    def work(arguments: dict[str, Any]) -> tuple[int, int, int]:
        """Tokens computed, samples that were thrown away, and how many tokens stood at the last firing."""
        planned.clear()
        scheduler.total_counts.clear()
        assert scheduler.reset_prefix_cache()
        params = SamplingParams(temperature=0, max_tokens=answered, ignore_eos=True, extra_args=arguments)
        engine.add_request("r", {"prompt_token_ids": prompt}, params)
        stood = last = 0
        while engine.has_unfinished_requests():
            outputs = engine.step()
            last = stood if any(map(is_companion, planned[-1])) else last
            stood = len(outputs[0].outputs[0].token_ids) if outputs else stood
        return sum(sum(step.values()) for step in planned), scheduler.total_counts["retried_steps"], last

    alone = len(prompt) + answered - 1
    assert work({}) == (alone, 0, 0)
    gate = {"guidance_scale": 3.0, "entropy_threshold": 3.5}
    tokens, retried, last = work({**gate, "negative_prompt_ids": negative})
    assert retried > 5
    again = 0 if PARKS else retried
    assert tokens == alone + again + len(negative) + last
    tokens, retried, _ = work({"guidance": "suffix_cfg:guidance_scale=3.0,suffix=[7, 8],entropy_threshold=3.5"})
    assert retried > 5
    again = 0 if PARKS else retried
    assert tokens == alone + again + 2 * retried


@pytest.mark.timeout(600, method="signal")
def test_pausing_drains_groups_and_resuming_goes_on(folder: Path, make_engine: Callable[..., Any]) -> None:
    engine, reference, draw = make_engine(num_gpu_blocks_override=40), Reference(folder), random.Random(0)

    from vllm import SamplingParams
    from vllm.v1.core.sched.interface import PauseState

    scheduler = engine.engine_core.engine_core.scheduler
    requests = [_guided(draw, suffixes=SPARES) for _ in range(24)]
    done: dict[str, Any] = {}
    for number, (prompt, arguments, _, tokens) in enumerate(requests):
        params = SamplingParams(temperature=0, max_tokens=tokens, extra_args=arguments)
        engine.add_request(f"r{number}", {"prompt_token_ids": prompt}, params)
    steps = 0
    while engine.has_unfinished_requests() and (steps := steps + 1) < MOST_STEPS:
        if steps % 7 == 0:
            scheduler.set_pause_state(PauseState.PAUSED_NEW)
        if scheduler.pause_state != PauseState.UNPAUSED and not scheduler.get_num_unfinished_requests():
            scheduler.set_pause_state(PauseState.UNPAUSED)
        done |= {output.request_id: output.outputs[0].token_ids for output in engine.step() if output.finished}
    for number, (prompt, _, method, tokens) in enumerate(requests):
        assert reference.answer(prompt, method, tokens).agrees(done[f"r{number}"])
    assert scheduler.total_counts["lockstep_errors"] == scheduler.total_counts["failed_requests"] == 0


@pytest.mark.skipif(RUNNER != "v1", reason="the server runs what vLLM itself would")
@pytest.mark.timeout(3600, method="signal")
def test_nothing_is_left_after_many_requests_and_clients_that_leave(folder: Path) -> None:
    with server(folder, *small(28)) as address, ThreadPoolExecutor(24) as pool:
        client = Client(address)
        list(pool.map(lambda seed: _visit(client, random.Random(seed)), range(SOAK)))
        client.tokens([5], max_tokens=1)  # gauges move when something runs
        metrics = client.metrics()
    assert metrics["vllm:num_requests_running"] == metrics["vllm:num_requests_waiting"] == 0
    assert metrics["vllm:kv_cache_usage_perc"] == 0
    assert metrics["lmguide:lockstep_errors_total"] == metrics["lmguide:failed_requests_total"] == 0
    assert metrics["lmguide:groups_total"] > SOAK / 2


def _visit(client: Client, draw: random.Random) -> None:
    """One request, guided in three of four cases; one client in ten leaves in the middle."""
    prompt, arguments, _, tokens = _guided(draw, suffixes=True) if draw.random() < 0.75 else _plain(draw)
    if draw.random() < 0.9:
        client.tokens(prompt, arguments, max_tokens=tokens, temperature=draw.choice([0, 1]))
        return
    for place, _ in enumerate(client.stream(prompt, arguments, max_tokens=100, ignore_eos=True)):
        if place == 3:
            break


def _run(engine: Any, reference: Reference, seed: int, setting: str) -> None:
    from vllm import SamplingParams

    scheduler = engine.engine_core.engine_core.scheduler
    draw = random.Random(seed)
    suffixes = SPARES and SETTINGS[setting].get("enable_prefix_caching", True)
    requests = [_guided(draw, suffixes) for _ in range(32)] + [_plain(draw) for _ in range(12)]
    draw.shuffle(requests)
    scheduler.total_counts.clear()
    waiting, steps = list(range(len(requests))), 0
    aborted: set[int] = set()
    done: dict[int, list[int]] = {}
    while waiting or engine.has_unfinished_requests():
        for _ in range(draw.choice([0, 0, 1, 3, 8])):
            if waiting:
                number = waiting.pop()
                prompt, arguments, _, tokens = requests[number]
                own = draw.choice([None, 0])  # changes no token, but a conditional that wants them draws for itself
                params = SamplingParams(temperature=0, max_tokens=tokens, extra_args=arguments or None, logprobs=own)
                priority = draw.randrange(3) if "priority" in str(SETTINGS[setting]) else 0
                engine.add_request(f"r{number}", {"prompt_token_ids": prompt}, params, priority=priority)
        for output in engine.step():
            if output.finished:
                done[int(output.request_id[1:])] = list(output.outputs[0].token_ids)
        steps += 1
        assert steps < MOST_STEPS, _state(scheduler)
        if draw.random() < 0.08 and len(aborted) < 8:
            live = [n for n in range(len(requests)) if n not in waiting and n not in done and n not in aborted]
            if live:
                number = draw.choice(live)
                aborted.add(number)
                engine.abort_request([f"r{number}"])
        if draw.random() < 0.004:
            scheduler.reset_prefix_cache(reset_running_requests=True)
    for _ in range(3):
        engine.step()
    counts = dict(scheduler.total_counts)
    print(f"{setting}, seed {seed}: {steps} steps, {len(done)} done, {len(aborted)} aborted, {counts}", flush=True)
    wrong = [
        (number, requests[number][:2])
        for number, tokens in done.items()
        if number not in aborted and not reference.answer(requests[number][0], *requests[number][2:]).agrees(tokens)
    ]
    assert wrong == []
    assert set(done) | aborted == set(range(len(requests)))
    assert counts.get("lockstep_errors", 0) == counts.get("failed_requests", 0) == 0
    pool = scheduler.kv_cache_manager.block_pool
    assert not (scheduler.requests or scheduler.groups or scheduler.running or len(scheduler.waiting))
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def _guided(draw: random.Random, suffixes: bool) -> tuple[list[int], dict[str, Any], Guidance, int]:
    prompt = _ids(draw, draw.choice([1, 2, 17, 33, 60]))
    shared = _ids(random.Random(1), draw.choice([33, 65]))  # but for one token, the prefix cache may hold all of it
    negative = draw.choice([None, _ids(draw, 1), _ids(draw, 31), _ids(draw, 33), _ids(draw, 60), shared])
    scale, tokens = draw.choice([0.5, 1.5, 3.0]), draw.randrange(5, LONGEST)
    context = None if negative is None else tuple(negative)
    arguments: dict[str, Any] = {"guidance_scale": scale}
    if negative is not None:
        arguments["negative_prompt_ids"] = negative
    match draw.randrange(8):
        case 0 if suffixes:  # elsewhere a suffix is refused
            suffix = tuple(range(7, draw.choice([9, 30])))
            arguments = {"guidance": f"suffix_cfg:guidance_scale={scale},suffix={list(suffix)},entropy_threshold=3.5"}
            return prompt, arguments, lg.SuffixCFG(scale, suffix, 3.5), min(tokens, 20)
        case 1:
            texts = ("A tale of the sea:", "A tale of space: The captain")
            arguments = {"guidance_scale": scale, "negative_prompts": list(texts), "negative_weights": [0.5, 0.25]}
            gate = draw.choice([None, lg.Entropy(3.5)])
            if gate is not None:
                arguments["entropy_threshold"] = gate.threshold
            return prompt, arguments, lg.PromptMixture(texts, (-0.5, -0.25), scale - 1, gate=gate), tokens
        case 2 | 3 | 4:
            arguments["entropy_threshold"] = 3.5
            return prompt, arguments, lg.SelectiveCFG(scale, context, entropy_threshold=3.5), tokens
    return prompt, arguments, lg.CFG(scale, context), tokens


def _plain(draw: random.Random) -> tuple[list[int], dict[str, Any], None, int]:
    return _ids(draw, draw.choice([1, 20, 60, 100])), {}, None, draw.randrange(5, LONGEST)


def _ids(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(4, VOCAB) for _ in range(length)]


def _state(scheduler: Any) -> list[object]:
    return [dict(scheduler.total_counts)] + [
        (request.request_id, request.status.name, request.num_tokens, request.num_computed_tokens)
        for request in scheduler.requests.values()
    ]
