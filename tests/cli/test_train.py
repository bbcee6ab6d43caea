"""`lmguide train`: a guide from a file in one command, which can be stopped, continued, and says what is wrong."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lmguide as lg
from lmguide.cli import main
from lmguide.training.guides.run import CHECKPOINT, Run
from tests.training.guides import rows, write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = ("gedi", "prefix-classifier")
QUICK = ["--label-field", "mood", "--base", "tales", "--cpu", "--max-length", "48"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with texts in it."""
    write(tmp_path / "data.jsonl", rows(40))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(kind: str, *more: str) -> list[str]:
    return ["train", kind, "--data", "data.jsonl", *QUICK, "--out", "my guide", "--epochs", "0.5", *more]


@pytest.mark.parametrize("kind", KINDS)
def test_one_command_makes_a_guide_and_says_how_to_use_it(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str], tales: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    assert main(words(kind)) == 0
    out, err = capsys.readouterr()
    metrics, use = out.splitlines()
    told = "accuracy 0, nll 0" if kind == "gedi" else "accuracy 0, accuracy of prefixes 0, nll 0"
    assert re.sub(r"\d\.\d{3}", "0", metrics) == told
    assert metrics in err
    assert err.splitlines()[1:3] == ["4 texts held out to measure on", "5 steps of 4 examples"]
    model, tokenizer = tales
    method = eval(use.partition("Use it:  ")[2], {"lg": lg})
    guided: Any = lg.guide(model, method, tokenizer=tokenizer)
    inputs = tokenizer("A tale of the sea:", return_tensors="pt")
    assert guided.generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


def interrupted(run: Run) -> float:
    signal.raise_signal(signal.SIGINT)
    return ADVANCE(run)


ADVANCE = Run.advance


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_says_how_to_go_on_and_that_works(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Run, "advance", interrupted)
    assert main(words(kind)) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert [file.name for file in (folder / "my guide").iterdir()] == [CHECKPOINT]
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("lmguide: stopped. Continue with: lmguide train ")
    monkeypatch.undo()
    os.chdir(folder)
    assert main(shlex.split(last.partition("Continue with: lmguide ")[2])) == 0
    resumed = {file.name: file.read_bytes() for file in (folder / "my guide").iterdir()}
    (folder / "my guide").rename(folder / "resumed")
    assert main(words(kind)) == 0
    assert {file.name: file.read_bytes() for file in (folder / "my guide").iterdir()} == resumed


def test_every_option_is_a_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmguide.cli import train

    seen: dict[str, Any] = {}

    def noted(make: Any, accelerator: Any, out: Path, **more: Any) -> None:
        seen.update(settings=make().settings, out=out, **more)

    monkeypatch.setattr(train, "train", noted)
    options = {
        "learning_rate": 0.5,
        "epochs": 2.5,
        "batch_size": 3,
        "gradient_accumulation": 2,
        "max_length": 40,
        "scheduler": "cosine",
        "warmup_steps": 7,
        "weight_decay": 0.25,
        "max_grad_norm": 2.0,
        "mixed_precision": "no",
        "seed": 5,
        "gen_weight": 0.25,
    }
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*words("gedi"), *given, "--topic", "--codes", "glad= x", "--checkpoint-every", "9", "--resume"]) == 130
    settings = seen["settings"]
    assert {name: getattr(settings, name) for name in options} == options
    assert settings.topic
    assert settings.codes == {"glad": " x"}
    assert (seen["out"], seen["checkpoint_every"], seen["resume"]) == (Path("my guide"), 9, True)


@pytest.mark.parametrize("kind", KINDS)
def test_help_tells_the_defaults_and_fits(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["train", kind, "--help"])
    out = capsys.readouterr().out
    assert f"  lmguide train {kind} --data" in out.partition("example")[2]
    assert max(map(len, out.splitlines())) <= 80
    for default in ("2e-05", "default 192", "default 4", "default 1)"):
        assert default in out


GEDI = words("gedi")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train"], "required: guide. See lmguide train --help."),
        (["train", "gedy"], "invalid choice: 'gedy'"),
        (["train", "gedi"], "required: --data, --base, --out. See lmguide train gedi --help."),
        ([*words("prefix-classifier"), "--codes", "a=b"], "unrecognized arguments: --codes a=b"),
        ([*GEDI, "--codes", "glad"], "--codes: expected LABEL=TEXT, got 'glad'"),
        ([*GEDI, "--codes", "glad="], "--codes: expected LABEL=TEXT, got 'glad='"),
        ([*GEDI, "--codes", "glad=x", "glad=y"], "--codes: expected one for each label"),
        ([*GEDI, "--codes", "happy=x"], "codes: expected labels of the data (glad, grim), got 'happy'."),
        ([*GEDI, "--text-field", "txt"], "text_field: expected a column of the data (text, mood, topic), got 'txt'."),
        ([*GEDI, "--data", "none.jsonl"], "data: expected a file or a data set's name, got 'none.jsonl', and there is"),
        ([*GEDI, "--base", "./none"], "base: no tokenizer of './none' could be loaded"),
        ([*GEDI, "--out", "."], "out: expected a new or empty folder, got files in '.'. Name another."),
        ([*GEDI, "--resume"], "out: expected a run to resume, got no checkpoint in 'my guide'. Leave out --resume."),
        ([*GEDI, "--gen-weight", "2"], "--gen-weight: expected a finite number in [0, 1], got '2'"),
        ([*GEDI, "--epochs", "0"], "epochs: expected a finite number above 0, got 0.0."),
        ([*GEDI, "--batch-size", "0"], "--batch-size: expected a whole number from 1"),
        ([*GEDI, "--max-length", "300"], "max_length: expected at most the 256 positions of the base model, got 300."),
    ],
)
def test_wrong_input_is_told_in_one_line_and_writes_nothing(
    given: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lmguide: error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert [file.name for file in folder.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize("package", ["accelerate", "datasets"])
def test_a_missing_package_is_told_with_the_cure(
    package: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    assert main(GEDI) == 2
    assert capsys.readouterr().err == (
        f"lmguide: error: Training needs the package {package}. Install it: pip install 'lmguide[train]'.\n"
    )


def test_of_several_processes_one_tells(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="^1$"):
        main([*GEDI, "--epochs", "0"])
    assert capsys.readouterr() == ("", "")
