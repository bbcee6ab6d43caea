"""Orders: which undecided positions are committed at a step, one frozen dataclass for each policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmguide.diffusion.descriptions import described
from lmguide.diffusion.orders.base import ORDERS, Decisions, Moment, Order, highest
from lmguide.diffusion.orders.dream import DreamOrder
from lmguide.diffusion.orders.parallel import EntropyBoundOrder, FactorOrder, ThresholdOrder
from lmguide.diffusion.orders.ranked import (
    EntropyOrder,
    FixedOrder,
    LowConfidenceOrder,
    MarginOrder,
    RandomOrder,
    RankedOrder,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def as_order(order: Order | str | Mapping[str, Any]) -> Order:
    """An order from itself, a string such as `threshold:threshold=0.9`, a JSON object, or a dictionary.

    Raises:
        TypeError: None of these.
        ValueError: A broken string, or an unknown name, key or value, with the nearest known one.

    Example:
        >>> as_order("fixed:counts=[1,2],direction=right_to_left")
        FixedOrder(counts=(1, 2), direction='right_to_left')
    """
    return described(order, Order, ORDERS, "order", "threshold:threshold=0.9")  # type: ignore[type-abstract]


__all__ = [
    "ORDERS",
    "Decisions",
    "DreamOrder",
    "EntropyBoundOrder",
    "EntropyOrder",
    "FactorOrder",
    "FixedOrder",
    "LowConfidenceOrder",
    "MarginOrder",
    "Moment",
    "Order",
    "RandomOrder",
    "RankedOrder",
    "ThresholdOrder",
    "as_order",
    "highest",
]
