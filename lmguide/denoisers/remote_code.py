"""Makes model code that was written for transformers 4 load under transformers 5.

What is mended is the checkpoint's own: its modules, classes and configuration. Transformers itself is given the names
that it has lost while that code is imported, and no longer.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import threading
from collections import ChainMap
from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
import transformers.utils
import transformers.utils.import_utils
from transformers import GenerationConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils.generic import TransformersKwargs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from torch import Tensor, nn

LOCK = threading.RLock()
"""Held while anything outside of one model is changed, so that loads in several threads wait for each other."""

# Gone from transformers 5, and asked for by code of published checkpoints. False: there is no tracing to prepare for.
_LOST_NAMES: dict[str, Any] = {
    "is_torch_fx_available": lambda: False,
    "LossKwargs": TransformersKwargs,
}
_LOST_FROM = (transformers.utils, transformers.utils.import_utils)
# What every configuration had in transformers 4, where code reads it without asking.
_CONFIG_DEFAULTS: dict[str, Any] = {
    "use_cache": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "is_decoder": False,
    "add_cross_attention": False,
}
_MISSING = "_lmguide_missing_keys"


@contextlib.contextmanager
def lost_names() -> Iterator[None]:
    """Give transformers the names that it has lost since version 4, and take them away again.

    Modules that import a name meanwhile keep it. Transformers is as before when the block is left, however it is left.
    """
    with LOCK, contextlib.ExitStack() as undo:
        for module in _LOST_FROM:
            for name, value in _LOST_NAMES.items():
                if not hasattr(module, name):
                    # First the way back: an interrupt may come between the two.
                    undo.callback(vars(module).pop, name, None)
                    setattr(module, name, value)
        yield


def model_class(reference: str, name_or_path: str, **hub: Any) -> type[PreTrainedModel]:
    """Import a model class of a checkpoint's own code and mend what transformers 5 breaks in it.

    Args:
        reference: ``"file.Class"``, as in ``auto_map``.
        name_or_path: The checkpoint.
        hub: Where and which, as for ``from_pretrained``.
    """
    with lost_names():
        cls: type[PreTrainedModel] = get_class_from_dynamic_module(reference, name_or_path, **hub)
        package = cls.__module__.rpartition(".")[0] + "."
        for name, module in list(sys.modules.items()):
            if name.startswith(package):
                _mend_module(module)
    return cls


def mend_config(config: Any) -> None:
    """Give a configuration the attributes that transformers 4 gave to every one, where it lacks them.

    ``rope_theta`` and that of ``rope_parameters``, into which transformers 5 copies it, become the same: the attribute
    is what code for transformers 4 means; the entry, where there is no attribute.
    """
    for name, value in _CONFIG_DEFAULTS.items():
        if not hasattr(config, name):
            setattr(config, name, value)
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "rope_theta" in rope:
        if getattr(config, "rope_theta", None) is None:
            config.rope_theta = rope["rope_theta"]
        rope["rope_theta"] = config.rope_theta


def missing_keys(model: nn.Module) -> set[str] | None:
    """The parameters and persistent buffers that the checkpoint did not hold, or None if nobody counted; asked once."""
    found: set[str] | None = vars(model).pop(_MISSING, None)
    return found


def default_rope(
    config: Any = None, device: torch.device | None = None, seq_len: int | None = None, **rope: Any
) -> tuple[Tensor, float]:
    """``inv_freq_i = theta^(-2i/d)``: the RoPE without scaling that transformers 5 no longer keeps in its table.

    Args:
        config: With ``rope_theta`` and either ``head_dim`` or ``hidden_size`` and ``num_attention_heads``; a
            ``partial_rotary_factor`` rotates that part of a head.
        device: Where to.
        seq_len: Not used.
        rope: ``base`` and ``dim`` instead of a configuration, as older code has it.

    Returns:
        Frequencies ``[d / 2]``, float32, and the factor 1.0 for sines and cosines.
    """
    if config is None:
        base, dim = rope["base"], rope["dim"]
    else:
        base = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dim = int(head * (getattr(config, "partial_rotary_factor", None) or 1.0))
    steps = torch.arange(0, dim, 2, dtype=torch.int64).to(device=device, dtype=torch.float)
    return 1.0 / (base ** (steps / dim)), 1.0


# A live view: types of RoPE that somebody adds to the table of transformers are seen here too.
_ROPE: Mapping[str, Any] = ChainMap(ROPE_INIT_FUNCTIONS, {"default": default_rope})


def _mend_module(module: ModuleType) -> None:
    names = vars(module)
    if names.get("ROPE_INIT_FUNCTIONS") is ROPE_INIT_FUNCTIONS:
        names["ROPE_INIT_FUNCTIONS"] = _ROPE
    for cls in list(names.values()):
        if isinstance(cls, type) and cls.__module__ == module.__name__:
            if issubclass(cls, PreTrainedModel):
                _mend_model_class(cls)
            elif issubclass(cls, GenerationConfig) and "from_model_config" not in vars(cls):
                setattr(cls, "from_model_config", classmethod(_from_model_config))  # noqa: B010


def _mend_model_class(cls: Any) -> None:
    if "tie_weights" in vars(cls) and not _takes_missing_keys(cls.tie_weights):
        cls.tie_weights = _tie_weights(cls.tie_weights)
    if any(isinstance(vars(base).get("all_tied_weights_keys"), _TiedKeys) for base in cls.__mro__):
        return
    for name, mend in _MENDED_METHODS.items():
        setattr(cls, name, mend(getattr(cls, name)))
    # Last, for it is the mark of a class that is done with.
    cls.all_tied_weights_keys = _TiedKeys()


def _takes_missing_keys(tie_weights: Callable[..., Any]) -> bool:
    # Not through what it wraps: a mended one must be seen as such.
    parameters = inspect.signature(tie_weights, follow_wrapped=False).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return takes_any or {"missing_keys", "recompute_mapping"} <= parameters.keys()


def _tie_weights(original: Callable[[Any], None]) -> Callable[..., None]:
    @wraps(original)
    def tie_weights(self: Any, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        before = _addresses(self)
        original(self)
        if missing_keys is None:
            return
        read = {before[name] for name in before.keys() - missing_keys}
        now = _addresses(self)
        # Tied to a weight that was read, or to one that was not: then both are missing, and their values are random.
        missing_keys -= {name for name in now if now[name] in read}
        missing_keys |= {name for name in now if now[name] not in read}

    return tie_weights


def _addresses(model: nn.Module) -> dict[str, int]:
    """Where each parameter's numbers lie; where they lie nowhere yet, which object it is."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: id(each) if each.is_meta else each.data_ptr() for name, each in parameters}


