"""Orders: each against its rule in plain Python."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from lmguide.diffusion.orders import (
    ORDERS,
    Decisions,
    DreamOrder,
    EntropyBoundOrder,
    EntropyOrder,
    FactorOrder,
    FixedOrder,
    LowConfidenceOrder,
    MarginOrder,
    Moment,
    Order,
    RandomOrder,
    ThresholdOrder,
)
from tests.diffusion import reference
from tests.diffusion.moments import QUOTAS, ROWS, WIDTH, case, decisions_of, moment_of, random_laws

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Each order is its rule, row by row

Row = dict[int, dict[str, float]]
"""The open columns of a row, with what is known of each."""


def rows_in_words(decisions: Decisions, moment: Moment) -> list[Row]:
    noise = moment.uniform("order")
    known: dict[str, Tensor] = {
        "probability": decisions.log_prob.double().exp(),
        "margin": decisions.top.double().exp() - decisions.second.double().exp(),
        "entropy": decisions.entropy,
        "noise": noise,
    }
    return [
        {
            column: {name: statistic[row, column].item() for name, statistic in known.items()}
            for column in range(WIDTH)
            if moment.open[row, column]
        }
        for row in range(ROWS)
    ]


def column(name: str, row: Row, sign: float = 1.0) -> dict[int, float]:
    return {each: sign * row[each][name] for each in row}


def best(name: str, sign: float = 1.0) -> Callable[[Row, int], list[int]]:
    return lambda row, quota: reference.best(column(name, row, sign), quota)


def dynamic(row: Row, quota: int) -> list[int]:
    """SDAR: all above the threshold if they are at least the scheduled number, else the scheduled number."""
    sure = [each for each in row if row[each]["probability"] >= 0.3]
    return sure if len(sure) >= quota else reference.best(column("probability", row), quota)


def gumbel_top(row: Row, quota: int) -> list[int]:
    """A draw without replacement, one after another: exponential clocks that run at the rates of the weights."""
    weight = {each: math.exp(-row[each]["entropy"] / 0.3) for each in row}
    rings = {each: -math.log1p(-row[each]["noise"]) / weight[each] for each in row}
    return sorted(rings, key=lambda each: rings[each])[:quota]


SHARE = 1 - (1 - 0.999 * 2 / 4) / (1 - 0.999 * 1 / 4)
"""Dream's transfer probability at the second of four steps."""

RULES: list[tuple[Order, Callable[[Row, int], list[int]]]] = [
    (LowConfidenceOrder(), best("probability")),
    (RandomOrder(), best("noise")),
    (MarginOrder(), best("margin")),
    (EntropyOrder(), best("entropy", -1)),
    (FixedOrder(), lambda row, quota: sorted(row)[:quota]),
    (FixedOrder(direction="right_to_left"), lambda row, quota: sorted(row, reverse=True)[:quota]),
    (FixedOrder((2,), "confidence"), best("probability")),
    (ThresholdOrder(0.6), lambda row, _: reference.above_threshold(column("probability", row), 0.6)),
    (ThresholdOrder(0.3, "quota"), dynamic),
    (FactorOrder(0.8), lambda row, _: reference.within_factor(column("probability", row), 0.8)),
    (FactorOrder(3.0), lambda row, _: reference.within_factor(column("probability", row), 3.0)),
    (EntropyBoundOrder(0.7), lambda row, _: reference.within_entropy(column("entropy", row), 0.7)),
    (EntropyBoundOrder(3.0), lambda row, _: reference.within_entropy(column("entropy", row), 3.0)),
    (DreamOrder(), lambda row, _: [each for each in row if row[each]["noise"] < SHARE]),
    (DreamOrder("maskgit_plus"), best("probability")),
    (DreamOrder("topk_margin"), best("margin")),
    (DreamOrder("entropy"), best("entropy", -1)),
    (DreamOrder("entropy", alg_temp=0.3), gumbel_top),
]


@pytest.mark.parametrize(("order", "rule"), RULES, ids=[repr(order) for order, _ in RULES])
def test_an_order_is_its_rule(order: Order, rule: Callable[[Row, int], list[int]]) -> None:
    sizes = set()
    for seed in range(20):
        decisions, open_ = case(seed)
        moment = moment_of(open_, QUOTAS, step=1, steps=4)
        chosen = order.select(decisions, moment)
        for row, (known, quota) in enumerate(zip(rows_in_words(decisions, moment), QUOTAS, strict=True)):
            expected = sorted(rule(known, quota)) if known else []
            assert chosen[row].nonzero()[:, 0].tolist() == expected, (seed, row)
            sizes.add(len(expected))
    assert len(sizes) > 2, "the cases do not tell orders apart"


def test_every_order_has_a_rule() -> None:
    assert {type(order) for order, _ in RULES} == {ORDERS.get(name) for name in ORDERS.names()}


# Quotas


@pytest.mark.parametrize(("masks", "steps"), [(8, 4), (7, 3), (3, 5), (0, 2), (5, 1)])
def test_the_even_split_is_that_of_llada(masks: int, steps: int) -> None:
    initial = torch.tensor([masks, masks + 1])
    for order in (LowConfidenceOrder(), FixedOrder(), ThresholdOrder(at_least="quota")):
        left, counts = initial, []
        for step in range(steps):
            counts.append(order.quota(initial, left, step, steps))
            left = left - counts[-1]
        assert torch.stack(counts, 1).tolist() == [reference.even_split(n, steps) for n in (masks, masks + 1)]


