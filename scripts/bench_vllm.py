"""Cost of guided requests in vLLM beside plain ones, as ratios within one run; how: `scripts/interleaved.py`.

Two engines, each in a process of its own, work in turn: one that knows nothing of lmguide, and one with the plugin.
Plain requests come before and after each mode, for these runs take so long that a machine's speed changes meanwhile.
Answers are of different lengths, so that the engine is full until the last requests. For each selective mode the
engine without the plugin is also given plain requests that come to as many tokens and as many samples: what would be
left if guidance itself cost nothing.

python -m scripts.bench_vllm --markdown                                                  # CPU, float32
python -m scripts.bench_vllm --device cuda --dtype bfloat16 --size 32 2048 --prompt 512 --new 256
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import os
import random
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from scripts.bench_huggingface import threshold_for
from scripts.interleaved import Row, Stopwatch, add_options, heading, llama, measure, set_up, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
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
PLAIN = "plain, without the plugin"
BOUND = "as many plain tokens"
BARS = {
    "plugin, not used": 0.98,
    "CFG": 0.45,
    "SelectiveCFG about 10%": 0.80,
    "SelectiveCFG about 10%, own negatives": 0.80,
    "SuffixCFG (MTI) about 10%": 0.80,
}
"""Least throughput of a mode, relative to plain requests in vLLM without the plugin."""
MOST_OVERHEAD = 0.03
"""Of a step: what scheduling pairs may take more than scheduling as many plain requests."""
CALIBRATION = 64
"""Requests on which a threshold is sought: which of them fire differs, so that a few would miss the share by much."""


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
        self, arguments: Mapping[str, Any] | None = None, requests: int | None = None, more: tuple[int, int] = (0, 0)
    ) -> dict[str, float]:
        """Let it answer.

        Args:
            arguments: Extra arguments of the requests.
            requests: How many; all of the load without it.
            more: So many tokens to compute and samples to draw are added, as further plain requests.

        Returns:
            What it counted.
        """
        self.connection.send((arguments, requests, more))
        found: dict[str, float] = self.connection.recv()
        cpu, wall = self.clock.spent
        self.clock.spent = (cpu + found["cpu"], wall + found["wall"])
        return found


def _serve(connection: Connection, load: Load, plugin: bool) -> None:
    """An engine's process."""
    if not plugin:
        _hide_plugin()
    from vllm import LLM, SamplingParams

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
    core: Any = llm.llm_engine.engine_core
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
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra)
            for _, tokens, extra in asked
        ]
        given: Any = [{"prompt_token_ids": prompt} for prompt, *_ in asked]
        counts = getattr(scheduler, "total_counts", {})
        counts.clear()
        timed.start()
        cpu, wall = time.process_time(), time.perf_counter()
        llm.generate(given, params, use_tqdm=False)
        spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        work = {"scheduler": timed.seconds, "steps": timed.steps, "tokens": timed.tokens, "samples": timed.samples}
        connection.send({**spent, **work, **counts})


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


def modes_for(
    without: Engine, engine: Engine, seen: dict[str, dict[str, float]], selective: bool
) -> dict[str, Callable[[], str]]:
    """The modes by name; each runs once and tells what it did.

    Args:
        without: The engine without the plugin.
        engine: The one with it.
        seen: Takes what each mode's last run counted.
        selective: Whether the selective ones are among them.
    """

    def tell(name: str, found: dict[str, float]) -> str:
        seen[name] = found
        guided, skipped = found.get("guided_steps", 0), found.get("skipped_steps", 0)
        fired = f", fired {guided / (guided + skipped):.0%}" if skipped else ""
        return f"{found['steps']:.0f} steps, {found['tokens']:.0f} tokens, {found['samples']:.0f} samples{fired}"

    def mode(name: str, engine: Engine, arguments: Mapping[str, Any] | None = None) -> Callable[[], str]:
        return lambda: tell(name, engine.run(arguments))

    def bound(name: str, of: str) -> Callable[[], str]:
        def run() -> str:
            plain, guided = seen[PLAIN], seen[of]
            more = [int(guided[what] - plain[what]) for what in ("tokens", "samples")]
            return tell(name, without.run(more=(more[0], more[1])))

        return run

    def share(arguments: Mapping[str, Any]) -> Callable[[float], tuple[Any, list[float]]]:
        def run(threshold: float) -> tuple[Any, list[float]]:
            found = engine.run({**arguments, "entropy_threshold": min(threshold, 1e9)}, requests=CALIBRATION)
            fired, skipped = found.get("guided_steps", 0), found.get("skipped_steps", 0)
            return SimpleNamespace(fired=fired, steps=fired + skipped), between

        return run

    cfg = {"guidance_scale": 1.5, "negative_prompt_ids": Negative.OWN}
    one = {**cfg, "negative_prompt_ids": Negative.ONE}
    suffix = {"guidance": "suffix_cfg:guidance_scale=1.5,suffix=[17, 23]"}
    modes = {
        PLAIN: mode(PLAIN, without),
        "plugin, not used": mode("plugin, not used", engine),
        "CFG": mode("CFG", engine, cfg),
    }
    gated = (
        ("SelectiveCFG about 10%", one),
        ("SelectiveCFG about 10%, own negatives", cfg),
        ("SuffixCFG (MTI) about 10%", suffix),
    )
    between = [0.0, math.log(VOCAB)]
    for name, arguments in gated if selective else ():
        threshold = threshold_for(0.1, share(arguments))
        between = [threshold]  # the next mode's is near
        modes[name] = mode(name, engine, {**arguments, "entropy_threshold": threshold})
        modes[f"{name}: {BOUND}"] = bound(f"{name}: {BOUND}", name)
    return modes


