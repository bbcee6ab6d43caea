"""The settings of a sweep: the product of what is varied. Descriptions only."""

from __future__ import annotations

import difflib
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmguide.eval.harness.settings import Setting, read_setting, strength_names
from lmguide.guidance import GUIDANCE, Guidance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OTHERS = ("normalize", "source", "negative_prompt")
"""What can be varied beside the fields of methods."""


def grid(base: Setting, sweeps: Sequence[str] = ()) -> list[Setting]:
    """The unguided setting, and the product of all values that are varied; what is off at several values comes once.

    Args:
        base: What is not varied.
        sweeps: Strings `key=value,value,...`. A key is a field of a method, `normalize`, `source` or `negative_prompt`;
            a value is JSON or a bare word.

    Returns:
        Settings that all differ, the unguided one first.

    Raises:
        ValueError: A string of another form, an unknown key, with the nearest known one, or a bad value.

    Example:
        >>> from lmguide import CFG
        >>> [setting.label for setting in grid(Setting((CFG(),)), ["guidance_scale=1,1.5,3"])]
        ['unguided', 'cfg guidance_scale=1.5', 'cfg guidance_scale=3']
    """
    varied: dict[str, list[Any]] = {}
    for text in sweeps:
        key, values = _read(text)
        if key in varied:
            raise ValueError(f"sweep: {key} is varied twice. Put all its values into one --sweep.")
        _check(key, base)
        varied[key] = values
    found = {Setting().digest: Setting()}
    for chosen in itertools.product(*varied.values()):
        setting = _with(base, dict(zip(varied, chosen, strict=True)))
        found.setdefault(setting.digest, setting)
    return list(found.values())


def _read(text: str) -> tuple[str, list[Any]]:
    key, equals, rest = text.partition("=")
    key = key.strip()
    if not equals or not key.isidentifier() or not rest.strip():
        raise ValueError(
            f"sweep: expected key=value,value,..., got {text!r}. Write for example guidance_scale=1,1.5,3."
        )
    return key, _values(rest)


def _values(text: str) -> list[Any]:
    """JSON values with commas between them, or bare words."""
    try:
        found: list[Any] = json.loads(f"[{text}]")
    except json.JSONDecodeError:
        words = [word.strip() for word in text.split(",")]
        if not all(words):
            raise ValueError(f"sweep: expected a value between two commas, got none in {text!r}. Remove one.") from None
        return [_value(word) for word in words]
    return found


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return {"none": None, "null": None}.get(word.lower(), word)


def _check(key: str, base: Setting) -> None:
    if key in OTHERS or key in strength_names(base.guidance):
        return
    known = [*sorted(strength_names(base.guidance)), *OTHERS]
    close = difflib.get_close_matches(key, known, n=1)
    owners = [name for name in GUIDANCE.names() if key in GUIDANCE.get(name).__dataclass_fields__]
    if close:
        cure = f"Did you mean {close[0]}?"
    elif owners:
        cure = f"It is a field of {', '.join(owners)}: add --guidance {owners[0]}."
    else:
        cure = f"Choose one of {', '.join(known)}."
    methods = ", ".join(str(type(method).name) for method in base.guidance) or "no method"
    raise ValueError(f"sweep: expected a field of {methods} or one of {', '.join(OTHERS)}, got {key!r}. {cure}")


def _with(base: Setting, values: Mapping[str, Any]) -> Setting:
    """A setting with some values changed: each goes to the first method that has the field."""
    methods = list(base.guidance)
    fields = {key: value for key, value in values.items() if key not in OTHERS}
    for key, value in fields.items():
        place = next(place for place, method in enumerate(methods) if key in strength_names([method]))
        methods[place] = Guidance.from_dict({**methods[place].to_dict(), key: value})
    setting = replace(base, guidance=tuple(methods), varied=tuple(fields))
    if "normalize" in values:
        setting = replace(setting, normalize=read_setting(normalize=values["normalize"]).normalize)
    if "source" in values or "negative_prompt" in values:
        read = read_setting(tuple(methods), True, values.get("source"), values.get("negative_prompt"))
        setting = replace(setting, source=read.source)
    return setting
