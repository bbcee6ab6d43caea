"""The bundled model of sudoku with its rows under constraints: each row holds each digit once."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.constraints import Choice, repeat
from lmguide.training import sudoku

if TYPE_CHECKING:
    from pathlib import Path

ROW = Choice(tuple("".join(digits) for digits in itertools.permutations(sudoku.DIGITS)))
PUZZLES = 100


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMGUIDE_CACHE", str(tmp_path))


def answers(**options: Any) -> tuple[list[str], list[str]]:
    """Held-out puzzles of four to eight clues, and what the model answers."""
    model, tokenizer = lg.bundled("sudoku")
    draws = random.Random(0)
    puzzles = [sudoku.draw(draws, draws.randint(4, 8), held_out=True)[0] for _ in range(PUZZLES)]
    ids = tokenizer([sudoku.prompt(puzzle) for puzzle in puzzles], return_tensors="pt").input_ids
    denoiser = lg.diffusion.Denoiser(model, tokenizer=tokenizer)
    output = lg.diffusion.generate(denoiser, ids, max_new_tokens=16, **options)
    return puzzles, ["".join(text.split()) for text in tokenizer.batch_decode(output.sequences[:, ids.shape[1] :])]


def solved(**options: Any) -> float:
    found = [sudoku.is_valid_completion(*pair) for pair in zip(*answers(**options), strict=True)]
    return sum(found) / PUZZLES


@pytest.mark.parametrize(("steps", "gain"), [(16, 0.02), (4, 0.15), (1, 0.25)])
def test_rows_raise_accuracy(steps: int, gain: float) -> None:
    """The fewer the steps, the less do positions know of each other, and the more does the constraint say."""
    assert solved(steps=steps, constraint=repeat(ROW, 4, 4)) >= solved(steps=steps) + gain


def test_rows_are_permutations_at_any_temperature() -> None:
    _, found = answers(
        temperature=2.0, steps=8, constraint=repeat(ROW, 4, 4), generator=torch.Generator().manual_seed(0)
    )
    assert all(sorted(answer[row : row + 4]) == list("1234") for answer in found for row in (0, 4, 8, 12))
