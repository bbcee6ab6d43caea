"""Tensors that transformers 5 leaves as uninitialised memory after a load: found by computing them again, and mended.

`from_pretrained` builds a model without memory and fills in what the checkpoint holds. It does not hold non-persistent
buffers; unless the model's code draws them again, they are whatever the memory held before. Rotary frequencies are such
buffers, and wrong ones give logits that look sound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lmguide.denoisers.blueprints import Slot, Unbuildable, blueprint, slots

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn

# Sines of large angles feel the last bit of a frequency: this much for each position, computed on another device.
_ANGLE_ERROR = 5e-7
_SHOWN = 5


@dataclass(frozen=True)
class Fault:
    """A tensor that is not what its model's constructor makes.

    Args:
        slot: Where it is.
        what: What is wrong, as the end of a sentence that begins with its name.
        value: What it should be, on the CPU; None if nobody knows.
    """

    slot: Slot
    what: str
    value: Tensor | None


def repair(model: nn.Module, persistent: Iterable[str] = ()) -> list[str]:
    """Give back, in place, the tensors that ``from_pretrained`` of transformers 5 leaves uninitialised.

    The model's class is built again from ``model.config``, without memory for parameters, and non-persistent buffers
    and tensors in attributes are compared with what its constructor makes. Different ones get these values. Rotary
    frequencies (``inv_freq``) are put into float32 whatever the dtype of the model: in bfloat16 they have 8 bits, and
    positions beyond a few hundred become indistinct.

    Call it right after loading, before the model has run: buffers that a model changes as it runs are set back.

    Args:
        model: A model of transformers, or a module around one. ``lmguide.diffusion.load`` has done this already.
        persistent: Names of persistent buffers that the checkpoint did not hold, to be treated alike.

    Returns:
        One sentence for each tensor that was changed.

    Raises:
        TypeError: not a module.
        ValueError: a buffer cannot be computed again; nothing is changed then.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(config)
        >>> repair(model)
        []
        >>> model.model.rotary_emb.inv_freq.fill_(0.5)
        tensor([0.5000, 0.5000])
        >>> repair(model)
        ['model.rotary_emb.inv_freq: computed again; it held 0.5, 0.5 in place of 1, 0.01']
    """
    _check_module(model)
    if offloaded := [name for name, each in model.named_modules() if _offloads_buffers(each)]:
        raise ValueError(
            f"model: expected its buffers on their devices, but those of {offloaded[0]} are offloaded. "
            "Load it without offload_buffers=True."
        )
    coarse = _coarse_frequencies(model)
    faults = [each for each in _faults(model, {*persistent, *coarse}, fresh=True) if not _own(each, coarse)]
    lost = [fault for fault in faults if fault.value is None]
    if lost:
        raise ValueError(
            f"model: expected buffers that follow from its configuration, but {_listed(lost)}. "
            "They were not read from the checkpoint: set them yourself, then give the model to Denoiser(model)."
        )
    with torch.no_grad():
        return [_mended(fault) for fault in faults]


def check_rotary(model: nn.Module) -> None:
    """Refuse a model whose rotary tables are not those that its configuration gives.

    Compared are the tensors of the model, beside its parameters, with rotary, rope, freq, sin or cos in their name, up
    to the rounding of another device. Tables that have grown with the text are compared as far as both go; those of
    a RoPE that depends on the length are, once grown, only tested for being plausible.

    Args:
        model: A model of transformers, or a module around one.

    Raises:
        TypeError: not a module.
        ValueError: a table is corrupt; the message names it.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> check_rotary(LlamaForCausalLM(config))
    """
    _check_module(model)
    if faults := [fault for fault in _faults(model, (), fresh=False) if fault.slot.rotary]:
        raise ValueError(
            f"model: expected the rotary tables of its configuration, but {_listed(faults)}. "
            "Load it with lmguide.diffusion.load, or call repair(model) right after loading."
        )


def _faults(model: nn.Module, persistent: Iterable[str], *, fresh: bool) -> Iterator[Fault]:
    """What is wrong with a model; one that is `fresh` has not run, and is to be exactly as its constructor makes it."""
    reference = _Reference(model, tuple(persistent))
    for slot in list(slots(model, persistent)):
        value = None if _grown(slot.module) else reference.value(slot)
        if value is None:
            # A buffer that was not read and cannot be computed is memory that nobody wrote to.
            unknown = fresh and slot.buffer and not _grown(slot.module)
            what = f"cannot be computed again ({reference.reason})" if unknown else _implausible(slot)
            value = None
        else:
            what = _difference(slot, value, exact=fresh and slot.buffer)
        if what:
            yield Fault(slot, what, value)


class _Reference:
    """What the tensors of a model should be."""

    def __init__(self, model: nn.Module, persistent: tuple[str, ...]) -> None:
        self._model, self._persistent = model, persistent
        self._blueprints: dict[torch.dtype, dict[str, Tensor]] = {}
        self._dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
        self.reason = "it is random or unknown to the constructor"

    def value(self, slot: Slot) -> Tensor | None:
        """As the constructor makes it; None if that cannot be known."""
        # The rest is made in the model's dtype, as `from_pretrained` does.
        dtype = torch.float32 if _is_frequency(slot) else self._dtype
        if dtype not in self._blueprints:
            try:
                self._blueprints[dtype] = blueprint(self._model, dtype, self._persistent)
            except Unbuildable as error:
                self._blueprints[dtype] = {}
                self.reason = str(error)
        return self._blueprints[dtype].get(slot.name, _by_convention(slot))


def _by_convention(slot: Slot) -> Tensor | None:
    """Frequencies by the function that the module itself keeps for them, where its model cannot be built."""
    module: Any = slot.module
    if not _is_frequency(slot) or not hasattr(module, "config"):
        return None
    compute = getattr(module, "rope_init_fn", None)
    if compute is None and isinstance(kind := getattr(module, "rope_type", None), str):
        compute = getattr(module, f"compute_{kind}_rope_parameters", ROPE_INIT_FUNCTIONS.get(kind))
    if compute is None:
        return None
    value: Tensor = compute(module.config, device=torch.device("cpu"), **getattr(module, "rope_kwargs", {}))[0]
    return value.float()


def _is_frequency(slot: Slot) -> bool:
    return str(slot.key).endswith("inv_freq") and slot.tensor.is_floating_point()


def _coarse_frequencies(model: nn.Module) -> set[str]:
    """Persistent frequencies: they come from the checkpoint, but are cast with its weights."""
    persistent = {name for name, _ in model.named_buffers()} - {each.name for each in slots(model)}
    return {
        name
        for name in persistent
        if name.endswith("inv_freq") and model.get_buffer(name).dtype in (torch.bfloat16, torch.float16)
    }


def _own(fault: Fault, coarse: set[str]) -> bool:
    """Whether the checkpoint has frequencies of its own, beyond rounding, which are then left as they are."""
    if fault.slot.name not in coarse:
        return False
    return fault.value is None or not torch.allclose(fault.slot.tensor.float().cpu(), fault.value, rtol=0.01)


def _offloads_buffers(module: nn.Module) -> bool:
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(each, "offload_buffers", False) for each in (hook, *getattr(hook, "hooks", ())))


def _grown(module: nn.Module) -> bool:
    """Whether a RoPE that depends on the length has seen a text longer than its model was trained on."""
    seen, trained = (getattr(module, name, None) for name in ("max_seq_len_cached", "original_max_seq_len"))
    longer = seen is not None and trained is not None and bool(seen > trained)
    return longer or any(name.endswith("long_inv_freq") for name in vars(module))


def _difference(slot: Slot, value: Tensor, *, exact: bool) -> str | None:
    """What distinguishes a tensor from what it should be, if anything does."""
    tensor = slot.tensor
    if tensor.is_meta:
        return "had no memory"
    if _is_frequency(slot) and tensor.dtype != torch.float32:
        return f"was {tensor.dtype} in place of torch.float32"
    if tensor.ndim != value.ndim:
        return f"had the shape {list(tensor.shape)} in place of {list(value.shape)}"
    overlap = tuple(slice(min(pair)) for pair in zip(tensor.shape, value.shape, strict=True))
    got, want = tensor[overlap].detach().cpu(), value[overlap].to(tensor.dtype)
    if exact and tensor.shape == value.shape:
        same = torch.equal(got, want)
    elif got.is_floating_point():
        steps = max(got.shape, default=1)
        atol = max(1e-6, _ANGLE_ERROR * steps * slot.rotary, torch.finfo(got.dtype).eps)
        same = torch.allclose(got.double(), want.double(), rtol=1e-4, atol=atol)
    else:
        same = torch.equal(got, want)
    return None if same else f"held {_first(got)} in place of {_first(want)}"


def _implausible(slot: Slot) -> str | None:
    """What no such tensor looks like, where there is nothing to compare with."""
    tensor = slot.tensor
    if tensor.is_meta:
        return "had no memory"
    if not slot.rotary or not tensor.is_floating_point():
        return None
    numbers = tensor.detach().flatten().double().cpu()
    if not numbers.isfinite().all():
        return f"held {_first(numbers)}"
    if _is_frequency(slot):
        falling = bool((numbers.diff() <= 0).all()) and bool((numbers >= 0).all()) and 0 < float(numbers[0]) <= 1
        return None if falling else f"held {_first(numbers)}, which are no falling frequencies"
    return None


def _mended(fault: Fault) -> str:
    slot, value, tensor = fault.slot, fault.value, fault.slot.tensor
    assert value is not None
    wanted = torch.float32 if _is_frequency(slot) else tensor.dtype
    if tensor.is_meta or tensor.dtype != wanted or tensor.shape != value.shape:
        slot.put(value.to(device=_device(slot), dtype=wanted, copy=True))
    else:
        tensor.copy_(value)
    return f"{slot.name}: computed again; it {fault.what}"


def _device(slot: Slot) -> torch.device:
    near = [slot.tensor, *slot.module.buffers(), *slot.module.parameters()]
    return next((each.device for each in near if not each.is_meta), torch.device("cpu"))


def _listed(faults: list[Fault]) -> str:
    more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(f"{fault.slot.name} {fault.what}" for fault in faults[:_SHOWN]) + more


def _first(tensor: Tensor, count: int = 3) -> str:
    numbers = [f"{each:.4g}" if math.isfinite(each) else str(each) for each in tensor.flatten()[:count].tolist()]
    return ", ".join(numbers) + (", ..." if tensor.numel() > count else "")


def _check_module(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch module, got {type(model).__name__}. Load the model first.")
