"""Memory beside the model's own logits, at a large vocabulary and a long canvas."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lmguide as lg

VOCAB, LENGTH, PROMPT = 150_000, 1024, 24
LOGITS = LENGTH * VOCAB * 4
"""Bytes of the logits of one canvas in float32."""


class Allocations(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and not yet gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone() -> None:
            self.live -= size
            self._known.discard(key)

        weakref.finalize(storage, gone)


class Broadcast(torch.nn.Module):
    """Logits that are one row seen from everywhere: their own memory is nothing, so that all of the rest is ours."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=VOCAB, model_type="llada", architectures=["LLaDAModelLM"])
        self.row = torch.nn.Parameter(torch.randn(1, 1, VOCAB, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        return SimpleNamespace(logits=self.row.detach().expand(*input_ids.shape, VOCAB))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance": lg.CFG(1.5)},
        {"guidance": lg.AdaptiveCFG(1.5), "temperature": 1.0},
        {"guidance": lg.CFG(1.5), "order": "entropy_bound"},
    ],
    ids=["unguided", "cfg", "a-cfg at temperature 1", "cfg by entropy"],
)
def test_a_step_needs_little_beside_the_logits(options: dict[str, Any]) -> None:
    denoiser = lg.diffusion.Denoiser(Broadcast().eval(), mask_token_id=5)
    prompt = torch.arange(10, 10 + PROMPT)[None]
    with Allocations() as made:
        lg.diffusion.generate(
            denoiser, prompt, max_new_tokens=LENGTH - PROMPT, steps=1, eos_token_id=(), pad_token_id=0, **options
        )
    assert made.peak < 0.2 * LOGITS
