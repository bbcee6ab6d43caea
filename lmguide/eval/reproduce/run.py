"""Measures what a paper reports and puts both side by side: a table, and a dictionary for a file."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lmguide.eval.reproduce.papers import Part, Recipe, Row
    from lmguide.eval.sweeps import Options, Result, Runner


@dataclass(frozen=True)
class Line:
    """A published number beside a measured one.

    Args:
        task: Name of the task.
        metric: Name of the metric.
        label: The guidance, as a compact string.
        paper: The published number; `None` if there is none.
        paper_error: Its standard error, where it was published.
        ours: The measured one.
        error: Its standard error; `None` if there is none.
        documents: How many it is from.
        passes: Forward evaluations, as a multiple of the plain model's.
    """

    task: str
    metric: str
    label: str
    paper: float | None
    paper_error: float | None
    ours: float
    error: float | None
    documents: int
    passes: float

    @property
    def name(self) -> str:
        """The guidance in two words: method and strength."""
        method, _, rest = self.label.partition(":")
        return " ".join([method, rest.partition("=")[2].partition(",")[0]]).strip()

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        return None if self.paper is None else self.ours - self.paper

    @property
    def difference_error(self) -> float | None:
        """Standard error of the difference, of those of both that are known, as if they were independent."""
        known = [each for each in (self.error, self.paper_error) if each is not None]
        return math.hypot(*known) if known and self.paper is not None else None


def measure(
    recipe: Recipe,
    parts: Sequence[Part],
    tasks: Mapping[str, Any],
    options: Options,
    runner: Callable[[Options], Runner],
    gen_kwargs: Mapping[str, Any] | None = None,
) -> list[Line]:
    """Run what is missing in the store, task by task, and compare.

    Args:
        recipe: The experiment.
        parts: What of it to run.
        tasks: Name → what lm-eval's task manager loads for it.
        options: How; number of examples and chat template are the experiment's.
        runner: Makes a runner with its options. The runners may share one model and one store.
        gen_kwargs: Arguments of generation in the place of the experiment's.

    Raises:
        ValueError: A task has not the metric.
    """
    lines = []
    for part in parts:
        own = replace(
            options,
            num_fewshot=part.num_fewshot,
            gen_kwargs={**part.gen_kwargs, **(gen_kwargs or {})},
            apply_chat_template=recipe.chat,
        )
        settings = [recipe.setting(row) for row in part.rows]
        results = runner(own).sweep({part.task: tasks[part.task]}, settings, control=False)
        lines += [_line(part, row, result) for row, result in zip(part.rows, results, strict=True)]
    return lines


def tables(lines: Sequence[Line]) -> Iterator[Table]:
    """A table for each task: guidance, the paper's number, ours, their difference, and evaluations."""
    for (task, metric), group in itertools.groupby(lines, key=lambda line: (line.task, line.metric)):
        rows = list(group)
        found = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left", title_style="bold")
        found.title = f"{task}, {metric}, {rows[0].documents} documents"
        found.add_column("guidance", overflow="fold")
        for name in ("paper", "ours", "difference", "cost"):
            found.add_column(name, justify="right", no_wrap=True)
        for line in rows:
            found.add_row(
                line.name,
                _shown(line.paper, line.paper_error),
                _shown(line.ours, line.error),
                _shown(line.difference, line.difference_error, "+"),
                f"{line.passes:.2f}×",
            )
        yield found


def told(recipe: Recipe, model: str, lines: Sequence[Line], run: Mapping[str, Any]) -> dict[str, Any]:
    """Everything as a dictionary for a JSON file.

    Args:
        recipe: The experiment.
        model: The model that ran.
        lines: What came out.
        run: How it was run.
    """
    rows = [{**dataclasses.asdict(line), "difference": line.difference} for line in lines]
    return {"title": recipe.title, "source": recipe.source, "model": model, "run": dict(run), "lines": rows}


def _line(part: Part, row: Row, result: Result) -> Line:
    metrics = result.metrics[part.task]
    if part.metric not in metrics:
        raise ValueError(f"{part.task}: expected the metric {part.metric}, got {', '.join(metrics)}. Check lm-eval.")
    value, error = metrics[part.metric]
    documents = result.samples.get(part.task, 0)
    return Line(part.task, part.metric, row.label, row.value, row.error, value, error, documents, result.passes)


def _shown(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")
