"""A token from the law of each position: temperature, top-k and top-p as in transformers, and Gumbel noise.

It is given laws and noise, and knows neither where they come from nor which positions will be committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lmguide.checks import check_number, check_whole
from lmguide.measures import promote
from lmguide.rules.candidates import normalize

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 128
"""Tokens of a block in the search for the largest score."""


def draw(
    log_probs: Tensor,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    gumbel: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token from each law: `argmax_v (log p'(v) + g_v)`, where `p'` is the law after temperature and filters.

    The filters are those of transformers, in its order: `p / temperature`, then the `top_k` likeliest tokens, then the
    smallest set of them with probability at least `top_p`. Dream's own code filters by `top_p` first; the two orders
    differ only where both filters are given.

    Args:
        log_probs: `[n, V]` log-probabilities, or scores that are such up to a constant per row. Each row needs one
            entry above `-inf`.
        temperature: At least 0. At 0 the likeliest token is taken, the leftmost of several, and `p'` is the law after
            the filters alone.
        top_p: In [0, 1]; None or 1 is off.
        top_k: At least 1; None or 0 is off.
        gumbel: `[n, V]` from `RowNoise.gumbel`, needed for a temperature above 0 and not looked at for 0.

    Returns:
        The tokens `[n]` int64, and `log p'` `[n, V]` in float32 (float64 for float64), normalised, `-inf` where a
        token was cut.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is out of its range, or there is no noise to draw with.

    Example:
        >>> import torch
        >>> tokens, law = draw(torch.tensor([[0.5, 0.3, 0.2]]).log(), top_k=2)
        >>> tokens, law.exp()
        (tensor([0]), tensor([[0.6250, 0.3750, 0.0000]]))
    """
    warpers = _warpers(temperature, top_p, top_k)
    (scores,) = promote(log_probs)
    # The warpers look at the scores alone, never at the ids before them.
    law = normalize(warpers(None, scores))  # type: ignore[arg-type]
    if temperature == 0:
        return likeliest(law), law
    if gumbel is None:
        raise ValueError(
            f"gumbel: expected noise for temperature {temperature}, got None. Give RowNoise.gumbel, or temperature 0."
        )
    return likeliest(law + gumbel), law


def likeliest(scores: Tensor) -> Tensor:
    """The leftmost largest score of each row, `[n, V]` to `[n]`: `scores.argmax(-1)`, several times as fast on a CPU.

    The largest of each block of tokens is found first; that is quick, and to say where it stands is slow.

    Example:
        >>> import torch
        >>> likeliest(torch.tensor([[0.1, 0.7, 0.7], [0.3, 0.2, 0.1]]))
        tensor([1, 0])
    """
    vocab_size = scores.shape[-1]
    if vocab_size < 2 * BLOCK or scores.device.type != "cpu":
        only: Tensor = scores.argmax(-1)
        return only
    rest = scores[:, vocab_size // BLOCK * BLOCK :]
    blocks = scores[:, : vocab_size // BLOCK * BLOCK].unflatten(1, (-1, BLOCK))
    tops = blocks.amax(-1)
    block = tops.argmax(-1, keepdim=True)
    token: Tensor = block[:, 0] * BLOCK + blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].argmax(-1)
    if not rest.shape[1]:
        return token
    last, place = rest.max(-1)
    behind = last > tops.gather(1, block)[:, 0]
    found: Tensor = torch.where(behind, place + vocab_size - rest.shape[1], token)
    return found


def check_sampling(temperature: float, top_p: float | None, top_k: int | None) -> None:
    """Refuse numbers that `draw` does not take.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is out of its range.
    """
    check_number("temperature", temperature, "Use 0 for the likeliest token.", least=0)
    if top_p is not None:
        check_number("top_p", top_p, "Use None for all tokens.", least=0, most=1)
    if top_k is not None:
        check_whole("top_k", top_k, "Use None for all tokens.", least=0)


def _warpers(temperature: float, top_p: float | None, top_k: int | None) -> LogitsProcessorList:
    check_sampling(temperature, top_p, top_k)
    warpers = LogitsProcessorList()
    if temperature not in {0, 1}:
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    return warpers
