"""`lmguide demo` shows what guidance does, measures it beside the closed form, and fits the place it is shown in."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

import lmguide
from lmguide.cli import main
from lmguide.cli.demo import changed, measure
from lmguide.training import tales as corpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUICK = ["demo", "--sentences", "40", "--scales", "1", "3"]


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a short demo writes into a pipe of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(QUICK) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_measured_is_what_the_closed_form_predicts(
    tales: tuple[PreTrainedModel, PreTrainedTokenizerBase], scale: float
) -> None:
    model, tokenizer = tales
    guided = lmguide.guide(model, lmguide.CFG(scale, negative_prompt="A tale:"), tokenizer=tokenizer)
    sample = measure(guided, tokenizer, "space", sentences=640, seed=0)
    assert sample.on_topic == pytest.approx(corpus.predicted(scale), abs=0.08)
    # That of independent sentences; those of a tale are nearly so.
    binomial = (sample.on_topic * (1 - sample.on_topic) / 640) ** 0.5
    assert sample.error == pytest.approx(binomial, rel=0.3)
    assert sample.grammatical > 0.95
    assert sample.passes == pytest.approx(1.0 if scale == 1 else 2.0, abs=0.05)


def test_tables_have_a_row_for_each_scale(output: str) -> None:
    rows = re.findall(r"^ +([\d.]+) +0\.\d{3} ± 0\.\d{3} +(0\.\d{3}) .*% +([\d.]+) *$", output, re.MULTILINE)
    assert rows == [("1", "0.550", "1.0"), ("3", "0.943", "2.0")]
    assert len(re.findall(r"\d of \d", output)) == 2


@pytest.mark.parametrize("columns", [80, 120])
def test_fits_the_columns_without_escape_codes(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(QUICK) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert 0.9 * columns < max(map(len, out.splitlines())) <= columns


def test_colours_changes_on_a_terminal_unless_asked_not_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(QUICK) == 0
    assert "\x1b[1;32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(QUICK) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_the_first_command_to_type_next_writes_the_strongest_tale(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = output.partition("What to type next:")[2].partition("lmguide inspect")[0]
    words = shlex.split(typed.replace("\\\n", " "))
    assert words[0] == "lmguide"
    assert main(words[1:]) == 0
    tale = capsys.readouterr().out.split()
    shown = re.sub(r"\d of \d", "", output).split()
    assert len(tale) > 20
    assert any(shown[place : place + len(tale)] == tale for place in range(len(shown)))


def test_a_seed_gives_its_demo_again(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(QUICK) == 0
    assert capsys.readouterr().out == output
    assert main([*QUICK, "--seed", "9"]) == 0
    assert capsys.readouterr().out != output


@pytest.mark.parametrize(
    ("before", "after", "coloured"),
    [
        ("The gull slept.", "The gull slept.", []),
        ("The gull slept.", "The crab slept.", ["crab"]),
        ("The gull slept.", "A sad crab slept. An end.", ["A sad crab", "An end."]),
        ("The gull slept.", "The gull", []),
        ("The  gull\nslept.", "The gull slept.", []),
        ("", "The gull", ["The gull"]),
    ],
)
def test_colours_the_words_that_are_new(before: str, after: str, coloured: list[str]) -> None:
    text = changed(before, after)
    assert text.plain == " ".join(after.split())
    assert [text.plain[span.start : span.end] for span in text.spans] == coloured