@pytest.mark.parametrize("steps", [1, 7, 64, 100])
def test_the_counts_of_dream_are_those_of_its_schedule(steps: int) -> None:
    times = torch.linspace(1, 1e-3, steps + 1)
    left = torch.arange(0, 200, 7)
    for step in range(steps):
        share = 1 - times[step + 1] / times[step]
        expected = [int(torch.tensor(float(n)) * share) if step < steps - 1 else n for n in left.tolist()]
        assert DreamOrder("entropy").quota(left, left, step, steps).tolist() == expected


def test_fixed_counts_end_with_their_last_number() -> None:
    initial, left = torch.tensor([9, 9]), torch.tensor([9, 2])
    found = [FixedOrder((1, 0, 3)).quota(initial, left, step, 9).tolist() for step in range(5)]
    assert found == [[1, 1], [0, 0], [3, 2], [3, 2], [3, 2]]


# By hand


def test_a_threshold_that_is_just_reached_is_reached() -> None:
    laws = torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3]]]).log()
    chosen = ThresholdOrder(0.5).select(decisions_of(laws), moment_of(torch.ones(1, 3, dtype=torch.bool)))
    assert chosen.tolist() == [[True, True, False]]


def test_the_quota_is_a_floor_and_no_ceiling_for_sdars_threshold() -> None:
    probability = torch.tensor([[0.95, 0.9, 0.86, 0.5, 0.4]])
    laws = torch.stack([probability, 1 - probability], -1).log()
    drawn = decisions_of(laws, torch.zeros(1, 5, dtype=torch.int64))
    open_ = torch.ones(1, 5, dtype=torch.bool)
    sdar = ThresholdOrder(0.85, at_least="quota")
    sizes = [int(sdar.select(drawn, moment_of(open_, [quota])).sum()) for quota in range(6)]
    assert sizes == [3, 3, 3, 3, 4, 5]


def test_factor_one_is_the_bound_of_its_theorem() -> None:
    # (n + 1)(1 - c) < 1 for equal confidences c = 0.79: n + 1 < 4.76, so three go together.
    laws = torch.tensor([0.79, 0.21]).log().expand(1, 8, 2)
    chosen = FactorOrder(1.0).select(decisions_of(laws), moment_of(torch.ones(1, 8, dtype=torch.bool)))
    assert chosen[0].tolist() == [True] * 3 + [False] * 5


def test_an_entropy_bound_counts_all_but_the_largest() -> None:
    # Entropies log 2 each: k of them have a sum less the largest of (k - 1) log 2.
    laws = torch.tensor([0.5, 0.5]).log().expand(1, 8, 2)
    for k in range(1, 9):
        bound = EntropyBoundOrder((k - 1) * math.log(2) + 1e-3)
        chosen = bound.select(decisions_of(laws), moment_of(torch.ones(1, 8, dtype=torch.bool)))
        assert chosen.sum() == k


def test_dreams_last_step_takes_all() -> None:
    decisions, open_ = case(0)
    moment = moment_of(open_, open_.sum(1), step=3, steps=4)
    for alg in ("origin", "maskgit_plus", "topk_margin", "entropy"):
        assert torch.equal(DreamOrder(alg).select(decisions, moment), open_)


def test_dreams_origin_takes_its_share_of_positions() -> None:
    open_ = torch.ones(200, 500, dtype=torch.bool)
    decisions = decisions_of(random_laws(200, 500, 0))
    for step in range(3):
        share = 1 - (1 - 0.999 * (step + 1) / 4) / (1 - 0.999 * step / 4)
        found = DreamOrder().select(decisions, moment_of(open_, step=step, steps=4)).double().mean().item()
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / open_.numel())


def test_alg_temp_draws_positions_without_replacement() -> None:
    # Two positions of three with weights 4 : 2 : 1. The heaviest is left out with probability
    # 2/7 · 1/5 + 1/7 · 2/6 = 0.1048.
    n, alg_temp = 40_000, 0.5
    confidence = alg_temp * torch.tensor([4.0, 2.0, 1.0]).log() / math.log(8) + 0.3
    flat = torch.zeros(n, 3)
    decisions = Decisions(flat.long(), confidence.log().expand(n, 3), flat, flat, flat)
    order = DreamOrder("maskgit_plus", alg_temp=alg_temp / math.log(8))
    chosen = order.select(decisions, moment_of(torch.ones(n, 3, dtype=torch.bool), [2] * n))
    assert (chosen.sum(1) == 2).all()
    left_out = 1 - chosen[:, 0].double().mean().item()
    expected = 2 / 7 / 5 + 1 / 7 / 3
    assert abs(left_out - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_an_open_position_that_scores_nothing_goes_before_a_closed_one() -> None:
    laws = torch.tensor([[[0.9, 0.1], [0.5, 0.5], [1.0, 0.0]]]).log()
    drawn = decisions_of(laws, torch.tensor([[0, 0, 1]]))
    chosen = LowConfidenceOrder().select(drawn, moment_of(torch.tensor([[False, False, True]]), [1]))
    assert chosen.tolist() == [[False, False, True]]
