"""What a companion that lives for one step need not compute: what its predecessor left, or what its conditional has.

vLLM's prefix cache knows whole blocks only: with no more than that, every firing computes the last block anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import RequestStatus

from lmguide.vllm.groups import caches, full_blocks

if TYPE_CHECKING:
    from lmguide.vllm.groups import Group


@dataclass(frozen=True)
class Kept:
    """The blocks of a companion that has sampled; they are its group's until they are taken or dropped.

    Attributes:
        tokens: How many they hold.
        blocks: By kind of cache.
        known: How many of each the prefix cache knows.
    """

    tokens: int
    blocks: list[list[Any]]
    known: list[int]


def is_plain(scheduler: Any) -> bool:
    """Whether every cache is one in which a token never changes its place, in blocks that are hashed as a whole."""
    size = scheduler.kv_cache_manager.block_pool.hash_block_size
    return all(type(cache) is FullAttentionManager and cache.block_size == size for cache in caches(scheduler))


def keep(scheduler: Any, group: Group) -> None:
    """Take the blocks of companions that have sampled, before they are dismissed."""
    drop(scheduler, group)
    if not is_plain(scheduler):
        return
    for number, (planned, companion) in enumerate(zip(group.plan.companions, group.companions, strict=True)):
        if planned.behind or companion.status != RequestStatus.RUNNING:
            continue  # what stands behind a suffix is not what comes next
        name = companion.request_id
        known = [cache.num_cached_block.get(name, 0) for cache in caches(scheduler)]
        blocks = [cache.pop_blocks_for_free(name) for cache in caches(scheduler)]
        group.kept[number] = Kept(companion.num_computed_tokens, blocks, known)


def drop(scheduler: Any, group: Group) -> int:
    """Give kept blocks back to the pool; the prefix cache still finds the whole ones. Returns how many they were."""
    blocks = [block for kept in group.kept.values() for each in kept.blocks for block in reversed(each)]
    group.kept.clear()
    scheduler.kv_cache_manager.block_pool.free_blocks(blocks)
    return len(blocks)


def ready_tokens(scheduler: Any, group: Group, request: Any) -> int:
    """Tokens of a member that it will not have to compute when it enters now."""
    if kept := _kept(group, request):
        return kept.tokens
    if tokens := _shared(scheduler, group, request):
        return tokens
    return int(scheduler.kv_cache_manager.get_computed_blocks(request)[1])


def needed_blocks(scheduler: Any, group: Group, request: Any) -> int:
    """Most blocks that a member takes from the pool when it enters now."""
    need: int = full_blocks(scheduler, request.num_tokens)
    if kept := _kept(group, request):
        return need - sum(map(len, kept.blocks))
    tokens = _shared(scheduler, group, request)
    return need - sum(int(tokens // cache.block_size) for cache in caches(scheduler))


def enter(scheduler: Any, group: Group, request: Any) -> int:
    """Give a member that enters the blocks of what it need not compute, and return how many tokens those are."""
    manager = scheduler.kv_cache_manager
    if kept := _kept(group, request):
        del group.kept[group.companions.index(request)]
        for cache, blocks, known in zip(caches(scheduler), kept.blocks, kept.known, strict=True):
            cache.req_to_blocks[request.request_id] = blocks
            cache.num_cached_block[request.request_id] = known
        return kept.tokens
    if hit := _shared(scheduler, group, request):
        head = group.conditional.request_id
        # vLLM copies the last block if it is not whole: the conditional goes on writing in its own.
        blocks = manager.create_kv_cache_blocks(
            tuple(cache.req_to_blocks[head][: -(-hit // cache.block_size)] for cache in caches(scheduler))
        )
    else:
        blocks, hit, *_ = manager.get_computed_blocks(request)
    if hit:
        # No more: the prefix cache takes all that is allocated for computed, and the step may compute a part of it.
        given = manager.allocate_slots(request, 0, num_new_computed_tokens=hit, new_computed_blocks=blocks)
        assert given is not None
    return int(hit)


def _kept(group: Group, request: Any) -> Kept | None:
    return None if request is group.conditional else group.kept.get(group.companions.index(request))


def _shared(scheduler: Any, group: Group, request: Any) -> int:
    """Tokens that a companion behind its conditional has in common with it, and that stand in the cache."""
    head = group.conditional
    behind = request is not head and group.plan.companions[group.companions.index(request)].behind
    if not behind or head.status != RequestStatus.RUNNING or not is_plain(scheduler):
        return 0
    return int(min(head.num_computed_tokens + group.ahead, request.num_tokens - 1))
