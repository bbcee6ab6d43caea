"""Matrix products with few rows on CPUs, where the general routine spends much of its time packing weights.

Guidance turns the one row of a decoding step into two or three, and a catch-up is a dozen tokens. There MKL's sgemm
costs 1.7 to 2.3 times a single row (AMD EPYC, torch 2.13). Two rows cost the same as one with the product transposed,
which reads the weights once and packs nothing; from three rows on oneDNN's product is the quickest, by a fifth at a
dozen rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel

TRANSPOSED = 2
"""Rows up to which the transposed product is the quickest; up to three where there is no oneDNN."""

FEW = 64
"""Rows up to which linear layers take another way than the general routine; the gain fades after that."""


def few_rows(model: PreTrainedModel, rows: int) -> AbstractContextManager[Any]:
    """A context in which linear layers over few rows take the quick way.

    It does nothing elsewhere than on a CPU in float32.

    Args:
        model: The model that will run.
        rows: Batch times tokens of the forward pass.
    """
    quick = 1 < rows <= FEW and model.device.type == "cpu" and model.dtype is torch.float32
    return _FewRows() if quick and not torch.is_grad_enabled() else nullcontext()


class _FewRows(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is linear and not kwargs and 2 <= len(args) <= 3 and _is_ours(*args[:2]):
            return _linear(*args)
        return func(*args, **(kwargs or {}))


def _is_ours(inputs: Tensor, weight: Tensor) -> bool:
    known = {torch.Tensor, torch.nn.Parameter}  # a weight of another class may multiply in its own way
    plain = type(inputs) is torch.Tensor and type(weight) in known and weight.layout is torch.strided
    plain = plain and inputs.dtype is weight.dtype is torch.float32 and weight.ndim == 2
    return plain and 1 < inputs.numel() // inputs.shape[-1] <= FEW


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`inputs @ weight.T + bias`."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    rows, product = flat.shape[0], onednn()
    if rows <= (TRANSPOSED if product else TRANSPOSED + 1):
        out = (weight @ flat.t()).t().contiguous()  # attention falls back to a slow path on other strides
        out = out if bias is None else out + bias
    elif product is not None and weight.is_contiguous():
        out = product(flat.contiguous(), weight, bias)
    else:
        return linear(inputs, weight, bias)
    return out.reshape(*inputs.shape[:-1], -1)


@cache
def onednn() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """OneDNN's `inputs @ weight.T + bias`, or `None` where this torch has none that gives the right numbers.

    It is the product that torch's own compiler emits on CPUs, but no public name of torch; so it is tried once.
    """

    def product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
        return out

    inputs, weight, bias = (torch.arange(n, dtype=torch.float32) % 7 - 3 for n in (60, 84, 7))
    inputs, weight = inputs.view(5, 12), weight.view(7, 12)
    try:
        # small whole numbers: exact in any order
        right = all(torch.equal(product(inputs, weight, b), linear(inputs, weight, b)) for b in (bias, None))
    except (AttributeError, RuntimeError):
        return None
    return product if right else None
