"""What the tests of the benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmguide.eval import cognac
from tests.eval.database import write


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small WordNet database."""
    return write(tmp_path_factory.mktemp("wordnet"))


@pytest.fixture(scope="session")
def taxonomy(folder: Path) -> cognac.Taxonomy:
    """Its animals."""
    return cognac.read(folder, ["animal.n.01"])


@pytest.fixture(scope="session")
def everything(folder: Path) -> cognac.Taxonomy:
    """All that there is in it."""
    return cognac.read(folder, ["thing.n.01"])


@pytest.fixture(scope="session")
def wordnet() -> cognac.Taxonomy:
    """The real one, below the roots of the benchmark."""
    if not Path(cognac.FOLDER, "data.noun").is_file():
        pytest.skip(f"no WordNet in {cognac.FOLDER}: apt-get install wordnet-base")
    return cognac.read(roots=cognac.ROOTS)
