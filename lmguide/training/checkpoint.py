"""Training state on disk, written so that an interruption at any moment leaves a whole checkpoint behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `state` to `path` in one step: after an interruption the file holds the old state or the new one.

    Args:
        state: Tensors, numbers, strings and containers of them, such as state dicts.
        path: The file to replace; its folder must exist.
    """
    target = Path(path)
    unfinished = target.with_name(target.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote; loads data only, never code."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def load_run(path: str | os.PathLike[str], name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the checkpoint of a run, whose state has its `name` and `settings`.

    Args:
        path: The file.
        name: What is trained.
        settings: What determines the weights, as it is now.

    Raises:
        ValueError: There is no file, or it is of a run of another name or of other settings.
    """
    if not Path(path).exists():
        raise ValueError(f"expected a checkpoint to resume, got no file {path}. Start a new run instead.")
    state = load_checkpoint(path)
    if state["name"] != name:
        raise ValueError(
            f"expected a checkpoint of the model {name!r}, got one of {state['name']!r}. "
            "Resume with the model of the first run."
        )
    was = state["settings"]
    changed = [key for key in was | settings if was.get(key) != settings.get(key)]
    if changed:
        told = "; ".join(f"{key} {was.get(key)} then, {settings.get(key)} now" for key in changed)
        raise ValueError(
            f"expected the settings of the checkpoint, got others ({told}). Resume with the settings of the first run."
        )
    return state
