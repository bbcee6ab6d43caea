"""What the tests of training share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.training.guides import Files


@pytest.fixture(scope="session", autouse=True)
def _cache_of_datasets(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let `datasets`, which reads its environment when it is first imported, leave the user's cache alone."""
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Bases and texts to train guides with."""
    from tests.training.guides import Files

    folder: Path = tmp_path_factory.mktemp("guides")
    return Files.made(folder)
