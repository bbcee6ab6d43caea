"""GeDi's posterior as it is written: every code, row and token by itself, without padding or cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from tests.huggingface.reference import next_token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tests.families import Model


def log_posterior(
    guide: Model,
    text: Sequence[int],
    codes: Sequence[Sequence[int]],
    wanted: int,
    *,
    start: Sequence[int] = (),
    mean_over: float | None = None,
    added: Sequence[float] = (),
) -> Tensor:
    """`log P(code | text, v)` for every token `v`, `[V]`, in double precision.

    Args:
        guide: The class-conditional model.
        text: What has been written, prompt and answer.
        codes: The tokens in front of the text for each class.
        wanted: The index of the class.
        start: What stands in front of the code.
        mean_over: Evidence is multiplied by this and divided by the number of tokens; `None` is Bayes' rule.
        added: A number for each class, such as its log-prior.
    """
    classes = []
    for index, code in enumerate(codes):
        front = [*start, *code]
        evidence = 0.0
        for place, token in enumerate(text):
            evidence += float(next_token(guide, front, text[:place])[token])
        z = evidence + next_token(guide, front, text).double()
        if mean_over is not None:
            z = z * mean_over / (len(text) + 1)
        classes.append(z + (added[index] if added else 0.0))
    return torch.stack(classes).log_softmax(0)[wanted]


def kept(scores: Tensor, posterior: Tensor, filter_p: float, target_p: float | None) -> Tensor:
    """The filter of a row as it is written: a token stays for those that are better, or for its own posterior."""
    mass, values = scores.softmax(-1).tolist(), posterior.tolist()
    result = []
    for own in values:
        better = math.fsum(share for share, value in zip(mass, values, strict=True) if value > own)
        result.append(better <= 1 - filter_p or (target_p is not None and math.exp(own) >= target_p))
    return torch.tensor(result)
