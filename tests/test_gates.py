"""Gates: where they open, by hand; their algebra; laws over all of them."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from lmguide import measures
from lmguide.gates import (
    GATES,
    And,
    Calibrated,
    Confidence,
    Divergence,
    Entropy,
    Gate,
    Interval,
    Not,
    Or,
    Period,
    confidence,
    gate_from_dict,
    gate_to_dict,
)
from lmguide.schedules import Progress

EXAMPLES: list[Gate] = [
    Entropy(1.0),
    Entropy(-1),
    Confidence(0.6),
    Period(3),
    Period(2, first=1),
    Interval(),
    Interval(1, 0.5),
    Divergence(0.4),
    Calibrated(0.6),
    Calibrated(-1.0, "negative_entropy", alpha=0.05, delta=0.1),
    Entropy(1.0) & Period(2),
    Entropy(1.0) | Divergence(0.4),
    ~(Entropy(1.0) & ~Interval(2)),
]

all_gates = pytest.mark.parametrize("gate", EXAMPLES, ids=repr)

START = Progress(0, 8)


def laws(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator)).log_softmax(-1)


def opened(gate: Gate, progress: Progress = START) -> bool:
    """Answer of a gate that looks at progress only."""
    return bool(gate.open(torch.zeros(4), progress))


def test_every_gate_is_among_the_examples() -> None:
    assert {type(gate) for gate in EXAMPLES} == {GATES.get(name) for name in GATES.names()}


@all_gates
def test_dictionaries_give_the_same_gate_back(gate: Gate) -> None:
    data = gate_to_dict(gate)
    assert data["name"] == GATES.name_of(type(gate)) == gate.name
    assert gate_from_dict(json.loads(json.dumps(data))) == gate


@all_gates
def test_one_boolean_for_each_row_whatever_the_others_are(gate: Gate) -> None:
    cond, uncond = laws(2, 3, 6), laws(2, 3, 6, seed=1)
    for progress in (Progress(0, 8), Progress(3, 8), Progress(7, 8)):
        answer = gate.open(cond, progress, uncond)
        assert answer.shape == (2, 3)
        assert answer.dtype == torch.bool
        for i, j in itertools.product(range(2), range(3)):
            assert answer[i, j] == gate.open(cond[i, j], progress, uncond[i, j])


@all_gates
def test_the_contrast_is_needed_exactly_where_the_gate_says_so(gate: Gate) -> None:
    cond = laws(5, 6)
    if gate.needs_uncond:
        with pytest.raises(ValueError, match="uncond: expected log-probs of the contrast source, got None"):
            gate.open(cond, START)
    else:
        assert torch.equal(gate.open(cond, START), gate.open(cond, START, laws(5, 6, seed=1)))


@all_gates
def test_rows_without_candidates_and_with_holes_give_an_answer(gate: Gate) -> None:
    cond = laws(3, 4).masked_fill(torch.tensor([[True] * 4, [True, True, True, False], [False] * 4]), -math.inf)
    uncond = laws(3, 4, seed=1).masked_fill(torch.tensor([[False] * 4, [False] * 4, [True] * 4]), -math.inf)
    assert gate.open(cond, START, uncond).shape == (3,)


def test_entropy_opens_above_its_threshold() -> None:
    cond = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
    assert Entropy(1.0).open(cond, START).tolist() == [True, False, False]
    assert Entropy(0.5).open(cond, START).tolist() == [True, True, False]
    assert Entropy(0.0).open(cond, START).tolist() == [True, True, False]
    assert Entropy(-1.0).open(cond, START).tolist() == [True, True, True]
    assert Entropy(1.4).open(cond, START).tolist() == [False, False, False]
    threshold = measures.entropy(cond)[1].item()
    assert not Entropy(threshold).open(cond, START)[1]


def test_confidence_opens_below_its_threshold() -> None:
    cond = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
    assert Confidence(0.4).open(cond, START).tolist() == [True, False, False]
    assert Confidence(0.75).open(cond, START).tolist() == [True, True, False]
    assert Confidence(0.5).open(cond, START).tolist() == [True, False, False], "what reaches the threshold is closed"
    assert Confidence(0.0).open(cond, START).tolist() == [False, False, False]
    assert Confidence(1.0).open(cond, START).tolist() == [True, True, False], "a certain law is never guided"
    # one answer for each position of a canvas, from the largest probability alone
    canvas = laws(2, 5, 6)
    assert torch.equal(Confidence(0.6).open(canvas, START), canvas.exp().amax(-1) < 0.6)
    assert torch.equal(Confidence(0.6).open(canvas.flip(-1), START), Confidence(0.6).open(canvas, START))
    assert torch.equal(Confidence(0.6).open(canvas, START), Calibrated(0.6).open(canvas, START))


def test_period_counts_from_its_first_step() -> None:
    steps = [Progress(step, None) for step in range(7)]
    assert [opened(Period(3), step) for step in steps] == [True, False, False, True, False, False, True]
    assert [opened(Period(2, first=3), step) for step in steps] == [False, False, False, True, False, True, False]
    assert all(opened(Period(1), step) for step in steps)


def test_interval_is_half_open() -> None:
    steps = [Progress(step, 8) for step in range(10)]
    assert [step.step for step in steps if opened(Interval(2, 5), step)] == [2, 3, 4]
    assert [step.step for step in steps if opened(Interval(0.25, 0.5), step)] == [2, 3]
    assert [step.step for step in steps if opened(Interval(6), step)] == [6, 7, 8, 9]
    with pytest.raises(ValueError, match="Give max_new_tokens"):
        opened(Interval(0.5), Progress(1, None))


def test_divergence_opens_where_the_sources_disagree() -> None:
    cond = torch.tensor([[0.5, 0.5]] * 3).log()
    uncond = torch.tensor([[0.5, 0.5], [0.7, 0.3], [1.0, 0.0]]).log()
    assert Divergence(0.0).open(cond, START, uncond).tolist() == [False, True, True]
    assert Divergence(0.5).open(cond, START, uncond).tolist() == [False, False, True]
    # The weight is the conditional law: the other direction is finite here.
    assert Divergence(10.0).open(cond, START, uncond).tolist() == [False, False, True]
    assert Divergence(10.0).open(uncond, START, cond).tolist() == [False, False, False]


def test_calibrated_opens_below_its_threshold() -> None:
    cond = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]]).log()
    assert Calibrated(0.75).open(cond, START).tolist() == [True, False, False]
    assert Calibrated(2.0).open(cond, START).all()
    assert Calibrated(-0.6, "negative_entropy").open(cond, START).tolist() == [True, False, False]
    assert Calibrated(1.0, "negative_entropy").open(cond, START).all()


def test_confidence() -> None:
    cond = laws(20, 9)
    assert torch.equal(confidence(cond), cond.exp().amax(-1))
    assert torch.equal(confidence(cond, "negative_entropy"), -measures.entropy(cond))
    with pytest.raises(ValueError, match=r"statistic: expected 'max_probability' or 'negative_entropy', got 'margin'"):
        confidence(cond, "margin")  # type: ignore[arg-type]


def test_operators_are_the_truth_tables() -> None:
    on, off = Interval(0, 1), Interval(1, 2)
    for first, second in itertools.product((on, off), repeat=2):
        a, b = opened(first), opened(second)
        assert opened(first & second) == (a and b)
        assert opened(first | second) == (a or b)
        assert opened(~first) == (not a)
        assert opened(~(first & second)) == opened(~first | ~second)
    assert on & off == And((on, off))
    assert on | off == Or((on, off))
    assert ~on == Not(on)
    assert opened(Or((off, off, on)))
    assert not opened(And((on, on, off)))


def test_operators_work_row_by_row() -> None:
    cond = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    gate = Entropy(0.5)
    assert gate.open(cond, START).tolist() == [True, False]
    assert (gate & Interval(0, 1)).open(cond, START).tolist() == [True, False]
    assert (~gate & Interval(0, 1)).open(cond, START).tolist() == [False, True]
    assert (gate | Period(1)).open(cond, START).tolist() == [True, True]


def test_the_need_of_the_contrast_is_handed_on() -> None:
    cheap, dear = Entropy(1.0), Divergence(0.1)
    assert dear.needs_uncond
    for gate in (cheap & dear, dear | cheap, ~dear, ~(cheap & ~dear), And((cheap, cheap, dear))):
        assert gate.needs_uncond
    for gate in (cheap & cheap, cheap | ~cheap, ~cheap):
        assert not gate.needs_uncond


def test_operators_refuse_what_is_no_gate() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = Entropy(1.0) & 3  # type: ignore[operator]
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = Entropy(1.0) | "period"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Entropy(math.nan), r"threshold: expected a finite number, got nan\. Give an entropy in nats"),
        (
            lambda: Confidence(1.5),
            r"threshold: expected a finite number at least 0 and at most 1, got 1\.5\. Give a prob",
        ),
        (lambda: Confidence(-0.1), r"threshold: expected a finite number at least 0 and at most 1, got -0\.1"),
        (lambda: Confidence(math.nan), "threshold: expected a finite number at least 0 and at most 1, got nan"),
        (lambda: Period(0), r"every: expected a whole number of at least 1, got 0\. Use 1"),
        (lambda: Period(2, first=-1), "first: expected a whole number of at least 0, got -1"),
        (lambda: Interval(4, 2), "stop: expected a position behind start 4, got 2"),
        (lambda: Divergence(-0.1), r"threshold: expected a finite number at least 0, got -0\.1"),
        (lambda: Calibrated(math.inf), "threshold: expected a finite number, got inf"),
        (lambda: Calibrated(0.5, "margin"), "statistic: expected 'max_probability' or 'negative_entropy'"),  # type: ignore[arg-type]
        (lambda: Calibrated(0.5, alpha=1.5), "alpha: expected a finite number at least 0 and at most 1, got 1.5"),
        (lambda: And(()), "gates: expected a tuple of at least one gate, got "),
        (
            lambda: gate_from_dict({"name": "entropi"}),
            r"name of a gate .*'entropi'\. Did you mean 'entropy'\?",
        ),
    ],
)
def test_refusals(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_type_errors() -> None:
    with pytest.raises(TypeError, match="threshold: expected a finite number, got '1'"):
        Entropy("1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"every: expected a whole number of at least 1, got 2\.0"):
        Period(2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"gates: expected gates such as Entropy\(1\.0\), got 'entropy'"):
        Or(("entropy",))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gates: expected gates such as"):
        Not(None)  # type: ignore[arg-type]
