"""What the benchmarks share: modes run in interleaved rounds, and their cost as a ratio to the first of them.

Every mode runs once per round, so that whatever else the machine does meets all of them alike. A figure is the median
over rounds of the ratio to the first mode's run of the same round: `cpu` of process CPU time, `wall` of elapsed time.
Modes that run for so long that a machine's speed changes meanwhile run abreast of the first, in turns of a moment.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
import transformers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Generator, Mapping, Sequence

    Run: TypeAlias = Generator[float, None, str]
    """Works for a moment at a time, yields how much of it is done, of 1, and tells at its end what it did."""

Told = TypeVar("Told")
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
    modes: Mapping[str, Callable[[], str]], rounds: int, stopwatch: Stopwatch, what: str = "rounds"
) -> list[Row]:
    """Run all modes once to warm up and then in interleaved rounds.

    Args:
        modes: By name; each runs once and tells what it did. The others' ratios are to the first.
        rounds: How often.
        stopwatch: Started before each run.
        what: The progress bar's label.
    """
    figures = {name: _Figures(run()) for name, run in modes.items()}
    first = next(iter(modes))
    for _ in tqdm(range(rounds), desc=what, file=sys.stderr):
        for name, run in modes.items():
            stopwatch.start()
            run()
            figures[name].times.append(stopwatch.read())
            figures[name].compare(figures[first])
    return [each.row(name) for name, each in figures.items()]


def measure_abreast(
    modes: Mapping[str, Callable[[], Run]], rounds: int, stopwatch: Stopwatch, what: str = "rounds"
) -> list[Row]:
    """Run all modes once to warm up; then, in every round, each but the first side by side with the first.

    Args:
        modes: By name; each gives a run. The others' ratios are to the first's run at their side.
        rounds: How often.
        stopwatch: Started before each turn.
        what: The progress bar's label.
    """
    figures = {name: _Figures(to_end(run())) for name, run in modes.items()}
    first, *others = modes
    for _ in tqdm(range(rounds), desc=what, file=sys.stderr):
        for name in others:
            pair = (first, name)
            times = _abreast([modes[each]() for each in pair], stopwatch)
            for each, spent in zip(pair, times, strict=True):
                figures[each].times.append(spent)
                figures[each].compare(figures[first])
    return [each.row(name) for name, each in figures.items()]


def to_end(run: Generator[float, None, Told]) -> Told:
    """Let a run go on to its end; returns what it tells."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            told: Told = end.value
            return told


def _abreast(runs: Sequence[Run], stopwatch: Stopwatch) -> list[tuple[float, float]]:
    """Give turns to several runs, always to that which is farthest behind; returns the time each of them took."""
    done: dict[int, float] = dict.fromkeys(range(len(runs)), 0.0)
    times = [(0.0, 0.0)] * len(runs)
    while done:
        turn = min(done, key=done.__getitem__)
        stopwatch.start()
        try:
            done[turn] = next(runs[turn])
        except StopIteration:
            del done[turn]
        cpu, wall = stopwatch.read()
        times[turn] = (times[turn][0] + cpu, times[turn][1] + wall)
    return times


@dataclass
class _Figures:
    """What is known of a mode: what it told, its times, and their ratios to the first's."""

    said: str
    times: list[tuple[float, float]] = field(default_factory=list)
    ratios: list[tuple[float, float]] = field(default_factory=list)

    def compare(self, first: _Figures) -> None:
        """Add the ratio of the last run to that of the first mode."""
        (cpu, wall), (cpu_1, wall_1) = self.times[-1], first.times[-1]
        self.ratios.append((cpu / cpu_1, wall / wall_1))

    def row(self, name: str) -> Row:
        """The medians."""
        (cpu, wall), (cpu_ratio, wall_ratio) = (
            [statistics.median(each[which] for each in found) for which in (0, 1)]
            for found in (self.times, self.ratios)
        )
        return Row(name, cpu, wall, cpu_ratio, wall_ratio, self.said)


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
