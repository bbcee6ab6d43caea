"""Gates: on which rows of a step guidance applies.

Frozen descriptions that look at log-probs and progress and answer one boolean per row; they know no rule and no
engine. Gates combine with ``&``, ``|`` and ``~``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch

from lmguide import measures
from lmguide.checks import check_number, check_whole
from lmguide.schedules import Progress, check_bounds, within
from lmguide.serialization import Registry, from_dict, to_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Statistic: TypeAlias = Literal["max_probability", "negative_entropy"]
"""How sure a law is: the probability of its likeliest token, or minus its entropy in nats."""


class Gate(ABC):
    """Where guidance applies. Subclasses are frozen dataclasses registered in ``GATES``.

    Example:
        >>> gate = Entropy(threshold=0.5) & ~Interval(stop=2)
        >>> gate.open(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), Progress(step=2, total=None))
        tensor([ True, False])
    """

    name: ClassVar[str]

    @property
    def needs_uncond(self) -> bool:
        """Whether ``open`` must be given the contrast source, so that the gate saves no forward pass."""
        return False

    @abstractmethod
    def open(self, cond: Tensor, progress: Progress, uncond: Tensor | None = None) -> Tensor:
        """Decide for each row.

        Args:
            cond: Log-probs ``[..., V]`` under the prompt, before temperature and other processors.
            progress: The step.
            uncond: Log-probs ``[..., V]`` under the contrast context; gates that do not need it ignore it.

        Returns:
            Booleans ``[...]`` on the device of ``cond``: true where guidance applies.

        Raises:
            ValueError: the gate needs ``uncond`` or the length of the answer and did not get it.
        """

    def __and__(self, other: Gate) -> And:
        return And((self, other)) if isinstance(other, Gate) else NotImplemented

    def __or__(self, other: Gate) -> Or:
        return Or((self, other)) if isinstance(other, Gate) else NotImplemented

    def __invert__(self) -> Not:
        return Not(self)


GATES: Registry[Gate] = Registry("gate")


@GATES.register("entropy")
@dataclass(frozen=True)
class Entropy(Gate):
    """Open where the model is unsure: ``H(c) > threshold``.

    The trigger of minimal test-time intervention (arXiv 2510.13940), on the conditional law before temperature.

    Args:
        threshold: Nats. The paper's best values lie between 0.1 and 1.5; negative is always open.

    Example:
        >>> Entropy(0.5).open(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), Progress(0, None))
        tensor([ True, False])
    """

    threshold: float

    def __post_init__(self) -> None:
        """Check the threshold."""
        check_number("threshold", self.threshold, "Give an entropy in nats, 1.0 for example.")

    def open(self, cond: Tensor, progress: Progress, uncond: Tensor | None = None) -> Tensor:
        """Open where the entropy of ``cond`` exceeds the threshold."""
        return measures.entropy(cond) > self.threshold


@GATES.register("confidence")
@dataclass(frozen=True)
class Confidence(Gate):
    """Open where the likeliest token is not likely enough: ``max_v c(v) < threshold``.

    On a canvas it is asked at every position by itself.

    Args:
        threshold: A probability in [0, 1]; 0 is never open, and 1 everywhere but where the law is certain.

    Example:
        >>> Confidence(0.8).open(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), Progress(0, None))
        tensor([ True, False])
    """

    threshold: float

    def __post_init__(self) -> None:
        """Check the threshold."""
        check_number("threshold", self.threshold, "Give a probability, 0.9 for example.", least=0, most=1)

    def open(self, cond: Tensor, progress: Progress, uncond: Tensor | None = None) -> Tensor:
        """Open where the probability of the likeliest token is below the threshold."""
        return measures.max_probability(cond) < self.threshold


@GATES.register("period")
@dataclass(frozen=True)
class Period(Gate):
    """Open at every so many tokens: ``step >= first`` and ``(step - first) mod every = 0``.

    The periodic criterion of CAIF (arXiv 2205.07276).

    Args:
        every: Distance in tokens, at least 1; 1 is always open.
        first: Step at which it opens first, from 0.

    Example:
        >>> [bool(Period(every=2, first=1).open(torch.zeros(4), Progress(step, None))) for step in range(5)]
        [False, True, False, True, False]
    """

    every: int
    first: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_whole("every", self.every, "Use 1 to guide every token.", least=1)
        check_whole("first", self.first, "Use 0 for the first token.", least=0)

    def open(self, cond: Tensor, progress: Progress, uncond: Tensor | None = None) -> Tensor:
        """Open on all rows or none."""
        since = progress.step - self.first
        return _all_rows(cond, since >= 0 and since % self.every == 0)


@GATES.register("interval")
@dataclass(frozen=True)
class Interval(Gate):
    """Open inside a part of the answer: ``start <= position < stop``, as in guidance intervals (arXiv 2404.07724).

    Args:
        start: First position inside. An int counts tokens, a float in [0, 1] is a fraction of the answer.
        stop: First position behind; None is the end.

    Example:
        >>> [bool(Interval(1, 0.75).open(torch.zeros(4), Progress(step, 4))) for step in range(4)]
        [False, True, True, False]
    """

    start: int | float = 0
    stop: int | float | None = None

    def __post_init__(self) -> None:
        """Check the bounds."""
        check_bounds(self.start, self.stop)

    def open(self, cond: Tensor, progress: Progress, uncond: Tensor | None = None) -> Tensor:
        """Open on all rows or none."""
        return _all_rows(cond, within(progress, self.start, self.stop))


@GATES.register("divergence")
@dataclass(frozen=True)
class Divergence(Gate):
    """Open where the two sources disagree: ``KL(c || u) > threshold``. It saves no forward pass.

    Args:
        threshold: Nats, at least 0.

    Example:
        >>> cond, uncond = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log(), torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
        >>> Divergence(0.1).open(cond, Progress(0, None), uncond)
        tensor([False,  True])
    """

    threshold: float

    def __post_init__(self) -> None:
        """Check the threshold."""
        check_number("threshold", self.threshold, "Give a divergence in nats, 0.1 for example.", least=0)

    @property
    def needs_uncond(self) -> bool:
        """True."""
        return True

    def open(self, cond: Tensor, progress: Progress, uncond: Tensor | None = None) -> Tensor:
        """Open where the divergence exceeds the threshold."""
        if uncond is None:
            raise ValueError("uncond: expected log-probs of the contrast source, got None. Check needs_uncond first.")
        return measures.kl_divergence(cond, uncond) > self.threshold


@GATES.register("calibrated")
@dataclass(frozen=True)
class Calibrated(Gate):
    """Open where the model is not confident enough: ``confidence(c) < threshold``.

    ``lmguide.calibration.calibrate`` picks the threshold so that what is lost by not guiding is bounded.

    Args:
        threshold: A probability, or minus a number of nats. Above the largest confidence (1 or 0) it is always open.
        statistic: What confidence is; see ``confidence``.
        alpha: The loss it was calibrated for, kept for the record; None where the threshold was set by hand.
        delta: The chance of missing that, likewise.

    Example:
        >>> Calibrated(0.8).open(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), Progress(0, None))
        tensor([ True, False])
    """

    threshold: float
    statistic: Statistic = "max_probability"
    alpha: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers and the statistic."""
        check_number("threshold", self.threshold, "Give a confidence, 0.9 for example.")
        check_statistic(self.statistic)
        for argument, value in (("alpha", self.alpha), ("delta", self.delta)):
            if value is not None:
                check_number(argument, value, "Use None for a threshold set by hand.", least=0, most=1)

    def open(self, cond: Tensor, progress: Progress, uncond: Tensor | None = None) -> Tensor:
        """Open where the confidence is below the threshold."""
        return confidence(cond, self.statistic) < self.threshold


