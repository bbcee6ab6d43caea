"""The base of every guidance method: what it needs, how it combines, where and how strongly.

A method is a frozen dataclass. It names its sources, gives the rule that combines their log-probabilities, and may
carry a gate (where) and a schedule (how strongly). It holds no state and never sees a model run: engines do that.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lmguide.contexts import CONTEXTS, Context
from lmguide.gates import GATES, Gate
from lmguide.schedules import SCHEDULES, Schedule
from lmguide.serialization import Registry, from_dict, to_dict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from torch import Tensor

    from lmguide.rules import Scale


@dataclass(frozen=True)
class Guidance(ABC):
    """One guidance method: score = rule(conditional, other sources), where the gate is open.

    Subclasses are frozen dataclasses registered in `GUIDANCE`; each defines `sources` and `combine`, and names the
    field that holds its strength. The strength has a value, `off`, at which the method does nothing at all.

    A method with `is_reward` adds `strength * log r` to what the rules have combined: its `combine` gets that in the
    place of the conditional. A method that `cuts` leaves candidates alone: it gets log-probabilities that are minus
    infinity where a constraint does not allow a token, and chooses among the others.

    Args:
        gate: Where the method applies; `None` is everywhere.
        schedule: How strongly, as a function of progress; `None` is constant.
    """

    name: ClassVar[str]
    strength_field: ClassVar[str] = "guidance_scale"
    off: ClassVar[float] = 1.0
    is_reward: ClassVar[bool] = False
    cuts: ClassVar[bool] = False

    gate: Gate | None = field(default=None, kw_only=True)
    schedule: Schedule | None = field(default=None, kw_only=True)

    @abstractmethod
    def sources(self) -> Mapping[str, Context]:
        """The sources beside the conditional one, by the names under which `combine` gets them."""

    @abstractmethod
    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """The rule. Log-probabilities `[..., V]` in, scores `[..., V]` out; `strength` is `[...]` or a number."""

    def linear_weights(self, strength: float) -> Mapping[str, float] | None:
        """What `combine` comes to where no source masks a token, if that is `c + sum_k weight_k * (source_k - c)`.

        Such a rule takes logits as well as log-probabilities: their constants become one constant of the scores.

        Returns:
            The weight of each source, or `None` for any other rule.
        """
        return None

    def __init_subclass__(cls, **options: Any) -> None:
        """A class with a rule of its own does not inherit the weights of another."""
        super().__init_subclass__(**options)
        if "combine" in vars(cls) and "linear_weights" not in vars(cls):
            cls.linear_weights = Guidance.linear_weights  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        """Check the strength, the gate and the schedule."""
        check_strength(self.strength_field, getattr(self, self.strength_field))
        if isinstance(value := getattr(self, self.strength_field), list | tuple):
            object.__setattr__(self, self.strength_field, tuple(float(item) for item in value))
        for argument, kind in (("gate", Gate), ("schedule", Schedule)):
            if (given := getattr(self, argument)) is not None and not isinstance(given, kind):
                raise TypeError(
                    f"{argument}: expected a {kind.__name__} or None, got {type(given).__name__}. "
                    f"See lmguide.{argument}s for those there are."
                )
        self.when()  # contexts and gates check their own values: here, not in the middle of a call
        self.sources()

    def when(self) -> Gate | None:
        """The gate that decides where the method applies; `None` is everywhere."""
        return self.gate

    @property
    def enabled(self) -> bool:
        """Whether the method does anything: false when every strength is `off`."""
        value = getattr(self, self.strength_field)
        return any(item != self.off for item in (value if isinstance(value, tuple) else (value,)))

    def strength(self, prompts: int, repeat: int = 1, device: torch.device | str = "cpu") -> Scale:
        """The strength of each row: a number, or a tensor `[prompts * repeat]` when given per prompt.

        Args:
            prompts: How many prompts there are.
            repeat: Rows of each prompt: beams, or several returned sequences.
            device: Where the tensor is put.

        Raises:
            ValueError: Neither one number nor one per prompt.
        """
        value = getattr(self, self.strength_field)
        if not isinstance(value, tuple):
            return float(value)
        if prompts != len(value):
            raise ValueError(
                f"{self.strength_field}: expected one number or one per prompt ({prompts}), got {len(value)}. "
                "Give as many as there are prompts."
            )
        return torch.tensor(value, device=device).repeat_interleave(repeat)

    def to_dict(self) -> dict[str, Any]:
        """The method as a JSON-safe dictionary with its registered name under `"name"`."""
        return to_dict(self)

    def to_json(self) -> str:
        """The method as a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The method described by a dictionary of `to_dict`.

        Raises:
            ValueError: An unknown name or key, with the nearest known one, or a bad value.
            TypeError: Called on a method's own class with the description of another method.
        """
        method = from_dict(GUIDANCE, data)
        if not isinstance(method, cls):
            raise TypeError(
                f"expected a description of {cls.__name__}, got one of {type(method).__name__}. "
                "Use Guidance.from_dict for any method."
            )
        return method

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The method described by a JSON object of `to_json`."""
        return cls.from_dict(json.loads(text))


