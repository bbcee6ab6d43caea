"""Schedules: their shapes by hand, what they refuse, and laws over all of them."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from lmguide.gates import Interval
from lmguide.measures import kl_divergence
from lmguide.rules import cfg, normalize
from lmguide.schedules import (
    SCHEDULES,
    Beta,
    Constant,
    Cosine,
    FromDivergence,
    Linear,
    Progress,
    Schedule,
    Window,
    schedule_from_dict,
    schedule_to_dict,
    within,
)

EXAMPLES: list[Schedule] = [
    Constant(),
    Linear(),
    Linear(1, 0.25),
    Cosine(),
    Cosine(2.0, -0.5),
    Window(),
    Window(2, 5),
    Window(0.25, 0.75),
    Window(1, 0.5),
    Beta(),
    Beta(1, 3),
    Beta(200.0, 300.0),
    FromDivergence(0.5),
]

all_schedules = pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)


def shape(schedule: Schedule, total: int | None, steps: int) -> list[float]:
    return [schedule.weight(Progress(step, total)) for step in range(steps)]


def test_every_schedule_is_among_the_examples() -> None:
    assert {type(schedule) for schedule in EXAMPLES} == {SCHEDULES.get(name) for name in SCHEDULES.names()}


@all_schedules
def test_dictionaries_give_the_same_schedule_back(schedule: Schedule) -> None:
    data = schedule_to_dict(schedule)
    assert data["name"] == SCHEDULES.name_of(type(schedule)) == schedule.name
    assert schedule_from_dict(json.loads(json.dumps(data))) == schedule


@all_schedules
def test_each_answers_one_of_the_two_questions(schedule: Schedule) -> None:
    if schedule.needs_divergence:
        weights = schedule.weight_from(torch.tensor([[0.0, 0.1], [3.0, math.inf]]))
        assert weights.shape == (2, 2)
        assert ((weights >= 0) & (weights <= 1)).all()
        with pytest.raises(TypeError, match=r"Call weight_from\(divergence\)"):
            schedule.weight(Progress(0, 4))
    else:
        for weight in shape(schedule, 40, 45):
            assert isinstance(weight, float)
            assert math.isfinite(weight)
        with pytest.raises(TypeError, match=r"Call weight\(progress\)"):
            schedule.weight_from(torch.zeros(2))


def test_progress() -> None:
    assert [Progress(step, 4).fraction for step in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert Progress(4, 4).fraction == Progress(9, 4).fraction == math.nextafter(1.0, 0.0)
    with pytest.raises(ValueError, match=r"total: expected .*, got None\. Give max_new_tokens, or use"):
        _ = Progress(3, None).fraction
    for step, total, word in ((-1, 4, "step"), (0, 0, "total")):
        with pytest.raises(ValueError, match=f"{word}: expected a whole number"):
            Progress(step, total)
    with pytest.raises(TypeError, match=r"step: expected a whole number of at least 0, got 1\.5"):
        Progress(1.5, 4)  # type: ignore[arg-type]


def test_shapes_by_hand() -> None:
    assert shape(Constant(), None, 3) == [1.0, 1.0, 1.0]
    assert shape(Linear(), 4, 4) == [0.0, 0.25, 0.5, 0.75]
    assert shape(Linear(1.0, 0.5), 2, 2) == [1.0, 0.75]
    half = math.sqrt(0.5)
    assert shape(Cosine(), 4, 4) == pytest.approx([0.0, (1 - half) / 2, 0.5, (1 + half) / 2])
    assert shape(Cosine(3.0, 1.0), 4, 4) == pytest.approx([3.0, 2 + half, 2.0, 2 - half])
    assert shape(Window(2, 4), None, 6) == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert shape(Window(0.25, 0.75), 4, 6) == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert shape(Window(), None, 3) == [1.0, 1.0, 1.0]
    assert shape(Window(2), None, 4) == [0.0, 0.0, 1.0, 1.0]
    assert shape(Window(stop=1), None, 3) == [1.0, 0.0, 0.0]
    assert shape(Window(stop=1.0), 3, 5) == [1.0] * 5
    assert shape(Beta(), 4, 4) == pytest.approx([0.0, 0.75, 1.0, 0.75])
    assert Beta().weight(Progress(2, 4)) == 1.0
    assert shape(Beta(1, 1), 4, 4) == [1.0] * 4
    assert shape(Beta(1, 2), 4, 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert shape(Beta(2, 1), 4, 4) == pytest.approx([0.0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 4), (3, 1), (2, 2), (2.5, 7), (1.1, 1.01), (2000.0, 500.0)])
def test_beta_is_the_density_over_its_peak(a: float, b: float) -> None:
    density = torch.distributions.Beta(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    positions = torch.arange(1, 4000, dtype=torch.float64) / 4000
    expected = (density.log_prob(positions) - density.log_prob(positions).amax()).exp()
    weights = [Beta(a, b).weight(Progress(step, 4000)) for step in range(1, 4000)]
    assert max(weights) <= 1 + 1e-12
    torch.testing.assert_close(torch.tensor(weights, dtype=torch.float64), expected, rtol=2e-3, atol=1e-6)


def test_window_is_exactly_full_or_off_and_agrees_with_the_gate() -> None:
    cond = torch.zeros(3, 5)
    for start, stop in itertools.product((0, 1, 3, 0.0, 0.3), (None, 4, 9, 0.5, 1.0)):
        for step in range(10):
            progress = Progress(step, 8)
            weight = Window(start, stop).weight(progress)
            assert weight in {0.0, 1.0}
            assert Interval(start, stop).open(cond, progress).tolist() == [bool(weight)] * 3
            assert within(progress, start, stop) == bool(weight)


def test_fractions_need_the_length_of_the_answer() -> None:
    unknown = Progress(3, None)
    in_fractions: list[Schedule] = [Linear(), Cosine(), Beta(), Window(0.5), Window(0, 0.5)]
    for schedule in in_fractions:
        with pytest.raises(ValueError, match="Give max_new_tokens"):
            schedule.weight(unknown)
    in_tokens: list[Schedule] = [Constant(), Window(1, 5), Window()]
    for schedule in in_tokens:
        assert schedule.weight(unknown) == 1.0


def test_from_divergence_bounds_what_guidance_adds() -> None:
    weights = FromDivergence(0.5).weight_from(torch.tensor([0.0, 0.25, 0.5, 1.0, 5.0, math.inf], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 1.0, 0.5, 0.1, 0.0], dtype=torch.float64))
    # In use: the farther apart the sources, the closer to off.
    cond = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    uncond = torch.tensor([[0.6, 0.4], [0.99, 0.01]]).log()
    weight = FromDivergence(0.1).weight_from(kl_divergence(cond, uncond))
    assert weight[0] == 1
    guided = normalize(cfg(cond, uncond, 1 + 2.0 * weight))
    assert torch.equal(guided[0], normalize(cfg(cond, uncond, 3.0))[0])
    assert kl_divergence(guided, cond)[1] < kl_divergence(normalize(cfg(cond, uncond, 3.0)), cond)[1] / 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(math.nan, 1.0), r"first: expected a finite number, got nan\. 1 is full strength"),
        (lambda: Cosine(0.0, math.inf), r"last: expected a finite number, got inf"),
        (lambda: Beta(0.5, 2), r"a: expected a finite number at least 1, got 0\.5\. Below 1"),
        (lambda: Beta(2, 0), "b: expected a finite number at least 1, got 0"),
        (lambda: FromDivergence(0), r"target: expected a finite number above 0, got 0\. Use Constant\(\)"),
        (lambda: Window(-1), r"start: expected a whole number of at least 0, got -1\. An int counts tokens"),
        (lambda: Window(1.5), r"start: expected .* at most 1, got 1\.5\. A float is a fraction"),
        (lambda: Window(0, -0.5), r"stop: expected a finite number at least 0 and at most 1, got -0\.5"),
        (lambda: Window(5, 5), r"stop: expected a position behind start 5, got 5\. Use None for the end"),
        (lambda: Window(0.5, 0.25), r"stop: expected a position behind start 0\.5, got 0\.25"),
        (lambda: schedule_from_dict({"name": "linaer"}), r"name of a schedule \(.*\), got 'linaer'.*'linear'\?"),
    ],
)
def test_refusals(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("value", ["1", None, True, [1.0]])
def test_what_is_no_number_is_a_type_error(value: object) -> None:
    for schedule in (Linear, Cosine, Beta, FromDivergence, Window):
        with pytest.raises(TypeError, match=": expected a "):
            schedule(value)  # type: ignore[arg-type]
