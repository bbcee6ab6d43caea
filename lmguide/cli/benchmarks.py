"""What the commands that run benchmarks share: their options as values, tasks, and several processes."""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path


def prepare(arguments: argparse.Namespace) -> None:
    """Make lm-eval know our models, and meet the other processes.

    Raises:
        ImportError: lm-eval is not installed.
    """
    # lm-eval tells about its defaults at length; its errors and warnings of substance stay.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ImportError('lm-eval is not installed. Run: pip install "lmguide[eval]"') from error
    from lmguide.eval.harness import register

    register()
    _join_processes(arguments)


@contextmanager
def resumable(folder: str | Path) -> Iterator[None]:
    """Say after Ctrl-C how to go on.

    Args:
        folder: Where the results are.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"What is done is in {folder}; the same command goes on from there.") from None


def shared_arguments(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """Arguments of a model class that are options of the commands: device, batch size, trust.

    Args:
        arguments: As given.
        model: Name of the model class in lm-eval.

    Raises:
        ValueError: The batch size is none.
    """
    # vLLM makes batches by itself: it is to have all requests at once.
    size = arguments.batch_size or ("auto" if model == "lmguide-vllm" else "1")
    found = {"device": arguments.device, "trust_remote_code": arguments.trust_remote_code or None}
    found["batch_size"] = read_batch_size(size)
    return {name: value for name, value in found.items() if value is not None}


def read_pairs(option: str, words: Sequence[str]) -> dict[str, Any]:
    """Arguments as lm-eval takes them: `key=value,key=value`, several of these, or one JSON object.

    Args:
        option: What they were given as, for messages.
        words: What was given.

    Raises:
        ValueError: Another form.

    Example:
        >>> read_pairs("--model-args", ["pretrained=gpt2,dtype=float32", "max_length=512"])
        {'pretrained': 'gpt2', 'dtype': 'float32', 'max_length': 512}
    """
    text = " ".join(words).strip()
    if text.startswith("{"):
        return dict(read_json(option, text))
    found: dict[str, Any] = {}
    for pair in (pair for word in words for pair in word.split(",") if pair.strip()):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(
                f"{option}: expected key=value, got {pair.strip()!r}. A value with a comma needs the form of one JSON "
                "object."
            )
        if key.strip() in found:
            raise ValueError(f"{option}: {key.strip()!r} is given twice. Give it once.")
        found[key.strip()] = _value(value.strip())
    return found


def read_json(option: str, text: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        option: What it was given as, for messages.
        text: What was given.

    Raises:
        ValueError: It is none.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option}: expected a JSON object, got one broken at character {error.pos}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{option}: expected a JSON object, got {text!r}.")
    return found


def load_tasks(names: Sequence[str], data: str | None, include_path: Sequence[str] = ()) -> tuple[Any, dict[str, Any]]:
    """The task manager and the loaded tasks: data that is not to be had shows before a model is loaded.

    Args:
        names: Of the tasks.
        data: Folder with copies of data sets.
        include_path: Further folders of tasks.

    Raises:
        ValueError: There is no such task or folder, or the data cannot be read.
    """
    from lmguide.eval.harness import manager

    found = manager(data, include_path, defaults=False)
    if not set(names) <= set(found.all_tasks):
        found = manager(data, include_path)
    known = set(found.all_tasks)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=3)
            cure = f"Did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` and --list-tasks show them."
            raise ValueError(f"--tasks: expected the name of a task, got {name!r}. {cure}")
    loaded = {}
    for name in dict.fromkeys(names):
        try:
            loaded[name] = found.load([name])
        except (ConnectionError, FileNotFoundError, OSError) as error:
            raise ValueError(f"--tasks: the data of {name} could not be read: {error}. See --data.") from error
    return found, loaded


def read_batch_size(text: str) -> int | str:
    """A number of texts, or `"auto"`.

    Raises:
        ValueError: Neither.
    """
    if text == "auto" or (text.isascii() and text.isdigit() and int(text) > 0):
        return text if text == "auto" else int(text)
    raise ValueError(f"--batch-size: expected a number of texts or auto, got {text!r}. Try 16.")


def read_limit(limit: float | None) -> float | None:
    """A number of documents, or a share of them; `None` is all.

    Raises:
        ValueError: Neither.
    """
    if limit is None or 0 < limit < 1:
        return limit
    if limit == 0 or limit != int(limit):
        raise ValueError(f"--limit: expected a whole number of documents or a share below 1, got {limit:g}. Try 100.")
    return int(limit)


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, int | float) else text


def _join_processes(arguments: argparse.Namespace) -> None:
    """Meet the other processes of `accelerate launch` or `torchrun`, each on its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        state = PartialState()
        arguments.device = str(state.device)
        if not state.is_main_process:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
