"""Guide models for tests, and requests that want them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import lmguide as lg
from tests.vllm.reference import SPACE
from tests.vllm.served import VOCAB

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CODES = (" glad", " grim")


def save_guides(parent: Path) -> dict[str, Path]:
    """A class-conditional model, two small models and a causal classifier, all of the served model's vocabulary."""
    folders = {name: parent / name for name in ("mood", "small", "smaller", "verdicts")}
    model, tokenizer = lg.bundled("tales", torch.float32)
    model.save_pretrained(folders["mood"])
    config = json.loads((folders["mood"] / "config.json").read_text())
    (folders["mood"] / "config.json").write_text(json.dumps({**config, "gedi": {"codes": CODES}}))
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    common = {**sizes, "vocab_size": VOCAB, "pad_token_id": 2, "initializer_range": 0.2, "num_labels": 2}
    for seed, name in enumerate(("small", "smaller", "verdicts")):
        torch.manual_seed(seed)
        kind = LlamaForSequenceClassification if name == "verdicts" else LlamaForCausalLM
        kind(LlamaConfig(**common)).save_pretrained(folders[name])
    for folder in folders.values():
        tokenizer.save_pretrained(folder)
    return folders


def additional_config(guides: Mapping[str, Path]) -> dict[str, Any]:
    """How a server is told of guides, with memory for few texts."""
    return {"lmguide": {"guides": {name: str(path) for name, path in guides.items()}, "guide_cache_gib": 0.02}}


def guided_kinds(guides: dict[str, Path]) -> list[tuple[dict[str, Any], tuple[lg.Guidance, ...]]]:
    """As sent, and as the reference runs it."""
    model, tokenizer = lg.bundled("tales", torch.float32)
    small, smaller, verdicts = (str(guides[name]) for name in ("small", "smaller", "verdicts"))

    def gedi(sent: bool, **options: Any) -> lg.Guidance:
        name, codes, own = ("mood", None, None) if sent else (model, CODES, tokenizer)
        return lg.GeDi(name, " glad", codes, tokenizer=own, **options)

    paper: dict[str, Any] = {"form": "normalized", "omega": 30.0, "filter_p": 0.8, "target_p": 0.8}
    words = lg.WordGuidance(include="whale", beta=4.0)
    cfg = lg.CFG(2.0, SPACE)
    pairs: list[tuple[tuple[lg.Guidance, ...], tuple[lg.Guidance, ...]]] = [
        ((gedi(True),), (gedi(False),)),
        ((gedi(True, omega=12.0),), (gedi(False, omega=12.0),)),
        ((gedi(True, **paper),), (gedi(False, **paper),)),
        ((gedi(True, gate=lg.Entropy(3.3)),), (gedi(False, gate=lg.Entropy(3.3)),)),
        ((cfg, gedi(True)), (cfg, gedi(False))),
        ((gedi(True), words), (gedi(False), words)),
        ((lg.Contrastive("small", 1.0),), (lg.Contrastive(small, 1.0),)),
        ((lg.Contrastive("small", 3.0),), (lg.Contrastive(small, 3.0),)),
        ((lg.DExperts("small", "smaller", 1.5),), (lg.DExperts(small, smaller, 1.5),)),
        ((cfg, lg.ProxyTuning("small", "smaller")), (cfg, lg.ProxyTuning(small, smaller))),
        (
            (lg.AutoGuidance("smaller", 2.0, gate=lg.Entropy(3.3)), words),
            (lg.AutoGuidance(smaller, 2.0, gate=lg.Entropy(3.3)), words),
        ),
        (
            (lg.AutoGuidance("small", 4.0, gate=lg.Divergence(1.0)),),
            (lg.AutoGuidance(small, 4.0, gate=lg.Divergence(1.0)),),
        ),
        (
            (lg.CAIF("verdicts", 1, 3.0, top_k=20, gate=lg.Period(3)),),
            (lg.CAIF(verdicts, 1, 3.0, top_k=20, gate=lg.Period(3)),),
        ),
        ((lg.Fudge("verdicts", 0, 2.0, top_k=20),), (lg.Fudge(verdicts, 0, 2.0, top_k=20),)),
        ((cfg,), (cfg,)),
    ]
    return [({"guidance": [method.to_json() for method in sent]}, run) for sent, run in pairs]
