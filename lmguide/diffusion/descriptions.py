"""Orders, correctors and early commits from what a user may write: the object, a string, a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from lmguide.compact import parse_compact
from lmguide.serialization import from_dict

if TYPE_CHECKING:
    from lmguide.serialization import Registry

T = TypeVar("T")


def described(
    given: T | str | Mapping[str, Any], kind: type[T], registry: Registry[T], argument: str, example: str
) -> T:
    """The description itself, or the one that a string or a dictionary stands for.

    Args:
        given: An instance of `kind`, a compact string or a JSON object (`lmguide.compact`), or a dictionary of
            `lmguide.serialization.to_dict`.
        kind: The base class.
        registry: Its names.
        argument: What it is given as, for messages.
        example: A compact string of this kind, for messages.

    Returns:
        The description; its own checks have run.

    Raises:
        TypeError: None of these.
        ValueError: A broken string, or an unknown name, key or value, with the nearest known one.
    """
    if isinstance(given, kind):
        return given
    if isinstance(given, str):
        given = parse_compact(given, argument, f"{example}.")
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{argument}: expected a {kind.__name__}, a string or a dictionary, got {type(given).__name__}. "
            f"Write for example {example}."
        )
    return from_dict(registry, given)
