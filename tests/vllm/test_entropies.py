"""Entropies of some rows, by themselves and compiled: `measures.entropy` of those rows."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide import measures
from lmguide.vllm.entropies import AT_A_TIME, _compiled, entropies, entropies_for

if TYPE_CHECKING:
    from collections.abc import Iterator

VOCAB = 2000
CPU = torch.device("cpu")


@pytest.fixture
def afresh() -> Iterator[None]:
    """Whatever was compiled before is forgotten, and what is compiled here too."""
    _compiled.cache_clear()
    yield
    _compiled.cache_clear()


def _logits() -> torch.Tensor:
    logits = 3 * torch.randn(2 * AT_A_TIME // VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
    logits[1, 7:] = -torch.inf
    logits[2] = -torch.inf
    logits[3] += 300
    logits[4, VOCAB - 1] += 200  # far above the scores that a kernel looks at first
    return logits


def _rows(logits: torch.Tensor) -> list[list[int]]:
    """Several in any order, one, and so many that they are worked out in parts."""
    return [[3, 1, 2, 9], [5], [7, 4], [0, 3, 8], list(range(len(logits)))]


def test_chosen_rows() -> None:
    logits = _logits()
    for rows in _rows(logits):
        torch.testing.assert_close(entropies(logits, torch.tensor(rows)), measures.entropy(logits[rows]))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.filterwarnings("ignore")  # of what compiles
def test_a_server_that_compiles_its_model_has_a_kernel(afresh: None, caplog: pytest.LogCaptureFixture) -> None:
    measure = entropies_for(_config(mode=3), CPU)
    assert measure is not entropies and entropies_for(_config(mode=3), CPU) is measure
    # As in a worker; more kernels would be compiled while requests wait.
    with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
        logits = _logits()
        padded = torch.cat([logits, torch.full((len(logits), 48), 9.0)], 1)[:, :VOCAB]  # as an output layer may be
        for rows in _rows(logits):
            for given in (logits, padded):
                torch.testing.assert_close(measure(given, torch.tensor(rows)), measures.entropy(logits[rows]))
        torch.testing.assert_close(measure(logits[:1], torch.tensor([0])), measures.entropy(logits[:1]))
    assert "does not fit" not in caplog.text


def test_nothing_is_compiled_once_requests_run(afresh: None, caplog: pytest.LogCaptureFixture) -> None:
    made: list[Any] = []
    called: list[int] = []

    def backend(module: Any, inputs: Any) -> Any:
        made.append(module)

        def run(*args: Any) -> Any:
            called.append(len(args))
            return module.forward(*args)

        return run

    measure = _compiled(backend, VOCAB)
    kernels, calls = len(made), len(called)
    assert kernels and calls == 2  # of rows next to each other, and of padded ones
    with torch.inference_mode():
        logits = _logits()
        for rows in _rows(logits):
            measure(logits, torch.tensor(rows))
    assert (len(made), len(called)) == (kernels, calls + 4)  # those of several rows
    assert "does not fit" not in caplog.text
    # Outside of inference mode, for which the kernel was not made: then, and from then on, it is not asked.
    for rows in _rows(logits):
        torch.testing.assert_close(measure(logits.clone(), torch.tensor(rows)), measures.entropy(logits[rows]))
    assert (len(made), len(called)) == (kernels, calls + 4)
    assert caplog.text.count("does not fit") == 1


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_guidance_goes_on_where_nothing_can_be_compiled(
    afresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(function: Any, **options: Any) -> Any:
        def raising(*args: Any) -> Any:
            raise RuntimeError("no compiler")

        return raising

    monkeypatch.setattr(torch, "compile", fail)
    assert entropies_for(_config(mode=3), CPU) is entropies
    assert "could not be compiled" in caplog.text


def test_a_server_that_does_not_compile() -> None:
    assert entropies_for(_config(mode=0), CPU) is entropies_for(None, CPU) is entropies
    assert entropies_for(_config(mode=3), torch.device("cuda")) is entropies


def _config(mode: int) -> Any:
    return SimpleNamespace(
        compilation_config=SimpleNamespace(mode=mode), model_config=SimpleNamespace(get_vocab_size=lambda: VOCAB)
    )
