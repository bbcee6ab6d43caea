"""What guidance of DiffusionGemma asks of a model, of methods and of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmguide import contexts

if TYPE_CHECKING:
    from lmguide.guidance import Guidance

PROMPTS = (
    contexts.NegativePrompt,
    contexts.LastToken,
    contexts.EmptyPrompt,
    contexts.RandomPrompt,
    contexts.ShuffledPrompt,
    contexts.WithoutContext,
    contexts.PromptPrefix,
)
"""Contexts that are the same model on another prompt."""


def is_gemma(model: Any) -> bool:
    """Whether a model, or what PEFT has put around it, is a DiffusionGemma."""
    return getattr(getattr(model, "config", None), "model_type", None) == "diffusion_gemma"


def base_model(model: Any) -> Any:
    """The model inside of what PEFT has put around it, or the model itself.

    Raises:
        ValueError: Prompt learning.
    """
    if not (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        return model
    if any(getattr(config, "is_prompt_learning", False) for config in model.peft_config.values()):
        raise ValueError(
            "model: PEFT prompt learning puts vectors in front of the prompt that other prompts would not have. "
            "Use LoRA or another adapter."
        )
    return model.get_base_model()


def check_method(method: Guidance) -> None:
    """Refuse methods whose sources DiffusionGemma cannot give."""
    name = type(method).__name__
    if method.is_reward:
        raise ValueError(f"guidance: {name} adds a reward, which is not run on DiffusionGemma. Use CFG or AdaptiveCFG.")
    for context in method.sources().values():
        kind = type(context).__name__
        if isinstance(context, contexts.RemaskedCanvas):
            if context.candidates == "prompt":
                raise ValueError(
                    "candidates: expected 'all' or 'generated', got 'prompt', which stands in DiffusionGemma's causal "
                    "encoder and not on its canvas. Use TPG to disturb the prompt."
                )
        elif isinstance(context, contexts.MaskedPrompt):
            raise ValueError(
                f"guidance: {name} masks the prompt, but DiffusionGemma denoises random tokens and has no mask token. "
                "Use CFG with its default negative prompt, or ICG for a random one."
            )
        elif not isinstance(context, PROMPTS):
            raise ValueError(
                f"guidance: {name} needs {kind}, which DiffusionGemma's canvas decoder does not have. "
                "Use a method whose sources are prompts, such as CFG, or AdaptiveCFG."
            )


def check_input(input_ids: Any, model: Any) -> None:
    """Refuse what are no prompts."""
    if not isinstance(input_ids, torch.Tensor) or input_ids.is_floating_point() or input_ids.ndim != 2:
        got = list(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise ValueError(
            f"input_ids: expected token ids [batch, tokens], got {got}. Pass the tokenizer's input_ids as a tensor."
        )
    if not input_ids.shape[1]:
        raise ValueError("input_ids: expected a prompt of at least one token, got an empty one. Start with BOS.")
    if input_ids.device.type != model.device.type:
        raise ValueError(
            f"input_ids: expected ids on {model.device}, where the model is, got {input_ids.device}. "
            "Move them with .to()."
        )
