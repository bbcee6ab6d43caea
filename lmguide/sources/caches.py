"""Key-value caches of transformers: made, joined along the batch, taken apart again, and lent out.

All knowledge of cache layers lives here. Joining puts several contexts of one model into one cache, rows under rows,
each padded on the left to the longest, so that one forward pass serves them all.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from lmguide.sources.roomy import RoomyLayer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import Cache, PreTrainedModel

JOINABLE = (
    DynamicLayer,
    RoomyLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
)
"""Layer types that can be joined; an exact type check, because a subclass may keep more state than its parent."""


def cache_name(model: PreTrainedModel) -> str:
    """The keyword under which a model takes its cache (as transformers' generate decides it)."""
    return "cache_params" if "mamba" in type(model).__name__.lower() else "past_key_values"


def new_cache(model: Any) -> Cache | None:
    """An empty dynamic cache for a model; `None` for families that manage their own."""
    if not model._supports_default_dynamic_cache():
        return None
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    return DynamicCache(config=config)


def joinable(cache: object) -> bool:
    """Whether `join` knows every layer of a cache."""
    return (
        type(cache) is DynamicCache and not cache.offloading and all(type(layer) in JOINABLE for layer in cache.layers)
    )


def length(cache: Cache) -> int:
    """Tokens a cache has seen, padding included; 0 for one without attention layers."""
    try:
        return int(cache.get_seq_length())
    except ValueError:  # only linear-attention layers, which do not count
        return 0


def join(target: Cache, others: Sequence[Cache], lengths: Sequence[int]) -> None:
    """Append the rows of other caches below those of `target`, in place, padding each on the left to the longest.

    The others are emptied layer by layer as their rows are taken, so that no more than one layer exists twice.

    Args:
        target: The cache that receives; its layers are of the types in `JOINABLE`.
        others: Caches of the same model.
        lengths: Tokens each has seen: that of `target`, then those of the others.
    """
    longest = max(lengths)
    for index, layer in enumerate(_layers(target)):
        same = [layer, *(_layers(other)[index] for other in others)]
        if _is(layer, LinearAttentionLayer):
            for states in ("conv_states", "recurrent_states"):
                own = getattr(layer, states)
                for key, value in own.items():
                    if value is not None:
                        own[key] = torch.cat([getattr(part, states)[key] for part in same])
        if _is(layer, DynamicLayer) and layer.is_initialized:
            held = [part.keys.shape[-2] + longest - seen for part, seen in zip(same, lengths, strict=True)]
            width = max(held) if not _is(layer, DynamicSlidingWindowLayer) else _window(layer, held)
            keys = torch.cat([_left_pad(part.keys, width) for part in same])
            values = torch.cat([_left_pad(part.values, width) for part in same])
            if _is(layer, RoomyLayer):
                layer.hold(keys, values)
            else:
                layer.keys, layer.values = keys, values
            if _is(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = longest
        for part in same[1:]:
            part.reset()


def take(cache: Cache, rows: int, padding: int) -> None:
    """Keep the first rows of a joined cache and drop their left padding, in place.

    Args:
        cache: A cache `join` has made, possibly grown since.
        rows: How many rows to keep.
        padding: Padding tokens on their left.
    """
    for layer in _layers(cache):
        if _is(layer, LinearAttentionLayer):
            for states in (layer.conv_states, layer.recurrent_states):
                for key, value in states.items():
                    if value is not None:
                        states[key] = value[:rows].clone()
        if _is(layer, DynamicLayer) and layer.is_initialized:
            held = layer.keys.shape[-2]
            if _is(layer, DynamicSlidingWindowLayer):
                dropped = max(0, padding - (layer.cumulative_length - held))
                layer.cumulative_length -= padding
            else:
                dropped = padding
            layer.keys = layer.keys[:rows, :, dropped:].clone()
            layer.values = layer.values[:rows, :, dropped:].clone()
        if _is(layer, StaticLayer) and layer.is_initialized:
            seen = int(layer.get_seq_length())
            dropped = max(0, padding - max(0, seen - layer.max_cache_len))
            layer.keys = layer.keys[:rows].roll(-dropped, 2)
            layer.values = layer.values[:rows].roll(-dropped, 2)
            layer.batch_size = rows
            layer.cumulative_length.fill_(min(seen - padding, layer.max_cache_len))
            if _is(layer, StaticSlidingWindowLayer):
                layer.cumulative_length_int = seen - padding


def fill(static: Cache, source: Cache) -> None:
    """Write the content of a joined dynamic cache into an empty static one, layer by layer, emptying the source."""
    for index, layer in enumerate(_layers(source)):
        seen = layer.get_seq_length()  # more than a sliding layer still holds; what is missing is outside its window
        static.update(_left_pad(layer.keys, seen), _left_pad(layer.values, seen), index)
        layer.reset()


def expand(cache: Cache, rows: Tensor) -> None:
    """Select rows along the batch, in place, with repeats if the index has them."""
    order: Any = rows
    cache.reorder_cache(order)


def croppable(cache: Cache, tokens: int) -> bool:
    """Whether that many tokens can be taken off a cache's end: recurrent states and slid windows cannot go back."""
    for layer in _layers(parts(cache)[0]):
        if _is(layer, LinearAttentionLayer):
            return False
        if _is(layer, DynamicSlidingWindowLayer) and layer.is_initialized:
            left = layer.cumulative_length - tokens
            if layer.keys.shape[-2] - tokens < min(left, layer.sliding_window - 1):
                return False
    return True


def crop(cache: Cache, tokens: int) -> None:
    """Take tokens off the end of a cache; layers never used, such as those of skipped blocks, are passed over."""
    for layer in _layers(parts(cache)[0]):  # an encoder's states have nothing to do with the answer's length
        if not _is(layer, DynamicLayer) or layer.is_initialized:
            layer.crop(-tokens)


@contextmanager
def lent(cache: Cache, drop: int = 0) -> Iterator[None]:
    """Lend a cache to a forward pass that must leave no trace, without copying its keys and values.

    Dynamic layers never write over the tokens they hold, so the tensors they hold are enough to return; the states of
    linear attention and static layers are written in place, so those are copied or rewound.

    Args:
        cache: The cache.
        drop: Tokens to take off its end while it is lent.
    """
    layers = [layer for part in parts(cache) for layer in _layers(part)]
    saved = [_save(layer) for layer in layers]
    try:
        if drop:
            crop(cache, drop)
            for layer in layers:
                if _is(layer, RoomyLayer):
                    layer.leave_room()  # behind the cut stand the tokens that are to come back
        yield
    finally:
        for layer, state in zip(layers, saved, strict=True):
            _restore(layer, state)


def parts(cache: Cache) -> list[Cache]:
    """The caches an encoder-decoder's cache holds, or the cache itself."""
    if isinstance(cache, EncoderDecoderCache):
        return [cache.self_attention_cache, cache.cross_attention_cache]
    return [cache]


def _is(layer: Any, kind: type) -> bool:
    """`isinstance` that leaves the type open: transformers' layers are typed as if they were empty."""
    return isinstance(layer, kind)


def _layers(cache: Cache) -> list[Any]:
    return list(cache.layers)


def _save(layer: Any) -> dict[str, Any]:
    state = dict(layer.__dict__)
    for key, value in state.items():
        if isinstance(value, dict):  # the states of linear attention, by index
            state[key] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in value.items()}
        elif _is(layer, StaticLayer) and isinstance(value, torch.Tensor) and layer.is_initialized:
            state[key] = value.clone()
    return state


def _restore(layer: Any, state: dict[str, Any]) -> None:
    for key, value in state.items():
        current = layer.__dict__.get(key)
        if _is(layer, StaticLayer) and isinstance(value, torch.Tensor) and isinstance(current, torch.Tensor):
            current.copy_(value)  # its address may be known to a compiled graph
        elif isinstance(value, dict):
            _restore_states(current, value)
        else:
            layer.__dict__[key] = value


def _restore_states(current: Any, value: dict[Any, Any]) -> None:
    for key, item in value.items():
        if (
            isinstance(item, torch.Tensor)
            and isinstance(current[key], torch.Tensor)
            and current[key].shape == item.shape
        ):
            current[key].copy_(item)
        else:
            current[key] = item


def _window(layer: DynamicSlidingWindowLayer, held: Sequence[int]) -> int:
    """How many tokens a joined sliding layer holds: all while past is recorded, else at most the window."""
    return max(held) if layer.record_past else min(max(held), layer.sliding_window - 1)


def _left_pad(states: Tensor, width: int) -> Tensor:
    """`[B, H, L, D]` to `[B, H, width, D]`: zeros on the left, or the last `width` tokens."""
    missing = width - states.shape[-2]
    if missing > 0:
        return torch.nn.functional.pad(states, (0, 0, missing, 0))
    return states[..., -width:, :] if missing < 0 else states
