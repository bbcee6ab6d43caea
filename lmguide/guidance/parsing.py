"""The compact string form of a method, for command lines: `cfg:guidance_scale=1.5,negative_prompt="A sad story."`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmguide.guidance.base import GUIDANCE, Guidance
from lmguide.serialization import from_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

_HELP = 'Write for example cfg:guidance_scale=1.5,negative_prompt="A sad story."'


def parse_guidance(text: str) -> Guidance:
    """The method a compact string or a JSON object describes.

    The form is `name` or `name:key=value,key=value`. A value is JSON (a number, `true`, `null`, a quoted string, a
    list, an object such as `gate={"name": "period", "every": 2}`) or else a bare text up to the next comma.

    Args:
        text: The string.

    Returns:
        The method.

    Raises:
        ValueError: The form is broken, or a name or value is unknown, with the nearest known name.

    Example:
        >>> parse_guidance('cfg:guidance_scale=2,negative_prompt="A sad, sad story."').negative_prompt
        'A sad, sad story.'
    """
    if not isinstance(text, str):
        raise TypeError(f"guidance: expected a string, got {type(text).__name__}. {_HELP}")
    text = text.strip()
    if text.startswith("{"):
        try:
            return Guidance.from_json(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"guidance: expected a JSON object, got one broken at character {error.pos}: {error.msg}. {_HELP}"
            ) from None
    name, _, rest = text.partition(":")
    fields: dict[str, Any] = {}
    for key, value in _pairs(rest):
        if key in fields:
            raise ValueError(f"guidance: {key!r} is given twice in {text!r}. Give it once.")
        fields[key] = value
    return from_dict(GUIDANCE, {"name": name.strip(), **fields})


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    while text := text.strip():
        key, equals, text = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(f"guidance: expected key=value, got {key.strip()!r}. {_HELP}")
        value, text = _value(text.lstrip())
        text = text.lstrip()
        if text and not text.startswith(","):
            raise ValueError(f"guidance: expected a comma after the value of {key.strip()!r}, got {text!r}. {_HELP}")
        text = text[1:]
        yield key.strip(), value


def _value(text: str) -> tuple[Any, str]:
    """A JSON value, or a bare text up to the next comma; and what is left."""
    bare, comma, rest = text.partition(",")
    quoted = text[:1] in {'"', "[", "{"}
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        if quoted:
            raise ValueError(f"guidance: expected a closed JSON value, got {text!r}. {_HELP}") from None
        return bare.strip(), comma + rest
    if quoted or text[end:].lstrip()[:1] in {"", ","}:
        return value, text[end:]
    return bare.strip(), comma + rest  # a bare text that happens to begin like JSON, such as 3 blind mice
