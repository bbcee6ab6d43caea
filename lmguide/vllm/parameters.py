"""What a request asks for: flat arguments (`vllm_xargs`, `SamplingParams.extra_args`) read as guidance methods.

Runs in the frontend, knows nothing of vLLM, and refuses whatever it does not understand, naming the key.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmguide import contexts
from lmguide.checks import check_number
from lmguide.compact import parse_compact
from lmguide.gates import GATES, Entropy, Gate
from lmguide.guidance import CFG, GUIDANCE, Guidance, PromptMixture, WordGuidance, with_scale
from lmguide.schedules import SCHEDULES
from lmguide.serialization import did_you_mean, from_dict
from lmguide.sources.binding import given_negative

if TYPE_CHECKING:
    from collections.abc import Callable

KEYS = (
    "guidance",
    "guidance_scale",
    "negative_prompt",
    "negative_prompt_ids",
    "negative_messages",
    "negative_prompts",
    "negative_weights",
    "entropy_threshold",
    "guidance_gate",
    "guidance_schedule",
)
"""The keys of a request. Others that begin like one of ours are refused as misspelt; the rest are not ours to read."""

PRIVATE = "_lmguide"
"""What keys between our own parts begin with. Clients may not send them."""

SERVED: tuple[type[contexts.Context], ...] = (
    contexts.NegativePrompt,
    contexts.LastToken,
    contexts.EmptyPrompt,
    contexts.RandomPrompt,
    contexts.ShuffledPrompt,
    contexts.WithoutContext,
    contexts.PromptPrefix,
    contexts.Suffix,
    contexts.OtherModel,
)
"""Contexts of laws: the served model on other tokens, a companion request each, and models among the guides."""

REWARDS = ("gedi", "caif", "fudge", "word_guidance")
"""Methods that judge what is written, which the workers can."""

UNSERVED = {
    "adaptive_cfg": ("masks a canvas again", "Use lmguide.diffusion, or cfg"),
    "budget": ("reads hidden states of the served model", "Use max_tokens, or lmguide.guide"),
    "classifier_guidance": ("moves a canvas", "Use lmguide.diffusion, or caif with a classifier among the guides"),
    "dola": ("reads early layers of the served model", "Use contrastive with a small model among the guides"),
    "example_guidance": ("asks the served model questions of its own", "Use word_guidance with the words themselves"),
    "rewarded_samples": ("draws canvases", "Use lmguide.diffusion, or caif with a classifier among the guides"),
    "s2": ("runs the served model without some of its blocks", "Use autoguidance with a model among the guides"),
    "top_k_guidance": ("asks the served model questions of its own", "Use word_guidance with the words themselves"),
    "verifier_guidance": ("asks the served model questions of its own", "Use caif with a classifier among the guides"),
}
"""Methods that a server cannot run: what they do, and what to use."""

EXAMPLE = "cfg:guidance_scale=1.5"
_OURS = ("guidance", "negative", "entropy")


@dataclasses.dataclass(frozen=True)
class Requested:
    """The guidance of one request.

    Attributes:
        methods: Those whose strength is not off; at least one.
        negative: Arguments of `RowBuilder.negative` that take the place of the methods' own negative prompt.
    """

    methods: tuple[Guidance, ...]
    negative: Mapping[str, Any] | None


def read(arguments: Mapping[str, Any] | None) -> Requested | None:
    """The guidance a request asks for; `None` if it asks for none, or for a strength that is off.

    - `guidance_scale` alone is `CFG`; `negative_prompt`, `negative_prompt_ids` or `negative_messages` (chat messages,
      or their JSON) is its contrast, else the library's default;
    - `negative_prompts`, with `negative_weights` that default to equal shares of 1, moves away from several:
      `c + (guidance_scale - 1) sum_k w_k (c - u_k)`;
    - `guidance` is any method in its compact or JSON form, or a list of them; the keys above then replace its scale
      and its negative prompt, as they do in `generate` of the Hugging Face engine;
    - `entropy_threshold`, `guidance_gate` and `guidance_schedule` say where and how strongly.

    Args:
        arguments: The request's extra arguments; keys that are not ours are left alone.

    Raises:
        ValueError: A private or misspelt key, a value that does not fit, or keys that do not go together.

    Example:
        >>> read({"guidance_scale": 2.0, "entropy_threshold": 0.5}).methods[0].when()
        Entropy(threshold=0.5)
        >>> read({"guidance_scale": 1.0, "negative_prompt": "A sad story."}) is None
        True
        >>> read({"guidance_scale": "2"})
        Traceback (most recent call last):
        ...
        ValueError: guidance_scale: expected a finite number, got '2'. 1 is off, 1.5 a common choice.
    """
    if not arguments:
        return None
    _check_keys(arguments)
    given = {key: arguments[key] for key in KEYS if arguments.get(key) is not None}
    if not given:
        return None
    if "guidance" not in given and "guidance_scale" not in given:
        key = next(iter(given))
        raise ValueError(f"{key}: given without a strength. Add guidance_scale, 1.5 for example, or guidance.")
    try:
        methods = _modified(_methods(given), given)
        negative = given_negative(methods, *_negative(given))
    except TypeError as error:
        raise ValueError(str(error)) from None
    for method in methods:
        _check_served(method)
    enabled = tuple(method for method in methods if method.enabled)
    return Requested(enabled, negative) if enabled else None


def _check_keys(arguments: Mapping[str, Any]) -> None:
    for key in arguments:
        if key.startswith(PRIVATE):
            raise ValueError(f"{key}: keys that begin with {PRIVATE!r} are the server's own. Leave it out.")
        if key.startswith(_OURS) and key not in KEYS:
            raise ValueError(f"{key}: expected one of {', '.join(KEYS)}, got {key!r}. {did_you_mean(key, KEYS)}")


def _methods(given: Mapping[str, Any]) -> list[Guidance]:
    scale = given.get("guidance_scale")
    if scale is not None:
        check_number("guidance_scale", scale, "1 is off, 1.5 a common choice.")
    if "guidance" in given:
        listed = given["guidance"]
        several = isinstance(listed, Sequence) and not isinstance(listed, str)
        methods = [_method(item) for item in (listed if several else [listed])]
        if not methods:
            raise ValueError(f"guidance: expected at least one method, got an empty list. Write for example {EXAMPLE}")
        if several_prompts := [key for key in ("negative_prompts", "negative_weights") if key in given]:
            raise ValueError(f"{several_prompts[0]}: does not go with guidance. Use prompt_mixture in guidance itself.")
        return list(with_scale(methods, scale))
    if "negative_prompts" not in given:
        if "negative_weights" in given:
            raise ValueError("negative_weights: given without negative_prompts. Pass both, or negative_prompt alone.")
        return [CFG(given["guidance_scale"])]
    return [_mixture(given["guidance_scale"], given["negative_prompts"], given.get("negative_weights"))]


def _method(item: Any) -> Guidance:
    if isinstance(item, Guidance):
        return item
    if isinstance(item, str):
        return _compact(item)
    return _built(item if isinstance(item, Mapping) else parse_compact(item, "guidance", EXAMPLE))


@functools.lru_cache(maxsize=256)
def _compact(text: str) -> Guidance:
    """Kept, because many requests ask for the same, and each is read by the frontend twice."""
    return _built(parse_compact(text, "guidance", EXAMPLE))


def _built(data: Mapping[str, Any]) -> Guidance:
    try:
        kind = GUIDANCE.get(data.get("name"))
        if kind.name in UNSERVED:  # before it is made: some look at files when they are
            raise ValueError(_unserved(kind.name))
        return from_dict(GUIDANCE, data)
    except ValueError as error:
        raise ValueError(f"guidance: {error}" if not str(error).startswith("guidance:") else str(error)) from None


def _mixture(scale: float, prompts: object, weights: object) -> Guidance:
    cure = 'Pass a list such as ["A sad story.", "A dull story."].'
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"negative_prompts: expected a list of texts, got {prompts!r}. {cure}")
    if weights is None:
        weights = [1 / len(prompts)] * len(prompts)
    if not isinstance(weights, list | tuple) or len(weights) != len(prompts):
        raise ValueError(f"negative_weights: expected {len(prompts)} numbers, got {weights!r}. Give one per prompt.")
    for weight in weights:
        check_number("negative_weights", weight, "Use 1 for the strength of guidance_scale.")
    return PromptMixture(tuple(prompts), weights=tuple(-float(weight) for weight in weights), scale=scale - 1)


def _modified(methods: Sequence[Guidance], given: Mapping[str, Any]) -> list[Guidance]:
    """The methods with the gate and the schedule of the request."""
    changed = list(methods)
    if (threshold := given.get("entropy_threshold")) is not None:
        check_number("entropy_threshold", threshold, "Give nats, 1.0 for example.", least=0)
        changed = [_above(method, threshold) for method in changed]
    if (gate := given.get("guidance_gate")) is not None:
        described = _described("guidance_gate", gate, GATES, "period:every=2")
        changed = [_gated(method, described) for method in changed]
    if (schedule := given.get("guidance_schedule")) is not None:
        described = _described("guidance_schedule", schedule, SCHEDULES, "linear:first=0,last=1")
        changed = [dataclasses.replace(method, schedule=described) for method in changed]
    return changed


def _above(method: Guidance, threshold: float) -> Guidance:
    if any(field.name == "entropy_threshold" for field in dataclasses.fields(method)):
        return dataclasses.replace(method, entropy_threshold=threshold)  # type: ignore[call-arg]
    return _gated(method, Entropy(threshold))


def _gated(method: Guidance, gate: Gate) -> Guidance:
    return dataclasses.replace(method, gate=gate if method.gate is None else gate & method.gate)


def _described(key: str, value: Any, registry: Any, example: str) -> Any:
    data = value if isinstance(value, Mapping) else parse_compact(value, key, example)
    try:
        return from_dict(registry, data)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _negative(given: Mapping[str, Any]) -> tuple[Any, Any]:
    """The negative prompt and the ids of `given_negative`."""
    prompts = [key for key in ("negative_prompt", "negative_prompt_ids", "negative_messages") if key in given]
    if len(prompts) > 1:
        raise ValueError(f"{prompts[0]} and {prompts[1]}: expected one of them, got both. Pass one.")
    if not prompts:
        return None, None
    if "negative_prompts" in given:
        raise ValueError(f"{prompts[0]} and negative_prompts: expected one of them, got both. Pass one.")
    value = given[prompts[0]]
    if prompts[0] == "negative_messages":
        return _messages(value), None
    kind: Callable[[object], bool] = _is_text if prompts[0] == "negative_prompt" else _is_ids
    if not kind(value):
        expected = "a text" if prompts[0] == "negative_prompt" else "a list of token ids"
        raise ValueError(f"{prompts[0]}: expected {expected}, got {value!r}. Chat messages are negative_messages.")
    return (value, None) if prompts[0] == "negative_prompt" else (None, list(value))


def _messages(value: object) -> list[dict[str, Any]]:
    cure = 'Write for example [{"role": "user", "content": "A sad story."}] as JSON.'
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"negative_messages: broken JSON at character {error.pos}: {error.msg}. {cure}") from None
    if not isinstance(value, list) or not value or not all(isinstance(item, Mapping) for item in value):
        raise ValueError(f"negative_messages: expected a list of chat messages, got {value!r}. {cure}")
    return [dict(item) for item in value]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_ids(value: object) -> bool:
    whole = isinstance(value, list | tuple) and bool(value)
    return whole and all(isinstance(item, int) and not isinstance(item, bool) for item in value)  # type: ignore[attr-defined]


def _check_served(method: Guidance) -> None:
    if method.name in UNSERVED or (method.is_reward and method.name not in REWARDS):
        raise ValueError(_unserved(method.name))
    for context in () if method.is_reward else method.sources().values():
        if not isinstance(context, SERVED):
            raise ValueError(
                f"guidance: {method.name} needs {type(context).__name__}, which a vLLM server cannot run. "
                "Use another prompt of the served model, or a model among the guides."
            )
    if isinstance(method, WordGuidance) and method.exclude and method.exclude_at == "expected":
        raise ValueError(
            "exclude_at: 'expected' asks the model how likely words end, which a vLLM server cannot. "
            "Use exclude_at=boundary or exclude_at=last_token."
        )
    if isinstance(getattr(method, method.strength_field), tuple):
        raise ValueError(f"{method.strength_field}: expected one number for a request, got several. Give one.")


def _unserved(name: str) -> str:
    what, cure = UNSERVED.get(name, ("is none of those that were made to run there", "Use cfg"))
    return f"guidance: {name} {what}, which a vLLM server cannot. {cure}."
