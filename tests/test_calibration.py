"""Calibration: the binomial tail exactly, the walk by hand, and the guarantee over many simulated calibration sets."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
import torch

from lmguide.calibration import CalibrationReport, Record, binomial_tail, calibrate, read_records
from lmguide.gates import Calibrated
from lmguide.schedules import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALPHA, DELTA = 0.05, 0.1


def draw(count: int, seed: int, chance: Callable[[torch.Tensor], torch.Tensor]) -> list[Record]:
    """Records whose confidence is uniform on [0, 1] and which are lost with the chance of their confidence."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, generator=generator, dtype=torch.float64)
    lost = torch.rand(count, generator=generator, dtype=torch.float64) < chance(confidence)
    return [Record(c, True, not wrong) for c, wrong in zip(confidence.tolist(), lost.tolist(), strict=True)]


def slack(rate: float, trials: int) -> float:
    """Three standard deviations of an observed rate."""
    return 3 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("trials", [0, 1, 7, 40])
@pytest.mark.parametrize("probability", [0.01, 0.05, 0.5, 0.9])
def test_binomial_tail_is_the_sum(trials: int, probability: float) -> None:
    for successes in range(trials + 1):
        exact = sum(
            math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(successes + 1)
        )
        assert binomial_tail(successes, trials, probability) == pytest.approx(exact, rel=1e-10)


def test_binomial_tail_far_out_and_large() -> None:
    assert binomial_tail(0, 2000, 0.05) == pytest.approx(0.95**2000, rel=1e-9)
    # The median of a binomial law lies at its mean when that is whole.
    assert binomial_tail(50_000, 1_000_000, 0.05) == pytest.approx(0.5, abs=2e-3)


def test_a_record_is_lost_only_where_guidance_alone_is_right() -> None:
    outcomes = {(a, b): Record(0.5, a, b).lost for a in (True, False) for b in (True, False)}
    assert outcomes == {(True, True): False, (True, False): True, (False, True): False, (False, False): False}


def test_the_walk_ends_at_the_first_threshold_that_is_not_rejected() -> None:
    # 100 records, so that 1 lost one is still rejected (p = .037) at alpha .05, delta .05, and 2 are not (p = .118).
    confidences = [k / 100 for k in range(100)]
    records = [Record(c, True, c not in {0.9, 0.4, 0.3}) for c in confidences]
    assert binomial_tail(1, 100, 0.05) < 0.05 < binomial_tail(2, 100, 0.05)
    gate = calibrate(records, alpha=0.05, delta=0.05)
    assert gate == Calibrated(0.401, "max_probability", alpha=0.05, delta=0.05)
    # It stays ended: without further losses below, the loss would look small again only by more records.
    assert calibrate(records, alpha=0.05, delta=0.01).threshold == 0.901


def test_the_gate_skips_exactly_the_confident() -> None:
    records = [Record(k / 100, True, k >= 50) for k in range(100)] * 10
    gate = calibrate(records, ALPHA, DELTA)
    rows = torch.tensor([[gate.threshold - 0.01, 0.0], [gate.threshold + 0.01, 0.0]])
    law = torch.cat([rows[:, :1], 1 - rows[:, :1]], -1).log()
    if gate.threshold > 0.5:
        assert gate.open(law, Progress(0, None)).tolist() == [True, False]
    report = CalibrationReport.of(gate, records)
    assert report.skipped == sum(record.confidence >= gate.threshold for record in records) / 1000


@pytest.mark.parametrize("conditional", [False, True])
def test_everything_is_skipped_where_nothing_is_lost(conditional: bool) -> None:
    records = [Record(k / 500, k % 2 == 0, k % 2 == 0) for k in range(500)]
    gate = calibrate(records, ALPHA, DELTA, conditional)
    assert gate.threshold == 0.0
    assert CalibrationReport.of(gate, records).skipped == 1.0


@pytest.mark.parametrize("conditional", [False, True])
def test_nothing_is_skipped_where_too_little_is_known(conditional: bool) -> None:
    # (1 - .05)^44 = .105 > .1: not even 44 records without a loss show that the loss is at most .05; 45 do.
    few = [Record(0.99, True, True)] * 44
    gate = calibrate(few, ALPHA, DELTA, conditional)
    report = CalibrationReport.of(gate, few)
    assert gate.threshold > 1
    assert gate.open(torch.tensor([1.0, 0.0]).log(), Progress(0, None))
    assert (report.never_skips, report.skipped, report.loss, report.loss_among_skipped) == (True, 0.0, 0.0, 0.0)
    assert "Guidance is never skipped: no threshold could be shown to lose at most 0.05. Give more" in str(report)
    if not conditional:
        assert calibrate([*few, few[0]], ALPHA, DELTA).threshold == 0.0