def verdicts(rows: list[Row], seen: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Each bar and what came out."""
    lines = []
    for row in rows:
        if (bar := BARS.get(row.mode)) is not None:
            by_wall = f"{1 / row.wall_ratio:.2f} by elapsed time"
            most = [f", of at most {1 / other.cpu_ratio:.3f}" for other in rows if other.mode == f"{row.mode}: {BOUND}"]
            found = f"throughput {1 / row.cpu_ratio:.3f} of plain{''.join(most)}, {by_wall}"
            lines.append(f"{row.mode}: {found}; bar: at least {bar}")
    plain, guided = seen["plugin, not used"], seen["CFG"]
    more = guided["scheduler"] / guided["steps"] - plain["scheduler"] / plain["steps"]
    step = guided["cpu"] / guided["steps"]
    lines.append(
        f"scheduling pairs: {more * 1e3:.2f} ms a step more than plain requests, {more / step:.1%} of "
        f"{step * 1e3:.0f} ms; bar: at most {MOST_OVERHEAD:.0%}"
    )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--pairs", type=int, default=64, help="guided requests at a time; plain ones: twice as many")
    parser.add_argument("--requests", type=int, help="of one run (default: twice the pairs)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--negative", type=int, help="tokens of a negative prompt (default: as many)")
    parser.add_argument("--new", type=int, default=48, help="tokens of an answer on average")
    parser.add_argument("--size", type=int, nargs=2, default=[6, 512], metavar=("BLOCKS", "WIDTH"), help="of the model")
    parser.add_argument("--no-selective", action="store_true", help="without selective modes and their thresholds")
    parser.add_argument("--json", help="also write what each mode's last run counted to this file")
    arguments = parser.parse_args()
    set_up(arguments)
    blocks, width = arguments.size
    model = llama(
        arguments,
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
    )
    title = heading([model], arguments)
    os.environ |= ENVIRONMENT | {"OMP_NUM_THREADS": str(arguments.threads)}
    requests = arguments.requests or 2 * arguments.pairs
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model.save_pretrained(folder)
        del model
        negative = arguments.prompt if arguments.negative is None else arguments.negative
        shape = (arguments.pairs, requests, arguments.prompt, negative, arguments.new, arguments.dtype)
        load = Load(folder, *shape)
        clock = Clock(arguments.device)
        without, engine = (stack.enter_context(Engine(load, plugin, clock)) for plugin in (False, True))
        seen: dict[str, dict[str, float]] = {}
        modes = modes_for(without, engine, seen, not arguments.no_selective)
        rows = measure(modes, arguments.rounds, clock, between=True)
    print(f"{title}, vLLM {importlib.metadata.version(_distribution())}")
    lengths = f"{load.prompt} tokens, negative prompts of {negative}, {load.new} new on average"
    print(f"{requests} requests of {lengths}, {2 * load.pairs} at a time\n")
    print(table(rows, arguments.markdown), *verdicts(rows, seen), sep="\n")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(seen, file, indent=1)


def _distribution() -> str:
    """The name under which vLLM is installed."""
    return next(name for name in ("vllm", "vllm-cpu") if any(importlib.metadata.Distribution.discover(name=name)))


if __name__ == "__main__":
    main()
