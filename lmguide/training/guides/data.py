"""From a file or a data set of the hub to tokens and classes. Knows no model and no loss."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmguide.checks import check_number
from lmguide.serialization import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
}
"""Which builder of `datasets` reads a file, by its ending."""

SHARE = 0.1
"""Of the texts, held out to measure on."""


def is_file(data: str) -> bool:
    """Whether a name is that of a file, and not of a data set on the hub."""
    return Path(data).suffix in READERS


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where texts and labels stand.

    Args:
        data: A file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`) or the name of a data set on the hub.
        text_field: Column of the texts.
        label_field: Column of the labels: texts, whole numbers or truth values.
        subset: Configuration of a data set on the hub.
        split: Split of a data set on the hub.
        validation: A file, or another split of the same data set, to measure the guide on.
        validation_share: Share of the texts to hold out for that where there is none, in [0, 1); `None` is 0.1.

    Raises:
        ValueError: Options that exclude each other, or a share out of range.
    """

    data: str
    text_field: str = "text"
    label_field: str = "label"
    subset: str | None = None
    split: str = "train"
    validation: str | None = None
    validation_share: float | None = None

    def __post_init__(self) -> None:
        """Check what does not go together."""
        if self.validation_share is not None:
            check_number("validation_share", self.validation_share, "Use 0 to hold out nothing.", least=0, below=1)
            if self.validation is not None:
                raise ValueError("validation_share: expected none beside validation, got both. Drop one.")
        if self.text_field == self.label_field:
            raise ValueError(f"label_field: expected a column beside the texts', got {self.label_field!r} for both.")
        if is_file(self.data) and (self.subset is not None or self.split != "train"):
            raise ValueError(
                f"{'split' if self.subset is None else 'subset'}: expected none for the file {self.data!r}. "
                "Only data sets of the hub have them."
            )


@dataclass(frozen=True)
class Corpus:
    """Texts as tokens, with the number of their class.

    Attributes:
        train: Rows of `ids`, without special tokens, and `label`.
        held_out: The same; empty if nothing is held out.
        labels: Names of the classes, in order.
        cut: Texts that were longer.
        empty: Texts without a token, left out.
        largest: The largest token.
        digest: Tells these texts from others.
    """

    train: Any
    held_out: Any
    labels: tuple[str, ...]
    cut: int
    empty: int
    largest: int
    digest: str

    def part(self, held_out: bool) -> Any:
        """The rows to measure on or those to train on."""
        return self.held_out if held_out else self.train

    def counts(self) -> list[int]:
        """Texts of each class to train on."""
        found = Counter(self.train["label"])
        return [found[label] for label in range(len(self.labels))]


@dataclass(frozen=True)
class Texts:
    """Rows of text and label as they were read.

    Attributes:
        rows: The data set.
        field: Its column of texts.
        names: Name of each row's label.
        known: Names of all labels, in order.
    """

    rows: Any
    field: str
    names: list[str]
    known: tuple[str, ...]


