"""What the tensors of a model that no checkpoint holds should be: its class is built again from its configuration.

Parameters are given no memory, so that this costs next to nothing. It knows nothing of loading.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import MutableMapping, MutableSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from lmguide.denoisers.remote_code import LOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

Holder: TypeAlias = MutableMapping[Any, Any] | MutableSequence[Any]

# What every module has: hooks, parameters, children, and buffers, which are looked at by themselves.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Slot:
    """A place of a model that holds a tensor which is no parameter.

    Args:
        name: Dotted, from the model on; an entry of a mapping or list in an attribute ends in ``[key]``.
        module: The module it belongs to.
        holder: What holds the tensor.
        key: Under what.
        buffer: Whether it is a buffer, which moves and is cast with the module.
    """

    name: str
    module: nn.Module
    holder: Holder
    key: Any
    buffer: bool

    @property
    def tensor(self) -> Tensor:
        """What it holds."""
        tensor: Tensor = self.holder[self.key]
        return tensor

    def put(self, tensor: Tensor) -> None:
        """Let it hold another."""
        self.holder[self.key] = tensor

    @property
    def rotary(self) -> bool:
        """Whether its name says that it turns positions into angles."""
        name = self.name.lower()
        return any(part in name for part in ("inv_freq", "rotary", "rope", "cos", "sin", "freqs"))


def slots(model: nn.Module, persistent: Iterable[str] = ()) -> Iterator[Slot]:
    """The non-persistent buffers of a model and the tensors in attributes of its modules, each once.

    Args:
        model: The model.
        persistent: Names of persistent buffers that are to be among them.
    """
    named, seen = set(persistent), set()
    for prefix, module in model.named_modules():
        dot = prefix + "." if prefix else ""
        for key, value in module._buffers.items():
            if value is not None and (key in module._non_persistent_buffers_set or dot + key in named):
                yield Slot(dot + key, module, module._buffers, key, True)
        attributes = vars(module)
        for key in sorted(attributes.keys() - _OF_EVERY_MODULE):
            value = attributes[key]
            if isinstance(value, torch.Tensor):
                yield Slot(dot + key, module, attributes, key, False)
            elif isinstance(value, MutableMapping | list) and id(value) not in seen:
                seen.add(id(value))
                entries = value.items() if isinstance(value, MutableMapping) else enumerate(value)
                for inner, entry in list(entries):
                    if isinstance(entry, torch.Tensor):
                        yield Slot(f"{dot}{key}[{inner}]", module, value, inner, False)


class Unbuildable(Exception):
    """A class cannot be built from its configuration alone."""


def blueprint(model: nn.Module, dtype: torch.dtype, persistent: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of `slots` as the constructor makes them, by name, on the CPU.

    Tensors that come out differently when the class is built once more are left out: they are drawn at random.

    Args:
        model: A model, or a module around one or several, such as PEFT's.
        dtype: The default dtype to build in.
        persistent: As for `slots`.

    Raises:
        Unbuildable: a model's class does not take its configuration alone; the cause is chained.
    """
    values: dict[str, Tensor] = {}
    done: list[str] = []
    for prefix, inner in model.named_modules():
        if not isinstance(inner, PreTrainedModel) or any(prefix.startswith(outer) for outer in done):
            continue
        dot = prefix + "." if prefix else ""
        done.append(dot)
        names = {name.removeprefix(dot) for name in persistent}
        first, second = ({each.name: each.tensor for each in slots(_built(inner, dtype, k), names)} for k in (0, 1))
        for name, tensor in first.items():
            if name in second and not tensor.is_meta and _equal(tensor, second[name]):
                values[dot + name] = tensor.cpu()
    return values


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other.to(one.device))


def _built(model: PreTrainedModel, dtype: torch.dtype, seed: int) -> nn.Module:
    generator = torch.default_generator
    with LOCK, _default_dtype(dtype), _weightless(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        generator.manual_seed(seed)
        try:
            return type(model)(copy.deepcopy(model.config))
        except Exception as error:
            raise Unbuildable(f"{type(model).__name__}(config) raises {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    if dtype == before:
        # The default belongs to the whole process: it is left alone where it can be.
        yield
        return
    try:
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _weightless() -> Iterator[None]:
    """Parameters that this thread registers are put on the meta device; those of other threads are left alone."""
    register, mine = nn.Module.register_parameter, threading.get_ident()

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and threading.get_ident() == mine and not param.is_meta:
            param = nn.Parameter(param.data.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    try:
        nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
