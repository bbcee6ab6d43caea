"""Schedules: how strongly guidance applies as an answer grows.

Frozen descriptions that turn progress, or the divergence of two sources, into a weight; they know no rule and no
engine. The weight multiplies the distance from a method's off value: ``γ_t = off + (γ - off) · weight``, so 1 is full
strength and 0 is off.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lmguide.checks import check_number, check_whole
from lmguide.serialization import Registry, from_dict, to_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """Where in the answer a step is.

    Args:
        step: Tokens of the answer that stand already, from 0.
        total: Tokens the answer may have (``max_new_tokens``), at least 1; None if nobody knows.

    Example:
        >>> Progress(step=5, total=20).fraction
        0.25
    """

    step: int
    total: int | None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_whole("step", self.step, "Count the tokens of the answer that stand already.", least=0)
        if self.total is not None:
            check_whole("total", self.total, "Give the number of tokens the answer may have, or None.", least=1)

    @property
    def fraction(self) -> float:
        """Share of the answer that stands already, ``step / total`` in [0, 1).

        Raises:
            ValueError: the total is not known.
        """
        if self.total is None:
            raise ValueError(
                "total: expected the number of tokens the answer may have, got None. "
                "Give max_new_tokens, or use a schedule or gate whose bounds are in tokens."
            )
        return min(self.step / self.total, math.nextafter(1.0, 0.0))


class Schedule(ABC):
    """A strength as a function of progress.

    Subclasses are frozen dataclasses registered in ``SCHEDULES``. Those with ``needs_divergence`` answer
    ``weight_from``, all others ``weight``.
    """

    name: ClassVar[str]
    needs_divergence: ClassVar[bool] = False

    @abstractmethod
    def weight(self, progress: Progress) -> float:
        """The weight of the whole batch at this step.

        Raises:
            TypeError: this schedule needs the divergence of the sources.
            ValueError: this schedule needs the length of the answer and nobody knows it.
        """

    def weight_from(self, divergence: Tensor) -> Tensor:
        """The weight of each row, from the divergence of its sources in nats, ``[...] -> [...]``.

        Raises:
            TypeError: this schedule needs the progress.
        """
        raise TypeError(f"expected a schedule that needs a divergence, got {self}. Call weight(progress).")


SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """Full strength throughout: ``weight = 1``.

    Example:
        >>> Constant().weight(Progress(3, None))
        1.0
    """

    def weight(self, progress: Progress) -> float:
        """1."""
        return 1.0


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line: ``weight = first + (last - first) f`` at fraction ``f`` of the answer.

    Increasing weights are the recommendation of Wang et al., "Analysis of Classifier-Free Guidance Weight Schedulers"
    (arXiv 2404.13040), for images.

    Args:
        first: Weight at the first token.
        last: Weight the line reaches at the end of the answer.

    Example:
        >>> [Linear().weight(Progress(step, 4)) for step in range(4)]
        [0.0, 0.25, 0.5, 0.75]
    """

    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        """Check the weights."""
        _check_weights(self.first, self.last)

    def weight(self, progress: Progress) -> float:
        """The line at this step."""
        return float(self.first + (self.last - self.first) * progress.fraction)


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave: ``weight = first + (last - first) (1 - cos π f) / 2``: slow, fast, slow (arXiv 2404.13040).

    Args:
        first: Weight at the first token.
        last: Weight the wave reaches at the end of the answer.

    Example:
        >>> [round(Cosine().weight(Progress(step, 4)), 3) for step in range(4)]
        [0.0, 0.146, 0.5, 0.854]
    """

    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        """Check the weights."""
        _check_weights(self.first, self.last)

    def weight(self, progress: Progress) -> float:
        """The wave at this step."""
        return float(self.first + (self.last - self.first) * (1 - math.cos(math.pi * progress.fraction)) / 2)


@SCHEDULES.register("window")
@dataclass(frozen=True)
class Window(Schedule):
    """Full strength inside a part of the answer, off outside: ``weight = 1[start <= position < stop]``.

    The schedule form of the gate ``gates.Interval``: this one lowers the strength to exactly off, the gate leaves the
    rule out.

    Args:
        start: First position inside. An int counts tokens, a float in [0, 1] is a fraction of the answer.
        stop: First position behind; None is the end.

    Example:
        >>> [Window(start=1, stop=0.75).weight(Progress(step, 4)) for step in range(4)]
        [0.0, 1.0, 1.0, 0.0]
    """

    start: int | float = 0
    stop: int | float | None = None

    def __post_init__(self) -> None:
        """Check the bounds."""
        check_bounds(self.start, self.stop)

    def weight(self, progress: Progress) -> float:
        """1 inside, 0 outside."""
        return float(within(progress, self.start, self.stop))


@SCHEDULES.register("beta")
@dataclass(frozen=True)
class Beta(Schedule):
    """A hump: the density of a Beta(a, b) law at fraction ``f``, scaled so that its peak is 1.

    ``weight = f^(a-1) (1-f)^(b-1) / max``. After β-CFG (gmum/beta-CFG), which differs in three ways: it multiplies by
    the density itself, whose peak depends on a and b (1.5 for 2, 2); a weight of 0 leaves its unconditional source
    where this leaves the conditional one; and it divides the difference of the sources by its norm.

    Args:
        a: At least 1; with 1 the hump starts at its peak.
        b: At least 1; with 1 the hump ends at its peak.

    Example:
        >>> [round(Beta().weight(Progress(step, 4)), 2) for step in range(4)]
        [0.0, 0.75, 1.0, 0.75]
    """

    a: float = 2.0
    b: float = 2.0

    def __post_init__(self) -> None:
        """Check that the density is bounded."""
        for argument, value in (("a", self.a), ("b", self.b)):
            check_number(argument, value, "Below 1 the density has no peak; use 1 for a flat side.", least=1)

    def weight(self, progress: Progress) -> float:
        """The hump at this step."""
        f, flat = progress.fraction, self.a == 1 and self.b == 1
        mode = 0.0 if flat else (self.a - 1) / (self.a + self.b - 2)
        return math.exp(self._log_density(f) - self._log_density(mode))

    def _log_density(self, f: float) -> float:
        """Up to a constant; in logs, since the powers overflow for large a and b."""
        return _times_log(self.a - 1, f) + _times_log(self.b - 1, 1 - f)


@SCHEDULES.register("from_divergence")
@dataclass(frozen=True)
class FromDivergence(Schedule):
    """Weaker where the sources disagree more: ``weight = min(1, target / KL(c || u))``.

    To first order the guided law moves away from the conditional one in proportion to weight times divergence, and
    this bounds the product. A training-free analogue of annealing guidance (arXiv 2506.24108), which learns a small
    network from the size of the difference to the scale; it is not that network.

    Args:
        target: Divergence in nats up to which guidance has its full strength, above 0.

    Example:
        >>> import torch
        >>> FromDivergence(target=0.5).weight_from(torch.tensor([0.0, 0.5, 2.0]))
        tensor([1.0000, 1.0000, 0.2500])
    """

    needs_divergence: ClassVar[bool] = True

    target: float

    def __post_init__(self) -> None:
        """Check the target."""
        check_number("target", self.target, "Use Constant() for full strength at any divergence.", above=0)

    def weight(self, progress: Progress) -> float:
        """Refused: progress is not enough."""
        raise TypeError(f"expected the divergence of the sources, got {progress}. Call weight_from(divergence).")

    def weight_from(self, divergence: Tensor) -> Tensor:
        """The weight of each row."""
        return (self.target / divergence.clamp_min(0.0)).clamp_max(1.0)


def schedule_to_dict(schedule: Schedule) -> dict[str, Any]:
    """The schedule as a JSON-safe dictionary with its name.

    Example:
        >>> schedule_to_dict(Linear(0.5, 1.0))
        {'name': 'linear', 'first': 0.5, 'last': 1.0}
    """
    return to_dict(schedule)


def schedule_from_dict(data: Mapping[str, Any]) -> Schedule:
    """The schedule that a dictionary of ``schedule_to_dict`` describes.

    Raises:
        ValueError: an unknown name or key, with the nearest known one, or a bad value.

    Example:
        >>> schedule_from_dict({"name": "window", "stop": 0.5})
        Window(start=0, stop=0.5)
    """
    return from_dict(SCHEDULES, data)


def within(progress: Progress, start: int | float, stop: int | float | None) -> bool:
    """Whether a step lies in ``[start, stop)``: int bounds in tokens, float bounds as fractions of the answer.

    Raises:
        ValueError: a bound is a fraction and nobody knows the length of the answer.

    Example:
        >>> within(Progress(2, 8), 0.25, 3)
        True
    """

    def reached(bound: int | float) -> bool:
        return (progress.fraction if isinstance(bound, float) else progress.step) >= bound

    return reached(start) and (stop is None or not reached(stop))


def check_bounds(start: int | float, stop: int | float | None) -> None:
    """Refuse bounds of ``within`` that are no positions, or leave nothing between them.

    Raises:
        TypeError: a bound is not a number.
        ValueError: a bound is negative, a fraction above 1, or the stop does not lie behind the start.
    """
    for argument, bound in (("start", start), ("stop", stop)):
        if isinstance(bound, float):
            check_number(
                argument, bound, "A float is a fraction of the answer; use an int for tokens.", least=0, most=1
            )
        elif bound is not None or argument == "start":
            check_whole(argument, bound, "An int counts tokens; use a float in [0, 1] for a fraction.", least=0)
    if stop is not None and isinstance(start, float) == isinstance(stop, float) and stop <= start:
        raise ValueError(f"stop: expected a position behind start {start}, got {stop}. Use None for the end.")


def _check_weights(first: float, last: float) -> None:
    for argument, weight in (("first", first), ("last", last)):
        check_number(argument, weight, "1 is full strength and 0 is off.")


def _times_log(factor: float, value: float) -> float:
    """``factor · log(value)``, 0 where the factor is."""
    if factor == 0:
        return 0.0
    return factor * math.log(value) if value > 0 else -math.inf
