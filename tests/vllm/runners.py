"""What vLLM does not do on a CPU by itself, for tests: asynchronous scheduling, and model runner V2.

V2's kernels are Triton's; they run in its interpreter, slowly, in a process that was started with TRITON_INTERPRET=1.
Call `prepare` before vLLM is imported.
"""

from __future__ import annotations

import importlib
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.vllm.served import ENVIRONMENT

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

RUNNERS = ("v1", "v1-async", "v2", "v2-async")


def make_engine(folder: Path, runner: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """An engine in this process, with little room and short steps; the process is then of that kind."""
    for name, value in (ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}).items():
        monkeypatch.setenv(name, value)
    prepare(runner)
    from vllm import LLM

    common = {"dtype": "float32", "enforce_eager": True, "gpu_memory_utilization": 0.1, "block_size": 32}
    sizes = {"max_model_len": 256, "max_num_seqs": 8, "max_num_batched_tokens": 64}
    return LLM(str(folder), **common, **sizes, **options).llm_engine


def prepare(runner: str) -> None:
    """Let the engines of this process be of one kind.

    Args:
        runner: One of `RUNNERS`.
    """
    version, _, asynchronous = runner.partition("-")
    if version == "v2":
        _interpret_triton()
    if asynchronous:
        _schedule_ahead(copies_outputs=version == "v1")
    if version == "v2":
        _replace_kernels()


def _interpret_triton() -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1", "triton reads it when it is first imported"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    backends: Any = importlib.import_module("triton.backends").backends
    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))


def _replace_kernels() -> None:
    """The two that the interpreter cannot run, by what they compute."""
    import numpy as np
    import torch
    import vllm.v1.sample.ops.topk_topp_sampler as sampler
    from vllm.v1.worker.gpu.structured_outputs import StructuredOutputsWorker

    def mask(self: Any, logits: torch.Tensor, batch: Any, names: list[str], bitmask: Any) -> None:
        rows = {name: row for row, name in enumerate(batch.req_ids)}
        for name, words in zip(names, bitmask, strict=True):
            bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")[: logits.shape[1]]
            logits[rows[name]].masked_fill_(torch.from_numpy(bits == 0), -torch.inf)

    sampler.HAS_TRITON = False
    StructuredOutputsWorker.apply_grammar_bitmask = mask


def _schedule_ahead(*, copies_outputs: bool) -> None:
    """The CPU platform switches asynchronous scheduling off; switch it on again."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def checked(cls: Any, config: Any) -> None:
        check(cls, config)
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(checked)
    if not copies_outputs:
        return
    import vllm.v1.worker.gpu_model_runner as runner

    class Output(runner.AsyncGPUModelRunnerOutput):  # type: ignore[misc]
        """The original waits for a stream of a GPU."""

        def __init__(self, **given: Any) -> None:
            self._model_runner_output = given["model_runner_output"]
            self._sampled_token_ids = given["sampled_token_ids"]
            self._logprobs_tensors = given["logprobs_tensors"]
            self._invalid_req_indices = given["invalid_req_indices"]
            self.vocab_size = given["vocab_size"]
            self.async_copy_ready_event = SimpleNamespace(synchronize=lambda: None)
            self.sampled_token_ids_cpu = self._sampled_token_ids.clone()
            self._logprobs_tensors_cpu = self._logprobs_tensors
            self._num_nans = self._num_nans_cpu = self._has_fault = None

    runner.AsyncGPUModelRunnerOutput = Output
    runner.GPUModelRunner._get_or_create_async_output_copy_stream = lambda self: None
