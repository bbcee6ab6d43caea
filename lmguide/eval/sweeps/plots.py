"""Pictures of a sweep as SVG: score against a strength, and against evaluations with the Pareto front."""

from __future__ import annotations

import io
import re
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from lmguide.eval.sweeps.table import better, is_control

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmguide.eval.sweeps.store import Result

INK = "#010203"
"""Stands for the colour of the page's text, which the page puts in its place."""
COLOURS = ("#1f6feb", "#f08a24", "#2da44e", "#a371f7", "#d4526e", "#8c8c8c")
CONTROL = "#8c8c8c"
LONGEST = 40
"""Letters of a label in a picture."""


def against_strength(rows: Sequence[Result], name: str, metric: str) -> str | None:
    """Score against the strength of the first method, a line for each combination of everything else.

    Returns:
        An SVG element; `None` where there are not two strengths.
    """
    lines: dict[str, list[tuple[float, Result]]] = {}
    field = ""
    off = [row for row in rows if not is_control(row) and not row.point.setting["guidance"]]
    for row in rows:
        guidance = row.point.setting["guidance"]
        if guidance:
            found = strength(row)
            if found is None:
                continue
            field, value, rest = found
            lines.setdefault(rest, []).append((value, row))
    if not any(len(line) > 1 for line in lines.values()):
        return None
    figure, axes = _figure()
    for (rest, line), colour in zip(sorted(lines.items()), COLOURS * len(lines), strict=False):
        points = sorted([*line, *((1.0, row) for row in off if field == "guidance_scale")], key=lambda point: point[0])
        _line(axes, [value for value, _ in points], [row for _, row in points], name, metric, colour, rest or metric)
    for row in rows:
        if is_control(row) and metric in row.metrics.get(name, {}):
            axes.axhline(
                row.metrics[name][metric][0], color=CONTROL, linestyle=":", label=f"control: {row.point.label}"
            )
    axes.set_xlabel(field)
    axes.set_ylabel(metric)
    _legend(axes)
    return _svg(figure)


def against_passes(rows: Sequence[Result], name: str, metric: str) -> str:
    """Score against evaluations, with the settings that no cheaper or equally cheap one beats."""
    figure, axes = _figure()
    kept = [row for row in rows if metric in row.metrics.get(name, {})]
    for row in kept:
        value, error = row.metrics[name][metric]
        colour = CONTROL if is_control(row) else COLOURS[0]
        style = {"marker": "D" if is_control(row) else "o", "markersize": 6, "capsize": 2, "linestyle": "none"}
        axes.errorbar([row.passes], [value], yerr=[error or 0.0], color=colour, **style)
    best = front(kept, name, metric)
    axes.step(
        [row.passes for row in best],
        [row.metrics[name][metric][0] for row in best],
        where="post",
        color=COLOURS[1],
        label="Pareto front",
        zorder=0,
    )
    for row in best:
        axes.annotate(
            shorten(row.point.label, LONGEST, placeholder=" …"),
            (row.passes, row.metrics[name][metric][0]),
            textcoords="offset points",
            xytext=(6, 6),
            fontsize=8,
        )
    axes.set_xlabel("forward evaluations, unguided = 1")
    axes.set_ylabel(metric)
    axes.margins(x=0.25, y=0.2)
    _legend(axes)
    return _svg(figure)


def front(rows: Sequence[Result], name: str, metric: str) -> list[Result]:
    """The results that none of fewer or as many evaluations beats, from the cheapest on."""
    sign = 1 if better(rows, metric) else -1
    found: list[Result] = []
    for row in sorted(rows, key=lambda row: (row.passes, -sign * row.metrics[name][metric][0])):
        if not found or sign * row.metrics[name][metric][0] > sign * found[-1].metrics[name][metric][0]:
            found.append(row)
    return found


def strength(row: Result) -> tuple[str, float, str] | None:
    """The name and value of the strength of the first method of a guided result, and the setting without it."""
    from lmguide.guidance import GUIDANCE

    description = row.point.setting["guidance"][0]
    field = GUIDANCE.get(description["name"]).strength_field
    value = description.get(field)
    if not isinstance(value, int | float):
        return None
    rest = re.sub(rf"\b{field}=[^,\s]+(, )?", "", row.point.label)
    return field, float(value), rest.strip(" ,")


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(True, color=CONTROL, alpha=0.25, linewidth=0.6)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
    return figure, axes


def _line(
    axes: Any, x: Sequence[float], rows: Sequence[Result], name: str, metric: str, colour: str, label: str
) -> None:
    pairs = [row.metrics[name][metric] for row in rows]
    axes.errorbar(
        x,
        [value for value, _ in pairs],
        yerr=[error or 0.0 for _, error in pairs],
        color=colour,
        marker="o",
        markersize=4,
        capsize=2,
        label=label,
    )


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _svg(figure: Any) -> str:
    """The figure as an element of a page: text stays text and takes the page's colour."""
    import matplotlib

    for text in figure.findobj(matplotlib.text.Annotation):
        text.set_color(INK)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lmguide"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    found = file.getvalue()
    return found[found.index("<svg") :].replace(INK, "currentColor")
