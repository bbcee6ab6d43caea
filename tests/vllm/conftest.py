"""What the tests of one small server share. A module says with fixtures of the same names what it wants otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vllm.client import Client
from tests.vllm.reference import Reference
from tests.vllm.served import save_model, server, small

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served model."""
    path = tmp_path_factory.mktemp("model")
    save_model(path)
    return path


@pytest.fixture(scope="module")
def server_options() -> tuple[str, ...]:
    """Options of the server: little cache, short steps."""
    return small(17)


@pytest.fixture(scope="module")
def client(folder: Path, server_options: tuple[str, ...]) -> Iterator[Client]:
    """A client of the server."""
    with server(folder, *server_options) as address:
        yield Client(address)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    """What the server must answer."""
    return Reference(folder)
