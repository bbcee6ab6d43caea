"""The frame of the benchmarks: what it counts, and to what its ratios are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scripts import interleaved

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Time that passes only when it is told to; elapsed time at twice the pace of CPU time."""

    def __init__(self) -> None:
        self.now = 0.0

    def process_time(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return 2 * self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(interleaved, "time", made)
    return made


def taking(clock: Clock, *seconds: float) -> Callable[[], str]:
    """A mode that warms up for an hour and then takes so long in each round."""
    runs = iter([3600.0, *seconds])

    def run() -> str:
        clock.now += next(runs)
        return f"{clock.now:g}"

    return run


def test_ratios_are_medians_of_rounds_to_the_first_mode(clock: Clock) -> None:
    modes = {"slow": taking(clock, 4.0, 2.0, 10.0), "quick": taking(clock, 1.0, 1.0, 5.0)}
    slow, quick = interleaved.measure(modes, 3, interleaved.Stopwatch("cpu"))
    assert (slow.cpu_s, slow.wall_s, slow.cpu_ratio, slow.wall_ratio) == (4.0, 8.0, 1.0, 1.0)
    assert (quick.cpu_s, quick.cpu_ratio, quick.note) == (1.0, 0.5, "7200")


def test_a_machine_that_becomes_slower_and_slower_is_seen_through(clock: Clock) -> None:
    turns: list[str] = []

    def mode(name: str, pieces: int) -> Callable[[], interleaved.Run]:
        def run() -> interleaved.Run:
            for piece in range(pieces):
                turns.append(name)
                clock.now += 1 + clock.now / 1000
                yield (piece + 1) / pieces
            return f"{pieces} pieces"

        return run

    modes = {"first": mode("first", 40), "double": mode("double", 80), "half": mode("half", 20)}
    rows = interleaved.measure_abreast(modes, 1, interleaved.Stopwatch("cpu"))
    assert [row.note for row in rows] == ["40 pieces", "80 pieces", "20 pieces"]
    assert [row.cpu_ratio for row in rows] == pytest.approx([1.0, 2.0, 0.5], rel=0.003)
    assert [row.wall_ratio for row in rows] == pytest.approx([1.0, 2.0, 0.5], rel=0.003)
    # At each other's side from the start to the end, while all that comes later takes longer.
    abreast = turns[140:]
    assert abreast[:6] == ["first", "double", "double", "first", "double", "double"]
    assert [abreast[:120].count(name) for name in modes] == [40, 80, 0]
    assert [abreast[120:].count(name) for name in modes] == [40, 0, 20]


def test_what_comes_before_a_new_start_does_not_count(clock: Clock) -> None:
    stopwatch = interleaved.Stopwatch("cpu")

    def run() -> str:
        clock.now += 100.0
        stopwatch.start()
        clock.now += 3.0
        return ""

    assert interleaved.measure({"mode": run}, 1, stopwatch)[0].cpu_s == 3.0


def test_the_table_for_people_and_for_markdown() -> None:
    rows = [interleaved.Row("first", 1.0, 2.0, 1.0, 1.0, ""), interleaved.Row("second one", 10.125, 2, 10.125, 1, "x")]
    assert interleaved.table(rows, markdown=False).splitlines() == [
        "mode        cpu s  wall s  cpu ratio  wall ratio",
        "first           1       2       1.00        1.00",
        "second one   10.1       2      10.12        1.00  x",
    ]
    assert interleaved.table(rows, markdown=True).splitlines()[1:] == [
        "|---|---|---|---|---|---|",
        "| first | 1 | 2 | **1.00** | 1.00 | |",
        "| second one | 10.1 | 2 | **10.12** | 1.00 | x |",
    ]
