"""Documents and scores of the tasks that run what the model writes. lm-eval runs them behind its own flag alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from lmguide.eval.harness.data import local_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SECONDS = 10
"""What a program may take."""


def humaneval(**_: Any) -> Any:
    """The 164 problems of HumanEval (2107.03374)."""
    return _rows("humaneval/HumanEval.jsonl.gz", "openai/openai_humaneval", "test")


def mbpp(**_: Any) -> Any:
    """The test problems of MBPP (2108.07732), numbers 11 to 510, and problems 2 to 4 to be shown."""
    here = local_file("mbpp/mbpp.jsonl")
    if here is None:
        import datasets

        found = datasets.load_dataset("google-research-datasets/mbpp", "full")
        return {"train": found["prompt"].filter(lambda row: 2 <= row["task_id"] <= 4), "test": found["test"]}
    rows = _local(here)
    between = [(2, 4), (11, 510)]
    parts = [rows.filter(lambda row, low=low, high=high: low <= row["task_id"] <= high) for low, high in between]
    return dict(zip(("train", "test"), parts, strict=True))


def process_humaneval(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the function passes its tests."""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass@1": float(passes(program))}


def process_mbpp(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the program passes its tests."""
    tests = "\n".join(doc["test_list"])
    return {"pass@1": float(passes(f"{doc['test_setup_code']}\n{results[0]}\n{tests}\n"))}


def passes(program: str) -> bool:
    """Whether a program ends by itself, in time and without an error, in a process and folder of its own.

    That is no sandbox: what a model writes can do all that its user can.

    Args:
        program: Python.

    Example:
        >>> passes("assert 1 + 1 == 2"), passes("assert 1 + 1 == 3")
        (True, False)
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-c", program]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def _rows(name: str, hub: str, split: str) -> Any:
    here = local_file(name)
    if here is not None:
        return {"test": _local(here)}
    import datasets

    return {"test": datasets.load_dataset(hub)[split]}


def _local(path: Any) -> Any:
    import datasets

    return datasets.load_dataset("json", data_files={"test": str(path)})["test"]
