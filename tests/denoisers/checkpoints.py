"""Writes checkpoints of the broken models, and keeps what loading them leaves behind inside a test."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers.utils
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel, dynamic_module_utils
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.denoisers import broken_models
from tests.denoisers.broken_models import BrokenConfig, BrokenForMaskedLM

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from torch import Tensor

IDS = torch.tensor([[1, 2, 3, 31, 31, 5, 6, 7, 31, 9]])
_FAULTS = "\nFAULTS: frozenset[str] = frozenset()\n"


def sound(*, tied: bool = False, **config: Any) -> Any:
    """The model without faults, in evaluation mode, with random weights of a size at which positions matter."""
    torch.manual_seed(0)
    model: Any = BrokenForMaskedLM(BrokenConfig(tie_word_embeddings=tied, **config))
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def save(
    model: Any,
    folder: Path,
    *faults: str,
    weights: dict[str, Tensor | None] | None = None,
    **config: Any,
) -> str:
    """Write a model as a checkpoint with code of its own that has the faults; returns the folder.

    Args:
        model: The sound model.
        folder: Where to; made if need be.
        *faults: What is to be wrong with the code.
        weights: Weights to write in place of the model's, or None for those to leave out.
        **config: Values of config.json to write in place of the model's; None leaves one out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = Path(broken_models.__file__).read_text(encoding="utf-8")
    assert code.count(_FAULTS) == 1
    named = ", ".join(map(repr, faults))
    code = code.replace(_FAULTS, f"\nFAULTS: frozenset[str] = frozenset([{named}])\n")
    (folder / "modeling_broken.py").write_text(code, encoding="utf-8")
    values = {
        **{key: getattr(model.config, key) for key in ("vocab_size", "hidden_size", "rope_theta", "rope_scaling")},
        "model_type": "broken",
        "architectures": ["BrokenForMaskedLM"],
        "auto_map": {
            "AutoConfig": "modeling_broken.BrokenConfig",
            "AutoModel": "modeling_broken.BrokenModel",
            "AutoModelForMaskedLM": "modeling_broken.BrokenForMaskedLM",
        },
        "tie_word_embeddings": model.config.tie_word_embeddings,
        **config,
    }
    values = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    given = {**model.state_dict(), **({"lm_head.weight": None} if model.config.tie_word_embeddings else {})}
    kept = {name: each for name, each in (given | (weights or {})).items() if each is not None}
    save_file({name: each.contiguous() for name, each in kept.items()}, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@contextlib.contextmanager
def own_modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code of checkpoints is copied into the folder, and forgotten at the end."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that `torch.empty_like` hands out holds 0.5, or True: for a test, it must hold something."""
    real = torch.empty_like

    def empty_like(like: Tensor, **arguments: Any) -> Tensor:
        made = real(like, **arguments)
        return made if made.is_meta else made.fill_(0.5 if made.is_floating_point() else 1)

    monkeypatch.setattr(torch, "empty_like", empty_like)


def transformers_state() -> dict[str, Any]:
    """All of transformers and torch that loading might be tempted to change."""
    return {
        "model": dict(vars(PreTrainedModel)),
        "generation config": dict(vars(GenerationConfig)),
        "rope": dict(ROPE_INIT_FUNCTIONS),
        "utils": set(vars(transformers.utils)),
        "import_utils": set(vars(transformers.utils.import_utils)),
        "register": torch.nn.Module.register_parameter,
        "dtype": torch.get_default_dtype(),
    }
