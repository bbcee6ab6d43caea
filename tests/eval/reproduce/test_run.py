"""Numbers side by side: differences, their errors, and that each task is run as the paper says."""

from __future__ import annotations

import io
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from lmguide.eval.reproduce import Line, measure, recipe, tables, told
from lmguide.eval.sweeps import Options, Result, Runner
from lmguide.eval.sweeps.store import Point

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmguide.eval.harness.settings import Setting

LINE = Line("quiz", "acc", "cfg:guidance_scale=1.5", 0.45, 0.003, 0.46, 0.004, 500, 2.0)


class Pretended:
    """In the place of a runner: gives every setting a number of its own and notes what it was asked."""

    def __init__(self, options: Options, asked: list[Any]) -> None:
        self.options, self.asked = options, asked

    def sweep(self, tasks: Mapping[str, Any], settings: Sequence[Setting], control: bool) -> list[Result]:
        """Results made up."""
        ((task, loaded),) = tasks.items()
        self.asked.append((task, loaded, self.options, control))
        metrics = {"acc_norm": (0.5, 0.1), "acc": (0.4, None), "exact_match,flexible-extract": (0.3, None)}
        point = Point(task, {}, "", "", {}, {})
        return [
            Result(point, {task: {k: (v[0] + n / 100, v[1]) for k, v in metrics.items()}}, {}, {task: 9}, 1.0 + n, 1.0)
            for n, _ in enumerate(settings)
        ]


def measured(asked: list[Any]) -> list[Line]:
    """Two tasks of an experiment."""
    experiment = recipe("acfg")
    parts = experiment.parts(experiment.default, ["winogrande", "gsm8k"])

    def runner(options: Options) -> Runner:
        return Pretended(options, asked)  # type: ignore[return-value]

    loaded = {"winogrande": "W", "gsm8k": "G"}
    return measure(experiment, parts, loaded, Options(limit=3), runner, {"max_gen_toks": 7})


def test_each_task_is_run_as_the_paper_says() -> None:
    asked: list[Any] = []
    measured(asked)
    (first, second) = asked
    assert first == ("winogrande", "W", Options(num_fewshot=5, limit=3, gen_kwargs={"max_gen_toks": 7}), False)
    assert second[2] == Options(num_fewshot=4, limit=3, gen_kwargs={"max_gen_toks": 7, "steps": 256})


def test_a_line_is_the_papers_number_and_ours() -> None:
    lines = measured([])
    assert [line.task for line in lines] == ["winogrande"] * 3 + ["gsm8k"] * 3
    assert [line.paper for line in lines[:3]] == [0.745, 0.751, 0.759]
    assert [line.ours for line in lines[:3]] == pytest.approx([0.40, 0.41, 0.42])
    assert [line.ours for line in lines[3:]] == pytest.approx([0.30, 0.31, 0.32])
    assert lines[2].difference == pytest.approx(0.42 - 0.759)
    assert lines[2].difference_error is None
    assert [line.passes for line in lines[:3]] == [1.0, 2.0, 3.0]


def test_errors_of_differences_add_up_in_squares() -> None:
    assert LINE.difference == pytest.approx(0.01)
    assert LINE.difference_error == pytest.approx(math.sqrt(0.003**2 + 0.004**2))
    alone = Line("quiz", "acc", "unguided", None, None, 0.46, 0.004, 500, 1.0)
    assert alone.difference is alone.difference_error is None


def test_a_metric_that_is_not_there_is_named() -> None:
    experiment = recipe("mti")
    parts = experiment.parts(experiment.default)
    with pytest.raises(ValueError, match="aime24: expected the metric exact_match, got acc_norm, acc"):
        measure(experiment, parts, {"aime24": None}, Options(), lambda options: Pretended(options, []))  # type: ignore[arg-type,return-value]


def test_tables_fit_a_terminal() -> None:
    console = Console(width=80, color_system=None, file=io.StringIO())
    other = Line("trivia", "acc", "unguided", None, None, 0.46, 0.004, 500, 1.0)
    for each in tables([LINE, LINE, other]):
        console.print(each)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines.count("cfg 1.5 0.4500 ± 0.0030 0.4600 ± 0.0040 +0.0100 ± 0.0050 2.00×") == 2
    assert "unguided – 0.4600 ± 0.0040 – 1.00×" in lines
    assert [line for line in lines if "documents" in line] == [
        "quiz, acc, 500 documents",
        "trivia, acc, 500 documents",
    ]


def test_the_file_has_everything() -> None:
    data = json.loads(json.dumps(told(recipe("mti"), "mine", [LINE], {"seed": 1})))
    assert data["model"] == "mine" and data["run"] == {"seed": 1} and "2510.13940" in data["source"]
    (line,) = data["lines"]
    assert (line["paper"], line["ours"], line["passes"]) == (0.45, 0.46, 2.0)
    assert line["difference"] == pytest.approx(0.01)
