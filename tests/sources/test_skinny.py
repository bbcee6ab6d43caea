"""The quick ways of few rows give the products of the ordinary one, and are taken nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from lmguide.sources import skinny
from lmguide.sources.skinny import FEW, few_rows, onednn
from tests.families import made, tiny


def product(model: Any, rows: int, *arguments: Any) -> torch.Tensor:
    with torch.no_grad(), few_rows(model, rows):
        return linear(*arguments)


@pytest.fixture(params=["with oneDNN", "without"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setattr(skinny, "onednn", lambda: None)
    elif onednn() is None:
        pytest.skip("this torch has no oneDNN product")


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bias", [None, torch.randn(7)])
@pytest.mark.parametrize("shape", [(2, 5), (1, 3, 5), (3, 1, 5), (2, 1, 5), (1, 2, 1, 5), (4, 3, 5), (FEW, 1, 5)])
def test_the_same_products_in_the_same_shape(shape: tuple[int, ...], bias: torch.Tensor | None) -> None:
    inputs, weight = torch.randn(shape), torch.randn(7, 5)
    rows = inputs.numel() // 5
    assert 1 < rows <= FEW
    for given in (inputs, inputs.transpose(0, 1).contiguous().transpose(0, 1)):
        found, exact = product(tiny("llama"), rows, given, weight, bias), linear(given, weight, bias)
        torch.testing.assert_close(found, exact)
        assert found.is_contiguous()


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("rows", [2, 3, 10])
def test_a_transposed_weight(rows: int) -> None:
    inputs, weight = torch.randn(rows, 5), torch.randn(5, 7).t()
    torch.testing.assert_close(product(tiny("llama"), rows, inputs, weight), linear(inputs, weight))


def test_a_product_that_is_wrong_or_missing_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def _linear_pointwise(self, inputs: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
            return linear(inputs, weight) + 1

    for operators in (Wrong(), object()):
        onednn.cache_clear()
        monkeypatch.setattr(torch.ops, "mkldnn", operators)
        assert onednn() is None
    onednn.cache_clear()


def test_everything_else_is_bit_for_bit_the_ordinary_product() -> None:
    inputs, weight = torch.randn(2, 300), torch.randn(50, 300)
    many = torch.randn(FEW + 1, 300)
    assert torch.equal(product(tiny("llama"), FEW + 1, many, weight), linear(many, weight))
    assert torch.equal(product(tiny("llama"), 2, many, weight), linear(many, weight)), "a layer over other rows"
    assert torch.equal(product(tiny("llama"), 2, many[:1], weight), linear(many[:1], weight))
    half = made("llama").to(torch.bfloat16)
    assert torch.equal(product(half, 2, inputs, weight), linear(inputs, weight))
    with few_rows(tiny("llama"), 2):
        assert torch.equal(linear(inputs, weight), linear(inputs, weight)), "with gradients"
    named = {"bias": torch.randn(50)}
    with torch.no_grad(), few_rows(tiny("llama"), 2):
        torch.testing.assert_close(linear(inputs, weight, **named), inputs @ weight.t() + named["bias"])


def test_a_weight_that_is_more_than_a_tensor_multiplies_in_its_own_way() -> None:
    """Quantised weights are such tensors: they know `linear`, and may know no other product."""

    class Quantised(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is linear:
                return torch.zeros(*args[0].shape[:-1], args[1].shape[0])
            if func is torch.Tensor.matmul or func is torch.Tensor.__matmul__:
                raise NotImplementedError("this weight has no such product")
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]

    weight = torch.randn(7, 5).as_subclass(Quantised)
    assert not product(tiny("llama"), 2, torch.randn(2, 5), weight).any()
