"""Small canvases, and what a reward knows of a guided model, for the tests of rewards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from lmguide.sources.canvas import Canvas
from tests.families import VOCAB

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmguide.sources.canvas_rewards import CanvasReward

MASK = 3


def guided(vocab_size: int = VOCAB, **changes: Any) -> Any:
    """What a reward knows of the model that it guides."""
    config = SimpleNamespace(get_text_config=lambda decoder=True: SimpleNamespace(vocab_size=vocab_size))
    known: dict[str, Any] = {
        "model": SimpleNamespace(config=config),
        "tokenizer": None,
        "vocab_size": vocab_size,
        "mask_token_id": MASK,
        "device": torch.device("cpu"),
    }
    return SimpleNamespace(**known | changes)


def canvas_of(rows: list[list[int]], padding: list[int] | None = None) -> Canvas:
    """Rows of one width, with so much padding in front; the first token of each row is given, masks are undecided."""
    padding = padding or [0] * len(rows)
    width = max(len(row) + gap for row, gap in zip(rows, padding, strict=True))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    given = torch.tensor([[column == width - len(row) for column in range(width)] for row in rows])
    return Canvas(ids, mask, given, ids.eq(MASK) & mask.bool(), MASK)


def no_law(rows: Tensor, columns: Tensor) -> Tensor:
    raise AssertionError("a classifier does not look at the law")


def everywhere(canvas: Canvas) -> tuple[Tensor, Tensor]:
    rows, columns = canvas.attention_mask.nonzero().unbind(1)
    return rows, columns


def rewards(reward: CanvasReward, canvas: Canvas, law: Callable[[Tensor, Tensor], Tensor] = no_law) -> Tensor:
    """Log-rewards of every real position, `[n, V]`."""
    reward.prepare(canvas, law)
    rows, columns = everywhere(canvas)
    return reward.log_rewards(rows, columns, torch.zeros(len(rows), VOCAB))
