"""A blocking call that goes on only when it is asked to, so that several can take turns. It knows no language model."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

T = TypeVar("T")
THREAD = "lmguide turn"
"""Name of the threads."""


class Turns(Generic[T]):
    """An iterator over what a call hands out while it runs, in a thread of its own.

    Between two items the call stands still. It has the random generators of torch to itself, seeded once: what others
    draw in between, or other `Turns`, changes nothing for it, and it leaves theirs as they were.

    Args:
        work: The call. It is given a function that hands out an item; this returns whether to go on.
        seed: Of torch's generators.
        device: Where the call draws numbers.

    Example:
        >>> turns = Turns(lambda put: [put(torch.rand(1).item()) for _ in range(2)], seed=0)
        >>> [round(number, 4) for number in turns]
        [0.4963, 0.7682]
    """

    def __init__(
        self, work: Callable[[Callable[[T], bool]], Any], seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self._work = work
        self._device = torch.device(device)
        self._states: list[Tensor] | None = None
        self._seed = seed
        self._items: list[T] = []
        self._error: BaseException | None = None
        self._over = False
        self._stopped = False
        self._mine, self._yours = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)

    def __iter__(self) -> Turns[T]:
        return self

    def __next__(self) -> T:
        """Let the call run to its next item.

        Raises:
            StopIteration: It is at its end.
            Exception: What it raised.
        """
        self._turn()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if not self._items:
            raise StopIteration
        return self._items.pop()

    def close(self) -> None:
        """End the call: from now on it is told not to go on, and what it still hands out or raises is dropped."""
        self._stopped = True
        while not self._over:
            self._turn()
        self._items.clear()
        self._error = None

    def _turn(self) -> None:
        if self._over:
            return
        outside = _states(self._device)
        try:
            if self._states is None:
                torch.manual_seed(self._seed)
                self._thread.start()
            else:
                _restore(self._states, self._device)
                self._mine.release()
            self._yours.acquire()
            self._states = _states(self._device)
        finally:
            _restore(outside, self._device)

    def _run(self) -> None:
        try:
            self._work(self._put)
        except BaseException as error:  # noqa: BLE001 - handed to whoever asked for the item
            self._error = error
        self._over = True
        self._yours.release()

    def _put(self, item: T) -> bool:
        self._items.append(item)
        self._yours.release()
        self._mine.acquire()
        return not self._stopped


def _states(device: torch.device) -> list[Tensor]:
    """The states of the generators that a call on a device draws from."""
    if device.type == "cpu":
        return [torch.get_rng_state()]
    return [torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_which(device))]


def _restore(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> list[torch.device]:
    """The device as an argument, where there can be several."""
    return [] if device.type == "mps" else [device]
