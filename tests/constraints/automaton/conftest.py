"""Automata are kept in a folder of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmguide.constraints.automaton import store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, with nothing in it and nothing kept in memory."""
    monkeypatch.setenv("LMGUIDE_CACHE", str(tmp_path))
    monkeypatch.setattr(store, "_kept", type(store._kept)())
    return tmp_path