GUIDANCE: Registry[Guidance] = Registry("guidance")


def check_strength(argument: str, value: object) -> None:
    """Refuse a strength that is not a finite number or a non-empty sequence of them.

    Raises:
        TypeError: Not a number.
        ValueError: NaN, infinite or empty.
    """
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items:
        raise ValueError(f"{argument}: expected a number or one per row, got none. Give at least one.")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise TypeError(
                f"{argument}: expected a number or a sequence of numbers, got {item!r}. Give for example 1.5."
            )
        if not math.isfinite(item):
            raise ValueError(f"{argument}: expected a finite number, got {item}. 1 is off, 1.5 a common choice.")


def as_methods(guidance: Guidance | Sequence[Guidance]) -> tuple[Guidance, ...]:
    """One method or several as a tuple.

    Raises:
        TypeError: Something else is among them.
        ValueError: There is none.
    """
    methods = (guidance,) if isinstance(guidance, Guidance) else guidance
    if not isinstance(methods, list | tuple):
        raise TypeError(
            f"guidance: expected a method such as CFG(1.5) or a list of them, got {type(guidance).__name__}. "
            "parse_guidance reads a string, Guidance.from_dict a dictionary."
        )
    if not methods:
        raise ValueError(
            "guidance: expected at least one method, got an empty list. Use the model itself to run unguided."
        )
    for method in methods:
        if not isinstance(method, Guidance):
            raise TypeError(
                f"guidance: expected methods such as CFG(1.5), got {type(method).__name__} among them. "
                "parse_guidance reads a string."
            )
    return tuple(methods)


def with_scale(
    methods: Sequence[Guidance], guidance_scale: Tensor | float | Sequence[float] | None
) -> tuple[Guidance, ...]:
    """The methods with the strength given to a call in the place of the first `guidance_scale` among them.

    Raises:
        ValueError: No method has a guidance scale.
    """
    if guidance_scale is None:
        return tuple(methods)
    scale = guidance_scale.tolist() if isinstance(guidance_scale, torch.Tensor) else guidance_scale
    scale = tuple(scale) if isinstance(scale, list | tuple) else scale
    changed = list(methods)
    for index, method in enumerate(changed):
        if method.strength_field == "guidance_scale":
            changed[index] = replace(method, guidance_scale=scale)  # type: ignore[call-arg]
            return tuple(changed)
    raise ValueError("guidance_scale: none of the methods has a guidance scale. Set the strength on the method itself.")


__all__ = ["CONTEXTS", "GATES", "GUIDANCE", "SCHEDULES", "Guidance", "as_methods", "check_strength", "with_scale"]
