"""The compact string form of a registered description, for command lines: `cfg:guidance_scale=1.5,gate={...}`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def parse_compact(text: str, argument: str, example: str) -> dict[str, Any]:
    """The dictionary that a compact string or a JSON object stands for, with the name under `"name"`.

    The form is `name` or `name:key=value,key=value`. A value is JSON (a number, `true`, `null`, a quoted string, a
    list, an object) or else a bare text up to the next comma. Whether name and keys are known is for `from_dict` to
    say.

    Args:
        text: The string.
        argument: What it was given as, for messages.
        example: A right one, for messages.

    Raises:
        TypeError: Not a string.
        ValueError: The form is broken.

    Example:
        >>> parse_compact('cfg:guidance_scale=2,negative_prompt="sad, sad"', "guidance", "cfg:guidance_scale=1.5")
        {'name': 'cfg', 'guidance_scale': 2, 'negative_prompt': 'sad, sad'}
    """
    cure = f"Write for example {example}"
    if not isinstance(text, str):
        raise TypeError(f"{argument}: expected a string, got {type(text).__name__}. {cure}")
    text = text.strip()
    if text.startswith("{"):
        try:
            read: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{argument}: expected a JSON object, got one broken at character {error.pos}: {error.msg}. {cure}"
            ) from None
        return read
    name, _, rest = text.partition(":")
    fields: dict[str, Any] = {}
    for key, value in _pairs(rest, argument, cure):
        if key in fields:
            raise ValueError(f"{argument}: {key!r} is given twice in {text!r}. Give it once.")
        fields[key] = value
    return {"name": name.strip(), **fields}


def _pairs(text: str, argument: str, cure: str) -> Iterator[tuple[str, Any]]:
    while text := text.strip():
        key, equals, text = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(f"{argument}: expected key=value, got {key.strip()!r}. {cure}")
        value, text = _value(text.lstrip(), argument, cure)
        text = text.lstrip()
        if text and not text.startswith(","):
            raise ValueError(f"{argument}: expected a comma after the value of {key.strip()!r}, got {text!r}. {cure}")
        text = text[1:]
        yield key.strip(), value


def _value(text: str, argument: str, cure: str) -> tuple[Any, str]:
    """A JSON value, or a bare text up to the next comma; and what is left."""
    bare, comma, rest = text.partition(",")
    quoted = text[:1] in {'"', "[", "{"}
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        if quoted:
            raise ValueError(f"{argument}: expected a closed JSON value, got {text!r}. {cure}") from None
        return bare.strip(), comma + rest
    if quoted or text[end:].lstrip()[:1] in {"", ","}:
        return value, text[end:]
    return bare.strip(), comma + rest  # a bare text that happens to begin like JSON, such as 3 blind mice
