"""What a processor is called with, beside what it was called with before: the next step of a call, or another call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def step_from(prompt: Tensor | None, seen: Tensor | None, input_ids: Tensor) -> tuple[int, Tensor | None] | None:
    """How many generated tokens stand as last seen, and which rows moved where.

    Args:
        prompt: The ids of the call's first step, `[B, P]`; `None` before it.
        seen: Those of the last step, `[B, L]`.
        input_ids: Those of now.

    Returns:
        `None` where the ids are no step from the last ones, so that they begin a call: a step adds one token to
        something seen before.
    """
    if prompt is None or seen is None or input_ids.shape[0] != prompt.shape[0]:
        return None
    start = prompt.shape[1]
    if not start < input_ids.shape[1] <= seen.shape[1] + 1 or not torch.equal(input_ids[:, :start], prompt):
        return None
    shared = input_ids.shape[1] - 1
    now, then = input_ids[:, :shared], seen[:, :shared]
    if torch.equal(now, then):
        return shared - start, None
    same = (now[:, None] == then).all(-1)
    return (shared - start, same.int().argmax(1)) if bool(same.any(1).all()) else None
