"""Sudoku on four by four cells, with the rule that holds half of all puzzles out of training; standard library only.

A grid, or a puzzle, is a string of sixteen digits, row by row; 0 is an empty cell. Whitespace in it means nothing.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from itertools import permutations, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

SIDE = 4
CELLS = SIDE * SIDE
DIGITS = "1234"
EMPTY = "0"
CLUES = range(4, 13)
"""How many clues a puzzle of the corpus may have; fewer than four never settle the grid."""
PROMPT_LENGTH = CELLS + 1
"""Tokens of a prompt: the cells and the colon."""
VOCABULARY = (EMPTY, *DIGITS, ":")
"""Every token of the corpus, special tokens aside."""
TOKEN = r"\S"
"""The pattern of one token: whatever is no whitespace."""


@lru_cache(maxsize=1)
def grids() -> tuple[str, ...]:
    """Return all 288 grids in which each row, column and box holds each digit once.

    Example:
        >>> len(grids()), grids()[0]
        (288, '1234341221434321')
    """
    lines = list(permutations(DIGITS))
    # Two rows are a band if its two boxes hold every digit; two bands are a grid if its columns do.
    bands = [upper + lower for upper, lower in product(lines, lines) if _boxes_are_whole(upper, lower)]
    joined = (upper + lower for upper, lower in product(bands, bands))
    return tuple("".join(grid) for grid in joined if all(len({*grid[column::SIDE]}) == SIDE for column in range(SIDE)))


def _boxes_are_whole(upper: tuple[str, ...], lower: tuple[str, ...]) -> bool:
    return all(len({*upper[half], *lower[half]}) == SIDE for half in (slice(2), slice(2, SIDE)))


def cells(text: str) -> str:
    """Return the sixteen digits of a puzzle or an answer without the whitespace between them.

    Raises:
        ValueError: If there are not sixteen digits from 0 to 4.
    """
    found = "".join(text.split())
    if len(found) != CELLS or not set(found) <= {EMPTY, *DIGITS}:
        raise ValueError(f"text: expected sixteen digits from 0 to 4, got {text!r}. Give them row by row, 0 for empty.")
    return found


def completions(puzzle: str) -> list[str]:
    """Return every grid that agrees with the clues of `puzzle`; a proper puzzle has one.

    Example:
        >>> completions("1000 0002 4003 0000")
        ['1234341241232341']
    """
    clues = [(place, digit) for place, digit in enumerate(cells(puzzle)) if digit != EMPTY]
    return [grid for grid in grids() if all(grid[place] == digit for place, digit in clues)]


def is_valid_completion(puzzle: str, answer: str) -> bool:
    """Tell whether `answer` is a grid that keeps every clue of `puzzle`; an answer of anything else is not.

    A puzzle with several solutions is solved by each of them.

    Raises:
        ValueError: If the puzzle is no string of sixteen digits from 0 to 4.

    Example:
        >>> is_valid_completion("1000 0002 4003 0000", "1234 3412 4123 2341")
        True
    """
    return "".join(answer.split()) in completions(puzzle)


def is_held_out(puzzle: str) -> bool:
    """Tell whether training leaves `puzzle` out: so it does with every other puzzle, by the first bit of its SHA-256.

    Puzzles are held out, not grids: there are only 288 grids, and all of them are trained on.
    """
    return hashlib.sha256(cells(puzzle).encode()).digest()[0] >= 128


def draw(rng: random.Random, clues: int, *, held_out: bool, proper: bool = False) -> tuple[str, str]:
    """Return a puzzle, made of `clues` cells of a random grid, and that grid.

    Args:
        rng: The source of all randomness.
        clues: Filled cells, from 1 to 15.
        held_out: Draw among the puzzles that training leaves out, or among those it may see.
        proper: Draw among the puzzles that have a single solution, for which four clues are the least. The puzzles of
            training need not be proper.

    Raises:
        ValueError: If the number of clues is out of range.

    Example:
        >>> import random
        >>> puzzle, solution = draw(random.Random(0), 6, held_out=True, proper=True)
        >>> is_held_out(puzzle), completions(puzzle) == [solution]
        (True, True)
    """
    least = 4 if proper else 1
    if not least <= clues < CELLS:
        raise ValueError(
            f"clues: expected {least} to {CELLS - 1}, got {clues}. The corpus has {CLUES[0]} to {CLUES[-1]}."
        )
    while True:
        solution = rng.choice(grids())
        kept = set(rng.sample(range(CELLS), clues))
        puzzle = "".join(digit if place in kept else EMPTY for place, digit in enumerate(solution))
        if is_held_out(puzzle) == held_out and not (proper and len(completions(puzzle)) > 1):
            return puzzle, solution


def prompt(puzzle: str) -> str:
    """Return the prompt of `puzzle`: its cells and a colon, as in ``"1000 0002 4003 0000:"``."""
    return _rows(puzzle, " ") + ":"


def grid(text: str) -> str:
    r"""Return the cells of a puzzle or an answer as four lines.

    Example:
        >>> print(grid("1234341241232341"))
        1234
        3412
        4123
        2341
    """
    return _rows(text, "\n")


def _rows(text: str, between: str) -> str:
    found = cells(text)
    return between.join(found[start : start + SIDE] for start in range(0, CELLS, SIDE))
