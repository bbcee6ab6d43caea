"""The training command: what it says when it is stopped, and that what it says works."""

from __future__ import annotations

import re
import shlex
import signal
from typing import TYPE_CHECKING, Any

import pytest

from lmguide.training import __main__ as command
from lmguide.training.interrupts import STOPPED
from lmguide.training.trainer import CHECKPOINT, Run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("number", "options", "model"),
    [(signal.SIGINT, [], "tales"), (signal.SIGTERM, [], "tales"), (signal.SIGINT, ["--model", "sudoku"], "sudoku")],
)
def test_a_stopped_run_says_how_to_go_on_and_that_works(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    options: list[str],
    model: str,
) -> None:
    handler = signal.getsignal(number)
    out = tmp_path / "a model"
    advance = Run.advance

    def interrupted(run: Run[Any]) -> float:
        signal.raise_signal(number)
        return advance(run)

    monkeypatch.setattr(Run, "advance", interrupted)
    assert command.main([*options, "--out", str(out), "--steps", "3"]) == STOPPED
    assert signal.getsignal(number) is handler
    assert [file.name for file in out.iterdir()] == [CHECKPOINT]

    said = re.search(r"continue with: python -m lmguide\.training (.*)", capsys.readouterr().err)
    assert said is not None
    monkeypatch.setattr(Run, "advance", advance)
    assert command.main(shlex.split(said[1])) == 0
    assert (out / "model.safetensors").exists()
    assert not (out / CHECKPOINT).exists()
    assert f"--model {model} --out DIR --steps 3 --seed 0`" in (out / "README.md").read_text(encoding="utf-8")


def test_a_wrong_resume_is_one_sentence_not_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path), "--resume"]) == 2
    assert capsys.readouterr().err.startswith("error: expected a checkpoint to resume")


@pytest.mark.parametrize("option", ["--steps", "--checkpoint-every", "--threads"])
@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many"])
def test_counts_must_be_positive(option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), f"{option}={value}"])
    assert f"argument {option}: expected a positive integer, got {value}" in capsys.readouterr().err


def test_help_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "which of the models (default: tales)" in said
    assert "optimiser steps (default: 2500 for tales, 1500 for slots, 120 for sudoku, " in said


def test_an_unknown_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--model", "sonnets", "--out", str(tmp_path)])
    assert "argument --model: invalid choice: 'sonnets'" in capsys.readouterr().err
