"""The training command: what it says when it is stopped, and that what it says works."""

from __future__ import annotations

import re
import shlex
import signal
from typing import TYPE_CHECKING

import pytest

from lmguide.training import __main__ as command
from lmguide.training import language_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    handler = signal.getsignal(number)
    out = tmp_path / "a model"
    advance = language_model._Run.advance

    def interrupted(run: language_model._Run) -> float:
        signal.raise_signal(number)
        return advance(run)

    monkeypatch.setattr(language_model._Run, "advance", interrupted)
    assert command.main(["--out", str(out), "--steps", "3"]) == command.STOPPED
    assert signal.getsignal(number) is handler
    assert [file.name for file in out.iterdir()] == [language_model.CHECKPOINT]

    said = re.search(r"continue with: python -m lmguide\.training (.*)", capsys.readouterr().err)
    assert said is not None
    monkeypatch.setattr(language_model._Run, "advance", advance)
    assert command.main(shlex.split(said[1])) == 0
    assert (out / "model.safetensors").exists()
    assert not (out / language_model.CHECKPOINT).exists()
    assert f"--steps 3 --seed {language_model.Settings().seed}" in (out / "README.md").read_text(encoding="utf-8")


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
    assert f"(default: {language_model.Settings().steps})" in capsys.readouterr().out
