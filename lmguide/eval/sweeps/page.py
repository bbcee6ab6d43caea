"""The page of a sweep: tables with standard errors and pictures in one HTML file that needs nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lmguide.eval.sweeps.plots import against_passes, against_strength
from lmguide.eval.sweeps.table import NO_CONTROL, better, by_task, is_control, metrics, shown
from lmguide.pages import template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmguide.eval.sweeps.store import Result


class Row(NamedTuple):
    """A row of a table."""

    label: str
    control: bool
    cells: list[tuple[str, bool]]
    passes: str


class Section(NamedTuple):
    """What the page says of a task."""

    name: str
    documents: int
    columns: list[tuple[str, str]]
    rows: list[Row]
    pictures: list[tuple[str, str]]
    no_control: str


def render(results: Sequence[Result], *, title: str = "Guidance on benchmarks") -> str:
    """A self-contained HTML page about the results of a sweep.

    Args:
        results: The results.
        title: The page's title.

    Returns:
        The page. All text in it is escaped.

    Raises:
        ValueError: There is no result.
        ImportError: matplotlib is not installed.
    """
    if not results:
        raise ValueError("results: expected at least one, got none. Run a sweep first.")
    sections = [_section(name, rows) for name, rows in by_task(results).items()]
    first = results[0]
    return template("eval.html").render(
        title=title,
        points=len(results),
        model=first.point.model,
        run={name: value for name, value in first.point.run.items() if value not in (None, {}, False)},
        versions=first.told.get("versions", {}),
        sections=sections,
    )


def _section(name: str, rows: Sequence[Result]) -> Section:
    columns = metrics(rows)
    best = {metric: _best(rows, name, metric) for metric in columns}
    table = [
        Row(
            row.point.label,
            is_control(row),
            [(shown(row, name, metric), row is best[metric]) for metric in columns],
            f"{row.passes:.2f}",
        )
        for row in sorted(rows, key=is_control)
    ]
    pictures = []
    for metric in columns:
        by_strength = against_strength(rows, name, metric)
        if by_strength is not None:
            pictures.append((f"{metric} against strength", by_strength))
        pictures.append((f"{metric} against evaluations", against_passes(rows, name, metric)))
    lacks = not any(map(is_control, rows)) and any(row.passes > 1 for row in rows)
    heads = [(metric, "higher is better" if better(rows, metric) else "lower is better") for metric in columns]
    count = rows[0].samples.get(name, max(rows[0].samples.values(), default=0))
    return Section(name, count, heads, table, pictures, NO_CONTROL if lacks else "")


def _best(rows: Sequence[Result], name: str, metric: str) -> Result | None:
    kept = [row for row in rows if metric in row.metrics.get(name, {})]
    sign = 1 if better(rows, metric) else -1
    return max(kept, key=lambda row: sign * row.metrics[name][metric][0], default=None)
