"""vLLM engines in processes of their own, which answer a load of requests a turn at a time; for `bench_vllm`."""

from __future__ import annotations

import importlib.metadata
import math
import multiprocessing
import random
import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import torch

from scripts.interleaved import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from multiprocessing.connection import Connection

VOCAB = 32000
BLOCK = 32
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the process whose time is measured
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
TURN = 0.5
"""Seconds that an engine works before the other one does."""


class Negative(Enum):
    """Which negative prompt a request has."""

    ONE = auto()
    """The same as all others, as where an application wants one thing avoided."""
    OWN = auto()
    """One of its own, which has to be computed for it."""


@dataclass(frozen=True)
class Load:
    """What every mode has to do.

    Attributes:
        model: Folder of the model.
        pairs: Guided requests at a time; plain ones are twice as many, in the same number of rows.
        requests: Of one run.
        prompt: Tokens of each prompt.
        negative: Tokens of each negative prompt.
        new: Tokens of an answer on average; they have between half and one and a half times as many.
        dtype: Of the weights.
        seed: Of the prompts.
    """

    model: str
    pairs: int
    requests: int
    prompt: int
    negative: int
    new: int
    dtype: str
    seed: int = 0


class Clock(Stopwatch):
    """Reads what the engines' own processes measured, in place of this one's time."""

    spent = (0.0, 0.0)

    def _now(self) -> tuple[float, float]:
        return self.spent


class Engine:
    """An engine in a process of its own, which ends with the context.

    Args:
        load: What it will be asked to do.
        plugin: Whether it has lmguide's plugin.
        clock: Where its time is added up.
    """

    def __init__(self, load: Load, plugin: bool, clock: Clock) -> None:
        self.clock = clock
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, load, plugin), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> Engine:
        self.connection.recv()  # it has started
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.process.join(30)
        self.process.kill()

    def run(
        self,
        arguments: Mapping[str, Any] | None = None,
        requests: int | None = None,
        more: tuple[int, int] = (0, 0),
        steps: float = math.inf,
    ) -> Generator[float, None, dict[str, float]]:
        """Let it answer, for a turn at a time; yields how much is done, of 1.

        Args:
            arguments: Extra arguments of the requests.
            requests: How many; all of the load without it.
            more: So many tokens to compute and samples to draw are added, as further plain requests.
            steps: How many it will take.

        Returns:
            What it counted, and the CPU time of all its turns.
        """
        self.connection.send((arguments, requests, more))
        took = 0.0
        while True:
            found: dict[str, float] = self.connection.recv()
            cpu, wall = self.clock.spent
            self.clock.spent = (cpu + found["cpu"], wall + found["wall"])
            took += found["cpu"]
            if found["finished"]:
                return {**found, "cpu": took}
            yield found["steps"] / steps
            self.connection.send("go on")


def _serve(connection: Connection, load: Load, plugin: bool) -> None:
    """An engine's process."""
    if not plugin:
        _hide_plugin()
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    llm = LLM(
        load.model,
        dtype=load.dtype,
        skip_tokenizer_init=True,
        max_model_len=-(-(max(load.prompt, load.negative) + 2 * load.new + 8) // BLOCK) * BLOCK,
        max_num_seqs=2 * load.pairs,
        block_size=BLOCK,
        gpu_memory_utilization=0.1,
        disable_log_stats=True,
    )
    engine = llm.llm_engine
    core: Any = engine.engine_core
    scheduler = core.engine_core.scheduler
    timed = _Timed(scheduler)
    generator = torch.Generator().manual_seed(load.seed)
    prompts, negatives = (
        torch.randint(2, VOCAB, (load.requests, length), generator=generator).tolist()
        for length in (load.prompt, load.negative)
    )
    lengths = torch.randint(load.new // 2, load.new * 3 // 2 + 1, (load.requests,), generator=generator).tolist()
    connection.send(None)
    while True:
        try:
            arguments, requests, more = connection.recv()
        except EOFError:
            return
        llm.reset_prefix_cache()
        asked = [
            (prompt, tokens, None if arguments is None else _filled(arguments, negatives[0], negative))
            for prompt, negative, tokens in zip(prompts[:requests], negatives, lengths, strict=False)
        ]
        asked += [(prompt, tokens, None) for prompt, tokens in _further(more, load, generator)]
        random.Random(load.seed).shuffle(asked)
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args=extra,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for _, tokens, extra in asked
        ]
        counts = getattr(scheduler, "total_counts", {})
        counts.clear()
        timed.start()
        cpu, wall = time.process_time(), time.perf_counter()
        for number, ((prompt, *_), param) in enumerate(zip(asked, params, strict=True)):
            engine.add_request(str(number), {"prompt_token_ids": prompt}, param)
        while engine.has_unfinished_requests():
            engine.step()
            now, finished = time.perf_counter(), not engine.has_unfinished_requests()
            if finished or now - wall > TURN:
                spent = {"cpu": time.process_time() - cpu, "wall": now - wall, "finished": finished}
                connection.send({**spent, **timed.counted(), **counts})
                if not finished:
                    connection.recv()
                    cpu, wall = time.process_time(), time.perf_counter()


def _further(more: tuple[int, int], load: Load, generator: torch.Generator) -> Iterator[tuple[list[int], int]]:
    """Prompts and lengths of requests that come to so many tokens computed and samples drawn."""
    tokens, samples = more
    requests = max(load.requests, tokens // (load.prompt + load.new)) if tokens else 0
    for place in range(requests):
        drawn = samples * (place + 1) // requests - samples * place // requests
        share = tokens * (place + 1) // requests - tokens * place // requests
        if share:  # an answer's first token is a sample of its prompt's last
            drawn = min(max(drawn, 1), share)
            yield torch.randint(2, VOCAB, (share - drawn + 1,), generator=generator).tolist(), drawn


class _Timed:
    """What a scheduler takes of CPU time, and what it plans."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.start()
        for name in ("schedule", "update_from_output"):
            setattr(scheduler, name, self._wrap(getattr(scheduler, name), name == "schedule"))

    def start(self) -> None:
        """Count from here."""
        self.seconds = 0.0
        self.steps = self.tokens = self.samples = 0

    def counted(self) -> dict[str, float]:
        """Seconds in the scheduler, and what was planned."""
        return {"scheduler": self.seconds, "steps": self.steps, "tokens": self.tokens, "samples": self.samples}

    def _wrap(self, function: Callable[..., Any], plans: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            result = function(*args, **kwargs)
            self.seconds += time.process_time() - started
            if plans:
                requests = self.scheduler.requests
                self.steps += 1
                self.tokens += result.total_num_scheduled_tokens
                self.samples += sum(not requests[name].is_prefill_chunk for name in result.num_scheduled_tokens)
            return result

        return call


def _filled(arguments: Mapping[str, Any], one: list[int], own: list[int]) -> dict[str, Any]:
    """The arguments of one request, with the negative prompt that is wanted."""
    prompts = {Negative.ONE: one, Negative.OWN: own}
    return {key: prompts[value] if isinstance(value, Negative) else value for key, value in arguments.items()}


def _hide_plugin() -> None:
    """Let this process find every entry point but those of lmguide."""
    original = importlib.metadata.entry_points

    def entry_points(**params: Any) -> Any:
        found: Any = original(**params)
        return importlib.metadata.EntryPoints(each for each in found if not each.value.startswith("lmguide."))

    importlib.metadata.entry_points = entry_points
