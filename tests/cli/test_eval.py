"""`lmguide eval`: from the command to table, files and page; what is wrong is said before a model is loaded."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from lmguide.cli import main
from lmguide.cli.benchmarks import read_pairs
from lmguide.cli.eval_options import dashes
from lmguide.eval.harness.__main__ import words_for_lm_eval
from lmguide.eval.harness.hf import GuidedHFLM
from tests.programs import processes, program

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["--model_args", "pretrained=tales", "--device", "cpu", "--limit", "5", "--batch_size", "3"]
GUIDED = ["--guidance", 'cfg:negative_prompt="A tale:"', "--sweep", "guidance_scale=1,1.5,3"]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no line of a table is broken."""
    monkeypatch.setenv("COLUMNS", "200")


def numbers(folder: Path) -> dict[str, object]:
    """The metrics in each file of a folder."""
    return {path.name: json.loads(path.read_text())["metrics"] for path in sorted(folder.glob("*.json"))}


def test_a_sweep_prints_a_table_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", *COMMAND, "--tasks", "tales_mc,tales_gen", *GUIDED, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "tales_mc, 5 documents" in printed.out
    assert "cfg guidance_scale=3, negative_prompt=A tale:" in " ".join(printed.out.split())
    assert "control: unguided, 2 passes" in " ".join(printed.out.split())
    assert "7 of 7 points were run" in printed.err
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert main(words) == 0
    assert "0 of 7 points were run" in capsys.readouterr().err


def test_a_larger_model_is_the_control_of_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    larger = ["--control-args", "pretrained=bundled/mood_gedi"]
    words = ["eval", *COMMAND, "--tasks", "tales_mc", "--guidance", "cfg", *larger, "--out", str(tmp_path)]
    assert main(words) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    (control,) = [line for line in lines if line.startswith("control: bundled/mood_gedi, unguided")]
    assert control.endswith("0.49×")  # 115,008 parameters beside 233,952


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "lmguide-hff", "--tasks", "tales_mc"], "--model: .* Did you mean lmguide-hf?"),
        (["--model", "hf", "--tasks", "tales_mc"], "--model: hf of lm-eval knows no guidance. Use lmguide-hf."),
        (["--model", "gpt2", "--tasks", "tales_mc"], "--model: .* goes to --model-args"),
        (["--tasks", "tales_mcc"], "--tasks: .* Did you mean tales_mc"),
        ([], "--tasks: expected at least one task"),
        (["--tasks", "tales_mc", "--guidance", "cfgg"], "Did you mean 'cfg'"),
        (["--tasks", "tales_mc", "--guidance", "cfg", "--sweep", "guidance_scal=1,2"], "Did you mean guidance_scale"),
        (["--tasks", "tales_mc", "--guidance", "cfg", "--source", "last"], "source: expected 'default'"),
        (["--tasks", "tales_mc", "--sources", "{"], "--sources: expected a JSON object"),
        (["--tasks", "tales_mc", "--limit", "1.5"], "--limit: expected a whole number"),
        (["--tasks", "tales_mc", "--batch-size", "0"], "--batch-size: expected a number"),
        (["--tasks", "tales_mc", "--data", "nowhere"], "data: expected a folder"),
        (["--tasks", "tales_mc", "--include-path", "nowhere"], "include_path: expected a folder"),
        (["--tasks", "tales_mc", "--report", "nowhere/page.html"], "--report: expected a file"),
        (["--tasks", "tales_mc", "--gen-kwargs", "temperature"], "--gen-kwargs: expected key=value"),
        (["--tasks", "tales_mc", "--model-args", "x=1,guidance=cfg"], "--model-args: guidance is an option"),
        (["--tasks", "tales_mc", "--model-args", "dtype=float32"], "--model-args: expected the model's name"),
        (["--tasks", "tales_mc", "--model-args", '{"pretrained": "tales"'], "--model-args: expected a JSON object"),
    ],
)
def test_wrong_arguments_are_one_sentence_before_a_model_is_loaded(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(GuidedHFLM, "__init__", load)
    given = [] if "--model-args" in words else ["--model-args", "pretrained=tales"]
    assert main(["eval", *given, *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--list-tasks"]) == 0
    assert {"tales_mc", "sudoku_4x4", "json_schema"} <= set(capsys.readouterr().out.split())


def test_pairs_are_lm_evals() -> None:
    assert read_pairs("--x", ["a=1,b=true", "c=d=e"]) == {"a": 1, "b": True, "c": "d=e"}
    assert read_pairs("--x", ['{"negative": "No, no = no"}']) == {"negative": "No, no = no"}
    with pytest.raises(ValueError, match="--x: 'a' is given twice"):
        read_pairs("--x", ["a=1", "a=2"])


def test_lm_evals_spelling_is_understood() -> None:
    assert dashes(["--model_args", "a_b=c_d", "--num_fewshot=3"]) == ["--model-args", "a_b=c_d", "--num-fewshot=3"]


def test_lm_evals_own_command_line_finds_our_tasks() -> None:
    found = words_for_lm_eval(["run", "--model", "lmguide-hf"])
    assert found[:3] == ["run", "--model", "lmguide-hf"]
    assert Path(found[found.index("--include_path") + 1], "tales_mc.yaml").is_file()
    with pytest.raises(ValueError, match="--cache_requests: beside --apply_chat_template"):
        words_for_lm_eval(["run", "--cache_requests", "true", "--apply_chat_template"])


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    words = [*COMMAND, "--tasks", "tales_mc,tales_gen", *GUIDED, "--out"]
    assert main(["eval", *words, str(tmp_path / "one")]) == 0
    done = processes(
        2, ["lmguide.eval", *words, str(tmp_path / "two")], cwd=ROOT, environment={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
    assert len(numbers(tmp_path / "two")) == 7


@pytest.mark.slow
def test_lm_evals_own_command_line_runs(tmp_path: Path) -> None:
    arguments = json.dumps({"pretrained": "tales", "guidance": 'cfg:guidance_scale=3,negative_prompt="A tale, say:"'})
    words = ["run", "--model", "lmguide-hf", "--model_args", arguments, "--tasks", "tales_mc", "--limit", "5"]
    run([sys.executable, "-m", "lmguide.eval.harness", *words, "--device", "cpu", "--output_path", str(tmp_path)])
    (path,) = tmp_path.rglob("results_*.json")
    found = json.loads(path.read_text())
    assert found["results"]["tales_mc"]["topic_probability,none"] > 0.8
    assert found["config"]["guidance"]["guidance"][0]["negative_prompt"] == "A tale, say:"


def run(command: list[str]) -> None:
    """Run a command to its end."""
    done = program(command, cwd=ROOT, environment={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
