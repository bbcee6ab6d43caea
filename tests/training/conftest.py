"""What the tests of training share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.training.guides import Files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Bases and texts to train guides with."""
    from tests.training.guides import Files

    folder: Path = tmp_path_factory.mktemp("guides")
    return Files.made(folder)
