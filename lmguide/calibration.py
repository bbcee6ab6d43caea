"""Where guidance may be skipped at a bounded loss: a confidence threshold with a guarantee, by Learn-then-Test.

It reads records of what happened with and without guidance and returns a gate; it knows no model and runs none.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lmguide.checks import check_number
from lmguide.gates import Calibrated, Statistic, check_statistic
from lmguide.serialization import from_dict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Thresholds to test, from skipping little to skipping much, fixed before any record is seen: the guarantee needs that.
# Negative entropies end at -12.5 nats, a uniform law over a quarter of a million tokens.
_GRID: dict[Statistic, tuple[float, ...]] = {
    "max_probability": tuple(k / 1000 for k in range(1000, -1, -1)),
    "negative_entropy": tuple(-k / 100 for k in range(1251)),
}

# Where a walk over the conditional loss may begin. From the top alone it would never get going: hardly any record is
# that confident, and the loss among so few cannot be bounded.
_STARTS: dict[Statistic, tuple[float, ...]] = {
    "max_probability": (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2),
    "negative_entropy": (-0.01, -0.05, -0.1, -0.2, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0),
}

_RANGE: dict[Statistic, tuple[float, float]] = {"max_probability": (0.0, 1.0), "negative_entropy": (-math.inf, 0.0)}
_ROUNDING = 1e-6

# Above the largest confidence there is, by more than rounding.
_NEVER_SKIP: dict[Statistic, float] = {statistic: highest + 1.0 for statistic, (_, highest) in _RANGE.items()}


@dataclass(frozen=True)
class Record:
    """One decision, made both ways.

    Records must be independent draws from where the gate will be used. The tokens of one answer are not independent:
    take one record from each answer.

    Args:
        confidence: The model's confidence without guidance, as ``gates.confidence`` gives it.
        with_guidance: Whether the outcome was right when guided.
        without_guidance: Whether it was right when not.

    Example:
        >>> Record(0.9, with_guidance=True, without_guidance=False).lost
        True
    """

    confidence: float
    with_guidance: bool
    without_guidance: bool

    def __post_init__(self) -> None:
        """Check the confidence."""
        check_number("confidence", self.confidence, "Give what lmguide.gates.confidence returned.")

    @property
    def lost(self) -> bool:
        """Whether skipping guidance turns a right outcome into a wrong one."""
        return self.with_guidance and not self.without_guidance


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibrated gate does on a set of records.

    On the records it was calibrated with, the losses are smaller than on new ones; the bound alpha is for new ones.

    Attributes:
        threshold: Guidance is skipped where the confidence reaches it.
        records: Number of records.
        skipped: Share of the records on which guidance is skipped.
        loss: Share of all records that are lost: guidance skipped, right with it and wrong without.
        loss_among_skipped: Share of the skipped records that are lost; 0 if none is skipped.
        alpha: The bound on the loss; None if the gate was not calibrated.
        delta: The chance that the bound fails; None likewise.
        never_skips: Whether the threshold is out of reach: no threshold could be shown to be safe.
    """

    threshold: float
    records: int
    skipped: float
    loss: float
    loss_among_skipped: float
    alpha: float | None
    delta: float | None
    never_skips: bool

    @classmethod
    def of(cls, gate: Calibrated, records: Sequence[Record]) -> CalibrationReport:
        """Apply a gate to records.

        Raises:
            ValueError: there are no records.

        Example:
            >>> records = [Record(0.9, True, True), Record(0.8, True, False), Record(0.3, True, False)]
            >>> report = CalibrationReport.of(Calibrated(0.5), records)
            >>> round(report.skipped, 3), round(report.loss, 3), report.loss_among_skipped
            (0.667, 0.333, 0.5)
        """
        _check_records(records)
        skipped = [record for record in records if record.confidence >= gate.threshold]
        lost = sum(record.lost for record in skipped)
        return cls(
            threshold=gate.threshold,
            records=len(records),
            skipped=len(skipped) / len(records),
            loss=lost / len(records),
            loss_among_skipped=lost / len(skipped) if skipped else 0.0,
            alpha=gate.alpha,
            delta=gate.delta,
            never_skips=gate.threshold > _RANGE[gate.statistic][1],
        )

    def __str__(self) -> str:
        if self.never_skips and self.alpha is None:
            return f"Guidance is never skipped: no confidence reaches {self.threshold:g}."
        if self.never_skips:
            return (
                f"Guidance is never skipped: no threshold could be shown to lose at most {self.alpha:g}. "
                f"Give more than {self.records} records, or allow a larger alpha or delta."
            )
        return (
            f"Guidance is skipped where the confidence reaches {self.threshold:g}: on {self.skipped:.1%} of "
            f"{self.records} records, losing {self.loss:.2%} of all and {self.loss_among_skipped:.2%} of the skipped."
        )


