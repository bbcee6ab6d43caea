"""What a source looks at: descriptions of the extra contexts and models whose next-token laws are combined.

Descriptions only, frozen and serialisable. They know nothing of tensors, caches or engines: `lmguide.sources` turns
them into rows of token ids and forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from lmguide.checks import check_number, check_whole
from lmguide.serialization import Registry

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = (
    str | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]] | Sequence[int] | Sequence[Sequence[int]]
)
"""A prompt as text, chat messages or token ids: one for the whole batch, or a sequence with one per row."""


class Context:
    """A description of one source. Subclasses are frozen dataclasses registered in `CONTEXTS`."""

    name: ClassVar[str]


CONTEXTS: Registry[Context] = Registry("context")


@CONTEXTS.register("negative_prompt")
@dataclass(frozen=True)
class NegativePrompt(Context):
    """The same model on another prompt.

    Args:
        prompt: Text, chat messages (through the tokenizer's template) or token ids, for the whole batch or one per row.
            `None` is the default contrast: with a tokenizer that has a chat template, the template with its content
            removed; otherwise the last token of the prompt (Sanchez et al., 2306.17806, section 3.1).

    Example:
        >>> NegativePrompt("A sad story.").prompt
        'A sad story.'
    """

    prompt: Prompt | None = None


@CONTEXTS.register("last_token")
@dataclass(frozen=True)
class LastToken(Context):
    """The last token of the prompt alone: the "unconditional" context of Sanchez et al. (2306.17806)."""


@CONTEXTS.register("empty_prompt")
@dataclass(frozen=True)
class EmptyPrompt(Context):
    """No prompt: the beginning-of-sequence token alone. Refused for a model that has none."""


@CONTEXTS.register("random_prompt")
@dataclass(frozen=True)
class RandomPrompt(Context):
    """A condition that has nothing to do with the prompt: independent condition guidance (ICG, 2407.02687).

    Args:
        prompts: Texts to draw from, one per row of the batch. `None` draws as many random token ids as the prompt has.
        seed: Of the draw, which never touches torch's global generator.
    """

    prompts: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an empty collection."""
        if self.prompts is not None:
            object.__setattr__(self, "prompts", tuple(self.prompts))
            if not self.prompts:
                raise ValueError("prompts: expected at least one text, got none. Give some, or None for random tokens.")


@CONTEXTS.register("shuffled_prompt")
@dataclass(frozen=True)
class ShuffledPrompt(Context):
    """The prompt with its tokens in random order: token perturbation guidance (TPG, 2506.10036) on the prompt.

    Special tokens stay in their places, and so does the last token, so that the text goes on as after the prompt.

    Args:
        seed: Of the permutation, which never touches torch's global generator.
    """

    seed: int = 0


@CONTEXTS.register("without_context")
@dataclass(frozen=True)
class WithoutContext(Context):
    """The prompt with one passage removed: context-aware decoding (CAD, 2305.14739).

    Args:
        passage: The text to remove. Its tokens must stand in the prompt as they are; where tokenisation merges across
            the passage's border, pass the prompt without it as a negative prompt instead.
    """

    passage: str

    def __post_init__(self) -> None:
        """Refuse an empty passage."""
        if not self.passage:
            raise ValueError("passage: expected a text to remove, got ''. Give the passage as it stands in the prompt.")


@CONTEXTS.register("prompt_prefix")
@dataclass(frozen=True)
class PromptPrefix(Context):
    """A text put in front of the prompt: prefix-adaptive decoding (PREADD, 2307.03214).

    Args:
        prefix: The text. It goes behind the beginning-of-sequence token if the prompt starts with one.
    """

    prefix: str

    def __post_init__(self) -> None:
        """Refuse an empty prefix."""
        if not self.prefix:
            raise ValueError("prefix: expected a text, got ''. Without a prefix there is nothing to contrast with.")


@CONTEXTS.register("suffix")
@dataclass(frozen=True)
class Suffix(Context):
    """The prompt, the answer so far, and then a short text: minimal test-time intervention (MTI, 2510.13940).

    The suffix runs on the conditional's own key-value cache and is removed from it again: no second cache, no negative
    prefill.

    Args:
        suffix: The text, tokenised without special tokens, or token ids.
    """

    suffix: str | tuple[int, ...] = "OUTPUT ERROR"

    def __post_init__(self) -> None:
        """Refuse an empty suffix."""
        if not isinstance(self.suffix, str):
            object.__setattr__(self, "suffix", tuple(self.suffix))
        if not self.suffix:
            raise ValueError("suffix: expected a text or token ids, got nothing. The published one is 'OUTPUT ERROR'.")


@CONTEXTS.register("other_model")
@dataclass(frozen=True)
class OtherModel(Context):
    """Another model of the same vocabulary on the same prompt.

    Args:
        model: The model, or the name or path `from_pretrained` takes. Only a name can be serialised.
        tokenizer: Its tokenizer, to check the vocabulary token by token. Loaded with the model when that is a name.
    """

    model: PreTrainedModel | str
    tokenizer: PreTrainedTokenizerBase | None = None


@CONTEXTS.register("early_layers")
@dataclass(frozen=True)
class EarlyLayers(Context):
    """The same forward pass read out at earlier layers through the language-model head (DoLa, 2309.03883).

    Args:
        layers: `"low"` or `"high"` (every second layer of the lower or upper half, as in the paper), or the indices of
            hidden states to read, 0 being the embedding output and `num_hidden_layers` the last.
    """

    layers: Literal["low", "high"] | tuple[int, ...] = "low"

    def __post_init__(self) -> None:
        """Refuse unknown words and an empty choice."""
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.layers not in {"low", "high"} and (isinstance(self.layers, str) or not self.layers):
            raise ValueError(
                f"layers: expected 'low', 'high' or layer indices, got {self.layers!r}. Give one of these."
            )


@CONTEXTS.register("dropped_blocks")
@dataclass(frozen=True)
class DroppedBlocks(Context):
    """The same model with some of its transformer blocks skipped, with its own cache (S2-Guidance, 2508.12880).

    Args:
        fraction: Share of the blocks to skip, in (0, 1); at least one. The first block of each attention type always
            stays, because it tells the cache's length. The paper drops about a tenth.
        seed: Of the choice, which is made once: a cache is only valid for one set of blocks.
    """

    fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a share that drops nothing or everything."""
        if not (math.isfinite(self.fraction) and 0 < self.fraction < 1):
            raise ValueError(f"fraction: expected a share in (0, 1), got {self.fraction}. The paper uses 0.1.")


@CONTEXTS.register("masked_prompt")
@dataclass(frozen=True)
class MaskedPrompt(Context):
    """The same canvas with every token that was given replaced by the mask token: the contrast of LLaDA and D-CFG.

    Only for models that denoise a canvas, where it is what `NegativePrompt(None)` means. Nie et al., 2502.09992;
    Schiff et al., 2412.10193.
    """


@CONTEXTS.register("remasked_canvas")
@dataclass(frozen=True)
class RemaskedCanvas(Context):
    """The same canvas with its least confident tokens masked again: adaptive guidance (A-CFG, 2505.20199).

    Of the candidates `C` of a row, `ceil(remask_ratio |C|)` with the lowest confidence become mask tokens. Confidence
    is that of the conditional law at the position, whatever token stands there. Only for models that denoise a canvas.

    Args:
        remask_ratio: Share of the candidates to mask again, in (0, 1]; the paper's is 0.7.
        candidates: `"all"` tokens that are no masks, prompt included (Algorithm 1), those `"generated"`, or the
            `"prompt"`.
        confidence: `"max_probability"` of the law (the paper's), or its `"entropy"`, negated.
        confidences: `"current"` takes them from this step's conditional pass, so the second pass has to wait for it;
            `"previous"` from the step before, so both are one batched pass. The first step then has none and is not
            guided.
    """

    remask_ratio: float = 0.7
    candidates: Literal["all", "generated", "prompt"] = "all"
    confidence: Literal["max_probability", "entropy"] = "max_probability"
    confidences: Literal["current", "previous"] = "current"

    def __post_init__(self) -> None:
        """Check the values."""
        if not (math.isfinite(self.remask_ratio) and 0 < self.remask_ratio <= 1):
            raise ValueError(
                f"remask_ratio: expected a share in (0, 1], got {self.remask_ratio}. The paper uses 0.7; "
                "guidance_scale=1 turns the guidance off."
            )
        for argument, known in (
            ("candidates", ("all", "generated", "prompt")),
            ("confidence", ("max_probability", "entropy")),
            ("confidences", ("current", "previous")),
        ):
            if getattr(self, argument) not in known:
                options = ", ".join(map(repr, known))
                raise ValueError(
                    f"{argument}: expected {options}, got {getattr(self, argument)!r}. Choose one of them."
                )


class CanvasClassifier(Protocol):
    """A classifier of canvases that is no transformers model.

    It reads embeddings, so that its gradient is one vector per position and not one number per token. Left padding is
    given as it is on the canvas; what to do with it is the classifier's own business.

    Attributes:
        embedding: One row for each token of the guided model, `[V, D]`.
    """

    @property
    def embedding(self) -> Tensor:
        """The rows, `[V, D]`."""

    def log_prob(self, embeds: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """`log p(label | canvas)`, `[B]`, from `[B, L, D]`, `[B, L]` (1 = token, masks included) and labels `[B]`."""


@CONTEXTS.register("classifier_gradient")
@dataclass(frozen=True)
class ClassifierGradient(Context):
    """How a classifier's verdict on the canvas would change with each token, to first order; it makes a reward.

    Args:
        model: A `AutoModelForSequenceClassification`, its name or path, or a `CanvasClassifier`. It must have been
            trained on noised canvases, and its vocabulary must be the guided model's. Only a name can be serialised.
        label: The wanted class, one for all or one per prompt.
        tokenizer: The classifier's, to check the vocabulary token by token. Loaded with the model when that is a name.
    """

    model: PreTrainedModel | CanvasClassifier | str
    label: int | tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self) -> None:
        """Check the labels."""
        if isinstance(self.label, list | tuple):
            object.__setattr__(self, "label", tuple(self.label))
            if not self.label:
                raise ValueError("label: expected a class or one per prompt, got none. Give the index of the class.")
        for label in self.label if isinstance(self.label, tuple) else (self.label,):
            check_whole("label", label, "Give the index of the class.", least=0)


@CONTEXTS.register("sampled_canvases")
@dataclass(frozen=True)
class SampledCanvases(Context):
    """Clean canvases drawn from the law of a step, weighed by a reward of whole texts; it makes a reward.

    Args:
        reward: `reward(ids)` or `reward(ids, attention_mask=...)`, from token ids `[N, L]` to `[N]`, or where to find
            it, `"package.module:function"`. Only that can be serialised.
        samples: Canvases drawn for each row, at least 1.
        temperature: Of the weights `softmax(reward / temperature)`, above 0, in units of the reward.
        mode: `"mixture"` weighs all samples, `"pick"` draws one of them.
        seed: Of the draws, where the decoding loop brings no noise of its own. Never torch's global generator.
    """

    reward: Callable[..., Tensor] | str
    samples: int = 16
    temperature: float = 1.0
    mode: Literal["mixture", "pick"] = "mixture"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.reward, str) and not all(self.reward.partition(":")):
            raise ValueError(
                f"reward: expected a function or 'package.module:function', got {self.reward!r}. Name both."
            )
        if not isinstance(self.reward, str) and not callable(self.reward):
            raise TypeError(
                f"reward: expected a function of token ids or where to find it, got {type(self.reward).__name__}. "
                "Give a function from [N, L] to [N]."
            )
        check_whole("samples", self.samples, "The published numbers are 4 to 20.", least=1)
        check_number("temperature", self.temperature, "Give it in the units of the reward.", above=0)
        if self.mode not in {"mixture", "pick"}:
            raise ValueError(f"mode: expected 'mixture' or 'pick', got {self.mode!r}. Choose one of them.")
        check_whole("seed", self.seed, "Give a seed of the draws.", least=0)
