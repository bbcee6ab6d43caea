"""What the benchmarks share: modes run in interleaved rounds, and their cost as a ratio to the first of them.

Every mode runs once per round, so that whatever else the machine does meets all of them alike. A figure is the median
over rounds of the ratio to the first mode's run of the same round: `cpu` of process CPU time, `wall` of elapsed time.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

LOGIT_SPREAD = 6.0
"""Random weights give nearly uniform next-token laws; logits are scaled so that entropies spread over a few nats."""


@dataclass(frozen=True)
class Row:
    """One mode's figures."""

    mode: str
    cpu_s: float
    wall_s: float
    cpu_ratio: float
    wall_ratio: float
    note: str


class Stopwatch:
    """Seconds of process CPU time and of elapsed time since it was started.

    A mode may start it anew behind what is not to count, such as a prefill.

    Args:
        device: What to wait for before the time is read.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.start()

    def start(self) -> None:
        """Count from here."""
        self._started = self._now()

    def read(self) -> tuple[float, float]:
        """CPU seconds and elapsed seconds."""
        (cpu, wall), (cpu_0, wall_0) = self._now(), self._started
        return cpu - cpu_0, wall - wall_0

    def _now(self) -> tuple[float, float]:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()


def measure(
    modes: Mapping[str, Callable[[], str]],
    rounds: int,
    stopwatch: Stopwatch,
    what: str = "rounds",
    between: bool = False,
) -> list[Row]:
    """Run all modes once to warm up and then in interleaved rounds.

    Args:
        modes: By name; each runs once and tells what it did. The others' ratios are to the first.
        rounds: How often.
        stopwatch: Started before each run.
        what: The progress bar's label.
        between: Whether the first runs again after each other, whose ratio is then to the mean of the runs around it:
            where runs are long, and the machine's speed changes meanwhile.
    """
    said = {name: run() for name, run in modes.items()}
    first, *others = modes
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in modes}
    ratios: dict[str, list[tuple[float, ...]]] = {name: [] for name in modes}

    def timed(name: str) -> tuple[float, float]:
        stopwatch.start()
        modes[name]()
        times[name].append(stopwatch.read())
        return times[name][-1]

    for _ in tqdm(range(rounds), desc=what, file=sys.stderr):
        before = timed(first)
        ratios[first].append((1.0, 1.0))
        for name in others:
            found = timed(name)
            after = timed(first) if between else before
            ratios[name].append(tuple(2 * f / (b + a) for f, b, a in zip(found, before, after, strict=True)))
            before = after

    def row(name: str) -> Row:
        (cpu, wall), (cpu_ratio, wall_ratio) = (
            [statistics.median(each[which] for each in found) for which in (0, 1)]
            for found in (times[name], ratios[name])
        )
        return Row(name, cpu, wall, cpu_ratio, wall_ratio, said[name])

    return [row(name) for name in modes]


def table(rows: Sequence[Row], markdown: bool) -> str:
    """The figures, in columns for a terminal or as Markdown."""
    cells = [("mode", "cpu s", "wall s", "cpu ratio", "wall ratio", "")]
    for row in rows:
        ratio = f"**{row.cpu_ratio:.2f}**" if markdown else f"{row.cpu_ratio:.2f}"
        cells.append((row.mode, f"{row.cpu_s:.3g}", f"{row.wall_s:.3g}", ratio, f"{row.wall_ratio:.2f}", row.note))
    if markdown:
        lines = ["| " + " | ".join(line).rstrip() + " |" for line in cells]
        return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in (0, len(line) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all benchmarks have."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds, at least 5 for figures to keep")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")


def set_up(arguments: argparse.Namespace) -> None:
    """As many threads as asked for, and no warnings of transformers."""
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()


def llama(arguments: argparse.Namespace, **size: Any) -> Any:
    """A random Llama of a size, where and as the options say, with spread-out next-token laws and no end."""
    torch.manual_seed(0)
    config = LlamaConfig(pad_token_id=0, bos_token_id=1, eos_token_id=None, **size)
    model = LlamaForCausalLM(config).eval()
    model.model.norm.weight.data.mul_(LOGIT_SPREAD)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(device=arguments.device, dtype=getattr(torch, arguments.dtype))


def heading(models: Sequence[Any], arguments: argparse.Namespace) -> str:
    """What was measured on what: sizes, precision, machine, versions."""
    sizes = " and ".join(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M" for model in models)
    on_gpu = arguments.device.startswith("cuda")
    machine = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return (
        f"{sizes} parameters, {arguments.dtype}, {machine}, {arguments.threads} thread(s), "
        f"torch {torch.__version__}, transformers {transformers.__version__}; {arguments.rounds} rounds"
    )
