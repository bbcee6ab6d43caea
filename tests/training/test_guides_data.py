"""Texts and labels as they stand in a file become tokens and classes, or a sentence that says what is wrong."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest

import lmguide as lg
from lmguide.training.guides.data import Corpus, Source, encode, read
from tests.training.guides import gedi, rows, run, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.training.guides import Files

PAIRS = [{"text": f"tale {number}", "label": "ba"[number % 2]} for number in range(20)]
_, TOKENIZER = lg.bundled("tales")


def made(source: Source, room: int = 100, seed: int = 0) -> Corpus:
    return encode(*read(source, seed), TOKENIZER, room, TOKENIZER.eos_token_id)


def contents(part: Any) -> list[tuple[str, int]]:
    return [(str(TOKENIZER.decode(row["ids"])), row["label"]) for row in part]


def as_json(file: Path, data: list[dict[str, Any]]) -> None:
    file.write_text(json.dumps(data))


def as_table(separator: str) -> Callable[[Path, list[dict[str, Any]]], None]:
    def written(file: Path, data: list[dict[str, Any]]) -> None:
        with file.open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(data[0]), delimiter=separator)
            table.writeheader()
            table.writerows(data)

    return written


def as_parquet(file: Path, data: list[dict[str, Any]]) -> None:
    import datasets

    datasets.Dataset.from_list(data).to_parquet(file)


FORMATS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "jsonl": write,
    "json": as_json,
    "csv": as_table(","),
    "tsv": as_table("\t"),
    "parquet": as_parquet,
}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_texts(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"data.{ending}"
    FORMATS[ending](file, [{"text": 'a "tale", told', "label": "b"}, *PAIRS])
    found = made(Source(data=str(file), validation_share=0))
    expected = [('a "tale", told', "b"), *((pair["text"], pair["label"]) for pair in PAIRS)]
    assert found.labels == ("a", "b")
    assert contents(found.train) == [(f"{text}<|eos|>", "ab".index(label)) for text, label in expected]
    assert contents(found.held_out) == []
    assert found.counts() == [10, 11]


def test_other_columns_and_their_order_make_no_difference(tmp_path: Path) -> None:
    plain = made(Source(data=write(tmp_path / "data.jsonl", PAIRS)))
    more = [{"ids": "x", "stars": pair["label"], "cut": None, "review": pair["text"]} for pair in PAIRS]
    other = made(Source(data=write(tmp_path / "more.jsonl", more), text_field="review", label_field="stars"))
    assert other.digest == plain.digest
    assert contents(other.train) == contents(plain.train)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a", "c"], ("a", "b", "c")),
        ([10, 9, 2], ("2", "9", "10")),
        ([True, False], ("False", "True")),
        (["1 star", 10, 9], ("9", "10", "1 star")),
    ],
)
def test_labels_are_texts_in_order(labels: list[Any], expected: tuple[str, ...], tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", [{"text": "tale", "label": label} for label in labels])
    found = made(Source(data=file, validation_share=0))
    assert found.labels == expected
    assert found.train["label"][:] == [expected.index(str(label)) for label in labels]


def test_a_data_set_names_its_numbers(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])})
    file = tmp_path / "data.parquet"
    datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=features).to_parquet(file)
    found = made(Source(data=str(file), validation_share=0))
    assert (found.labels, found.train["label"][:]) == (("z", "a"), [0, 1])


def test_long_texts_are_cut_and_only_whole_ones_end(tmp_path: Path) -> None:
    texts = ["aa", "aaa", "aaaa", "aaaaaaa", ""]
    lengths = [len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) for text in texts]
    room = lengths[2]
    assert lengths[1] < room < lengths[3]
    file = write(tmp_path / "data.jsonl", [{"text": text, "label": len(text) % 2} for text in texts])
    found = made(Source(data=file, validation_share=0), room=room)
    assert [len(ids) for ids in found.train["ids"]] == [lengths[0] + 1, lengths[1] + 1, room, room]
    ends = [ids[-1] == TOKENIZER.eos_token_id for ids in found.train["ids"]]
    assert ends == [True, True, False, False]
    assert (found.cut, found.empty) == (1, 1)
    assert found.largest == max(token for ids in found.train["ids"] for token in ids)


def test_a_share_is_held_out_by_the_seed(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", PAIRS)
    source = Source(data=file, validation_share=0.25)
    first, again, other = (made(source, seed=seed) for seed in (0, 0, 1))
    assert (len(first.train), len(first.held_out)) == (15, 5)
    everything = contents(made(Source(data=file, validation_share=0)).train)
    assert sorted([*contents(first.train), *contents(first.held_out)]) == sorted(everything)
    assert contents(again.held_out) == contents(first.held_out)
    assert contents(other.held_out) != contents(first.held_out)
    assert len({part.digest for part in (first, again, other)}) == 2
    assert len(made(Source(data=file)).held_out) == 2


def test_a_file_can_be_held_out(tmp_path: Path) -> None:
    file, other = write(tmp_path / "data.jsonl", PAIRS), write(tmp_path / "other.csv", [])
    as_table(",")(tmp_path / "other.csv", [{"text": "another", "label": "b"}])
    found = made(Source(data=file, validation=other))
    assert len(found.train) == len(PAIRS)
    assert contents(found.held_out) == [("another<|eos|>", 1)]


def texts_of(*labels: Any, text: Any = "tale") -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for label in labels]


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        (PAIRS, {"text_field": "txet"}, r"text_field: expected a column of the data \(text, label\), got 'txet'. Did"),
        (PAIRS, {"label_field": "mood"}, r"label_field: expected a column of the data \(text, label\), got 'mood'."),
        (PAIRS, {"label_field": "text"}, "label_field: expected a column beside the texts', got 'text' for both"),
        (texts_of("a", "a"), {}, "label_field: expected two or more labels, got 'a' alone in 2 texts"),
        (texts_of("a", None), {}, "expected a text or a whole number in every row of the data, got None in row 2"),
        (texts_of(1, 0.5), {}, "expected a text or a whole number in every row of the data, got 1.0 in row 1"),
        (texts_of("a", "b", text=3), {}, "text_field: expected a text in every row of the data, got 3 in row 1"),
        (texts_of("a", "b", text=""), {}, "data: expected texts with tokens for every label, got none for 'a'"),
        (texts_of("a", "b"), {"validation_share": 0.5}, "validation_share: every text labelled '.' is held out"),
        (PAIRS, {"validation_share": 1}, "validation_share: expected a finite number at least 0 and below 1, got 1"),
        (PAIRS, {"validation": "test"}, "validation: expected a file .* like the data, got 'test'"),
        (PAIRS, {"validation": "x.csv", "validation_share": 0.1}, "expected none beside validation, got both"),
        (PAIRS, {"validation": "x.csv"}, "validation: expected a file or a data set's name, got 'x.csv', and there is"),
        (PAIRS, {"split": "test"}, "split: expected none for the file"),
        (PAIRS, {"subset": "sst2"}, "subset: expected none for the file"),
        ([], {}, "data: expected texts with labels, got the empty file"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(
    data: list[dict[str, Any]], options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "data.jsonl", data)
    with pytest.raises(ValueError, match=expected):
        made(Source(data=file, **options))


def test_an_unknown_label_held_out_is_refused(tmp_path: Path) -> None:
    file, other = write(tmp_path / "data.jsonl", PAIRS), write(tmp_path / "other.jsonl", texts_of("a", "c"))
    with pytest.raises(ValueError, match="validation: expected the labels 'a', 'b', got 'c' too"):
        made(Source(data=file, validation=other))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.jsonl", None, "data: expected a file or a data set's name, got '.*none.jsonl', and there is no such"),
        ("data.txt", "tale", "data: expected a file that ends in .jsonl, .json, .csv, .tsv, .parquet, got"),
        ("data.jsonl", '{"text": "a", "label": 1}\nnot json\n', "data: '.*data.jsonl' could not be read. JSON parse"),
        ("data.csv", "text,label\n", "data: .*could not be read|data: expected texts with labels, got none"),
        ("no/such-data", None, "data: '.*no/such-data' could not be read"),
    ],
)
def test_what_cannot_be_read_is_told(name: str, content: str | None, expected: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=expected):
        made(Source(data=str(file)))


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_text_in_another_encoding_is_told(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"data.{ending}"
    FORMATS[ending](file, [{"text": "a cafe", "label": 1}, {"text": "a bar", "label": 2}])
    file.write_bytes(file.read_bytes().replace(b"cafe", b"caf\xe9"))
    with pytest.raises(
        ValueError, match=r"data: (expected text in UTF-8, got b'a caf\\xe9'|.*could not be read.*utf-8)"
    ):
        made(Source(data=str(file)))


def test_what_is_not_read_is_told(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    texts = [{"text": "tale " * 4 * length, "mood": "ab"[length % 2]} for length in range(12)]
    data = write(tmp_path / "data.jsonl", [*texts, {"text": "", "mood": "a"}])
    run(lambda: gedi(files.llama, data, max_length=20, batch_size=12), tmp_path / "guide")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("2 classes: a (' a', ")
    codes = [len(TOKENIZER(code)["input_ids"]) for code in (" a", " b")]
    lengths = [len(TOKENIZER(text["text"], add_special_tokens=False)["input_ids"]) for text in texts]
    cut = len([length for length in lengths if length > 20 - max(codes)])
    assert lines[1:5] == [
        "1 text held out to measure on",
        f"{cut} texts cut, longer than max_length allows",
        "2 texts left out for having no token",
        "1 step of 12 examples",
    ]


def test_reading_leaves_bars_and_logs_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    shown = datasets.are_progress_bars_disabled()
    made(Source(data=write(tmp_path / "data.jsonl", rows(8)), label_field="mood"))
    with pytest.raises(ValueError, match="could not be read"):
        (tmp_path / "bad.jsonl").write_text("{")
        made(Source(data=str(tmp_path / "bad.jsonl")))
    assert datasets.are_progress_bars_disabled() == shown
    assert capfd.readouterr() == ("", "")
