"""Loads a diffusion language model from a checkpoint, mends what transformers 5 breaks, and proves it sound.

It knows nothing of how a model is run; that is `Denoiser`.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from lmguide.denoisers.denoiser import Denoiser
from lmguide.denoisers.families import family as family_named
from lmguide.denoisers.families import family_of
from lmguide.denoisers.remote_code import LOCK, lost_names, mend_config, missing_keys, model_class, tied_embeddings
from lmguide.denoisers.repairs import check_rotary, repair

if TYPE_CHECKING:
    from lmguide.denoisers.families import Family

# In this order: a class that also has a language model head is wanted before one that may not.
_AUTO_CLASSES = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel")
# Said where to look, and so to every file of a checkpoint.
_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "subfolder", "token")
# Not for the configuration, which would keep them as attributes.
_NOT_CONFIG = ("quantization_config", "device_map")
_REFUSED = {
    "torch_dtype": "Pass dtype.",
    "config": "Pass the values to change by name, as in rope_theta=1e6.",
    "state_dict": "Build the model yourself, then give it to Denoiser(model).",
    "output_loading_info": "Missing weights are refused, and the rest is in the log of transformers.",
    "offload_buffers": "Buffers are not in the checkpoint, and must be mended where they are.",
}
_SHOWN = 5


def load(
    name_or_path: str | PathLike[str],
    *,
    family: Family | str | None = None,
    trust_remote_code: bool = False,
    mask_token_id: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    tokenizer: Any = True,
    revision: str | None = None,
    **from_pretrained_kwargs: Any,
) -> Denoiser:
    """Load a diffusion language model, in evaluation mode, with the repairs that transformers 5 makes necessary.

    Model code of most checkpoints was written for transformers 4. Under version 5 it fails, or loads with rotary
    tables of uninitialised memory and gives wrong logits without an error. `load` mends the checkpoint's classes before
    loading, computes again afterwards what the checkpoint does not hold (see ``repair``), and refuses what it cannot
    vouch for.

    Args:
        name_or_path: A folder, or a name on the hub.
        family: What the model expects; None recognises it by its configuration.
        trust_remote_code: Whether code that the checkpoint brings may be run.
        mask_token_id: The mask token, where neither configuration, family nor tokenizer say the right one.
        dtype: Of the weights; None takes the checkpoint's. Rotary frequencies stay in float32.
        device: Where to, after loading on the CPU. ``device_map`` instead loads straight onto its devices.
        tokenizer: True loads the checkpoint's and lets it pad on the left; False does without; or one to use.
        revision: Branch, tag or commit of the hub.
        from_pretrained_kwargs: Further arguments of ``from_pretrained``, such as ``device_map``,
            ``attn_implementation``, ``quantization_config``, ``token`` or ``code_revision``, or values of the
            configuration.

    Returns:
        The denoiser; its ``model`` is the model of transformers.

    Raises:
        TypeError: an argument of the wrong type, or one of ``from_pretrained`` that `load` decides itself.
        ValueError: the checkpoint brings code and ``trust_remote_code`` is False, has no language model, is of an
            unknown family, lacks weights, has two different weights where its configuration asks for one, or has
            buffers that are neither in it nor follow from its configuration; or there is no tokenizer in it.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     BertForMaskedLM(config).save_pretrained(folder)
        ...     denoiser = load(folder, mask_token_id=4, tokenizer=False)
        >>> denoiser.family.name
        'masked_lm'
    """
    _check_arguments(name_or_path, trust_remote_code, device, from_pretrained_kwargs)
    name, rest = str(name_or_path), dict(from_pretrained_kwargs)
    hub = {key: rest.pop(key) for key in _HUB if key in rest} | ({"revision": revision} if revision else {})
    code = {"code_revision": rest.pop("code_revision")} if "code_revision" in rest else {}
    reference = _own_code(name, trust_remote_code, hub)
    apart = {key: rest.pop(key) for key in _NOT_CONFIG if key in rest}
    with LOCK:
        with lost_names():
            config, rest = AutoConfig.from_pretrained(
                name, trust_remote_code=trust_remote_code, return_unused_kwargs=True, **hub, **code, **rest
            )
        family = _family(family, config)
        if reference is None:
            cls, own = _native_class(config), False
        else:
            mend_config(config)
            cls, own = model_class(reference[1], name, **hub, **code), True
            cls.register_for_auto_class(reference[0])
        arguments = {**hub, **rest, **apart} | ({} if dtype is None else {"dtype": dtype})
        model, missing = _read(cls, own, name, config, arguments)
    buffers = {key for key, _ in model.named_buffers()}
    _check_missing(name, missing - buffers)
    repair(model, missing & buffers)
    _check_tied(model)
    if device is not None:
        model.to(device)
    check_rotary(model)
    if tokenizer is True:
        tokenizer = _tokenizer(name, trust_remote_code, hub)
    return Denoiser(model, family, tokenizer=None if tokenizer is False else tokenizer, mask_token_id=mask_token_id)


def _check_arguments(name: object, trust_remote_code: object, device: object, arguments: dict[str, Any]) -> None:
    if not isinstance(name, str | PathLike):
        raise TypeError(f"name_or_path: expected a name or a folder, got {type(name).__name__}. Give it as a string.")
    if not isinstance(trust_remote_code, bool):
        raise TypeError(
            f"trust_remote_code: expected True or False, got {trust_remote_code!r}. Read the code, then say."
        )
    for argument, cure in _REFUSED.items():
        if argument in arguments:
            raise TypeError(f"{argument}: expected not to be given, got {type(arguments[argument]).__name__}. {cure}")
    if device is not None and "device_map" in arguments:
        raise ValueError(f"device: expected None beside device_map, got {device!r}. Give one of the two.")


def _family(family: Family | str | None, config: PreTrainedConfig) -> Family:
    """The family, found and judged before weights are read."""
    if family is None:
        family = family_of(config)
    elif isinstance(family, str):
        family = family_named(family)
    if family.runner != "canvas":
        raise ValueError(
            f"family: expected one whose model reads a canvas, got {family.name!r}, whose models keep a state of their "
            "own between steps. Load the model with transformers, and guide it with lmguide.diffusion.guide_gemma."
        )
    return family


def _own_code(name: str, trusted: bool, hub: dict[str, Any]) -> tuple[str, str] | None:
    """The auto class and the reference of the model code that a checkpoint brings, if it brings any."""
    values, _ = PreTrainedConfig.get_config_dict(name, **hub)
    entries: dict[str, Any] = values.get("auto_map") or {}
    models = {key: value for key, value in entries.items() if key.startswith("AutoModel")}
    if "AutoConfig" not in entries and not models:
        return None
    if not trusted:
        brought = ", ".join(map(str, {**models, **entries}.values()))
        raise ValueError(
            f"trust_remote_code: expected True, because {name} brings its own model code ({brought}), got False. "
            "Read that code, then pass trust_remote_code=True to run it."
        )
    usable = [key for key in _AUTO_CLASSES if key in models]
    if not usable:
        raise ValueError(
            f"name_or_path: expected a checkpoint with {', '.join(_AUTO_CLASSES[:-1])} or {_AUTO_CLASSES[-1]} in its "
            f"auto_map, got {', '.join(entries)}. Give the checkpoint of a language model."
        )
    named = values.get("architectures") or ()
    auto = next((key for key in usable if models[key].rpartition(".")[2] in named), usable[0])
    return auto, models[auto]


def _native_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers for a configuration: the one it names, if that has a head for tokens, or the usual."""
    usual = [
        table[type(config)]
        for table in (MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
        if type(config) in table
    ]
    named = [getattr(transformers, each, None) for each in config.architectures or ()]
    # Of a checkpoint that was also trained for something else, the language model is wanted.
    heads = ("ForMaskedLM", "ForCausalLM", "LMHeadModel")
    for cls in [*(each for each in named if each is not None and each.__name__.endswith(heads)), *usual]:
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            return cls
    raise ValueError(
        f"name_or_path: expected a checkpoint with a language model, got model_type {config.model_type!r} of class "
        f"{', '.join(config.architectures or ()) or 'unknown'}. Give the checkpoint of a language model."
    )


def _read(cls: Any, own: bool, name: str, config: PreTrainedConfig, arguments: dict[str, Any]) -> tuple[Any, set[str]]:
    """The model and the names of what was not in the checkpoint."""
    if not own:
        model, info = cls.from_pretrained(name, config=config, output_loading_info=True, **arguments)
        return model, {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    # No loading info here: `from_pretrained` of these classes may be their own, and expect a model back from ours.
    model = cls.from_pretrained(name, config=config, **arguments)
    missing = missing_keys(model)
    if missing is None:
        raise ValueError(
            f"name_or_path: expected a model class that loads as transformers does, but {cls.__name__} of {name} loads "
            "in its own way, so that nobody counted missing weights. Load it yourself, then give it to Denoiser(model)."
        )
    return model, missing


def _check_missing(name: str, missing: set[str]) -> None:
    if missing:
        shown = sorted(missing)[:_SHOWN]
        more = f" and {len(missing) - len(shown)} more" if len(missing) > len(shown) else ""
        raise ValueError(
            f"name_or_path: expected every weight in {name}, but {', '.join(shown)}{more} are missing or of another "
            "shape, and would be random. Give the whole checkpoint, or the class that it was saved from."
        )


def _check_tied(model: Any) -> None:
    """Refuse two different weights where the configuration asks for one."""
    pair = tied_embeddings(model) if getattr(model.config, "tie_word_embeddings", False) else None
    if pair is None:
        return
    output, given = (model.get_parameter(key) for key in pair)
    if output is given or output.is_meta or given.is_meta or output.data_ptr() == given.data_ptr():
        return
    if output.shape != given.shape or not torch.equal(output, given.to(output.device)):
        raise ValueError(
            f"tie_word_embeddings: expected {pair[0]} and {pair[1]} to be one weight, as the configuration says, but "
            "the checkpoint has two different ones. Pass tie_word_embeddings=False to use both."
        )


def _tokenizer(name: str, trusted: bool, hub: dict[str, Any]) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trusted, **hub)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ValueError(
            f"tokenizer: expected one in {name}, but it does not load ({type(error).__name__}: {error}). "
            "Pass tokenizer=False, or a tokenizer."
        ) from error
    # The canvas has the answer on the right, so that prompts of a batch must end together.
    tokenizer.padding_side = "left"
    return tokenizer
