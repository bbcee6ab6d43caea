"""What the tests of benchmark runs share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from lm_eval.evaluator import evaluate
from transformers import LlamaConfig, LlamaForCausalLM

import lmguide as lg
from lmguide.eval.harness import manager
from lmguide.eval.harness.hf import GuidedHFLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

    from lmguide.eval.harness.base import GuidedLM


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep lm-eval's notes out of the report."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


@pytest.fixture(scope="session")
def tales() -> GuidedHFLM:
    """The bundled model of tales in lm-eval, unguided."""
    return GuidedHFLM("tales", device="cpu", batch_size=16)


@pytest.fixture(scope="session")
def random_model() -> PreTrainedModel:
    """A small model with random weights and the tokens of the tales."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    model: PreTrainedModel = LlamaForCausalLM(config).eval()
    return model


@pytest.fixture(scope="session")
def random_lm(random_model: PreTrainedModel) -> GuidedHFLM:
    """The same in lm-eval."""
    _, tokenizer = lg.bundled("tales")
    return GuidedHFLM(random_model, tokenizer=tokenizer, batch_size=3)


@pytest.fixture(scope="session")
def tasks() -> Any:
    """The tasks of this package alone, which are found at once."""
    return manager(defaults=False)


@pytest.fixture(scope="session")
def measure(tasks: Any) -> Callable[..., dict[str, Any]]:
    """What lm-eval finds for a task, without its look around the machine."""

    def run(lm: GuidedLM, name: str, **kwargs: Any) -> dict[str, Any]:
        loaded = tasks.load([name])
        loaded["tasks"][name].set_config(key="num_fewshot", value=0)
        transformers.set_seed(0)
        found = evaluate(lm, loaded, bootstrap_iters=100, **kwargs)
        return dict(found["results"][name])

    return run