def test_the_loss_is_at_most_alpha_with_probability_one_minus_delta() -> None:
    # The loss at threshold t is ∫ .3 (1 - x) dx from t to 1 = .15 (1 - t)²: at most .05 from t = .4226 on.
    sets, best = 300, 1 - math.sqrt(1 / 3)
    thresholds = [calibrate(draw(400, seed, lambda x: 0.3 * (1 - x)), ALPHA, DELTA).threshold for seed in range(sets)]
    violated = sum(threshold < best for threshold in thresholds) / sets
    assert violated <= DELTA + slack(DELTA, sets)
    assert violated > 0, "never violated: more careful than asked for"
    assert sum(thresholds) / sets < best + 0.15, "skips far less than allowed"


def test_the_level_is_exact_where_skipping_anything_is_too_much() -> None:
    # All records are equally confident and lost with the chance alpha, the edge of a violation: any skip is an error of
    # the test, and the chance of one is the largest attainable level below delta.
    count, sets = 400, 2000
    largest = max(k for k in range(count) if binomial_tail(k, count, ALPHA) <= DELTA)
    level = binomial_tail(largest, count, ALPHA)
    torch.manual_seed(0)
    losses = torch.distributions.Binomial(count, torch.tensor(ALPHA)).sample(torch.Size([sets])).int().tolist()
    lost, kept = Record(0.7, True, False), Record(0.7, True, True)
    skips = sum(calibrate([lost] * n + [kept] * (count - n), ALPHA, DELTA).threshold <= 0.7 for n in losses)
    assert abs(skips / sets - level) <= slack(level, sets)


def test_the_conditional_loss_is_at_most_alpha_with_probability_one_minus_delta() -> None:
    # Among the skipped the loss at threshold t is .15 (1 - t): at most .05 from t = 2/3 on. The marginal bound alone
    # goes far below that.
    sets, best = 60, 2 / 3
    calibration_sets = [draw(4000, seed, lambda x: 0.3 * (1 - x)) for seed in range(sets)]
    thresholds = [calibrate(records, ALPHA, DELTA, conditional=True).threshold for records in calibration_sets]
    violated = sum(threshold < best for threshold in thresholds) / sets
    assert violated <= DELTA + slack(DELTA, sets)
    assert sum(thresholds) / sets < best + 0.2, "skips far less than allowed"
    marginal = [calibrate(records, ALPHA, DELTA).threshold for records in calibration_sets[:10]]
    assert max(marginal) < best


def test_the_conditional_walk_errs_with_probability_delta_where_every_threshold_is_too_much() -> None:
    # The chance of a loss is alpha at every confidence, the edge of a violation: accepting any threshold is an error.
    sets = 150
    thresholds = [
        calibrate(draw(600, seed, lambda x: torch.full_like(x, ALPHA)), ALPHA, DELTA, conditional=True).threshold
        for seed in range(sets)
    ]
    assert sum(threshold <= 1 for threshold in thresholds) / sets <= DELTA + slack(DELTA, sets)


def test_the_conditional_walk_ends_before_the_next_start() -> None:
    # From .5 down to .451 nothing is lost; .45 is not rejected, and what comes below it, up to the start at .4, is not
    # tested although it looks safe. At .4 and below too much is lost.
    lossless, lost = [Record(0.6, True, True)] * 300, [Record(0.45, True, False)] * 12
    below = [Record(0.42, True, True)] * 300 + [Record(0.401, True, False)] * 60
    assert binomial_tail(12, 612, ALPHA) < DELTA / 10 < binomial_tail(12, 312, ALPHA)
    assert calibrate(lossless + lost + below, ALPHA, DELTA, conditional=True).threshold == 0.451


def test_the_conditional_walk_begins_anew_below_overconfident_mistakes() -> None:
    # A fifth of the records above .9 is lost, one in a hundred below: the loss among the skipped is too large at the
    # top, and at most .05 again from t = .525 down.
    def chance(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0.9, 0.2, 0.01)

    sets = 60
    thresholds = [calibrate(draw(3000, seed, chance), ALPHA, DELTA, conditional=True).threshold for seed in range(sets)]
    violated = sum(0.525 < threshold <= 1 for threshold in thresholds) / sets
    assert violated <= DELTA + slack(DELTA, sets)
    assert sum(threshold < 0.1 for threshold in thresholds) / sets > 0.8


