"""Requests with a LoRA adapter: the companion runs with the same one, and the prefix cache keeps them apart."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

import lmguide as lg
from tests.vllm.reference import SEA, SPACE, Reference
from tests.vllm.runners import make_engine

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
    pytest.mark.timeout(400, method="signal"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

RANK, MOST_STEPS = 8, 2000


def _save_adapter(folder: Path, seed: int) -> Reference:
    """A random adapter of two projections in each layer; returns a reference with it merged."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    merged, tensors = Reference(folder.parent), dict[str, torch.Tensor]()
    for name, weight in merged.model.named_parameters():
        if "q_proj" in name or "down_proj" in name:
            rows, columns = weight.shape
            a = 0.3 * torch.randn(RANK, columns, generator=generator)
            b = 0.3 * torch.randn(rows, RANK, generator=generator)
            place = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{place}.lora_A.weight": a, f"{place}.lora_B.weight": b}
            weight.data += b @ a
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    return merged


def test_companions_have_the_adapter_too(folder: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two adapters and no request without: vLLM 0.32 gives those an adapter of others in the same batch, on a CPU.
    merged = [_save_adapter(folder / f"adapter{number}", number) for number in range(2)]
    options = {"num_gpu_blocks_override": 19, "enable_lora": True, "max_lora_rank": RANK, "max_loras": 2}
    engine = make_engine(folder, "v1", monkeypatch, **options)

    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    adapters = [LoRARequest(f"adapter{number}", 1 + number, str(folder / f"adapter{number}")) for number in range(2)]
    selective = lg.SelectiveCFG(3.0, SPACE, entropy_threshold=3.4)
    kinds: list[Any] = [({"guidance": m.to_json()}, m) for m in (lg.CFG(3.0, SPACE), selective, lg.SuffixCFG(2.0))]
    kinds.append(({}, None))
    crowds = [each.crowd(kinds, 12, most=50) for each in merged]
    requests = [
        (adapter, asked) for pair in zip(*crowds, strict=True) for adapter, asked in zip(adapters, pair, strict=True)
    ]
    for number, (adapter, asked) in enumerate(requests):
        params = SamplingParams(temperature=0, extra_args=dict(asked.sent), **asked.options)
        engine.add_request(f"r{number}", {"prompt_token_ids": asked.prompt}, params, lora_request=adapter)
    done, steps = {}, 0
    while engine.has_unfinished_requests() and (steps := steps + 1) < MOST_STEPS:
        for output in engine.step():
            if output.finished:
                done[int(output.request_id[1:])] = output.outputs[0].token_ids
    wrong = [(n, asked.sent) for n, (_, asked) in enumerate(requests) if not asked.answer.agrees(done[n])]
    assert wrong == []
    prompt = reference.ids(SEA)
    for _, method in kinds:
        assert len({tuple(each.answer(prompt, method).tokens) for each in (reference, *merged)}) == 3
