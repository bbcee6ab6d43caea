"""Tables and the page say what was measured, and the front is what no cheaper setting beats."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

import lmguide as lg
from lmguide.eval.harness.settings import Setting
from lmguide.eval.sweeps import Result, render, tables
from lmguide.eval.sweeps.plots import front, strength
from lmguide.eval.sweeps.store import Point


def result(setting: Setting, score: float, passes: float, task: str = "quiz", **metrics: float) -> Result:
    """A result made up."""
    point = Point(task, setting.to_dict(), setting.label, setting.digest, {"model": "m", "model_args": {}}, {"seed": 1})
    values = {"acc": (score, 0.01), **{name: (value, None) for name, value in metrics.items()}}
    return Result(point, {task: values}, {"acc": True, "perplexity": False}, {task: 50}, passes, 1.0)


GUIDED = [Setting((lg.CFG(scale),)) for scale in (1.5, 2.0, 3.0)]
RESULTS = [
    result(Setting(), 0.5, 1, perplexity=9.0),
    result(GUIDED[0], 0.6, 2, perplexity=8.0),
    result(GUIDED[1], 0.8, 2, perplexity=12.5),
    result(GUIDED[2], 0.7, 2, perplexity=40.0),
    result(Setting(passes=2), 0.75, 2, perplexity=7.0),
]


def printed(results: list[Result]) -> str:
    """The tables as text."""
    console = Console(width=150, color_system=None, file=io.StringIO())
    for table in tables(results):
        console.print(table)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


class Page(HTMLParser):
    """Collects what a page loads and its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]


def test_the_table_has_errors_evaluations_and_the_control() -> None:
    text = printed(RESULTS)
    assert "quiz, 50 documents" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "setting acc ↑ perplexity ↓ evaluations" in lines
    assert "cfg guidance_scale=2.0 0.8000 ± 0.0100 12.50 2.00×" in lines
    assert "control: unguided, 2 passes 0.7500 ± 0.0100 7.0000 2.00×" in lines
    assert "No compute-matched control" not in text
    assert "No compute-matched control" in printed(RESULTS[:-1])


def test_the_front_is_what_nothing_cheaper_beats() -> None:
    assert [row.point.label for row in front(RESULTS, "quiz", "acc")] == ["unguided", "cfg guidance_scale=2.0"]
    assert [row.point.label for row in front(RESULTS, "quiz", "perplexity")] == ["unguided", "unguided, 2 passes"]


def test_strengths_are_told_from_everything_else() -> None:
    setting = Setting((lg.SelectiveCFG(2.0, entropy_threshold=0.5),), normalize=False)
    found = strength(result(setting, 0.5, 2))
    assert found == ("guidance_scale", 2.0, "selective_cfg entropy_threshold=0.5, not normalised")
    assert strength(result(Setting((lg.DoLa(),)), 0.5, 1)) == ("scale", 1.0, "dola")


def test_the_page_needs_nothing_else_and_escapes_text() -> None:
    rows = [result(Setting((lg.CFG(2.0, "<script>&"),)), 0.5, 2, "a<b"), *RESULTS]
    page = render(rows, title="1 < 2")
    parser = Page()
    parser.feed(page)
    assert "script" not in parser.tags
    assert "link" not in parser.tags
    assert all(link.startswith("#") for link in parser.loads)
    assert "http-equiv" in page and "<title>1 &lt; 2</title>" in page
    assert "a&lt;b" in page and "<script" not in page
    assert parser.tags.count("figure") == parser.tags.count("svg") == 2 + 2 * 1 - 1 + 2
    assert "0.8000 ± 0.0100" in page
    assert "#010203" not in page


def test_there_is_no_page_of_nothing() -> None:
    with pytest.raises(ValueError, match="results: expected at least one"):
        render([])


def test_groups_show_their_own_row() -> None:
    point = RESULTS[0].point
    grouped = Result(
        point, {"quiz": {"acc": (0.4, 0.1)}, "part": {"acc": (0.3, 0.1)}}, {"acc": True}, {"part": 9}, 1.0, 1.0
    )
    assert "0.4000 ± 0.1000" in printed([grouped])
    assert "0.3000" not in printed([grouped])
