"""How sure the conditional was at each position, remembered from step to step for canvases that are masked again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmguide import contexts, measures

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.sources.canvas import Canvas


def confidence_of(context: contexts.RemaskedCanvas, logp: Tensor) -> Tensor:
    """What is low where a law `[n, V]` is unsure, `[n]`."""
    return measures.max_probability(logp) if context.confidence == "max_probability" else -measures.entropy(logp)


def candidates_of(context: contexts.RemaskedCanvas, canvas: Canvas) -> Tensor:
    """The positions that may be masked again, `[B, L]`."""
    match context.candidates:
        case "all":
            return canvas.given | canvas.committed
        case "generated":
            return canvas.committed
    return canvas.given


class Confidences:
    """The last confidence of every position, for each source that asks.

    Args:
        canvas: The canvases.
    """

    def __init__(self, canvas: Canvas) -> None:
        self._shape = canvas.ids.shape
        self._known: dict[int, Tensor] = {}

    def last(self, source: int) -> Tensor | None:
        """`[B, L]`, infinite where none is known; `None` before the first step."""
        return self._known.get(source)

    def remember(self, source: int, positions: Tensor, values: Tensor) -> None:
        """Keep values `[n]` at positions `[n, 2]`; the others keep what they had."""
        known = self._known.get(source)
        known = values.new_full(self._shape, torch.inf) if known is None else known.clone()
        known[positions[:, 0], positions[:, 1]] = values
        self._known[source] = known
