"""One processor per method, with the method's own arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from lmguide.guidance import CAIF, CFG, BudgetGuidance, Contrastive, DoLa, GeDi, SelectiveCFG, SuffixCFG, WordGuidance
from lmguide.processors.base import GuidanceLogitsProcessor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.contexts import Context, Prompt
    from lmguide.descriptions.budget import Budget, GammaLengthPredictor, LengthPredictor
    from lmguide.descriptions.caif import Label, Texts
    from lmguide.descriptions.words import Words


class CFGLogitsProcessor(GuidanceLogitsProcessor):
    """`CFG` as a processor.

    What transformers' own `guidance_scale` is meant to do, right also under beams, drafts and state-space models.

    Args:
        model: The model being decoded.
        guidance_scale: As in `CFG`.
        negative_prompt: As in `CFG`, or a tensor of ids.
        tokenizer: Where the negative prompt is text or messages.
        **kwargs: As in `GuidanceLogitsProcessor`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        guidance_scale: float | tuple[float, ...] = 1.5,
        negative_prompt: Prompt | Context | Tensor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        method, given = _split(negative_prompt)
        super().__init__(model, CFG(guidance_scale, method), tokenizer, negative_prompt=given, **kwargs)


class SelectiveCFGLogitsProcessor(GuidanceLogitsProcessor):
    """`SelectiveCFG` as a processor: the negative branch runs only where the entropy exceeds the threshold.

    Args:
        model: The model being decoded.
        guidance_scale: As in `SelectiveCFG`.
        negative_prompt: As in `SelectiveCFG`, or a tensor of ids.
        entropy_threshold: Nats.
        tokenizer: Where the negative prompt is text or messages.
        **kwargs: As in `GuidanceLogitsProcessor`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        guidance_scale: float | tuple[float, ...] = 1.5,
        negative_prompt: Prompt | Context | Tensor | None = None,
        entropy_threshold: float = 1.0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        method, given = _split(negative_prompt)
        guidance = SelectiveCFG(guidance_scale, method, entropy_threshold=entropy_threshold)
        super().__init__(model, guidance, tokenizer, negative_prompt=given, **kwargs)


class SuffixCFGLogitsProcessor(GuidanceLogitsProcessor):
    """`SuffixCFG` (MTI) as a processor. It cannot reach the loop's cache, so it keeps a second one of the same context.

    Args:
        model: The model being decoded.
        guidance_scale: As in `SuffixCFG`.
        suffix: As in `SuffixCFG`.
        entropy_threshold: Nats; `None` guides every step.
        tokenizer: Where the suffix is text.
        **kwargs: As in `GuidanceLogitsProcessor`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        guidance_scale: float | tuple[float, ...] = 1.5,
        suffix: str | tuple[int, ...] = "OUTPUT ERROR",
        entropy_threshold: float | None = 1.0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, SuffixCFG(guidance_scale, suffix, entropy_threshold), tokenizer, **kwargs)


class ContrastiveLogitsProcessor(GuidanceLogitsProcessor):
    """`Contrastive` as a processor.

    Args:
        model: The model being decoded, the expert.
        amateur: The amateur, or its name or path.
        beta: As in `Contrastive`.
        plausibility: As in `Contrastive`.
        form: As in `Contrastive`.
        tokenizer: The expert's tokenizer, to check that the vocabularies agree.
        **kwargs: As in `GuidanceLogitsProcessor`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        amateur: PreTrainedModel | str,
        beta: float | tuple[float, ...] = 0.5,
        plausibility: float = 0.1,
        form: Literal["reasoning", "original"] = "reasoning",
        tokenizer: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, Contrastive(amateur, beta, plausibility, form), tokenizer, **kwargs)


class DoLaLogitsProcessor(GuidanceLogitsProcessor):
    """`DoLa` as a processor. It cannot reach the loop's hidden states, so it runs the model a second time for them.

    Args:
        model: The model being decoded.
        layers: As in `DoLa`.
        scale: As in `DoLa`.
        plausibility: As in `DoLa`.
        **kwargs: As in `GuidanceLogitsProcessor`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Literal["low", "high"] | tuple[int, ...] = "low",
        scale: float | tuple[float, ...] = 1.0,
        plausibility: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, DoLa(layers, scale, plausibility), **kwargs)


