"""A cache layer with spare room, so that a token is written into it instead of the whole layer being copied.

Transformers' dynamic layers are concatenated anew at every token; that is about a twentieth of a decoding step already
at two hundred tokens, and grows with the context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import Cache


ROOM = 128
"""Tokens that the cache of a guide makes room for at a time."""


class RoomyLayer(DynamicLayer):
    """A dynamic layer whose keys and values are the filled part of larger tensors.

    Args:
        spare: Tokens of room to make whenever there is none left.
    """

    def __init__(self, spare: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spare = max(1, spare)
        self._rooms: list[Tensor | None] = [None, None]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new states `[B, H, n, D]`; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        self.keys = self._append(0, self.keys, key_states, held)
        self.values = self._append(1, self.values, value_states, held)
        return self.keys, self.values

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Take other states in the place of those held, and let the old room go."""
        self.keys, self.values = keys, values
        self.leave_room()

    def leave_room(self) -> None:
        """Let the room go; the next states are written into a new one, and what is held now stays as it is."""
        self._rooms = [None, None]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Select rows, and let the old room go: at the end of a step all layers would otherwise stand twice."""
        super().reorder_cache(beam_idx)
        self.leave_room()

    def _append(self, which: int, states: Tensor | None, new: Tensor, held: int) -> Tensor:
        room, end = self._rooms[which], held + new.shape[-2]
        inside = (
            room is not None
            and states is not None
            and held > 0
            and states.data_ptr() == room.data_ptr()
            and states.shape[0] == room.shape[0]
            and end <= room.shape[-2]
        )
        if room is None or not inside:  # the first states, no room left, or the layer was re-ordered or joined
            room = new.new_empty(*new.shape[:-2], end + self.spare, new.shape[-1])
            if held and states is not None:
                room[..., :held, :] = states
            self._rooms[which] = room
        room[..., held:end, :] = new
        return room[..., :end, :]


def with_room(cache: Cache | None, spare: int) -> None:
    """Give the plain layers of an empty dynamic cache spare room, in place; any other cache is left alone."""
    if type(cache) is not DynamicCache or cache.offloading:
        return
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and not layer.is_initialized:
            cache.layers[index] = RoomyLayer(spare)
