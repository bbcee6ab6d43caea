"""Calls take turns, each with random numbers of its own, and none is left behind."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch

from lmguide.playground.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable


def draws(count: int) -> Callable[[Callable[[float], bool]], None]:
    """A call that hands out random numbers, one after the other."""

    def work(put: Callable[[float], bool]) -> None:
        for _ in range(count):
            if not put(torch.rand(1).item()):
                return

    return work


def alone(seed: int, count: int) -> list[float]:
    """The same numbers, drawn at once."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, generator=generator).item() for _ in range(count)]


def test_each_call_draws_what_it_would_draw_alone() -> None:
    torch.manual_seed(9)
    first, second = Turns(draws(4), 1), Turns(draws(4), 2)
    found = [pair for pair in zip(first, second, strict=True)]
    assert [list(side) for side in zip(*found, strict=True)] == [alone(1, 4), alone(2, 4)]
    assert torch.rand(1).item() == alone(9, 1)[0]  # ours were left as they were


def test_a_call_stands_still_between_two_items() -> None:
    done: list[int] = []

    def work(put: Callable[[int], bool]) -> None:
        for number in range(3):
            done.append(number)
            put(number)
        done.append(3)

    turns = Turns(work, 0)
    assert done == []
    for number in range(3):
        assert next(turns) == number
        assert done == list(range(number + 1))
    assert next(turns, None) is None
    assert done == [0, 1, 2, 3]


def test_a_closed_call_is_told_to_stop_and_ends() -> None:
    before = threading.active_count()
    told: list[bool] = []
    turns: Turns[int] = Turns(lambda put: told.append(put(1)), 0)
    next(turns)
    turns.close()
    turns.close()
    assert told == [False]
    assert next(turns, None) is None
    turns._thread.join(10)
    assert threading.active_count() == before


def test_what_a_call_raises_comes_out() -> None:
    def work(put: Callable[[int], bool]) -> None:
        put(1)
        raise ValueError("broken")

    turns = Turns(work, 0)
    assert next(turns) == 1
    with pytest.raises(ValueError, match="broken"):
        next(turns)
    assert next(turns, None) is None