class GeDiLogitsProcessor(GuidanceLogitsProcessor):
    """`GeDi` as a processor.

    Args:
        model: The model being decoded.
        guide: As in `GeDi`.
        code: As in `GeDi`.
        codes: As in `GeDi`.
        omega: As in `GeDi`.
        tokenizer: The tokenizer of the model being decoded.
        settings: Other arguments of `GeDi`, such as `{"form": "normalized", "filter_p": 0.8, "target_p": 0.8}`.
        **kwargs: As in `GuidanceLogitsProcessor`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        guide: PreTrainedModel | str,
        code: str | tuple[int, ...],
        codes: tuple[str | tuple[int, ...], ...] | None = None,
        omega: float | tuple[float, ...] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, GeDi(guide, code, codes, omega, **settings or {}), tokenizer, **kwargs)


class CAIFLogitsProcessor(GuidanceLogitsProcessor):
    """`CAIF` as a processor.

    Args:
        model: The model being decoded.
        classifier: As in `CAIF`.
        label: As in `CAIF`.
        alpha: As in `CAIF`.
        tokenizer: The tokenizer of the model being decoded, where the classifier reads texts.
        settings: Other arguments of `CAIF`, such as `{"top_k": 20, "gate": Entropy(2.0)}`.
        **kwargs: As in `GuidanceLogitsProcessor`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        classifier: PreTrainedModel | Texts | str,
        label: Label | tuple[Label, ...],
        alpha: float | tuple[float, ...] = 5.0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, CAIF(classifier, label, alpha, **settings or {}), tokenizer, **kwargs)


class WordGuidanceLogitsProcessor(GuidanceLogitsProcessor):
    """`WordGuidance` as a processor.

    Args:
        model: The model being decoded.
        include: As in `WordGuidance`.
        exclude: As in `WordGuidance`.
        beta: As in `WordGuidance`.
        alpha: As in `WordGuidance`.
        tokenizer: The tokenizer of the model being decoded.
        settings: Other arguments of `WordGuidance`, such as `{"exclude_at": "last_token"}`.
        **kwargs: As in `GuidanceLogitsProcessor`; without `max_new_tokens` nobody knows that the last token of an
            answer ends its word.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        include: Words = (),
        exclude: Words = (),
        beta: float = 5.0,
        alpha: float = 100.0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        method = WordGuidance(include, exclude, beta, alpha, **settings or {})
        super().__init__(model, method, tokenizer, **kwargs)


class BudgetGuidanceLogitsProcessor(GuidanceLogitsProcessor):
    """`BudgetGuidance` as a processor.

    Args:
        model: The model being decoded.
        predictor: As in `BudgetGuidance`.
        budget: As in `BudgetGuidance`.
        tokenizer: The tokenizer of the model being decoded, to know newlines and texts that open or end a span.
        settings: Other arguments of `BudgetGuidance`, such as `{"end": "</think>"}`.
        **kwargs: As in `GuidanceLogitsProcessor`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        predictor: LengthPredictor | GammaLengthPredictor | str,
        budget: Budget,
        tokenizer: PreTrainedTokenizerBase | None = None,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, BudgetGuidance(predictor, budget, **settings or {}), tokenizer, **kwargs)


def _split(negative_prompt: Prompt | Context | Tensor | None) -> tuple[Any, Any]:
    """What belongs into the method, and what is a tensor of ids, which a method cannot hold."""
    return (None, negative_prompt) if hasattr(negative_prompt, "ndim") else (negative_prompt, None)
