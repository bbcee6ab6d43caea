"""`lmguide` as a program: help, exit statuses, and errors of one line."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lmguide
from lmguide.cli import main
from tests.programs import program

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("demo", "generate", "inspect", "calibrate", "playground", "reproduce")
PROGRAM = [sys.executable, "-W", "error", "-c", "import sys; from lmguide.cli import main; sys.exit(main())"]
TALES = ["generate", "--model", "tales"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"lmguide {lmguide.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n    {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example_that_fits(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert re.search(rf"^  lmguide {command} .*--", out.partition("example")[2], re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "required: command. See lmguide --help."),
        (["generat"], "invalid choice: 'generat'"),
        (["generate", "--prompt", "x"], "required: --model. See lmguide generate --help."),
        ([*TALES, "--prompt", "x", "--guidence", "cfg"], "unrecognized arguments: --guidence cfg"),
        ([*TALES, "--prompt", "x", "--guidance", "cfgg"], "got 'cfgg'. Did you mean 'cfg'?"),
        ([*TALES, "--prompt", "x", "--guidance", "cfg:guidance_scal=2"], "Did you mean 'guidance_scale'?"),
        ([*TALES, "--prompt", "x", "--guidance", "cfg:guidance_scale=NaN"], "guidance_scale"),
        ([*TALES, "--prompt", "x", "--file", "y"], "--file: not allowed with argument --prompt"),
        (TALES, "one of the arguments --prompt --chat --file is required"),
        ([*TALES, "--prompt", ""], "prompt: expected a text or messages, got an empty one."),
        ([*TALES, "--prompt", "x", "--negative-prompt", ""], "negative_prompt: expected a text or messages"),
        ([*TALES, "--file", "none.txt"], "none.txt: No such file or directory."),
        ([*TALES, "--chat", "none.json"], "none.json: No such file or directory."),
        ([*TALES, "--prompt", "x", "--out", "none/answer.txt"], "--out: expected a file in a folder that exists"),
        ([*TALES, "--prompt", "x", "--out", "."], "--out: expected a file in a folder that exists"),
        ([*TALES, "--prompt", "x", "--seed", "-1"], "--seed: expected a whole number from 0"),
        ([*TALES, "--prompt", "x", "--seed", "1.5"], "--seed: expected a whole number from 0"),
        ([*TALES, "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens: expected a whole number from 1"),
        ([*TALES, "--prompt", "x", "--temperature", "inf"], "--temperature: expected a finite number in [0, inf]"),
        ([*TALES, "--prompt", "x", "--top-p", "1.1"], "--top-p: expected a finite number in [0, 1]"),
        ([*TALES, "--prompt", "x", "--temperature", "0", "--top-k", "5"], "Drop --top-p and --top-k."),
        (
            [*TALES, "--prompt", "x", "--device", "gpu!"],
            "--device: expected a device such as cpu or cuda:0, got 'gpu!'",
        ),
        ([*TALES, "--prompt", "x", "--device", "cuda:99"], "--device: expected a device of this machine"),
        (["generate", "--model", "./none", "--prompt", "x"], "--model: expected a folder, a name on the hub or tales"),
        (["inspect", "--model", "tales", "--prompt", "x"], "required: --out"),
        (["demo", "--topic", "the see"], "expected a topic, got 'the see'."),
        (["demo", "--scales", "1", "nan"], "--scales: expected a finite number in [-20, 20], got 'nan'"),
        (["calibrate", "--records", "none.jsonl"], "none.jsonl: No such file or directory."),
    ],
)
def test_wrong_input_is_told_in_one_line(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lmguide: error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_an_error_comes_from() -> None:
    with pytest.raises(ValueError, match="Did you mean 'cfg'"):
        main([*TALES, "--prompt", "x", "--guidance", "cfgg", "--debug"])


def test_program_writes_the_answer_to_stdout_and_nothing_else() -> None:
    words = [*TALES, "--prompt", "A tale of the sea:", "--max-new-tokens", "4", "--json"]
    result = program([*PROGRAM, *words], cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith('{"prompt": "A tale of the sea:", ')
    assert result.stdout.count("\n") == 1


def test_program_whose_reader_goes_away_ends_quietly(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A tale:\n" * 50)
    words = [*TALES, "--file", str(prompts), "--max-new-tokens", "2"]
    with subprocess.Popen([*PROGRAM, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"# A tale:\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_an_output_that_lacks_letters_gets_others(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main([*TALES, "--prompt", "A tale of caf\u00e9s:", "--max-new-tokens", "2", "--json"]) == 0
    assert raw.getvalue().startswith(b'{"prompt": "A tale of caf?s:", ')