class _TiedKeys:
    """`all_tied_weights_keys` of a model that never called `post_init`: the call is made up for when it is asked for.

    An instance that has the attribute of its own is not concerned: this is no data descriptor.
    """

    def __get__(self, model: Any, owner: Any = None) -> Any:
        if model is None:
            return self
        # Weights are not to be drawn: they are about to be read, or have been.
        vars(model)["init_weights"] = lambda: None
        try:
            PreTrainedModel.post_init(model)
        finally:
            del vars(model)["init_weights"]
        return vars(model)["all_tied_weights_keys"]


def _expanded(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def get_expanded_tied_weights_keys(self: Any, all_submodels: bool = False) -> Any:
        if not isinstance(self._tied_weights_keys, Mapping):
            self._tied_weights_keys = _tied_mapping(self)
        return original(self, all_submodels)

    return get_expanded_tied_weights_keys


def _tied_mapping(model: Any) -> dict[str, str]:
    """What transformers 4 would tie, as the mapping from target to source of transformers 5.

    There the output embedding was tied to the input embedding whenever the configuration said so, which it did unless
    it said otherwise. Other entries of the list stay untied: the checkpoint then holds them, or they are missing.
    """
    keys = model._tied_weights_keys or ()
    if keys and not hasattr(model.config, "tie_word_embeddings"):
        model.config.tie_word_embeddings = True
    pair = tied_embeddings(model)
    overridden = type(model).tie_weights is not PreTrainedModel.tie_weights
    if pair is None or (overridden and not keys) or (keys and not any(re.search(key, pair[0]) for key in keys)):
        return {}
    return dict([pair])


def tied_embeddings(model: Any) -> tuple[str, str] | None:
    """The names of the weights of the output and the input embedding, if a model has both and they are two modules."""
    try:
        modules = model.get_output_embeddings(), model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    names = {id(module): name for name, module in model.named_modules()}
    if modules[0] is modules[1] or any(id(each) not in names or not hasattr(each, "weight") for each in modules):
        return None
    return f"{names[id(modules[0])]}.weight", f"{names[id(modules[1])]}.weight"


def _initialize(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def _initialize_weights(self: Any, module: nn.Module, is_custom_code: bool = False) -> None:
        # A module that has a buffer beside its weights counts as not initialised. `_init_weights` of older code writes
        # through `.data`, which nothing guards: it would draw the weights anew that have just been read.
        weights = list(module.parameters())
        if weights and all(getattr(each, "_is_hf_initialized", False) for each in weights):
            module._is_hf_initialized = True  # type: ignore[assignment]
        else:
            original(self, module, is_custom_code)

    return _initialize_weights


def _adjust(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def _adjust_missing_and_unexpected_keys(self: Any, loading_info: Any) -> None:
        # Before the class's own list of keys that one need not miss is taken off: they are random all the same.
        vars(self)[_MISSING] = set(loading_info.missing_and_mismatched())
        original(self, loading_info)

    return _adjust_missing_and_unexpected_keys


_MENDED_METHODS = {
    "get_expanded_tied_weights_keys": _expanded,
    "_initialize_weights": _initialize,
    "_adjust_missing_and_unexpected_keys": _adjust,
}


def _from_model_config(cls: Any, model_config: Any) -> Any:
    """`GenerationConfig.from_model_config` for subclasses with attributes of their own, on which it fails."""
    values = model_config if isinstance(model_config, dict) else model_config.to_dict()
    values = {key: value for key, value in values.items() if value is not None and key != "_from_model_config"}
    config = cls.from_dict(values, return_unused_kwargs=False, _from_model_config=True)
    config._original_object_hash = hash(config)
    return config
