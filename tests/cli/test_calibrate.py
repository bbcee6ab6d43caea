"""`lmguide calibrate` prints a gate that the guidance of the other commands takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import lmguide
from lmguide.calibration import Record, calibrate
from lmguide.cli import main

if TYPE_CHECKING:
    from pathlib import Path

RECORDS = [Record(k / 1000, True, k >= 500) for k in range(1000)]


@pytest.fixture
def records(tmp_path: Path) -> str:
    """A file of records whose unguided outcome is wrong where the confidence is below a half."""
    file = tmp_path / "records.jsonl"
    keys = ("confidence", "with_guidance", "without_guidance")
    file.write_text("".join(json.dumps({key: getattr(record, key) for key in keys}) + "\n" for record in RECORDS))
    return str(file)


@pytest.mark.parametrize("conditional", [False, True])
def test_prints_the_gate_and_reports_what_it_does(
    conditional: bool, records: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = calibrate(RECORDS, alpha=0.1, delta=0.2, conditional=conditional)
    out = tmp_path / "gate.json"
    words = ["--alpha", "0.1", "--delta", "0.2", "--out", str(out), *(["--conditional"] if conditional else [])]
    assert main(["calibrate", "--records", records, *words]) == 0
    printed, report = capsys.readouterr()
    assert lmguide.parse_guidance(f"cfg:guidance_scale=2,gate={printed.strip()}") == lmguide.CFG(2, gate=gate)
    assert out.read_text() == printed
    assert report.startswith(f"Guidance is skipped where the confidence reaches {gate.threshold:g}: ")


def test_the_line_it_ends_with_is_a_guidance(records: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--records", records]) == 0
    hint = capsys.readouterr().err.splitlines()[-1]
    method = lmguide.parse_guidance(hint.partition("--guidance '")[2].removesuffix("'"))
    assert method.gate == calibrate(RECORDS, alpha=0.05, delta=0.1)


@pytest.mark.parametrize(
    ("content", "words", "expected"),
    [
        ('{"confidence": 0.5}\n', [], "line 1: Record: expected a value for with_guidance"),
        ("", [], "expected at least one record"),
        (None, ["--alpha", "2"], "alpha: expected"),
        (None, ["--statistic", "negative_entropy"], "Name the statistic that was recorded."),
    ],
)
def test_wrong_input_writes_no_gate(
    content: str | None,
    words: list[str],
    expected: str,
    records: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "records.jsonl").write_text(content)
    assert main(["calibrate", "--records", records, "--out", str(tmp_path / "gate.json"), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]
