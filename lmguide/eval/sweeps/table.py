"""Tables of a sweep for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmguide.eval.sweeps.store import Result

NO_CONTROL = (
    "No compute-matched control: here the unguided model has no use for further passes. Name a larger one with "
    "--control-args."
)


def tables(results: Sequence[Result]) -> Iterator[Table]:
    """A table for each task, in the order of the results: settings, metrics with standard errors, evaluations.

    A control is a row of its own at the end.
    """
    for name, rows in by_task(results).items():
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left", title_style="bold")
        count = max(rows[0].samples.values(), default=0)
        table.title = f"{name}, {count} documents"
        table.add_column("setting", overflow="fold")
        columns = metrics(rows)
        for metric in columns:
            table.add_column(f"{metric} {'↑' if better(rows, metric) else '↓'}", justify="right", no_wrap=True)
        table.add_column("evaluations", justify="right")
        for row in sorted(rows, key=is_control):
            kind = "control: " * is_control(row)
            table.add_row(
                f"{kind}{row.point.label}", *(shown(row, name, metric) for metric in columns), f"{row.passes:.2f}×"
            )
        if not any(map(is_control, rows)) and any(row.passes > 1 for row in rows):
            table.caption, table.caption_justify = NO_CONTROL, "left"
        yield table


def by_task(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of each task."""
    found: dict[str, list[Result]] = {}
    for result in results:
        for name in _leading(result):
            found.setdefault(name, []).append(result)
    return found


def metrics(rows: Sequence[Result]) -> list[str]:
    """The metrics of a task, in its own order."""
    name = _leading(rows[0])[0]
    return list(rows[0].metrics[name])


def better(rows: Sequence[Result], metric: str) -> bool:
    """Whether more of a metric is better."""
    return rows[0].higher_is_better.get(metric.partition(",")[0], True)


def is_control(result: Result) -> bool:
    """Whether a result is one of the compute-matched control."""
    return bool(result.told.get("control")) or result.point.setting.get("passes", 1) > 1


def shown(result: Result, name: str, metric: str) -> str:
    """A value with its standard error."""
    if metric not in result.metrics.get(name, {}):
        return ""
    value, error = result.metrics[name][metric]
    digits = 4 if abs(value) < 10 else 2
    return f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"


def _leading(result: Result) -> list[str]:
    """The name that was asked for, or those it stands for where it is a tag of tasks."""
    return [result.point.task] if result.point.task in result.metrics else list(result.metrics)
