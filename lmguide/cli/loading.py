"""From the options of a command to a guided model and the arguments of its `generate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lmguide.bundled import bundled
from lmguide.guidance import Guidance, parse_guidance
from lmguide.huggingface import guide

if TYPE_CHECKING:
    import argparse

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.huggingface.view import GuidedModel

BUNDLED = ("tales",)
DEFAULT_GUIDANCE = "cfg:guidance_scale=1.5"


def parse_methods(arguments: argparse.Namespace) -> list[Guidance]:
    """The methods that `--guidance` describes.

    Raises:
        ValueError: One is unknown or has a bad value.
    """
    return [parse_guidance(text) for text in arguments.guidance or [DEFAULT_GUIDANCE]]


def load_guided(arguments: argparse.Namespace, methods: list[Guidance]) -> tuple[GuidedModel, PreTrainedTokenizerBase]:
    """The view of the model that `--model` names, and its tokenizer, ready for left-padded batches.

    Raises:
        OSError: There is no such model.
        ValueError: There is no such device, or the model cannot be guided.
    """
    model, tokenizer = load_model(arguments)
    return guide(model, methods, tokenizer=tokenizer), tokenizer


def load_model(arguments: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `--model` names and its tokenizer, ready for left-padded batches.

    Raises:
        OSError: There is no such model.
        ValueError: There is no such device.
    """
    device = _device(arguments.device)
    model, tokenizer = _load(arguments)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(device)  # type: ignore[arg-type]
    return model, tokenizer


def decoding_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling arguments of `generate`. Whoever names a temperature or a cut wants to sample.

    Raises:
        ValueError: Temperature 0, which is greedy, beside a cut.
    """
    cuts = {name: getattr(arguments, name) for name in ("top_p", "top_k") if getattr(arguments, name) is not None}
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, **cuts}
    if arguments.temperature == 0:
        if cuts:
            raise ValueError("--temperature: 0 is greedy and leaves nothing to cut. Drop --top-p and --top-k.")
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
        return bundled(name, dtype=dtype)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    trust = {"trust_remote_code": arguments.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **trust)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return kind.from_pretrained(name, dtype=arguments.dtype, **trust), AutoTokenizer.from_pretrained(name, **trust)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model: expected a folder, a name on the hub or tales, got {name!r}. {error}") from error


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
