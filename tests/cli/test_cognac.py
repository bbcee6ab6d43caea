"""`lmguide cognac` runs the benchmark with and without guidance, and goes on where it was stopped."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from lmguide.cli import cognac as command
from lmguide.cli import main
from lmguide.eval import cognac
from lmguide.eval.cognac import items as building
from tests.eval.database import write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small WordNet, and answers of some tokens."""
    monkeypatch.setattr(building, "TOPIC_WORDS", 6)
    monkeypatch.setattr(building, "CONSTRAINT_WORDS", 1)
    monkeypatch.setattr(cognac, "ROOTS", ("thing.n.01",))
    monkeypatch.setenv("COLUMNS", "140")
    (tmp_path / "wordnet").mkdir()
    return ["--wordnet", str(write(tmp_path / "wordnet")), "--split", "test"]


@pytest.fixture
def running(options: list[str], tmp_path: Path) -> list[str]:
    """The words of a small run."""
    small = ["--max-new-tokens", "8", "--batch-size", "2", "--out", str(tmp_path / "results")]
    return ["cognac", "--model", "tales", *small, *options]


def words(beta: float) -> list[str]:
    return ["--guidance", f"word_guidance:include=<allowed_words>,exclude=<forbidden_words>,beta={beta}"]


def test_shows_items_without_a_model(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cognac", "--show", "2", *options]) == 0
    printed = capsys.readouterr().out
    items = cognac.build(cognac.read(options[1], cognac.ROOTS), "test")
    assert all(item.prompt.strip() in printed for item in items[:2])
    assert items[2].prompt.strip() not in printed
    assert printed.count("# forbidden: ") == 2


def test_a_table_of_the_unguided_model_and_all_guidance_so_far(
    running: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*running, *words(3.0)]) == 0
    first = capsys.readouterr().out
    files = sorted((tmp_path / "results").iterdir())
    assert [re.sub(r"-\w{8}\.json", "", file.name) for file in files] == ["test-unguided", "test-word_guidance"]
    data = json.loads(files[1].read_text())
    items = cognac.build(cognac.read(running[running.index("--wordnet") + 1], cognac.ROOTS), "test")
    assert [answer["id"] for answer in data["answers"]] == [item.id for item in items]
    share = sum(answer["on_topic"] for answer in data["answers"]) / len(items)
    assert data["summary"]["on_topic"]["value"] == pytest.approx(share)
    assert data["setting"]["guidance"][0]["include"] == "<allowed_words>"
    assert f"{len(items)} items of test" in first
    assert re.search(r"unguided +[\d.]+ ± [\d.]+", first)
    assert re.search(rf"word_guidance include, exclude, beta=3\.0 +{100 * share:.1f} ± ", first)

    made: list[str] = []
    answer = cognac.answers

    def counted(setting: cognac.Setting, *more: Any) -> Iterator[list[cognac.Answer]]:
        made.append(setting.label)
        return answer(setting, *more)

    monkeypatch.setattr(cognac, "answers", counted)
    assert main([*running, *words(4.0)]) == 0
    second = capsys.readouterr().out
    assert made == ["word_guidance include, exclude, beta=4.0"]
    assert all(f"exclude, beta={beta}" in second for beta in ("3.0", "4.0"))

    def no_model(arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(command, "load_model", no_model)
    assert main([*running, *words(3.0)]) == 0
    assert len(made) == 1


def test_a_stopped_run_goes_on_and_ends_as_one_that_was_not(
    running: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*running, *words(3.0)]) == 0
    whole = {file.name: file.read_text() for file in (tmp_path / "results").iterdir()}
    again = [word.replace("results", "again") for word in running]
    answer, batches = cognac.answers, 0

    def stopped(*arguments: Any) -> Iterator[list[cognac.Answer]]:
        nonlocal batches
        for batch in answer(*arguments):
            if batches == 1:
                raise KeyboardInterrupt
            batches += 1
            yield batch

    monkeypatch.setattr(cognac, "answers", stopped)
    assert main([*again, *words(3.0)]) == 130
    (part,) = (tmp_path / "again").iterdir()
    assert len(json.loads(part.read_text())["answers"]) == 2
    monkeypatch.setattr(cognac, "answers", answer)
    assert main([*again, *words(3.0)]) == 0
    assert {file.name: file.read_text() for file in (tmp_path / "again").iterdir()} == whole
    capsys.readouterr()


def test_a_broken_file_is_told_of_and_made_anew(
    running: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*running, *words(3.0)]) == 0
    whole = {file: file.read_text() for file in (tmp_path / "results").iterdir()}
    broken = next(iter(whole))
    for content in ("{", '{"answers": []}', whole[broken].replace('"tokens"', '"token"')):
        broken.write_text(content)
        capsys.readouterr()
        assert main([*running, *words(3.0)]) == 0
        assert f"{broken}: expected results" in capsys.readouterr().err
        assert {file: file.read_text() for file in (tmp_path / "results").iterdir()} == whole


def test_a_model_that_lists_nothing_is_told_of_on_one_line(
    running: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*running, "--limit", "2"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "expected examples of" in line]
    assert lines
    assert all(line.startswith("lmguide: topic: ") for line in lines)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "--model: expected"),
        (["--model", "tales", "--guidance", "exampl_guidance"], "Did you mean 'example_guidance'"),
        (["--model", "tales", "--guidance", 'word_guidance:include=["<topic>"]'], "inside another"),
        (["--model", "tales", "--wordnet", "nowhere"], "apt-get install wordnet-base"),
        (["--model", "no/such-model"], "--model: expected"),
        (["--model", "tales", "--device", "gpu"], "--device: expected"),
    ],
)
def test_wrong_input_runs_nothing(
    more: list[str], said: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cognac", "--out", str(tmp_path / "results"), *options, *more]) == 2
    printed, errors = capsys.readouterr()
    assert said in errors
    assert printed == ""
    assert not list(tmp_path.glob("results/*"))