def counted(number: int, thing: str) -> str:
    """A number of things in words.

    Example:
        >>> counted(1, "text"), counted(2, "text")
        ('1 text', '2 texts')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def read(source: Source, seed: int) -> tuple[Texts, Texts | None]:
    """The texts to train on and those held out.

    Raises:
        ValueError: There is no such file, data set or column, nothing in it, a text or label of a wrong kind or
            missing, or fewer than two labels.
    """
    rows = _load(source.data, source.subset, source.split, "data")
    if source.validation is not None:
        texts = _texts(rows, source, "data")
        if is_file(source.validation):
            others = _load(source.validation, None, "train", "validation")
        elif is_file(source.data):
            raise ValueError(
                f"validation: expected a file ({', '.join(READERS)}) like the data, got {source.validation!r}."
            )
        else:
            others = _load(source.data, source.subset, source.validation, "validation")
        held_out: Texts | None = _texts(others, source, "validation", texts.known)
        return texts, held_out
    everything = _texts(rows, source, "data")
    share = SHARE if source.validation_share is None else source.validation_share
    count = int(len(everything.rows) * share)
    if not count:
        return everything, None
    parts = everything.rows.train_test_split(test_size=count, seed=seed)
    train, test = (_texts(parts[name], source, "data", everything.known) for name in ("train", "test"))
    if missing := sorted(set(everything.known) - set(train.names)):
        raise ValueError(
            f"validation_share: every text labelled {missing[0]!r} is held out. "
            "Give more of them, a smaller share or a file with --validation."
        )
    return train, test


def encode(
    texts: Texts, held_out: Texts | None, tokenizer: PreTrainedTokenizerBase, room: int, end: int | None
) -> Corpus:
    """Texts as tokens.

    Args:
        texts: What to train on.
        held_out: What not.
        tokenizer: The base model's. Its special tokens are left out.
        room: Tokens that a row may have.
        end: The token behind a text that was not cut; `None` is none. A text that is only the longer for it is not cut.

    Raises:
        ValueError: No text of some label has a token.
    """
    with _quiet():
        train = _tokens(texts, tokenizer, room, end)
        other = _tokens(held_out, tokenizer, room, end) if held_out is not None else train.select([])
    given = len(texts.rows) + (0 if held_out is None else len(held_out.rows))
    if missing := set(range(len(texts.known))) - set(train["label"]):
        raise ValueError(
            f"data: expected texts with tokens for every label, got none for {texts.known[min(missing)]!r}. "
            "Look at the text field."
        )
    digest, largest, cut = hashlib.sha256(repr(texts.known).encode()), 0, 0
    for part in (train, other):
        for batch in part.iter(1000):
            digest.update(json.dumps([batch["ids"], batch["label"]]).encode())
            largest = max(largest, *map(max, batch["ids"]))
            cut += sum(batch["cut"])
    return Corpus(train, other, texts.known, cut, given - len(train) - len(other), largest, digest.hexdigest()[:16])


def _tokens(texts: Texts, tokenizer: PreTrainedTokenizerBase, room: int, end: int | None) -> Any:
    import datasets

    numbers = {name: number for number, name in enumerate(texts.known)}

    def tokenized(batch: dict[str, list[Any]], places: list[int]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {"ids": [], "label": [], "cut": []}
        every = tokenizer(batch[texts.field], add_special_tokens=False, return_attention_mask=False, verbose=False)
        for ids, place in zip(every["input_ids"], places, strict=True):
            if ids:
                cut = len(ids) > room
                whole = ids if end is None else [*ids, end]
                found["ids"].append(whole[:room])
                found["label"].append(numbers[texts.names[place]])
                found["cut"].append(cut)
        return found

    value = datasets.Value
    kinds = datasets.Features({"ids": datasets.List(value("int32")), "label": value("int32"), "cut": value("bool")})
    # no cache on disk: its key would be a hash of the tokenizer, which its own use changes
    return texts.rows.map(
        tokenized,
        with_indices=True,
        batched=True,
        remove_columns=texts.rows.column_names,
        features=kinds,
        keep_in_memory=True,
        new_fingerprint="tokens",
    )


def _load(data: str, subset: str | None, split: str, argument: str) -> Any:
    import datasets

    file, local = Path(data), is_file(data)
    if local and not file.is_file():
        raise ValueError(f"{argument}: expected a file or a data set's name, got {data!r}, and there is no such file.")
    if file.is_file() and not local:
        raise ValueError(f"{argument}: expected a file that ends in {', '.join(READERS)}, got {data!r}. Rename it.")
    if local and not file.stat().st_size:
        raise ValueError(f"{argument}: expected texts with labels, got the empty file {data!r}.")
    with _quiet():
        try:
            if local:
                builder, options = READERS[file.suffix]
                return datasets.load_dataset(builder, data_files=str(file), split="train", **options)
            return datasets.load_dataset(data, subset, split=split)
        except Exception as error:  # a data set's readers raise what they like
            cause = " ".join(str(error.__cause__ or error).split())
            raise ValueError(f"{argument}: {data!r} could not be read. {cause or type(error).__name__}") from error


def _texts(rows: Any, source: Source, argument: str, known: Sequence[str] | None = None) -> Texts:
    columns = rows.column_names
    for option, field in (("text_field", source.text_field), ("label_field", source.label_field)):
        if field not in columns:
            raise ValueError(
                f"{option}: expected a column of the {argument} ({', '.join(columns)}), got {field!r}. "
                f"{did_you_mean(field, columns)}"
            )
    if not len(rows):
        raise ValueError(f"{argument}: expected texts with labels, got none.")
    try:
        for number, text in enumerate(rows[source.text_field], start=1):
            if not isinstance(text, str):
                raise ValueError(
                    f"text_field: expected a text in every row of the {argument}, got {text!r} in row {number}."
                )
        names = _names(rows, source.label_field, argument)
    except UnicodeDecodeError as error:  # some readers look at letters only here
        raise ValueError(
            f"{argument}: expected text in UTF-8, got {error.object!r}. Save it in that encoding."
        ) from None
    found = set(names)
    if known is None:
        if len(found) < 2:
            raise ValueError(
                f"label_field: expected two or more labels, got {names[0]!r} alone in {len(names)} texts. "
                "A guide tells classes apart: add texts of another."
            )
        known = _in_order(rows, source.label_field, found)
    if strange := found - set(known):
        raise ValueError(
            f"{argument}: expected the labels {', '.join(map(repr, known))}, got {min(strange)!r} too. "
            "Train on texts of every label."
        )
    return Texts(rows, source.text_field, names, tuple(known))


def _names(rows: Any, field: str, argument: str) -> list[str]:
    named = getattr(rows.features[field], "names", None)  # a data set of the hub may name its numbers
    names = []
    for number, label in enumerate(rows[field], start=1):
        if not isinstance(label, str | int) or (named and label == -1):
            raise ValueError(
                f"label_field: expected a text or a whole number in every row of the {argument}, got {label!r} in row "
                f"{number}. Mend or remove the row."
            )
        names.append(named[label] if named else str(label))
    return names


def _in_order(rows: Any, field: str, found: set[str]) -> list[str]:
    """Names as the data set counts them, or else by number or alphabet."""
    if named := getattr(rows.features[field], "names", None):
        return [name for name in named if name in found]
    return sorted(found, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `datasets`, and no log line of an error that is raised as well."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    logger = logging.getLogger("datasets")
    level = logger.level
    datasets.disable_progress_bars()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
