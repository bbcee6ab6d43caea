"""Methods whose other source is the same model on another prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lmguide import rules
from lmguide.checks import check_number
from lmguide.contexts import (
    ClassifierGradient,
    Context,
    EarlyLayers,
    NegativePrompt,
    Prompt,
    PromptPrefix,
    RandomPrompt,
    SampledCanvases,
    ShuffledPrompt,
    Suffix,
    WithoutContext,
)
from lmguide.gates import Entropy, Gate
from lmguide.guidance.base import GUIDANCE, Guidance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lmguide.rules import Scale


@GUIDANCE.register("cfg")
@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance: `u + guidance_scale * (c - u)` on log-probabilities.

    `c` is the model on the prompt, `u` the same model on the negative prompt. Sanchez et al., "Stay on topic with
    Classifier-Free Guidance", 2306.17806, equations 5 to 7.

    Args:
        guidance_scale: Strength, one for all or one per row; 1 is off (and costs nothing), 0 the negative prompt alone,
            1.5 the paper's choice. Any finite number.
        negative_prompt: What to move away from: text, chat messages, token ids, a `Context` such as `EmptyPrompt()`, or
            `None` for the default contrast (see `NegativePrompt`).
        guidance_rescale: In [0, 1]: how far the spread of the guided scores is brought back to the conditional's; 0 is
            not at all.

    Raises:
        ValueError: A strength that is not finite, or a rescale outside [0, 1].

    Example:
        >>> CFG.from_dict({"name": "cfg", "guidance_scale": 2.0}) == CFG(2.0)
        True
    """

    guidance_scale: float | tuple[float, ...] = 1.5
    negative_prompt: Prompt | Context | None = None
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_number("guidance_rescale", self.guidance_rescale, "Use 0 to leave the scores alone.", least=0, most=1)

    def sources(self) -> Mapping[str, Context]:
        """The negative prompt, as `uncond`."""
        return {"uncond": as_context(self.negative_prompt)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.cfg`, and `rules.cfg_rescale` if asked."""
        guided = rules.cfg(cond, sources["uncond"], strength)
        return rules.cfg_rescale(guided, cond, self.guidance_rescale) if self.guidance_rescale else guided

    def linear_weights(self, strength: float) -> Mapping[str, float] | None:
        """That of `uncond` is `1 - guidance_scale`, unless the spread is brought back."""
        return None if self.guidance_rescale else {"uncond": 1.0 - strength}


@GUIDANCE.register("selective_cfg")
@dataclass(frozen=True)
class SelectiveCFG(CFG):
    """Classifier-free guidance only where the model is unsure: entropy of the conditional above a threshold.

    The trigger of minimal test-time intervention (MTI, 2510.13940) with a true second branch, which runs only on those
    steps and catches up on the tokens it missed in one forward.

    Args:
        guidance_scale: As in `CFG`.
        negative_prompt: As in `CFG`.
        guidance_rescale: As in `CFG`.
        entropy_threshold: Nats, at least 0, of the conditional distribution before temperature. At 1.0 a reasoning
            model fires on roughly a tenth of its tokens; `guided.stats` tells the rate.

    Example:
        >>> SelectiveCFG(1.5, entropy_threshold=0.5).when()
        Entropy(threshold=0.5)
    """

    entropy_threshold: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        check_number("entropy_threshold", self.entropy_threshold, "Use 0 to guide nearly every step.", least=0)
        super().__post_init__()

    def when(self) -> Gate | None:
        """Open where the entropy exceeds the threshold and `gate`, if any, is open too."""
        return _and(Entropy(self.entropy_threshold), self.gate)


@dataclass(frozen=True)
class _OnContext(Guidance):
    """`rules.cfg` against one fixed kind of context."""

    guidance_scale: float | tuple[float, ...] = 1.5

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.cfg`."""
        return rules.cfg(cond, sources["uncond"], strength)

    def linear_weights(self, strength: float) -> Mapping[str, float]:
        """That of `uncond` is `1 - guidance_scale`."""
        return {"uncond": 1.0 - strength}


@GUIDANCE.register("suffix_cfg")
@dataclass(frozen=True)
class SuffixCFG(_OnContext):
    """Minimal test-time intervention: guidance away from a short negative suffix, on uncertain steps only.

    `u + guidance_scale * (c - u)`, `u` being the prompt, the answer so far and the suffix, which runs on the
    conditional's own cache: there is no second cache and no negative prefill. Less is More, 2510.13940.

    Args:
        guidance_scale: Strength; 1 is off, 1.5 the paper's choice.
        suffix: The negative text (or token ids) put behind the answer so far.
        entropy_threshold: Nats, at least 0; `None` guides every step.

    Example:
        >>> SuffixCFG(entropy_threshold=0.5).sources()["uncond"]
        Suffix(suffix='OUTPUT ERROR')
    """

    suffix: str | tuple[int, ...] = "OUTPUT ERROR"
    entropy_threshold: float | None = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.entropy_threshold is not None:
            check_number("entropy_threshold", self.entropy_threshold, "Use None to guide every step.", least=0)
        super().__post_init__()
        object.__setattr__(self, "suffix", Suffix(self.suffix).suffix)

    def sources(self) -> Mapping[str, Context]:
        """The suffix on the shared cache, as `uncond`."""
        return {"uncond": Suffix(self.suffix)}

    def when(self) -> Gate | None:
        """Open where the entropy exceeds the threshold and `gate`, if any, is open too."""
        return self.gate if self.entropy_threshold is None else _and(Entropy(self.entropy_threshold), self.gate)


@GUIDANCE.register("apg")
@dataclass(frozen=True)
class APG(CFG):
    """Adaptive projected guidance: `c + (guidance_scale - 1) * (d_orth + eta * d_par)`, `d = c - u` split along `c`.

    The parallel part mostly sharpens what the model says anyway, the orthogonal part re-ranks. All vectors are centred
    on the candidate set first. 2410.02416, algorithm 1, without its momentum (neighbouring steps are different
    variables in text).

    Args:
        guidance_scale: As in `CFG`.
        negative_prompt: As in `CFG`.
        guidance_rescale: As in `CFG`.
        eta: Share of the parallel part to keep; 0 none, 1 all (which, without a norm limit, is `CFG`).
        norm_threshold: Largest norm of `d`, above 0; `None` is no limit.
    """

    eta: float = 0.0
    norm_threshold: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_number("eta", self.eta, "Use 0 to drop the parallel part.")
        if self.norm_threshold is not None:
            check_number("norm_threshold", self.norm_threshold, "Use None for no limit.", above=0)

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.apg`."""
        guided = rules.apg(cond, sources["uncond"], strength, self.eta, self.norm_threshold)
        return rules.cfg_rescale(guided, cond, self.guidance_rescale) if self.guidance_rescale else guided


@GUIDANCE.register("tangential_cfg")
@dataclass(frozen=True)
class TangentialCFG(Guidance):
    """Tangential damping: guidance with `u` projected on the direction that `c` and `u` share (TCFG, 2503.18137).

    Args:
        guidance_scale: As in `CFG`; at 0 the projected `u` remains.
        negative_prompt: As in `CFG`.
    """

    guidance_scale: float | tuple[float, ...] = 1.5
    negative_prompt: Prompt | Context | None = None

    def sources(self) -> Mapping[str, Context]:
        """The negative prompt, as `uncond`."""
        return {"uncond": as_context(self.negative_prompt)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.tangential`."""
        return rules.tangential(cond, sources["uncond"], strength)


@GUIDANCE.register("divergence_damped_cfg")
@dataclass(frozen=True)
class DivergenceDampedCFG(Guidance):
    """Classifier-free guidance that eases off where the branches disagree wildly.

    `1 + (guidance_scale - 1) * exp(-damping * KL(c || u))` takes the place of the scale: the idea of RAAG (2508.03442)
    with a divergence of distributions for its ratio of norms.

    Args:
        guidance_scale: As in `CFG`: the strength where the branches agree.
        negative_prompt: As in `CFG`.
        damping: Per nat, at least 0; 0 is plain `CFG`.
    """

    guidance_scale: float | tuple[float, ...] = 3.0
    negative_prompt: Prompt | Context | None = None
    damping: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_number("damping", self.damping, "Use 0 for plain CFG.", least=0)

    def sources(self) -> Mapping[str, Context]:
        """The negative prompt, as `uncond`."""
        return {"uncond": as_context(self.negative_prompt)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.divergence_damped`."""
        return rules.divergence_damped(cond, sources["uncond"], strength, self.damping)


@GUIDANCE.register("icg")
@dataclass(frozen=True)
class ICG(_OnContext):
    """Independent condition guidance: `u` is the model on a random, unrelated prompt (2407.02687).

    Args:
        guidance_scale: As in `CFG`.
        prompts: Texts to draw the unrelated prompt from; `None` draws random tokens.
        seed: Of the draw.
    """

    prompts: tuple[str, ...] | None = None
    seed: int = 0

    def sources(self) -> Mapping[str, Context]:
        """The random prompt, as `uncond`."""
        return {"uncond": RandomPrompt(self.prompts, self.seed)}


@GUIDANCE.register("tpg")
@dataclass(frozen=True)
class TPG(_OnContext):
    """Token perturbation guidance: `u` is the model on the prompt with its tokens shuffled.

    The idea of 2506.10036, which shuffles tokens inside the network, on the prompt.

    Args:
        guidance_scale: As in `CFG`.
        seed: Of the permutation.
    """

    seed: int = 0

    def sources(self) -> Mapping[str, Context]:
        """The shuffled prompt, as `uncond`."""
        return {"uncond": ShuffledPrompt(self.seed)}


@GUIDANCE.register("cad")
@dataclass(frozen=True)
class CAD(_OnContext):
    """Context-aware decoding: `(1 + alpha) c - alpha u` with `u` the prompt without its context passage (2305.14739).

    `guidance_scale` is `1 + alpha`; the paper uses 1.5 for summaries and 2 for questions that contradict what the model
    knows.

    Args:
        guidance_scale: As in `CFG`.
        passage: The passage of the prompt to leave out; or `None` to pass the prompt without it as `negative_prompt` of
            `generate`.
    """

    passage: str | None = None

    def sources(self) -> Mapping[str, Context]:
        """The prompt without the passage, as `uncond`."""
        return {"uncond": NegativePrompt() if self.passage is None else WithoutContext(self.passage)}


@GUIDANCE.register("preadd")
@dataclass(frozen=True)
class PREADD(_OnContext):
    """Prefix-adaptive decoding: `u` is a prefix in front of the prompt (2307.03214).

    `guidance_scale` is `1 - alpha` of the paper: above 1 moves away from the prefix (2 is its toxicity setting), below
    1 towards it (-1 is its sentiment setting).

    Args:
        guidance_scale: As in `CFG`.
        prefix: The text in front of the prompt.
    """

    guidance_scale: float | tuple[float, ...] = 2.0
    prefix: str = "The following text perpetuates negative stereotypes."

    def sources(self) -> Mapping[str, Context]:
        """The prefixed prompt, as `uncond`."""
        return {"uncond": PromptPrefix(self.prefix)}


@GUIDANCE.register("prompt_mixture")
@dataclass(frozen=True)
class PromptMixture(Guidance):
    """Several prompts at once: `c + scale * sum_k weight_k * (s_k - c)`.

    A negative weight moves away from a prompt, a positive one towards it; the conditional takes the rest, so the
    weights sum to one and the temperature stays.

    Args:
        prompts: The other prompts: text, chat messages, token ids or contexts.
        weights: One finite number for each.
        scale: Multiplies all weights, one for all or one per row; 0 is off.

    Raises:
        ValueError: Not one weight for each prompt.

    Example:
        >>> PromptMixture(("A sad story.", "A merry story."), weights=(-0.5, 0.5)).enabled
        True
    """

    strength_field: ClassVar[str] = "scale"
    off: ClassVar[float] = 0.0

    prompts: tuple[Prompt | Context, ...] = ()
    weights: tuple[float, ...] = ()
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        """Check the weights."""
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "weights", tuple(self.weights))
        if not self.prompts or len(self.prompts) != len(self.weights):
            raise ValueError(
                f"weights: expected one for each prompt, got {len(self.weights)} for {len(self.prompts)} prompts. "
                "Give at least one prompt and as many weights."
            )
        for weight in self.weights:
            check_number("weights", weight, "Use a negative number to move away from a prompt.")
        super().__post_init__()

    def sources(self) -> Mapping[str, Context]:
        """The prompts, as `prompt_0`, `prompt_1`, ..."""
        return {f"prompt_{index}": as_context(prompt) for index, prompt in enumerate(self.prompts)}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`rules.weighted`."""
        others = [sources[f"prompt_{index}"] for index in range(len(self.prompts))]
        return rules.weighted(cond, others, [weight * strength for weight in self.weights])


def as_context(prompt: Prompt | Context | None) -> Context:
    """A prompt as a context; contexts pass through.

    Raises:
        ValueError: Early layers, which give several laws at once, or a reward, which gives none.
    """
    if isinstance(prompt, EarlyLayers | ClassifierGradient | SampledCanvases):
        many = isinstance(prompt, EarlyLayers)
        told = "early layers give several laws at once" if many else f"{type(prompt).__name__} is a reward, and no law"
        cure = "Use DoLa" if many else "List ClassifierGuidance or RewardedSamples beside this method"
        raise ValueError(f"negative_prompt: {told} to contrast with. {cure}.")
    return prompt if isinstance(prompt, Context) else NegativePrompt(prompt)


def _and(first: Gate, second: Gate | None) -> Gate:
    return first if second is None else first & second
