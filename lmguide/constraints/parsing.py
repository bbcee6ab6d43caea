"""The compact string form of a constraint, for command lines: `regex:pattern="[0-9]+"`."""

from __future__ import annotations

from dataclasses import fields

from lmguide.compact import parse_compact
from lmguide.constraints.base import CONSTRAINTS, Constraint
from lmguide.serialization import from_dict


def parse_constraint(text: str) -> Constraint:
    """The constraint a compact string or a JSON object describes.

    The form is `name` or `name:key=value,key=value`. A value is JSON (a number, `true`, `null`, a quoted string, a
    list, an object such as `schema={"type": "integer"}`) or else a bare text up to the next comma. A word alone, as in
    `language:python`, is the value of the constraint's first key.

    Args:
        text: The string.

    Returns:
        The constraint.

    Raises:
        ValueError: The form is broken, or a name or value is unknown, with the nearest known name.

    Example:
        >>> parse_constraint('choice:options=["yes", "no"]')
        Choice(options=('yes', 'no'))
    """
    name, _, word = text.partition(":") if isinstance(text, str) else ("", "", "")
    if word.strip().isidentifier() and name.strip() in CONSTRAINTS.names():
        text = f"{name}:{fields(CONSTRAINTS.get(name.strip()))[0].name}={word}"
    return from_dict(CONSTRAINTS, parse_compact(text, "constraint", 'regex:pattern="[0-9]+"'))
