"""The engines of the extra `grammar`, imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def grammar_extra(name: str) -> Any:
    """The module of an engine.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"constraints need {name}, which is not installed. Run: pip install lmguide[grammar]"
        ) from error
