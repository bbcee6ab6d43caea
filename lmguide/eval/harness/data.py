"""Local copies of data sets, for machines that do not reach the hub. What has none here is read from the hub."""

from __future__ import annotations

import json
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES: dict[str, dict[str, str]] = {
    "aime24": {"train": "aime24/*.jsonl"},
    "gsm8k": {"train": "gsm8k/train*.jsonl", "test": "gsm8k/test.jsonl"},
    "ifeval": {"train": "ifeval/input_data.jsonl"},
    "lambada_openai": {"test": "lambada/lambada_test.jsonl"},
}
"""lm-eval's own task → split → its file in the folder, in the columns of the hub."""
QUESTIONS = "truthfulqa/mc_task.json"
"""TruthfulQA's multiple-choice file, as its authors publish it, in the folder."""

_FOLDER: ContextVar[Path | None] = ContextVar("lmguide data", default=None)


class Offline:
    """Tells which tasks read local files, and lets them find these.

    Args:
        folder: The folder; `None` leaves everything to the hub.

    Raises:
        ValueError: There is no such folder.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise ValueError(f"data: expected a folder with data sets, got {str(folder)!r}. See docs/eval.md.")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the tasks of this package find the folder while they load."""
        token = _FOLDER.set(self.folder)
        try:
            yield
        finally:
            _FOLDER.reset(token)

    def overrides(self, spec: Any) -> dict[str, Any] | None:
        """What makes a task of lm-eval read its local copy; `None` where it has none."""
        if self.folder is None or not isinstance(spec, str):
            return None
        if spec in {"truthfulqa_mc1", "truthfulqa_mc2"} and (self.folder / QUESTIONS).is_file():
            return {"custom_dataset": _questions}
        found = {split: sorted(self.folder.glob(pattern)) for split, pattern in FILES.get(spec, {}).items()}
        if not found or not all(found.values()):
            return None
        files = {split: str(paths[0].resolve()) for split, paths in found.items()}
        return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def local_file(name: str) -> Path | None:
    """A file of the folder that is being read, if there is one.

    Args:
        name: Its path in the folder.
    """
    folder = _FOLDER.get()
    return folder / name if folder is not None and (folder / name).is_file() else None


def _questions(**_: Any) -> Any:
    """TruthfulQA in the columns of the hub, where answers and labels are two lists."""
    from datasets import Dataset, DatasetDict

    file = local_file(QUESTIONS)
    assert file is not None
    rows = [
        {
            "question": row["question"],
            **{
                name: {"choices": list(row[name]), "labels": list(row[name].values())}
                for name in ("mc1_targets", "mc2_targets")
            },
        }
        for row in json.loads(file.read_text(encoding="utf-8"))
    ]
    return DatasetDict({"validation": Dataset.from_list(rows)})
