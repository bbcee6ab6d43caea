"""What can be set in the playground, as a description; and what of it the library is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmguide.checks import check_number, check_whole
from lmguide.constraints import Grammar, JSONSchema, Regex
from lmguide.gates import Entropy
from lmguide.guidance import GUIDANCE, Guidance

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmguide.constraints import Constraint

METHODS = (
    "cfg",
    "selective_cfg",
    "suffix_cfg",
    "apg",
    "tangential_cfg",
    "divergence_damped_cfg",
    "icg",
    "tpg",
)
"""Methods that need nothing but the model itself, and whose strength is a guidance scale."""
CONSTRAINTS: dict[str, Callable[[str], Constraint]] = {"regex": Regex, "JSON schema": JSONSchema, "grammar": Grammar}
"""Kinds of constraints by the words of the page."""
NO_CONSTRAINT = "none"
SEED_LIMIT = 2**63
"""Torch's generators take no larger seed."""


@dataclass(frozen=True)
class Settings:
    """One press of the button.

    Args:
        prompt: The prompt; of a chat, what the user says.
        negative_prompt: What to move away from, for `suffix_cfg` its suffix; empty for the method's own default. In a
            chat, another system prompt.
        method: One of `METHODS`.
        guidance_scale: 1 is off.
        entropy_threshold: Nats; guidance applies where the entropy of the unguided distribution is above. 0 is
            everywhere.
        constraint_kind: `"none"`, `"regex"`, `"JSON schema"` or `"grammar"`.
        constraint: Its text. The guided answer keeps to it; the unguided one does not.
        max_new_tokens: Of each answer.
        temperature: 0 is greedy.
        seed: Of both answers.
        chat: Whether the prompt goes through the model's chat template.

    Raises:
        TypeError: A value of another type.
        ValueError: A value out of range, a negative prompt for a method without one, or a broken constraint.

    Example:
        >>> Settings("A tale of the sea:", method="apg", entropy_threshold=0.5).guidance().when()
        Entropy(threshold=0.5)
    """

    prompt: str
    negative_prompt: str = ""
    method: str = "cfg"
    guidance_scale: float = 1.5
    entropy_threshold: float = 0.0
    constraint_kind: str = NO_CONSTRAINT
    constraint: str = ""
    max_new_tokens: int = 60
    temperature: float = 1.0
    seed: int = 0
    chat: bool = False

    def __post_init__(self) -> None:
        """Check everything: the description of a bad press of the button is not made."""
        if not isinstance(self.prompt, str) or not self.prompt:
            raise ValueError("prompt: expected a text, got an empty one. Write something.")
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}. Choose one.")
        check_number("entropy_threshold", self.entropy_threshold, "Use 0 to guide every token.", least=0)
        check_number("temperature", self.temperature, "Use 0 for greedy decoding.", least=0)
        check_whole("max_new_tokens", self.max_new_tokens, "Use 60, say.", least=1)
        check_whole("seed", self.seed, "Use 0, say.", least=0)
        if self.seed >= SEED_LIMIT:
            raise ValueError(f"seed: expected a whole number below {SEED_LIMIT}, got {self.seed}. Use 0, say.")
        self.guidance()
        self.rule()

    def guidance(self) -> Guidance:
        """The method, with its strength, its contrast and where it applies."""
        kind = GUIDANCE.get(self.method)
        fields = {each.name for each in dataclasses.fields(kind)}
        given: dict[str, Any] = {"guidance_scale": self.guidance_scale}
        if self.negative_prompt:
            if not takes_negative(self.method):
                raise ValueError(f"negative_prompt: {self.method} has none. Empty it, or choose another method.")
            if "suffix" in fields:
                given["suffix"] = self.negative_prompt
            elif self.chat:
                system = {"role": "system", "content": self.negative_prompt}
                given["negative_prompt"] = (system, {"role": "user", "content": self.prompt})
            else:
                given["negative_prompt"] = self.negative_prompt
        if "entropy_threshold" in fields:
            given["entropy_threshold"] = self.entropy_threshold
        elif self.entropy_threshold:
            given["gate"] = Entropy(self.entropy_threshold)
        return kind(**given)

    def rule(self) -> Constraint | None:
        """The constraint of the guided answer."""
        if self.constraint_kind == NO_CONSTRAINT:
            return None
        if self.constraint_kind not in CONSTRAINTS:
            known = ", ".join([NO_CONSTRAINT, *CONSTRAINTS])
            raise ValueError(f"constraint_kind: expected one of {known}, got {self.constraint_kind!r}. Choose one.")
        if not self.constraint.strip():
            raise ValueError(f"constraint: expected a {self.constraint_kind}, got an empty text. Write one, or none.")
        return CONSTRAINTS[self.constraint_kind](self.constraint)


def takes_negative(method: str) -> bool:
    """Whether a method has a negative prompt, or a suffix in its place.

    Example:
        >>> takes_negative("cfg"), takes_negative("tpg")
        (True, False)
    """
    return bool({"negative_prompt", "suffix"} & {each.name for each in dataclasses.fields(GUIDANCE.get(method))})
