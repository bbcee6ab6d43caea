"""Matrix products with two or three rows on CPUs, where the general routine spends most of its time packing weights.

Guidance turns the one row of a decoding step into two or three, and a short suffix is two or three tokens. There MKL's
sgemm costs 1.6 to 3 times a single row (AMD EPYC, torch 2.13); the transposed product reads the weights once, packs
nothing, and costs 0.9 to 1.4.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel

FEW = 3
"""Rows up to which the transposed product is the quicker one; at four the general routine has caught up."""


def few_rows(model: PreTrainedModel, rows: int) -> AbstractContextManager[Any]:
    """A context in which linear layers over two or three rows take the quick way.

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
    product = (weight @ flat.t()).t().contiguous()  # attention falls back to a slow path on other strides
    product = product if bias is None else product + bias
    return product.reshape(*inputs.shape[:-1], -1)
