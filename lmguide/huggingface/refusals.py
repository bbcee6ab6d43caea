"""What the Hugging Face engine refuses, each with one sentence that says what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationMixin, PreTrainedModel

if TYPE_CHECKING:
    from transformers import GenerationConfig

CONTINUOUS_BATCHING = (
    "generate_batch: continuous batching cannot be guided, because its requests do not see each other's logits. "
    "Use generate() with a batch."
)


HUB_MODES = {
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "num_beam_groups": 1,
    "force_words_ids": None,
    "constraints": None,
}
"""Options whose decoding loops have left transformers, and the values at which they are off."""

SEAMS = {
    "generate",
    "prepare_inputs_for_generation",
    "_prefill",
    "_sample",
    "_beam_search",
    "_assisted_decoding",
    "_reorder_cache",
}
"""Methods the view overrides. Where another library has put its own on the model, one of the two would be lost."""


def check_model(model: Any) -> PreTrainedModel:
    """The model a view can look at; a PEFT model is opened to the model its adapters live in.

    Raises:
        TypeError: Not a generating model of transformers.
        ValueError: A model that cannot be guided exactly.
    """
    if hasattr(model, "_plan") and hasattr(model, "_run"):
        raise ValueError("model: it is already guided. Give guide() the model itself and a list of methods.")
    if getattr(getattr(model, "config", None), "model_type", None) == "diffusion_gemma":
        raise ValueError(
            "model: DiffusionGemma denoises canvases in a loop of its own, which this view does not know. "
            "Use lmguide.diffusion.guide_gemma(model, guidance)."
        )
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        if any(getattr(config, "is_prompt_learning", False) for config in model.peft_config.values()):
            raise ValueError(
                "model: PEFT prompt learning has its own generate(), which cannot be guided. "
                "Use LoRA or another adapter."
            )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel) or not isinstance(model, GenerationMixin):
        raise TypeError(
            f"model: expected a transformers model with generate(), got {type(model).__name__}. "
            "Load it with AutoModelForCausalLM or AutoModelForSeq2SeqLM."
        )
    name = type(model).__name__
    if type(model).generate is not GenerationMixin.generate:
        engine = "Diffusion language models belong to lmguide.diffusion, " if "diffusion" in name.lower() else ""
        raise ValueError(
            f"model: {name} brings its own generate(), which the view cannot guide. {engine}"
            f"{'not' if engine else 'Not'} to guide(); for other families use a logits processor of lmguide.processors."
        )
    if patched := SEAMS & model.__dict__.keys():
        raise ValueError(
            f"model: {', '.join(sorted(patched))} of this very object has been replaced, which the view would not run. "
            "Give guide() the model as it was loaded."
        )
    text = model.config.get_text_config(decoder=True)
    if "mrope_section" in str(getattr(text, "rope_parameters", None)):
        raise ValueError(
            f"model: {name} has multimodal rotary positions (M-RoPE), which the view does not rebuild. "
            "Use a text model."
        )
    return cast("PreTrainedModel", model)


def check_call(view: Any, inputs: Any, kwargs: dict[str, Any]) -> None:
    """Refuse arguments of `generate` that would be wrong or silently ignored.

    Raises:
        ValueError: There is one; it is named.
    """
    if kwargs.get("custom_generate") is not None:
        raise ValueError(
            "custom_generate: a guided view has its own loop. "
            "Use model.generate(custom_generate=lmguide.decoding(...))."
        )
    if kwargs.get("cache_implementation") == "paged":
        raise ValueError(CONTINUOUS_BATCHING)
    for config in (kwargs.get("generation_config"), view.generation_config):
        if config is not None and config.guidance_scale not in {None, 1}:
            raise ValueError(
                "generation_config: its guidance_scale would guide a second time. "
                "Set it to None; the view takes guidance_scale itself."
            )
    for option, off in HUB_MODES.items():
        for holder in (kwargs, vars(kwargs.get("generation_config") or view.generation_config)):
            if (value := holder.get(option)) is not None and value != off:
                raise ValueError(
                    f"{option}: transformers runs this mode by code from the hub, which bypasses the view. "
                    "Leave it out; DoLa and contrastive decoding are methods of lmguide."
                )
    mask = kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] and not bool(mask.any(1).all()):
        raise ValueError(
            "attention_mask: expected at least one token in every row, got a row of zeros. Drop the empty prompt."
        )
    name = "inputs" if inputs is not None else "input_ids"
    ids = inputs if inputs is not None else kwargs.get("input_ids")
    if ids is None or not isinstance(ids, torch.Tensor) or ids.is_floating_point():
        return
    if ids.ndim != 2:
        raise ValueError(
            f"{name}: expected token ids [batch, tokens], got shape {list(ids.shape)}. Add a batch axis with [None]."
        )
    if ids.device.type != view.device.type:
        raise ValueError(
            f"{name}: expected ids on {view.device}, where the model is, got {ids.device}. Move them with .to()."
        )
    if not ids.shape[1]:
        if kwargs.get("inputs_embeds") is None:
            raise ValueError(
                f"{name}: expected a prompt of at least one token, got an empty one. Start with the BOS token."
            )
        return
    config = (
        view.config.get_encoder()
        if view.config.is_encoder_decoder and hasattr(view.config, "get_encoder")
        else view.config
    )
    vocab_size = config.get_text_config().vocab_size
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"{name}: expected ids in [0, {vocab_size}), got {low if low < 0 else high}. Use the model's own tokenizer."
        )


def check_mode(config: GenerationConfig) -> None:
    """Refuse ways of drafting that run the guided model itself in another form.

    Raises:
        ValueError: One of them is asked for.
    """
    for option in ("assistant_early_exit", "use_mtp", "speculation_type"):
        if getattr(config, option, None):
            raise ValueError(
                f"{option}: drafts of the guided model's own layers or heads cannot be guided. "
                "Use prompt_lookup_num_tokens or an assistant_model."
            )
