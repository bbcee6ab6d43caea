"""A layer with room holds, bit for bit, what transformers' own layer holds, whatever is done to it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lmguide.sources import caches
from lmguide.sources.roomy import RoomyLayer, with_room
from tests.families import tiny


def pair(spare: int) -> tuple[Any, Any]:
    """A cache whose layers have room, and one of transformers' own."""
    roomy, plain = DynamicCache(), DynamicCache()
    for _ in range(2):
        roomy.layers.append(RoomyLayer(spare))
        plain.layers.append(DynamicLayer())
    return roomy, plain


def both(roomy: Any, plain: Any, count: int, rows: int) -> None:
    """Append the same random states to both; what they return is what they hold."""
    for index in range(2):
        keys, values = torch.randn(rows, 2, count, 4), torch.randn(rows, 2, count, 4)
        mine, other = roomy.update(keys, values, index), plain.update(keys, values, index)
        assert torch.equal(mine[0], other[0])
        assert torch.equal(mine[1], other[1])


def same(roomy: Any, plain: Any) -> None:
    assert roomy.get_seq_length() == plain.get_seq_length()
    for mine, other in zip(roomy.layers, plain.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


@pytest.mark.parametrize("spare", [1, 3, 50])
@pytest.mark.parametrize("seed", range(6))
def test_any_history_leaves_the_same_states(seed: int, spare: int) -> None:
    """A random walk of what loops and sources do: tokens, drafts taken back, beams, and forward passes on loan."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    roomy, plain = pair(spare)
    rows = 3
    both(roomy, plain, 4, rows)
    for _ in range(40):
        held = plain.get_seq_length()
        match rng.choice(["token", "token", "drafts", "back", "beams", "loan", "copy"]):
            case "token":
                both(roomy, plain, 1, rows)
            case "drafts":
                both(roomy, plain, rng.randrange(2, 5), rows)
            case "back":
                taken = rng.randrange(1, min(4, held))
                caches.crop(roomy, taken)
                caches.crop(plain, taken)
            case "beams":
                order = torch.tensor([rng.randrange(rows) for _ in range(rows)])
                caches.expand(roomy, order)
                caches.expand(plain, order)
            case "loan":
                drop = 0
                with caches.lent(roomy, drop), caches.lent(plain, drop):
                    for _ in range(rng.randrange(1, 3)):
                        both(roomy, plain, rng.randrange(1, 4), rows)
            case "copy":
                before = [(layer.keys.clone(), layer.keys) for layer in roomy.layers]
                both(roomy, plain, 1, rows)
                assert all(torch.equal(clone, kept) for clone, kept in before), "states handed out have changed"
        same(roomy, plain)


@pytest.mark.parametrize("lengths", [(6, 3), (3, 6), (5, 5)])
def test_joining_and_taking(lengths: tuple[int, int]) -> None:
    caches_of = [pair(4) for _ in lengths]
    for (roomy, plain), length in zip(caches_of, lengths, strict=True):
        both(roomy, plain, length, 1)
    (roomy, plain), (other_roomy, other_plain) = caches_of
    caches.join(roomy, [other_roomy], lengths)
    caches.join(plain, [other_plain], lengths)
    same(roomy, plain)
    for _ in range(6):
        both(roomy, plain, 1, 2)
        same(roomy, plain)
    caches.take(roomy, 1, max(lengths) - lengths[0])
    caches.take(plain, 1, max(lengths) - lengths[0])
    same(roomy, plain)
    both(roomy, plain, 1, 1)
    same(roomy, plain)


def test_tokens_within_the_room_move_nothing() -> None:
    roomy, plain = pair(8)
    both(roomy, plain, 4, 2)
    place = roomy.layers[0].keys.data_ptr()
    for _ in range(8):
        both(roomy, plain, 1, 2)
    assert roomy.layers[0].keys.data_ptr() == place
    both(roomy, plain, 1, 2)
    assert roomy.layers[0].keys.data_ptr() != place, "the room was used up"


def test_only_empty_plain_layers_are_given_room() -> None:
    cache = DynamicCache(config=tiny("gemma3").config)
    kinds = [type(layer) for layer in cache.layers]
    with_room(cache, 5)
    for kind, layer in zip(kinds, cache.layers, strict=True):
        assert type(layer) is (RoomyLayer if kind is DynamicLayer else kind)
    _, used = pair(1)
    both(pair(1)[0], used, 1, 1)
    with_room(used, 5)
    assert all(type(layer) is DynamicLayer for layer in used.layers)
    with_room(None, 5)
