"""What papers report and how they measured it, read from `published.json`. Descriptions only."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping  # noqa: TC003 - read by from_dict
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lmguide.eval.harness.settings import Setting, read_setting
from lmguide.guidance import parse_guidance
from lmguide.serialization import from_dict

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = ("cfg-lambada", "acfg", "mti", "llada-cfg")
"""What can be reproduced."""


@dataclass(frozen=True)
class Row:
    """One number.

    Args:
        guidance: The method as a compact string; `None` is the plain model.
        value: The published number, in lm-eval's unit; `None` for a model that the paper does not have.
        error: Its standard error, where it was published.
    """

    guidance: str | None
    value: float | None
    error: float | None = None

    @property
    def label(self) -> str:
        """What it is, in a word or two."""
        return self.guidance or "unguided"


@dataclass(frozen=True)
class Part:
    """The numbers of a task.

    Args:
        task: lm-eval's name of it.
        metric: As in `Result.metrics`.
        rows: The numbers.
        num_fewshot: Examples shown; `None` leaves it to the task.
        gen_kwargs: Arguments of generation.
    """

    task: str
    metric: str
    rows: tuple[Row, ...]
    num_fewshot: int | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """An experiment.

    Args:
        title: What it is about.
        source: Where the numbers are from.
        harness: Name of the model class in lm-eval.
        default: The model that runs where none is named.
        models: Name on the hub → numbers.
        normalize: As in `Setting`.
        contrast: The `source` of `read_setting`.
        chat: Whether prompts go through the chat template.
        model_args: Further arguments of the model class.
    """

    title: str
    source: str
    harness: str
    default: str
    models: Mapping[str, tuple[Part, ...]]
    normalize: bool = True
    contrast: str | None = None
    chat: bool = False
    model_args: Mapping[str, Any] = field(default_factory=dict)

    def parts(self, model: str, tasks: Sequence[str] = (), scales: Sequence[float] = ()) -> list[Part]:
        """What to run on a model.

        Args:
            model: Its name. One that the paper does not have runs what the default runs, with nothing to compare.
            tasks: Only these tasks; none is all.
            scales: Only these guidance scales and the plain model; none is all.

        Raises:
            ValueError: A task or scale that the experiment does not have.

        Example:
            >>> (part,) = recipe("cfg-lambada").parts("openai-community/gpt2", scales=[1.5])
            >>> [(row.label, row.value) for row in part.rows]
            [('unguided', 0.3256), ('cfg:guidance_scale=1.5', 0.4456)]
        """
        found = self.models.get(model)
        parts = list(self.models[self.default] if found is None else found)
        names = [part.task for part in parts]
        for task in tasks:
            if task not in names:
                close = difflib.get_close_matches(task, names, n=1)
                cure = f"Did you mean {close[0]}?" if close else "lmguide eval runs any other task."
                raise ValueError(f"--tasks: expected one of {', '.join(names)}, got {task!r}. {cure}")
        kept = [part for part in parts if not tasks or part.task in tasks]
        known = sorted({_scale(row) for part in kept for row in part.rows})
        for scale in scales:
            if scale not in known:
                words = " ".join(f"{each:g}" for each in known)
                raise ValueError(
                    f"--scales: expected some of {words}, got {scale:g}. Choose from these; 1 is unguided."
                )
        kept = [replace(part, rows=_scaled(part.rows, scales)) for part in kept]
        if found is None:
            kept = [replace(part, rows=tuple(Row(row.guidance, None) for row in part.rows)) for part in kept]
        return kept

    def setting(self, row: Row) -> Setting:
        """The setting that a number was measured at."""
        if row.guidance is None:
            return Setting()
        contrast = self.contrast if row.guidance.startswith("cfg") else None
        return read_setting(row.guidance, self.normalize, contrast)


def recipe(name: str) -> Recipe:
    """An experiment by its name.

    Args:
        name: One of `NAMES`.

    Raises:
        ValueError: There is no such experiment.

    Example:
        >>> recipe("llada-cfg").default
        'GSAI-ML/LLaDA-8B-Base'
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        cure = f"Did you mean {close[0]}?" if close else "Choose one."
        raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}. {cure}")
    return from_dict(Recipe, _published()[name])


@functools.cache
def _published() -> Any:
    return json.loads((files("lmguide.eval.reproduce") / "published.json").read_text(encoding="utf-8"))


def _scaled(rows: Sequence[Row], scales: Sequence[float]) -> tuple[Row, ...]:
    return tuple(row for row in rows if not scales or row.guidance is None or _scale(row) in scales)


def _scale(row: Row) -> float:
    if row.guidance is None:
        return 1.0
    method = parse_guidance(row.guidance)
    return float(getattr(method, method.strength_field))