def test_negative_entropy() -> None:
    records = [Record(-k / 100, True, k < 200) for k in range(400)] * 3
    gate = calibrate(records, ALPHA, DELTA, statistic="negative_entropy")
    assert gate.statistic == "negative_entropy"
    assert -2.2 < gate.threshold < -2.0
    assert calibrate(records[:3], ALPHA, DELTA, statistic="negative_entropy").threshold == 1.0
    uniform = torch.zeros(5).log_softmax(-1)
    assert calibrate(records[:3], ALPHA, DELTA, statistic="negative_entropy").open(uniform, Progress(0, None))


def test_report() -> None:
    records = [Record(0.9, True, True), Record(0.8, True, False), Record(0.5, False, True), Record(0.3, True, False)]
    report = CalibrationReport.of(Calibrated(0.5, alpha=0.2, delta=0.1), records)
    assert report == CalibrationReport(
        threshold=0.5,
        records=4,
        skipped=0.75,
        loss=0.25,
        loss_among_skipped=1 / 3,
        alpha=0.2,
        delta=0.1,
        never_skips=False,
    )
    assert str(report) == (
        "Guidance is skipped where the confidence reaches 0.5: on 75.0% of 4 records, losing 25.00% of all and 33.33% "
        "of the skipped."
    )
    assert str(CalibrationReport.of(Calibrated(1.5), records)) == (
        "Guidance is never skipped: no confidence reaches 1.5."
    )
    with pytest.raises(ValueError, match="records: expected at least one record, got none"):
        CalibrationReport.of(Calibrated(0.5), [])


@pytest.mark.parametrize("argument", ["alpha", "delta"])
@pytest.mark.parametrize("value", [0, 1, -0.1, math.nan])
def test_levels_outside_their_range(argument: str, value: float) -> None:
    alpha, delta = (value, DELTA) if argument == "alpha" else (ALPHA, value)
    with pytest.raises(ValueError, match=rf"{argument}: expected a finite number above 0 and below 1, got {value}\."):
        calibrate([Record(0.5, True, True)], alpha, delta)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match=r"records: expected at least one record, got none\. Measure some"):
        calibrate([], ALPHA, DELTA)
    with pytest.raises(ValueError, match="statistic: expected 'max_probability' or"):
        calibrate([Record(0.5, True, True)], ALPHA, DELTA, statistic="margin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"confidence: expected a max_probability in \[0, 1\], got -1\.5\. Name the"):
        calibrate([Record(-1.5, True, True)], ALPHA, DELTA)
    with pytest.raises(ValueError, match=r"confidence: expected a negative_entropy in \[-inf, 0\], got 0\.9\."):
        calibrate([Record(0.9, True, True)], ALPHA, DELTA, statistic="negative_entropy")
    with pytest.raises(ValueError, match="confidence: expected a finite number, got nan"):
        Record(math.nan, True, True)


def test_records_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    rows = [{"confidence": 0.25, "with_guidance": True, "without_guidance": False}] * 2
    rows.append({"confidence": 1, "with_guidance": False, "without_guidance": True})
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    expected = [Record(0.25, True, False), Record(0.25, True, False), Record(1, False, True)]
    assert read_records(path) == read_records(str(path)) == expected


GOOD = '{"confidence": 0.5, "with_guidance": true, "without_guidance": true}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{confidence: 1}", r"line 3: expected a JSON object, got '\{confidence: 1\}' \(.*\)\. Write one object"),
        ("[0.5, true, true]", r"line 3: expected a dictionary, got \[0\.5, True, True\]"),
        (GOOD.replace("0.5", "NaN"), r"line 3: Record\.confidence: expected a finite number, got nan"),
        (GOOD.replace("0.5", '"high"'), r"line 3: Record\.confidence: expected a finite number, got 'high'"),
        (GOOD.replace("true}", "1}"), r"line 3: Record\.without_guidance: expected true or false, got 1"),
        (GOOD.replace('"with_g', '"withg'), r"line 3: .*, got 'withguidance'\. Did you mean 'with_guidance'\?"),
        ('{"confidence": 0.5}', r"line 3: Record: expected a value for with_guidance, got none"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_records(path)
    assert str(path) in str(caught.value)


def test_a_file_without_records_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="expected at least one record, got none"):
        read_records(path)
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "none.jsonl")
