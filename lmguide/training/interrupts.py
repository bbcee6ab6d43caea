"""Ctrl-C as a request to stop at the next good moment."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

STOPPED = 130
"""Exit status of a program that the user interrupted (128 + SIGINT)."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block the first SIGINT or SIGTERM is noted, and a second one ends the program at once.

    Gives a function that says whether one came.

    Example:
        >>> with stop_requests() as stop_requested:
        ...     signal.raise_signal(signal.SIGINT)
        ...     stop_requested()
        True
    """
    stop = threading.Event()

    def note(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
