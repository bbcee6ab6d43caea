"""The compact string form of a method, for command lines: `cfg:guidance_scale=1.5,negative_prompt="A sad story."`."""

from __future__ import annotations

from lmguide.compact import parse_compact
from lmguide.guidance.base import GUIDANCE, Guidance
from lmguide.serialization import from_dict


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
    example = 'cfg:guidance_scale=1.5,negative_prompt="A sad story."'
    return from_dict(GUIDANCE, parse_compact(text, "guidance", example))
