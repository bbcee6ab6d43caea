"""What every test starts from: no network, one thread, quiet transformers, fixed seeds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Set up the process before any test module is imported: huggingface_hub reads its environment only then."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    import torch
    import transformers

    # The workers share the cores: a second thread in each of them makes small models slower.
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seed() -> None:
    import transformers

    transformers.set_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_datasets(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let `datasets`, which reads its environment when it is first imported, leave the user's cache alone."""
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets that may lie beside the repository; without it the test is skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public data sets (../shared/data) are not on this machine")
    return folder