@dataclass(frozen=True)
class _Several(Gate):
    """What And and Or share: several gates, of which one may need the other source.

    Args:
        gates: At least one gate.
    """

    gates: tuple[Gate, ...]

    def __post_init__(self) -> None:
        """Check the gates."""
        _check_gates(self.gates)

    @property
    def needs_uncond(self) -> bool:
        """Whether any of the gates does."""
        return any(gate.needs_uncond for gate in self.gates)

    def _opened(self, cond: Tensor, progress: Progress, uncond: Tensor | None) -> Tensor:
        """Which gates are open, ``[gates, ...]``."""
        return torch.stack([gate.open(cond, progress, uncond) for gate in self.gates])


@GATES.register("and")
@dataclass(frozen=True)
class And(_Several):
    """Open where all of several gates are: ``a & b``.

    Args:
        gates: At least one gate.
    """

    def open(self, cond: Tensor, progress: Progress, uncond: Tensor | None = None) -> Tensor:
        """Open where all gates are."""
        return self._opened(cond, progress, uncond).all(0)


@GATES.register("or")
@dataclass(frozen=True)
class Or(_Several):
    """Open where any of several gates is: ``a | b``.

    Args:
        gates: At least one gate.
    """

    def open(self, cond: Tensor, progress: Progress, uncond: Tensor | None = None) -> Tensor:
        """Open where any gate is."""
        return self._opened(cond, progress, uncond).any(0)


