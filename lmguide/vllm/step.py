"""What happens before a step: order, memory, late members, and which groups may sample in it.

Works on the queues of a scheduler; what it decides is kept here for as long as the step is planned.
"""

from __future__ import annotations

import math
import time
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreEventType
from vllm.v1.request import RequestStatus

from lmguide.vllm import sharing
from lmguide.vllm.groups import Group, full_blocks, further_blocks, left

if TYPE_CHECKING:
    from collections.abc import Iterator

CATCH_UP = 256
"""A companion with at most so many tokens to compute joins a step of its conditional; a longer one prefills first."""
MARGIN = 1.5
"""So many times the places that companions took lately beyond those lent to them are kept; at least one, if any."""
FIRST_SHARE = 1 / 6
"""Of requests that run alone, how many are taken to ask at first."""
MEMORY = 16
"""Steps over which it is then averaged how many do."""
PREFILL = 2
"""Rank of a request that does not sample; 1: of a group that samples with some tokens more, 0: with one token each."""


class Step:
    """The plan of one step.

    Args:
        scheduler: The guided scheduler.

    Attributes:
        released: Ids of the conditionals whose groups sample in this step.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.released: set[str] = set()
        self._running: dict[Group, None] = {}  # groups of which some member runs, in order
        self._ready: set[Group] = set()  # those that could sample
        self._preempted = False  # memory ran out: nobody is let in
        self._closed = False  # a group waits for room: no newcomer goes first
        self._stalled = False
        self._promised = 0
        self._share = FIRST_SHARE
        self._alone = self._most = self._have = 0
        self._limits = 0, 0

    def prepare(self) -> None:
        """Plan the step; called before vLLM's own planning."""
        self.released.clear()
        self._preempted = self._closed = False
        self._limits = self.scheduler.max_num_active_reqs, self.scheduler.max_num_running_reqs
        if self._stalled:
            self._make_room()
        self._order()
        self._watch()
        need = self._need()
        self._drop_kept(need)
        need = self._secure(need)
        if not self._preempted:
            self._let_in_late(need)
        self._release()
        self._count_places()

    def note(self, output: Any) -> None:
        """Look at the step that was planned: one in which nothing runs although something could is a stall."""
        waits = any(request.num_in_flight_tokens for request in self.scheduler.running)
        paused = self.scheduler.pause_state == PauseState.PAUSED_ALL
        # Nobody is let in beside a preemption; who that made room for comes in the next step.
        self._stalled = not (output.total_num_scheduled_tokens or waits or paused or self._preempted)

    # ---------------------------------------------------------------------------------------------- order and memory
    def _order(self) -> None:
        """Groups together; those that only sample first, so that the token budget cannot divide a group."""
        scheduler = self.scheduler
        self._running.clear()
        self._ready.clear()
        ranked: list[tuple[int, Any]] = []
        for request in scheduler.running:
            group = scheduler.groups.get(request.request_id)
            if group is not None:
                if request is not group.conditional and group.conditional.status == RequestStatus.RUNNING:
                    continue  # it comes with its conditional
                self._running[group] = None
            if group is None or not group.wanted:
                ranked.append((0 if left(request) <= 1 else PREFILL, request))
            elif _ready(group):
                self._ready.add(group)
                rank = int(any(left(member) > 1 for member in group.members))
                ranked += [(rank, member) for member in group.members]
            else:
                members = group.members if request is group.conditional else [request]
                ranked += [(PREFILL, member) for member in members if member.status == RequestStatus.RUNNING]
        if scheduler.policy == SchedulingPolicy.PRIORITY:
            ranked.sort(key=lambda pair: (pair[0], pair[1].priority, pair[1].arrival_time))
        else:
            ranked.sort(key=itemgetter(0))
        scheduler.running[:] = [request for _, request in ranked]

    def _secure(self, need: int) -> int:
        """Preempt until everything that runs can run: vLLM itself would preempt in the middle of a group.

        Args:
            need: Blocks that the running requests take.

        Returns:
            Those of the ones that are left.
        """
        scheduler = self.scheduler
        pool = scheduler.kv_cache_manager.block_pool
        while scheduler.running and need > pool.get_num_free_blocks():
            if scheduler.policy == SchedulingPolicy.PRIORITY:
                victim = max(scheduler.running, key=lambda request: (request.priority, request.arrival_time))
            else:
                victim = scheduler.running[-1]
            self._preempt(victim)
            need = self._need()
        return need

    def _drop_kept(self, need: int) -> None:
        """Give back what companions have kept as far as requests that run or wait need it; the last come go first."""
        scheduler = self.scheduler
        keeping = [group for group in scheduler.each_group() if group.kept]
        if not keeping:
            return
        self._count_places()
        places = max(0, self._free() + self._promised)
        waiting = islice(chain(scheduler.waiting, scheduler.deferred_waiting), places)
        need += sum(full_blocks(scheduler, request.num_tokens) for request in waiting)
        need += scheduler.kv_cache_manager.watermark_blocks
        for group in sorted(reversed(keeping), key=lambda group: group.wanted):
            if self._stalled or need > scheduler.kv_cache_manager.block_pool.get_num_free_blocks():
                sharing.drop(scheduler, group)

    def _need(self) -> int:
        """Blocks that the running requests take in this step."""
        scheduler = self.scheduler
        need, budget = 0, self._budget()
        for request in scheduler.running:
            tokens = min(left(request), budget)
            if tokens > 0:
                need += further_blocks(scheduler, request, tokens)
                budget -= tokens
        return need

    def _budget(self) -> int:
        scheduler = self.scheduler
        return int(min(scheduler.max_num_scheduled_tokens, scheduler.scheduler_config.max_num_batched_tokens))

    def _preempt(self, request: Any) -> None:
        scheduler = self.scheduler
        self._preempted = True
        group = scheduler.groups.get(request.request_id)
        if group is None:
            scheduler.running.remove(request)
            scheduler._preempt_request(request, time.monotonic())
        elif group.selective and request is not group.conditional:
            # The conditional keeps its cache and will ask again.
            scheduler.dismiss_companions(group)
            group.unpark()
            self._ready.discard(group)
        else:
            self.preempt(group)

    def preempt(self, group: Group) -> None:
        """Send all members of a group back to the queue, the conditional first in it."""
        scheduler = self.scheduler
        if group.selective:
            scheduler.dismiss_companions(group)
        running = [member for member in reversed(group.members) if member.status == RequestStatus.RUNNING]
        for member in running:
            scheduler.running.remove(member)
        for member in running:
            scheduler._preempt_request(member, time.monotonic())
        if running:
            scheduler.count("preempted_groups")

    def _make_room(self) -> None:
        """Nothing ran because groups wait for each other's memory: take that of the one that came last."""
        if self.scheduler.running:
            self._order()
            self._preempt(self.scheduler.running[-1])

    # ----------------------------------------------------------------------------------------------------- admission
    def _count_places(self) -> None:
        self._promised = self._alone = self._most = self._have = parked = 0
        for group in self._running:
            if group.wanted:
                self._promised += group.kept_places
                parked += group.parked
            if group.selective and group.conditional.status == RequestStatus.RUNNING:
                more = group.more_places
                self._alone += more
                self._most = max(self._most, more)
                if group.companions:
                    running = sum(companion.status == RequestStatus.RUNNING for companion in group.companions)
                    self._have += max(0, running - group.parked)
        # Conditionals that are parked run, as far as vLLM knows, but have no row in the batch; a limit of 0 ends vLLM's
        # loop over the waiting requests before it begins.
        active, most = self._limits
        self.scheduler.max_num_active_reqs = 0 if self._preempted else active + parked
        self.scheduler.max_num_running_reqs = most + parked

    def _watch(self) -> None:
        """Follow how many of the requests that can run alone ask for their companions."""
        running = [group for group in self._running if group.selective and group.conditional.num_output_tokens]
        could = sum(len(group.plan.companions) - group.parks for group in running)
        if could:
            asking = sum(len(group.plan.companions) - group.parks for group in running if group.wanted)
            self._share += (asking / could - self._share) / MEMORY

    def _reserved(self, more: int) -> int:
        """Places to keep for companions, with `more` of them to expect."""
        places = math.ceil((self._alone + more) * min(1.0, MARGIN * self._share))
        return max(0, max(self._most, more, places) - self._have)

    def _free(self) -> int:
        scheduler = self.scheduler
        used = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
        return int(scheduler.max_num_active_reqs - used - self._promised)

    def admits(self, request: Any, group: Group | None, ready: bool) -> bool:
        """Whether a waiting request may enter now.

        Args:
            request: The request.
            group: Its group, if it is a member of one.
            ready: Whether vLLM has nothing against it.
        """
        held = group is not None and group.wanted and request.num_tokens == 1
        if group is None or (group.selective and request is group.conditional and not held):
            return ready and self._admits_alone(group)
        if request.num_tokens == 1 or not _unblocked(group):
            # A single token cannot be held back: it comes in with the last token of the others.
            self._close(group.first is None and _unblocked(group))
            return False
        if group.is_open:
            self._promised -= 1
            return ready
        if request is not group.first or self._closed or not ready:
            return False
        missing = group.missing
        kept = group.kept_places
        if self._free() + kept < len(missing) or not self._fits(missing):
            self._close(True)
            return False
        self._promised += len(missing) - 1 - kept
        return True

    def _admits_alone(self, group: Group | None) -> bool:
        more = 0 if group is None else group.more_places
        if self._closed or self._free() - self._reserved(more) < 1:
            self._close(True)
            return False
        self._alone += more
        self._most = max(self._most, more)
        return True

    def _close(self, closes: bool) -> None:
        """Let no newcomer in any more; members of groups of which a part runs still may."""
        self._closed |= closes
        if self._closed and not self._promised:
            self.scheduler.max_num_active_reqs = 0

    def _fits(self, missing: list[Any]) -> bool:
        scheduler = self.scheduler
        need = sum(full_blocks(scheduler, member.num_tokens) for member in missing)
        need += sum(
            full_blocks(scheduler, member.num_tokens)
            for group in scheduler.each_group()
            if group.is_open
            for member in group.missing
        )
        return not scheduler.running or need <= int(scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def _let_in_late(self, need: int) -> None:
        """Let in members that have little to compute, in the very step in which their group samples.

        Args:
            need: Blocks that the running requests take.
        """
        scheduler = self.scheduler
        if scheduler.pause_state == PauseState.PAUSED_ALL:
            return
        self._count_places()
        spare = scheduler.kv_cache_manager.block_pool.get_num_free_blocks() - need
        entered = False
        for group in scheduler.each_group():
            missing = group.missing if group.wanted and group.companions else []
            if not missing or not _unblocked(group):
                continue
            running = [member for member in group.members if member not in missing]
            if not running and scheduler.pause_state != PauseState.UNPAUSED:
                continue
            ready = all(left(member) == (group.due if member is group.conditional else 1) for member in running)
            if not ready or not self._may_join(group, missing):
                continue
            kept = group.kept_places
            places = self._free() + kept
            blocks = sum(sharing.needed_blocks(scheduler, group, member) for member in missing)
            if places < len(missing) or blocks > spare or not self._loras_fit(missing):
                continue
            for member in missing:
                self._let_in(group, member)
            self._promised -= kept
            spare -= blocks
            entered = True
        if entered:
            self._order()

    def _may_join(self, group: Group, missing: list[Any]) -> bool:
        """Whether members can come in without a prefill of their own."""
        for member in missing:
            if member.num_output_tokens or member.num_stale_output_tokens:
                return False
            if member.num_tokens > 1:
                ready = sharing.ready_tokens(self.scheduler, group, member) if group.selective else 0
                if not group.selective or member.num_tokens - ready > CATCH_UP:
                    return False
        return True

    def _loras_fit(self, missing: list[Any]) -> bool:
        config = self.scheduler.lora_config
        if not config:
            return True
        adapters = {r.lora_request.lora_int_id for r in [*self.scheduler.running, *missing] if r.lora_request}
        return len(adapters) <= int(config.max_loras)

    def _let_in(self, group: Group, request: Any) -> None:
        scheduler = self.scheduler
        if request.status == RequestStatus.PREEMPTED:
            scheduler.finished_req_ids.add(request.request_id)  # the worker forgets it and meets it anew
        scheduler.waiting.remove_request(request)
        scheduler.deferred_waiting.discard(request)
        hit = sharing.enter(scheduler, group, request)
        scheduler.kv_cache_manager.record_prefix_cache_stats(request, hit)
        if request.prefill_stats is not None:
            request.prefill_stats.set(
                num_prompt_tokens=request.num_prompt_tokens, num_local_cached_tokens=hit, num_external_cached_tokens=0
            )
        request.status = RequestStatus.RUNNING
        request.num_computed_tokens = hit
        request.is_prefill_chunk = True
        group.fresh.add(request.request_id)
        scheduler.running.append(request)
        if scheduler.log_stats:
            request.record_event(EngineCoreEventType.SCHEDULED, time.monotonic())

    # ------------------------------------------------------------------------------------------------------- release
    def _release(self) -> None:
        """Say which groups sample: all members run, and what they have left fits into the budget together."""
        scheduler = self.scheduler
        budget, threshold = self._budget(), scheduler.scheduler_config.long_prefill_token_threshold
        for group, requests in self._units():
            tokens = sum(left(request) for request in requests)
            if group is None or not group.wanted:
                budget -= min(tokens, budget)
            elif group in self._ready and tokens <= budget:
                if all(left(member) <= threshold or threshold <= 0 for member in requests):
                    self.released.add(group.conditional.request_id)
                budget -= tokens
            else:
                budget -= min(tokens, budget)

    def _units(self) -> Iterator[tuple[Group | None, list[Any]]]:
        """Running requests by themselves, and groups as a whole where their conditional stands."""
        scheduler = self.scheduler
        for request in scheduler.running:
            group = scheduler.groups.get(request.request_id)
            if group not in self._ready:
                yield group, [request]
            elif request is group.conditional:
                yield group, group.members


def _ready(group: Group) -> bool:
    """Whether all members run, the conditional with the token that is due left, its companions with few."""
    if not group.wanted or not group.companions or group.missing:
        return False
    return left(group.conditional) == group.due and all(left(companion) <= CATCH_UP for companion in group.companions)


def _unblocked(group: Group) -> bool:
    """Whether nothing but room keeps the members from running: no grammar still compiling, no output in flight."""
    kinds = {RequestStatus.WAITING, RequestStatus.PREEMPTED, RequestStatus.RUNNING}
    return all(member.status in kinds for member in group.members)
