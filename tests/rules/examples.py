"""Random sources for the tests of rules, and references that see one row at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from lmguide import rules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

NINF = -math.inf

Row: TypeAlias = np.ndarray


def laws(*shape: int, count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random log-probs, one tensor for each source."""
    generator = torch.Generator().manual_seed(seed)
    raw = [3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [each.log_softmax(-1).to(dtype) for each in raw]


def with_holes(sources: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """The same sources with about a third of the tokens of each excluded, and the rest normalised again."""
    generator = torch.Generator().manual_seed(seed)
    return [rules.normalize(s.masked_fill(torch.rand(s.shape, generator=generator) < 1 / 3, NINF)) for s in sources]


def assert_same_law(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(rules.normalize(actual), rules.normalize(expected), rtol=1e-9, atol=1e-9)


def rows(sources: Sequence[Tensor], reference: Callable[..., Row]) -> Tensor:
    """Apply a reference in numpy to each row of the sources."""
    return torch.from_numpy(np.stack([reference(*row) for row in zip(*(s.numpy() for s in sources), strict=True)]))