@GATES.register("not")
@dataclass(frozen=True)
class Not(Gate):
    """Open where another gate is closed: ``~a``.

    Args:
        gate: The other gate.
    """

    gate: Gate

    def __post_init__(self) -> None:
        """Check the gate."""
        _check_gates((self.gate,))

    @property
    def needs_uncond(self) -> bool:
        """Whether the gate does."""
        return self.gate.needs_uncond

    def open(self, cond: Tensor, progress: Progress, uncond: Tensor | None = None) -> Tensor:
        """Open where the gate is closed."""
        return ~self.gate.open(cond, progress, uncond)


def confidence(logp: Tensor, statistic: Statistic = "max_probability") -> Tensor:
    """How sure a law is, larger being surer.

    Args:
        logp: Log-probs ``[..., V]``.
        statistic: ``"max_probability"``, the probability of the likeliest token; ``"negative_entropy"``, minus the
            entropy in nats.

    Returns:
        ``[...]``, at most 1 or 0.

    Raises:
        ValueError: an unknown statistic.

    Example:
        >>> confidence(torch.tensor([0.9, 0.1]).log())
        tensor(0.9000)
    """
    check_statistic(statistic)
    return measures.max_probability(logp) if statistic == "max_probability" else -measures.entropy(logp)


def check_statistic(statistic: str) -> None:
    """Refuse a word that is no statistic.

    Raises:
        ValueError: it is none.
    """
    if statistic not in {"max_probability", "negative_entropy"}:
        raise ValueError(
            f"statistic: expected 'max_probability' or 'negative_entropy', got {statistic!r}. Use one of the two."
        )


def gate_to_dict(gate: Gate) -> dict[str, Any]:
    """The gate as a JSON-safe dictionary with its name.

    Example:
        >>> gate_to_dict(~Period(2))
        {'name': 'not', 'gate': {'name': 'period', 'every': 2, 'first': 0}}
    """
    return to_dict(gate)


def gate_from_dict(data: Mapping[str, Any]) -> Gate:
    """The gate that a dictionary of ``gate_to_dict`` describes.

    Raises:
        ValueError: an unknown name or key, with the nearest known one, or a bad value.

    Example:
        >>> gate_from_dict({"name": "period", "every": 2})
        Period(every=2, first=0)
    """
    return from_dict(GATES, data)


def _all_rows(cond: Tensor, answer: bool) -> Tensor:
    return torch.full(cond.shape[:-1], answer, dtype=torch.bool, device=cond.device)


def _check_gates(gates: tuple[Gate, ...]) -> None:
    if not isinstance(gates, tuple) or not gates:
        raise ValueError(f"gates: expected a tuple of at least one gate, got {gates!r}. Join gates with & and |.")
    for gate in gates:
        if not isinstance(gate, Gate):
            raise TypeError(f"gates: expected gates such as Entropy(1.0), got {gate!r}. See lmguide.gates.")
