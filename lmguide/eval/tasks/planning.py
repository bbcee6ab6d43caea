"""Documents and scores of the planning tasks of Dream: sudoku of four by four cells, and countdown."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from lmguide.eval.harness.data import local_file
from lmguide.training import sudoku as puzzles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHOTS = 8
"""Lines at the head of each file of puzzles that are there to be shown."""
ADDRESS = "https://raw.githubusercontent.com/DreamLM/Dream/fac0a7f2664b4adf0925fee682b7866923fa2d62/eval/data"
"""The files, as their authors publish them (Apache-2.0)."""
STEP = re.compile(r"^(\d+)([-+*/])(\d+)=(\d+)$")


def sudoku(clues: int = 10, **_: Any) -> Any:
    """Puzzles with so many clues, 4 to 12, and one solution of each."""
    rows = _rows(f"sudoku_4x4_{clues}.jsonl")
    return {"train": rows.select(range(SHOTS)), "test": rows.select(range(SHOTS, len(rows)))}


def countdown(numbers: int = 3, **_: Any) -> Any:
    """Numbers and a target, 3 to 5 numbers, and one way to it. The first eight are there to be shown."""
    rows = _rows(f"cd{numbers}_test.jsonl")
    return {"train": rows.select(range(SHOTS)), "test": rows.select(range(SHOTS, len(rows)))}


def process_sudoku(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the answer is a whole grid that keeps the clues; any solution counts."""
    return {"solved": float(puzzles.is_valid_completion(doc["input"], results[0]))}


def process_countdown(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the answer's steps reach the target."""
    return {"solved": float(reaches(doc["input"], results[0]))}


def reaches(given: str, answer: str) -> bool:
    """Whether steps such as `44-15=29,79-29=50` are right, use each number once at most, and end at the target.

    Args:
        given: Numbers and the target behind them, `15,44,79,50`.
        answer: The steps, with commas between them.

    Example:
        >>> reaches("15,44,79,50", "44-15=29,79-29=50"), reaches("15,44,79,50", "44+6=50")
        (True, False)
    """
    *numbers, target = map(int, given.split(","))
    left = Counter(numbers)
    result: int | None = None
    for text in answer.strip().split(","):
        step = STEP.match(text.replace(" ", ""))
        if step is None:
            return False
        first, sign, second, result = int(step[1]), step[2], int(step[3]), int(step[4])
        left.subtract([first, second])
        if min(left[first], left[second]) < 0 or not _right(first, sign, second, result):
            return False
        left[result] += 1
    return result == target


def _right(first: int, sign: str, second: int, result: int) -> bool:
    if sign == "/":
        return second != 0 and first == second * result
    return result == {"+": first + second, "-": first - second, "*": first * second}[sign]


def _rows(name: str) -> Any:
    import datasets

    here = local_file(f"dream_planning/{name}")
    return datasets.load_dataset("json", data_files={"test": str(here or f"{ADDRESS}/{name}")})["test"]