def calibrate(
    records: Sequence[Record],
    alpha: float,
    delta: float,
    conditional: bool = False,
    statistic: Statistic = "max_probability",
) -> Calibrated:
    """Find the lowest confidence at which guidance may be skipped.

    A gate with threshold λ guides where the confidence is below λ. Its loss is the chance that a new record has a
    confidence of at least λ, is right with guidance and wrong without; this bounds the accuracy it loses against
    always guiding. With probability at least ``1 - delta`` over the records, the loss of the returned gate is at most
    ``alpha``.

    Learn-then-Test (Angelopoulos et al., arXiv 2110.01052): for each λ of a fixed grid, from skipping nothing
    downwards, the hypothesis "the loss exceeds alpha" is tested with the exact binomial p-value, and the walk ends at
    the first one that is not rejected. With ``conditional`` the loss is the one among the skipped records only,
    ``P(lost | confidence >= λ)``, as in accumulated accuracy gap control (Ringel et al., "Early Time Classification
    with Accumulated Accuracy Gap Control", arXiv 2402.00857). The loss among very few records cannot be bounded, so
    this walk begins at each of ten fixed thresholds, each with a tenth of ``delta``; it needs more records.

    Args:
        records: At least one record, independent of each other.
        alpha: Loss to allow, in (0, 1).
        delta: Chance that the bound fails, in (0, 1).
        conditional: Whether to bound the loss among the skipped records.
        statistic: What the confidences are; the gate computes the same.

    Returns:
        The gate. If no threshold passes, its threshold is above every confidence, so that it always guides:
        ``CalibrationReport.of(gate, records)`` says so.

    Raises:
        TypeError: ``alpha`` or ``delta`` is not a number.
        ValueError: no records, a number outside its range, an unknown statistic, or a confidence that cannot be of it.

    Example:
        Unguided outcomes are wrong only where the confidence is below a half.

        >>> records = [Record(k / 1000, True, k >= 500) for k in range(1000)]
        >>> calibrate(records, alpha=0.05, delta=0.1)
        Calibrated(threshold=0.46, statistic='max_probability', alpha=0.05, delta=0.1)
    """
    check_statistic(statistic)
    _check_records(records)
    for argument, value in (("alpha", alpha), ("delta", delta)):
        check_number(argument, value, "Use 0.05 for one in twenty.", above=0, below=1)
    lowest, highest = _RANGE[statistic]
    for record in records:
        if not lowest - _ROUNDING <= record.confidence <= highest + _ROUNDING:
            raise ValueError(
                f"confidence: expected a {statistic} in [{lowest:g}, {highest:g}], got {record.confidence}. "
                "Name the statistic that was recorded."
            )

    starts = _STARTS[statistic] if conditional else _GRID[statistic][:1]
    level = delta / len(starts)
    accepted = _NEVER_SKIP[statistic]
    walking = False
    tested: tuple[int, int] | None = None
    rejected = False
    for threshold, skipped, lost in _walk(records, statistic):
        if not (walking or threshold in starts):
            continue
        counts = lost, skipped if conditional else len(records)
        if counts != tested:  # The same counts give the same test, and most steps of the grid pass no lost record.
            tested = counts
            rejected = binomial_tail(*counts, alpha) <= level
        if rejected:
            accepted = threshold
        walking = rejected
    return Calibrated(accepted, statistic, alpha, delta)


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """``P(X <= successes)`` of a binomial variable: the p-value of "the chance is larger than ``probability``".

    Args:
        successes: 0 or more.
        trials: 0 or more; without trials the answer is 1.
        probability: In (0, 1).

    Returns:
        A probability.

    Example:
        >>> round(binomial_tail(1, 3, 0.5), 6)
        0.5
    """
    k = torch.arange(min(successes, trials) + 1, dtype=torch.float64)
    n = torch.tensor(float(trials), dtype=torch.float64)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    log_mass = log_choose + k * math.log(probability) + (n - k) * math.log1p(-probability)
    return min(1.0, float(log_mass.logsumexp(0).exp()))


def read_records(path: str | Path) -> list[Record]:
    """Read records from a file with one JSON object on each line; empty lines are passed over.

    Args:
        path: The file. A line is ``{"confidence": 0.93, "with_guidance": true, "without_guidance": false}``.

    Returns:
        The records in the order of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is no record, with its number and what is wrong; or there is none.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "records.jsonl")
        ...     _ = path.write_text('{"confidence": 0.93, "with_guidance": true, "without_guidance": false}')
        ...     read_records(path)
        [Record(confidence=0.93, with_guidance=True, without_guidance=False)]
    """
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            records.append(from_dict(Record, json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object, got {line.strip()[:60]!r} ({error}). "
                "Write one object on each line."
            ) from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not records:
        raise ValueError(f"{path}: expected at least one record, got none. Write one JSON object on each line.")
    return records


def _walk(records: Sequence[Record], statistic: Statistic) -> Iterator[tuple[float, int, int]]:
    """Every threshold of the grid, with how many records it skips and how many of these are lost."""
    ordered = sorted(records, key=lambda record: -record.confidence)
    downwards = [-record.confidence for record in ordered]
    lost = [0, *accumulate(int(record.lost) for record in ordered)]
    for threshold in _GRID[statistic]:
        skipped = bisect_right(downwards, -threshold)
        yield threshold, skipped, lost[skipped]


def _check_records(records: Sequence[Record]) -> None:
    if not records:
        raise ValueError("records: expected at least one record, got none. Measure some with and without guidance.")
