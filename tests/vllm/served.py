"""A small model for a server, and the server itself, which never outlives its user."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmguide import bundled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VOCAB = 512
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # more threads than cores make every step slower
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
}
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def save_model(folder: Path, chat: bool = False) -> None:
    """A random Llama of 400 k parameters whose laws are peaked, so that no test hangs on a tie."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.12,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    model.save_pretrained(folder)
    tokenizer = bundled("tales")[1]
    if chat:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def small(blocks: int) -> tuple[str, ...]:
    """Options of a server whose cache has so few blocks that requests wait, and whose prompts come in chunks."""
    return ("--max-num-seqs", "8", "--num-gpu-blocks-override", str(blocks), "--max-num-batched-tokens", "64")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(model: Path, *options: str, seconds: float = 240.0) -> Iterator[str]:
    """The address of a server of its own process group, which is ended with the context.

    Args:
        model: The folder of the model, served as `m`.
        *options: Further options of the server.
        seconds: How long its start may take.
    """
    port = free_port()
    command = [
        # not `vllm serve`: the command of vllm-cpu looks for the version of a package named vllm
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "256", "--block-size", "32", "--gpu-memory-utilization", "0.1", *options),
    ]
    # The plugin is found by the package's metadata; what a build left in the repository's folder may be older.
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as elsewhere:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ENVIRONMENT
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=elsewhere,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            _await_start(f"http://127.0.0.1:{port}", process, log, seconds)
            yield f"http://127.0.0.1:{port}"
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace")[-8000:])  # pytest shows it with the failure
            raise
        finally:
            _end(process)


def _await_start(address: str, process: subprocess.Popen[bytes], log: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.5)
    log.seek(0)  # type: ignore[attr-defined]
    raise RuntimeError("the server did not start:\n" + log.read().decode(errors="replace")[-4000:])  # type: ignore[attr-defined]


def _end_with_parent() -> None:
    """In the server, before it starts: whatever ends the tests ends it too."""
    set_signal_of_parents_death = 1
    ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
