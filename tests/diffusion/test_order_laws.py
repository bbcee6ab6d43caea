"""Laws over all orders: whom they may choose, of whom they are independent, what they refuse."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
    Order,
    RandomOrder,
    ThresholdOrder,
    as_order,
)
from lmguide.serialization import to_dict
from tests.diffusion.moments import (
    QUOTAS,
    ROWS,
    WIDTH,
    case,
    decisions_of,
    moment_of,
    random_laws,
    random_open,
    rows_of,
)
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable


EXAMPLES: list[Order] = [
    LowConfidenceOrder(),
    RandomOrder(),
    MarginOrder(),
    EntropyOrder(),
    FixedOrder(),
    FixedOrder((3, 1), "right_to_left"),
    FixedOrder((1,), "confidence"),
    ThresholdOrder(),
    ThresholdOrder(0.0),
    ThresholdOrder(1.0),
    ThresholdOrder(0.3, at_least="quota"),
    FactorOrder(),
    FactorOrder(0.3),
    FactorOrder(40.0),
    EntropyBoundOrder(),
    EntropyBoundOrder(2.5),
    EntropyBoundOrder(0.0),
    DreamOrder(),
    DreamOrder("maskgit_plus"),
    DreamOrder("topk_margin", eps=0.1),
    DreamOrder("entropy", alg_temp=0.3),
]
PARALLEL = (ThresholdOrder, FactorOrder, EntropyBoundOrder)


def tosses(order: Order) -> bool:
    """Whether each position is committed, or ranked, by a number of its own."""
    if isinstance(order, DreamOrder):
        return order.alg == "origin" or bool(order.alg_temp)
    return isinstance(order, RandomOrder)


all_orders = pytest.mark.parametrize("order", EXAMPLES, ids=repr)


def test_no_more_than_what_is_left() -> None:
    initial, left = torch.tensor([12, 12, 12]), torch.tensor([12, 2, 0])
    for order in EXAMPLES:
        for step in range(4):
            quota = order.quota(initial, left, step, 4)
            assert quota.dtype == torch.int64
            assert ((quota >= 0) & (quota <= left)).all()


# Laws over all orders


def test_every_order_is_among_the_examples() -> None:
    assert {type(order) for order in EXAMPLES} == {ORDERS.get(name) for name in ORDERS.names()}


@all_orders
def test_only_open_positions_are_committed(order: Order) -> None:
    for seed in range(10):
        decisions, open_ = case(seed)
        for quota in (QUOTAS, [0] * ROWS, [WIDTH] * ROWS):
            chosen = order.select(decisions, moment_of(open_, quota))
            assert chosen.dtype == torch.bool
            assert chosen.shape == (ROWS, WIDTH)
            assert not (chosen & ~open_).any()


@pytest.mark.parametrize("order", [order for order in EXAMPLES if order != DreamOrder()], ids=repr)
def test_a_row_with_open_positions_gets_at_least_one_or_its_quota(order: Order) -> None:
    for seed in range(10):
        decisions, open_ = case(seed)
        chosen = order.select(decisions, moment_of(open_, QUOTAS)).sum(1)
        wanted = torch.minimum(torch.tensor(QUOTAS) if order.scheduled else torch.ones(ROWS), open_.sum(1))
        assert (chosen >= wanted).all()
        if order.scheduled and not isinstance(order, PARALLEL):
            assert torch.equal(chosen, wanted)


@all_orders
def test_a_row_does_not_depend_on_the_others(order: Order) -> None:
    for seed in range(5):
        decisions, open_ = case(seed)
        together = order.select(decisions, moment_of(open_, QUOTAS))
        for rows in (torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([2]), torch.tensor([1, 1, 3])):
            quota = torch.tensor(QUOTAS)[rows]
            alone = order.select(rows_of(decisions, rows), moment_of(open_[rows], quota, keys=rows))
            assert torch.equal(alone, together[rows])


@all_orders
def test_closed_positions_do_not_matter(order: Order) -> None:
    decisions, open_ = case(1)
    moment = moment_of(open_, QUOTAS)
    nobody_looked = Decisions(
        decisions.tokens.masked_fill(~open_, -1),
        decisions.log_prob.masked_fill(~open_, -math.inf),
        decisions.top.masked_fill(~open_, -math.inf),
        decisions.second.masked_fill(~open_, -math.inf),
        decisions.entropy.masked_fill(~open_, math.inf),
    )
    sure = replace(decisions, log_prob=decisions.log_prob.masked_fill(~open_, 0.0))
    expected = order.select(decisions, moment)
    assert torch.equal(order.select(nobody_looked, moment), expected)
    assert torch.equal(order.select(sure, moment), expected)


@all_orders
def test_an_order_reads_no_more_than_it_says(order: Order) -> None:
    decisions, open_ = case(1)
    moment = moment_of(open_, QUOTAS)
    nothing = torch.full_like(decisions.top, -math.inf)
    read = decisions
    if "second" not in order.reads:
        read = replace(read, top=nothing, second=nothing)
    if "entropy" not in order.reads:
        read = replace(read, entropy=-nothing)
    assert torch.equal(order.select(read, moment), order.select(decisions, moment))
    if not order.scheduled:
        assert torch.equal(
            order.select(decisions, replace(moment, quota=0 * moment.quota)), order.select(decisions, moment)
        )


@pytest.mark.parametrize("order", [order for order in EXAMPLES if not tosses(order)], ids=repr)
def test_equal_positions_go_from_left_to_right(order: Order) -> None:
    laws = random_laws(1, 1, 0).expand(1, WIDTH, -1)
    open_ = torch.ones(1, WIDTH, dtype=torch.bool)
    open_[0, 0] = False
    chosen = order.select(decisions_of(laws), moment_of(open_, [3]))[0].nonzero()[:, 0].tolist()
    if isinstance(order, FixedOrder) and order.direction == "right_to_left":
        assert chosen == [6, 7, 8]
    else:
        assert chosen == list(range(1, 1 + len(chosen)))


@all_orders
def test_dictionaries_and_strings_give_the_same_order_back(order: Order) -> None:
    data = json.loads(json.dumps(to_dict(order)))
    assert data["name"] == order.name == ORDERS.name_of(type(order))
    assert as_order(data) == order
    assert as_order(json.dumps(data)) == order
    assert as_order(order) is order
    fields = ",".join(f"{key}={json.dumps(value)}" for key, value in data.items() if key != "name")
    assert as_order(f"{order.name}:{fields}") == order


def test_a_window_in_which_nothing_is_open_stays_as_it_is() -> None:
    decisions, _ = case(0)
    closed = torch.zeros(ROWS, WIDTH, dtype=torch.bool)
    for order in EXAMPLES:
        assert not order.select(decisions, moment_of(closed)).any()


def test_many_rows_and_positions() -> None:
    rows, width = 64, 1024
    decisions, open_ = decisions_of(random_laws(rows, width, 0)), random_open(rows, width, 0)
    for order in EXAMPLES:
        assert order.select(decisions, moment_of(open_)).shape == (rows, width)


# Bad values

BAD: list[tuple[Callable[[], Any], str, str, type[Exception]]] = [
    (lambda: ThresholdOrder(1.5), "threshold", "1.5", ValueError),
    (lambda: ThresholdOrder("0.9"), "threshold", "'0.9'", TypeError),  # type: ignore[arg-type]
    (lambda: ThresholdOrder(at_least="all"), "at_least", "'all'", ValueError),  # type: ignore[arg-type]
    (lambda: FactorOrder(0), "factor", "0", ValueError),
    (lambda: FactorOrder(math.inf), "factor", "inf", ValueError),
    (lambda: EntropyBoundOrder(-0.1), "bound", "-0.1", ValueError),
    (lambda: FixedOrder(()), "counts", "at least 1", ValueError),
    (lambda: FixedOrder((2, 0)), "counts", "at least 1", ValueError),
    (lambda: FixedOrder((-1, 2)), "counts", "-1", ValueError),
    (lambda: FixedOrder((1.5,)), "counts", "1.5", TypeError),  # type: ignore[arg-type]
    (lambda: FixedOrder(3), "counts", "3", TypeError),  # type: ignore[arg-type]
    (lambda: FixedOrder(direction="up"), "direction", "'up'", ValueError),  # type: ignore[arg-type]
    (lambda: DreamOrder("maskgit"), "alg", "'maskgit'", ValueError),  # type: ignore[arg-type]
    (lambda: DreamOrder(eps=0), "eps", "0", ValueError),
    (lambda: DreamOrder(eps=1), "eps", "1", ValueError),
    (lambda: DreamOrder("entropy", alg_temp=-1), "alg_temp", "-1", ValueError),
    (lambda: DreamOrder(alg_temp=0.5), "alg_temp", "'origin'", ValueError),
    (lambda: as_order("treshold"), "expected the name of a decoding order", "Did you mean 'threshold'", ValueError),
    (lambda: as_order("threshold:treshold=1"), "threshold", "Did you mean 'threshold'", ValueError),
    (lambda: as_order("threshold:threshold"), "order", "key=value", ValueError),
    (lambda: as_order("threshold:threshold=2"), "threshold", "2", ValueError),
    (lambda: as_order({}), "expected a dictionary", "name", ValueError),
    (lambda: as_order(None), "order", "NoneType", TypeError),  # type: ignore[arg-type]
    (lambda: LowConfidenceOrder().quota(torch.tensor([3]), torch.tensor([3]), 2, 2), "step", "2", ValueError),
    (lambda: DreamOrder().quota(torch.tensor([3]), torch.tensor([3]), -1, 2), "step", "-1", ValueError),
    (lambda: FixedOrder((1,)).quota(torch.tensor([3]), torch.tensor([3]), 0, 0), "steps", "0", ValueError),
    (lambda: moment_of(torch.ones(2, 3, dtype=torch.bool), [1]), "quota", r"\[1\]", ValueError),
    (lambda: moment_of(torch.ones(1, 3), [1]), "quota", "float32", ValueError),
    (lambda: moment_of(torch.ones(1, 3, dtype=torch.bool), step=4, steps=4), "steps_left", "0", ValueError),
    (lambda: moment_of(torch.ones(1, 3, dtype=torch.bool), step=-1, steps=4), "step", "-1", ValueError),
    (lambda: replace(case(0)[0], entropy=torch.zeros(1, 2)), "tokens", r"\(1, 2\)", ValueError),
]


@pytest.mark.parametrize(("make", "argument", "said", "error"), BAD)
def test_bad_values_are_refused(make: Callable[[], Any], argument: str, said: str, error: type[Exception]) -> None:
    with refused(argument, said, error=error):
        make()
