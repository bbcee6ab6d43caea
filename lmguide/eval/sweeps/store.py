"""The files of a sweep: one for each point, there whole or not at all. It knows nothing of models or lm-eval."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FORMAT = 1
"""Changes when files of older releases can no longer be read."""


@dataclass(frozen=True)
class Point:
    """What a result is a result of: all that its numbers depend on, batches and machine aside.

    Args:
        task: Name of the task.
        setting: `Setting.to_dict`, and its label.
        label: The setting in a few words.
        digest: `Setting.digest`.
        model: Name and arguments of the model.
        run: Number of documents, examples shown, seed, and the like.
    """

    task: str
    setting: Mapping[str, Any]
    label: str
    digest: str
    model: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Twelve letters that differ where anything differs."""
        told = [self.task, self.digest, self.model, self.run]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Result:
    """The result of a point.

    Args:
        point: Of what.
        metrics: Name of a task → `metric` or `metric,filter` → value and standard error, `None` where there is none.
            For a group also those of its tasks.
        higher_is_better: Metric → whether more of it is better.
        samples: Name of a task → number of documents.
        passes: Forward evaluations, as a multiple of what the unguided model spends.
        seconds: It took.
        told: What else there is to say: versions, the model's own description.
    """

    point: Point
    metrics: Mapping[str, Mapping[str, tuple[float, float | None]]]
    higher_is_better: Mapping[str, bool]
    samples: Mapping[str, int]
    passes: float
    seconds: float
    told: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """Results in a folder.

    Args:
        folder: Made if it is not there.
        note: Told of files that cannot be read.
    """

    def __init__(self, folder: str | Path, note: Callable[[str], None]) -> None:
        self.folder = Path(folder)
        self.note = note

    def path(self, point: Point) -> Path:
        """The file of a point."""
        words = re.sub(r"[^\w.=-]+", "_", f"{point.task}_{point.label}").strip("_")[:120]
        return self.folder / f"{words}-{point.key}.json"

    def read(self, point: Point) -> Result | None:
        """The result of a point if there is one; a file that holds something else is told of and left out."""
        # Under another name if it was one of another sweep.
        path = next(iter(sorted(self.folder.glob(f"*-{point.key}.json"))), None)
        if path is None:
            return None
        try:
            return _decoded(json.loads(path.read_text(encoding="utf-8")), point)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.note(f"{path}: this file is damaged ({_short(error)}); the point runs again.")
            return None

    def write(self, result: Result, samples: Sequence[Mapping[str, Any]] | None = None) -> Path:
        """Write a result, and what was asked and answered beside it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(result.point)
        if samples is not None:
            lines = [json.dumps(sample, ensure_ascii=False, default=str) for sample in samples]
            _replace(path.with_suffix(".samples.jsonl"), "\n".join(lines) + "\n")
        data = {"format": FORMAT, **dataclasses.asdict(result)}
        _replace(path, json.dumps(data, ensure_ascii=False, indent=1, default=str) + "\n")
        return path


def _decoded(data: Any, point: Point) -> Result:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']}")
    if data["point"]["digest"] != point.digest or data["point"]["task"] != point.task:
        raise ValueError("another point's result")
    metrics = {
        task: {name: (float(value), None if error is None else float(error)) for name, (value, error) in found.items()}
        for task, found in data["metrics"].items()
    }
    if not metrics:
        raise ValueError("no metric")
    return Result(
        point=point,
        metrics=metrics,
        higher_is_better={str(name): bool(value) for name, value in data["higher_is_better"].items()},
        samples={str(name): int(value) for name, value in data["samples"].items()},
        passes=float(data["passes"]),
        seconds=float(data["seconds"]),
        told=dict(data["told"]),
    )


def _short(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error).split("\n")[0][:80]


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
