"""What a guided call on a canvas did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stats:
    """What a guided call did.

    Attributes:
        steps: Denoising steps.
        fired: Steps on which guidance applied to at least one position.
        forwards: Forward passes of any model.
        nfe: Forward evaluations per row: a pass over two stacked canvases counts two.
    """

    steps: int = 0
    fired: int = 0
    forwards: int = 0
    nfe: int = 0
