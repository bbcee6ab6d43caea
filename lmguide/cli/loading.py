"""From the options of a command to a guided model and the arguments of its `generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import lmguide

if TYPE_CHECKING:
    import argparse

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.huggingface.view import GuidedModel

BUNDLED = ("tales",)
DEFAULT_GUIDANCE = "cfg:guidance_scale=1.5"


def parse_methods(arguments: argparse.Namespace) -> list[lmguide.Guidance]:
    """The methods that `--guidance` describes.

    Raises:
        ValueError: One is unknown or has a bad value.
    """
    return [lmguide.parse_guidance(text) for text in arguments.guidance or [DEFAULT_GUIDANCE]]


def load_guided(
    arguments: argparse.Namespace, methods: list[lmguide.Guidance]
) -> tuple[GuidedModel, PreTrainedTokenizerBase]:
    """The view of the model that `--model` names, and its tokenizer, ready for left-padded batches.

    Raises:
        OSError: There is no such model.
        ValueError: There is no such device, or the model cannot be guided.
    """
    device = _device(arguments.device)
    model, tokenizer = _load(arguments)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return lmguide.guide(model.to(device).eval(), methods, tokenizer=tokenizer), tokenizer


def decoding_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling arguments of `generate`. Whoever names a temperature or a cut wants to sample.

    Raises:
        ValueError: Temperature 0, which is greedy, beside a cut.
    """
    cuts = {name: getattr(arguments, name) for name in ("top_p", "top_k") if getattr(arguments, name) is not None}
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, **cuts}
    if arguments.temperature == 0:
        if cuts:
            raise ValueError("--temperature: 0 is greedy, which leaves nothing to cut. Drop --top-p and --top-k, or raise it.")
        return {**options, "do_sample": False}
    if arguments.temperature is not None:
        options["temperature"] = arguments.temperature
    if arguments.temperature is not None or cuts or getattr(arguments, "num_return_sequences", 1) > 1:
        options["do_sample"] = True
    return options


def _load(arguments: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    name = arguments.model
    if name in BUNDLED:
        # Stored in half precision to be small; on a CPU that is slower than single precision.
        dtype = torch.float32 if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
        return lmguide.bundled(name, dtype=dtype)
    trust = {"trust_remote_code": arguments.trust_remote_code}
    config = AutoConfig.from_pretrained(name, **trust)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(name, dtype=arguments.dtype, **trust), AutoTokenizer.from_pretrained(name, **trust)


def _device(text: str) -> torch.device:
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if text == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if here[name]))
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ValueError(f"--device: expected a device such as cpu or cuda:0, got {text!r}.") from None
    if not here.get(device.type, True) or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"--device: expected a device of this machine, got {text!r}. Try cpu.")
    return device
