"""What the tests of sweeps share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lmguide.eval.harness import manager
from lmguide.eval.harness.hf import GuidedHFLM
from lmguide.eval.sweeps import Options, Runner, Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL = {"model": "lmguide-hf", "model_args": {"pretrained": "tales"}}


@pytest.fixture(scope="session")
def tales() -> GuidedHFLM:
    """The bundled model of tales in lm-eval."""
    return GuidedHFLM("tales", device="cpu", batch_size=16)


@pytest.fixture(scope="session")
def loaded() -> dict[str, Any]:
    """The tasks on tales."""
    return {name: manager(defaults=False).load([name]) for name in ("tales_mc", "tales_gen")}


@pytest.fixture
def notes() -> list[str]:
    """What was told."""
    return []


@pytest.fixture
def runner(tales: GuidedHFLM, tmp_path: Path, notes: list[str]) -> Callable[[], Runner]:
    """Runners on the same folder."""
    options = Options(limit=6, bootstrap_iters=10)
    return lambda: Runner(
        lambda: tales, GuidedHFLM, MODEL, manager(defaults=False), Store(tmp_path, notes.append), options, notes.append
    )
