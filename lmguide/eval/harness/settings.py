"""`Setting`: how a benchmark run is guided. Descriptions only; it knows no model and nothing of lm-eval."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lmguide.contexts import CONTEXTS, Context, EmptyPrompt, LastToken, NegativePrompt
from lmguide.guidance import Guidance, parse_guidance
from lmguide.serialization import from_dict, to_dict

WORDS: dict[str, Context | None] = {"default": None, "last_token": LastToken(), "empty": EmptyPrompt()}
"""Sources by their short names; `None` leaves the choice to the prompt's form, see `Setting`."""


@dataclass(frozen=True)
class Setting:
    """How answers are scored and written: a point of a sweep.

    Args:
        guidance: The methods; none is the plain model.
        normalize: Whether guided scores are renormalised at each token, which makes them log-probabilities. `False`
            adds up `u + guidance_scale * (c - u)` as it is, the convention of Sanchez et al. (2306.17806, their code):
            a score that ranks, and no probability.
        source: The contrast of every task, in the place of the methods' own negative prompts. `None` leaves them; and a
            method without one contrasts with the prompt's last token, or in a chat with an empty turn of the user.
        sources: The contrast of some tasks, by name, in the place of `source`.
        passes: Evaluations an unguided model may spend where it would need one: the compute-matched control.
        varied: Fields that `label` tells even at their defaults, because a sweep varies them.

    Raises:
        ValueError: A source without a method that takes one, one strength per prompt, or passes beside guidance.

    Example:
        >>> from lmguide import CFG
        >>> Setting((CFG(1.5),), normalize=False, source=LastToken()).label
        'cfg guidance_scale=1.5, source=last_token, not normalised'
    """

    guidance: tuple[Guidance, ...] = ()
    normalize: bool = True
    source: Context | None = None
    sources: Mapping[str, Context | None] = field(default_factory=dict)
    passes: int = 1
    varied: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Check what cannot be together."""
        for method in self.guidance:
            if isinstance(value := getattr(method, method.strength_field), tuple):
                raise ValueError(
                    f"{method.strength_field}: expected one number for a benchmark, got one per prompt {value}. "
                    "Give one, or sweep over several."
                )
        given = [self.source, *self.sources.values()]
        if any(given) and not any(takes_source(method) for method in self.guidance):
            names = ", ".join(_name(method) for method in self.guidance) or "no guidance"
            raise ValueError(
                f"source: expected a method with a negative prompt to replace, got {names}. Leave the source out."
            )
        if self.passes > 1 and self.enabled:
            raise ValueError("passes: a control is unguided. Leave the guidance out.")

    @property
    def enabled(self) -> bool:
        """Whether any method does something."""
        return any(method.enabled for method in self.guidance)

    def methods(self, task: str | None = None) -> tuple[Guidance, ...]:
        """The methods that do something, with the contrast of a task."""
        source = self.sources.get(task or "", self.source)
        enabled = tuple(method for method in self.guidance if method.enabled)
        return enabled if source is None else with_source(enabled, source)

    def to_dict(self) -> dict[str, Any]:
        """The setting as a JSON-safe dictionary."""
        return {
            "guidance": [method.to_dict() for method in self.guidance],
            "normalize": self.normalize,
            "source": _described(self.source),
            "sources": {task: _described(source) for task, source in sorted(self.sources.items())},
            "passes": self.passes,
        }

    @property
    def digest(self) -> str:
        """Twelve letters that are the same for the same setting, and for all settings that do nothing."""
        told = self.to_dict() if self.enabled else {"passes": self.passes}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """The setting in a few words."""
        if not self.enabled:
            return "unguided" if self.passes == 1 else f"unguided, {self.passes} passes"
        enabled = [method for method in self.guidance if method.enabled]
        words = [" ".join([_name(method), ", ".join(_told(method, self.varied))]) for method in enabled]
        if self.source is not None:
            words.append(f"source={_short(self.source)}")
        words += [f"{task}: source={_short(source)}" for task, source in sorted(self.sources.items())]
        if not self.normalize:
            words.append("not normalised")
        return ", ".join(word.strip() for word in words)


def read_setting(
    guidance: object = None,
    normalize: object = True,
    source: object = None,
    negative_prompt: object = None,
    sources: object = None,
) -> Setting:
    """The setting that plain values describe, as they stand in lm-eval's `--model_args` or a JSON file.

    Args:
        guidance: A string such as `"cfg:guidance_scale=1.5"`, a dictionary of `Guidance.to_dict`, a method, or a list.
        normalize: A truth value.
        source: `"default"`, `"last_token"`, `"empty"`, or a dictionary: of a context with its name, or
            `{"negative_prompt": text or messages}`.
        negative_prompt: Text or chat messages: short for `source={"negative_prompt": ...}`.
        sources: A dictionary from names of tasks to sources.

    Raises:
        TypeError: A value of another type.
        ValueError: A value that is none of these; the argument is named.

    Example:
        >>> read_setting("cfg:guidance_scale=2", source="last_token").label
        'cfg guidance_scale=2, source=last_token'
    """
    if negative_prompt is not None:
        if source is not None:
            raise ValueError("negative_prompt: is a source itself, and source is given too. Give one of them.")
        source = {"negative_prompt": negative_prompt}
    if not isinstance(normalize, bool):
        raise ValueError(f"normalize: expected true or false, got {normalize!r}. Write normalize=false for raw sums.")
    if sources is not None and not isinstance(sources, Mapping):
        raise TypeError(
            f"sources: expected a dictionary from tasks to sources, got {type(sources).__name__}. "
            'Write --model_args as JSON: {"sources": {"lambada_openai": "last_token"}}.'
        )
    by_task = {str(task): _source(value, f"sources of {task}") for task, value in (sources or {}).items()}
    return Setting(_methods(guidance), normalize, _source(source, "source"), by_task)


def strength_names(methods: Sequence[Guidance]) -> set[str]:
    """The fields of methods, which a sweep may vary."""
    return {each.name for method in methods for each in dataclasses.fields(method)}


def _methods(guidance: object) -> tuple[Guidance, ...]:
    if guidance is None or (isinstance(guidance, str) and guidance.strip().lower() in {"", "none", "off"}):
        return ()
    items = guidance if isinstance(guidance, list | tuple) else [guidance]
    return tuple(_method(item) for item in items)


def _method(item: object) -> Guidance:
    if isinstance(item, Guidance):
        return item
    if isinstance(item, str):
        return parse_guidance(item)
    if isinstance(item, Mapping):
        return Guidance.from_dict(item)
    raise TypeError(
        f"guidance: expected a method, a string or a dictionary, got {type(item).__name__}. "
        "Write for example cfg:guidance_scale=1.5."
    )


def _source(value: object, argument: str) -> Context | None:
    if value is None or isinstance(value, Context):
        return value
    if isinstance(value, str):
        if value not in WORDS:
            known = ", ".join(map(repr, WORDS))
            raise ValueError(
                f"{argument}: expected {known} or a dictionary, got {value!r}. "
                f'A text to contrast with is {{"negative_prompt": {value!r}}}.'
            )
        return WORDS[value]
    if isinstance(value, Mapping) and set(value) == {"negative_prompt"}:
        prompt = value["negative_prompt"]
        if not isinstance(prompt, str | list | tuple) or not prompt:
            raise ValueError(f"{argument}: expected a text or messages as negative prompt, got {prompt!r}. Write some.")
        return NegativePrompt(prompt if isinstance(prompt, str) else tuple(prompt))
    if isinstance(value, Mapping):
        return from_dict(CONTEXTS, value)
    raise TypeError(f"{argument}: expected a word or a dictionary, got {type(value).__name__}. Write last_token, say.")


def takes_source(method: Guidance) -> bool:
    """Whether a method has a negative prompt that a source may replace."""
    return "negative_prompt" in {each.name for each in dataclasses.fields(method)}


def with_source(methods: Sequence[Guidance], source: Any) -> tuple[Guidance, ...]:
    """The methods, those that have a negative prompt with another one: a context, text, tokens, or `None`."""
    return tuple(
        replace(method, negative_prompt=source) if takes_source(method) else method  # type: ignore[call-arg]
        for method in methods
    )


def _described(source: Context | None) -> dict[str, Any] | None:
    return None if source is None else to_dict(source)


def _short(source: Context | None) -> str:
    for word, known in WORDS.items():
        if source == known:
            return word
    return json.dumps(_described(source), ensure_ascii=False)


def _name(method: Guidance) -> str:
    return str(type(method).name)


def _told(method: Guidance, varied: Sequence[str]) -> list[str]:
    """The strength of a method, its fields away from their defaults, and those that are varied, as key=value."""
    told = method.to_dict()
    return [
        f"{each.name}={told[each.name] if not isinstance(told[each.name], dict) else json.dumps(told[each.name])}"
        for each in dataclasses.fields(method)
        if each.name in (method.strength_field, *varied) or getattr(method, each.name) != each.default
    ]
