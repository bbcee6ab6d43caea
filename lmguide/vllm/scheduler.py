"""vLLM's scheduler, told that the members of a group sample together or not at all.

Everything else is left to the class below: prefix caching, chunked prefill, preemption, LoRA, priorities. Before each
step `step.Step` puts the running requests in order, finds memory for them and says which groups may sample; the hooks
here hold back all others before their last token, and let new requests in only where a group keeps its places.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.request import RequestStatus

from lmguide.vllm import metrics, sharing
from lmguide.vllm.admission import refusal
from lmguide.vllm.groups import Group, is_companion, left, open_group
from lmguide.vllm.plan import read_plan
from lmguide.vllm.step import Step

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger("vllm.lmguide")


@functools.cache
def guided(base: type[Any]) -> type[Any]:
    """The scheduler of a server that guides, below any scheduler class of vLLM."""

    class GuidedScheduler(base):  # type: ignore[misc]
        max_num_active_reqs: int
        max_num_running_reqs: int

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.groups: dict[str, Group] = {}
            """By the id of every member."""
            self._heads: dict[str, Group] = {}
            """By the id of the conditional."""
            self.refused: set[str] = set()
            self.counts: Counter[str] = Counter()
            self.total_counts: Counter[str] = Counter()
            self.step = Step(self)
            reason = refusal(self.vllm_config)
            logger.info("lmguide: guidance on %s%s", base.__name__, f" is refused: it {reason}" if reason else "")

        def each_group(self) -> Iterable[Group]:
            """Every group once."""
            return list(self._heads.values())

        def _groups_of(self, names: Iterable[str]) -> list[Group]:
            """The groups of some requests, each once."""
            return list(dict.fromkeys(self.groups[name] for name in names if name in self.groups))

        def count(self, name: str, by: int = 1) -> None:
            """Count for `/metrics`."""
            self.counts[name] += by
            self.total_counts[name] += by

        # ------------------------------------------------------------------------------------------- coming and going
        def add_request(self, request: Any) -> None:
            params = request.sampling_params
            plan = None
            if params is not None and request.request_id not in self.requests:
                plan = read_plan(params.extra_args)
            if plan is None:
                super().add_request(request)
                return
            try:
                group = open_group(request, plan, self)
                super().add_request(request)
                self.groups[request.request_id] = self._heads[request.request_id] = group
                if not group.selective or (group.wanted and request.num_tokens == 1):
                    self._bring_companions(group)
                self.count("groups")
            except Exception as fault:
                # Any fault, because one that left this function would end the engine and with it all other requests.
                # `open_group` raises ValueError where the members do not fit into the cache; the rest is our own fault.
                # The request is let in to be ended with an error, and `_bury` then takes what it has of companions.
                trace = None if isinstance(fault, ValueError) else fault
                logger.error("lmguide: cannot guide request %s: %s", request.request_id, fault, exc_info=trace)
                self.count("failed_requests")
                self.refused.add(request.request_id)
                if request.request_id not in self.requests:
                    super().add_request(request)

        def _bring_companions(self, group: Group) -> None:
            for companion in group.make_companions():
                super().add_request(companion)
                self.groups[companion.request_id] = group
                if group.selective:  # the conditional waits for it, and nobody else should go first
                    self.waiting.remove_request(companion)
                    self.waiting.prepend_request(companion)

        def dismiss_companions(self, group: Group) -> None:
            """End the companions of a group; the conditional goes on alone until it asks again, if it can."""
            names = [companion.request_id for companion in group.companions]
            group.companions, group.wanted = [], not group.plan.selective
            for name in names:
                self.groups.pop(name, None)
                group.fresh.discard(name)
            super().finish_requests([name for name in names if name in self.requests], RequestStatus.FINISHED_ABORTED)

        def _fail(self, group: Group, why: str, *details: Any) -> None:
            logger.error("lmguide: %s for request %s %s", why, group.conditional.request_id, details)
            self.count("failed_requests")
            self.grammar_compile_error_reqs.add(group.conditional.request_id)

        def _bury(self) -> None:
            """Drop the groups whose conditional has finished."""
            for group in self.each_group():
                head = group.conditional
                if head.is_finished() or head.request_id not in self.requests:
                    self._forget(head.request_id)
                    self.dismiss_companions(group)

        def _forget(self, name: str) -> None:
            """A member is no more; with the conditional goes what companions have kept."""
            self.groups.pop(name, None)
            if (group := self._heads.pop(name, None)) is not None:
                sharing.drop(self, group)

        def finish_requests(self, request_ids: Any, finished_status: Any) -> list[Any]:
            if request_ids is not None:
                request_ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
                self.refused.difference_update(request_ids)
                for name in request_ids:
                    if name in self.groups and not is_companion(name):
                        request_ids = [*request_ids, *(c.request_id for c in self.groups[name].companions)]
            finished = super().finish_requests(request_ids, finished_status)
            for request in finished:
                self._forget(request.request_id)
            return [request for request in finished if not is_companion(request.request_id)]

        def set_pause_state(self, pause_state: Any) -> None:
            # A group of which a part runs would wait forever for the others, which are not let in.
            for group in self.each_group() if pause_state == PauseState.PAUSED_NEW else ():
                if group.is_open or (group.selective and group.companions):
                    self.step.preempt(group)
            super().set_pause_state(pause_state)

        def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
            for group in self.each_group():
                sharing.drop(self, group)
            return bool(super().reset_prefix_cache(*args, **kwargs))

        # ------------------------------------------------------------------------------------------------------- step
        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            if not self.groups:
                return super().schedule(*args, **kwargs)
            limits = self.max_num_active_reqs, self.max_num_running_reqs
            self.step.prepare()
            try:
                output = super().schedule(*args, **kwargs)
            finally:
                self.max_num_active_reqs, self.max_num_running_reqs = limits
            planned = self._groups_of(output.num_scheduled_tokens)
            self._introduce(output, planned)
            self._check(output, planned)
            self.step.note(output)
            # Read when the step comes back, when later ones may have been scheduled already.
            output.lmguide_sampling = {
                group.conditional.request_id for group in planned if not group.speaker.is_prefill_chunk
            }
            return output

        def _introduce(self, output: Any, planned: list[Group]) -> None:
            """Turn members that entered beside vLLM's admission from running requests into new ones."""
            for group in planned:
                for member in group.members if group.fresh else ():
                    name = member.request_id
                    if name in group.fresh and name in output.num_scheduled_tokens:
                        group.fresh.discard(name)
                        self._as_new(output, member)

        def _as_new(self, output: Any, request: Any) -> None:
            cached = output.scheduled_cached_reqs
            place = cached.req_ids.index(request.request_id)
            for name in ("req_ids", "new_token_ids", "new_block_ids", "num_computed_tokens", "num_output_tokens"):
                if values := getattr(cached, name):
                    del values[place]
            cached.all_token_ids.pop(request.request_id, None)
            blocks = self.kv_cache_manager.get_block_ids(request.request_id)
            known = request._all_token_ids if self.use_v2_model_runner else None
            data = NewRequestData.from_request(request, blocks, known, uses_mrope=self.model_uses_mrope)
            data.num_computed_tokens -= output.num_scheduled_tokens[request.request_id]
            output.scheduled_new_reqs.append(data)

        def _check(self, output: Any, planned: list[Group]) -> None:
            """Fail a request whose group did not keep together."""
            for group in planned:
                if not group.wanted:
                    continue
                samples = {
                    member.request_id in output.num_scheduled_tokens and not member.is_prefill_chunk
                    for member in (group.companions if group.parked else group.members)
                }
                if len(samples) > 1:
                    self.count("lockstep_errors")
                    self._fail(group, "only a part of its group sampled")

        def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
            tokens = int(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens))
            group = self.groups.get(request.request_id)
            if group is None or tokens <= 0 or not group.wanted or group.conditional.request_id in self.step.released:
                return tokens
            end = request.num_tokens_with_spec + request.num_output_placeholders
            return tokens if num_computed_tokens + tokens < end else tokens - 1  # held before its last token

        def _preempt_request(self, request: Any, timestamp: float, *args: Any, **kwargs: Any) -> None:
            super()._preempt_request(request, timestamp, *args, **kwargs)
            group = self.groups.get(request.request_id)
            if group is None:
                return
            self.step.released.discard(group.conditional.request_id)
            if request is group.conditional:
                group.ahead, group.parked = 0, False
                sharing.drop(self, group)
            if request.request_id in group.fresh:  # the worker has never seen it
                group.fresh.discard(request.request_id)
                request.status = RequestStatus.WAITING
            for member in group.members:
                if member in self.running and not (group.selective and request is not group.conditional):
                    self.running.remove(member)
                    self._preempt_request(member, timestamp, *args, **kwargs)

        def _handle_blocked_waiting_request(self, request: Any) -> bool:
            if request.request_id in self.refused:
                self.refused.discard(request.request_id)
                self.grammar_compile_error_reqs.add(request.request_id)
                return False
            if not self.groups:
                return bool(super()._handle_blocked_waiting_request(request))
            ready = bool(super()._handle_blocked_waiting_request(request))
            return self.step.admits(request, self.groups.get(request.request_id), ready)

        def _get_local_prefix_cache_hit(self, request: Any) -> Any:
            found = super()._get_local_prefix_cache_hit(request)
            group = self.groups.get(request.request_id)
            if group is None or not group.wanted:
                return found
            blocks, hit, *rest = found
            if hit and request.num_tokens - hit < 2:
                # The hold needs a first chunk: give one block back.
                hit = max(0, hit - self.block_size) // self.block_size * self.block_size
                blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, hit)
            return (blocks, hit, *rest)

        # ----------------------------------------------------------------------------------------------------- output
        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            if not self.groups:
                return super().update_from_output(scheduler_output, model_runner_output)
            sampling: set[str] = getattr(scheduler_output, "lmguide_sampling", set())
            scheduled = scheduler_output.num_scheduled_tokens
            planned = self._groups_of(scheduled)
            self._hand_over(planned, scheduled, sampling, model_runner_output)
            spent = self._judge(planned, scheduled, sampling, model_runner_output)
            results = super().update_from_output(scheduler_output, model_runner_output)
            self._bury()
            for group in spent:
                if group.conditional.request_id in self.groups:
                    sharing.keep(self, group)
                    self.dismiss_companions(group)
                    group.ahead, group.parked = 0, False
            for group in self.each_group():
                if group.selective and group.wanted and not group.companions:
                    head = group.conditional
                    if head.status == RequestStatus.RUNNING and left(head) == group.due:
                        self._bring_companions(group)
            for outputs in results.values():
                outputs.outputs = [each for each in outputs.outputs if not is_companion(each.request_id)]
                if outputs.finished_requests:
                    outputs.finished_requests = {n for n in outputs.finished_requests if not is_companion(n)}
            return results

        def _hand_over(self, planned: list[Group], scheduled: Any, sampling: set[str], model_output: Any) -> None:
            """Let the token that a companion drew for its parked conditional be that one's, as if it had run itself."""
            for group in planned:
                head, speaker = group.conditional, group.speaker
                if speaker is head or head.request_id not in sampling or speaker.request_id not in scheduled:
                    continue
                tokens = scheduled.pop(speaker.request_id)
                scheduled[head.request_id] = tokens
                for by_request in (model_output.req_id_to_index, model_output.num_nans_in_logits or {}):
                    if speaker.request_id in by_request:
                        by_request[head.request_id] = by_request[speaker.request_id]
                speaker.num_in_flight_tokens -= tokens
                head.num_in_flight_tokens += tokens

        def _judge(self, planned: list[Group], scheduled: Any, sampling: set[str], model_output: Any) -> list[Group]:
            """Compare the tokens of each group, and note who asked for companions; returns groups that had theirs."""
            spent = []
            tokens, index = model_output.sampled_token_ids, model_output.req_id_to_index
            for group in planned if tokens else ():
                head = group.conditional
                if head.request_id not in scheduled or head.request_id not in self.requests:
                    continue
                drawn = list(tokens[index[head.request_id]])
                if not group.wanted:
                    if drawn:
                        self.count("skipped_steps" if group.plan.companions else "guided_steps")
                    elif head.request_id not in sampling or head.status != RequestStatus.RUNNING:
                        continue  # it was a chunk of its prompt, of which later ones may be on their way
                    elif not group.plan.companions:
                        self._fail(group, "a fault in guidance")
                    else:
                        self.count("retried_steps")
                        group.ask()
                    continue
                if not drawn:
                    if group.parked:
                        self._fail(group, "a fault in guidance")
                    continue
                copies = [list(tokens[index[c.request_id]]) for c in group.companions if c.request_id in scheduled]
                if any(drawn != copy for copy in copies):
                    self._fail(group, "a fault in guidance", drawn, copies)
                    tokens[index[head.request_id]] = []  # or it might end the request as if all were well
                else:
                    self.count("guided_steps")
                if group.selective and (copies or group.parked):
                    spent.append(group)
            return spent

        def make_stats(self, *args: Any, **kwargs: Any) -> Any:
            stats = super().make_stats(*args, **kwargs)
            if stats is not None and self.groups:
                hidden = [companion for group in self.each_group() for companion in group.companions]
                running = sum(companion.status == RequestStatus.RUNNING for companion in hidden)
                deferred = sum(companion in self.deferred_waiting for companion in hidden)
                stats.num_running_reqs -= running
                stats.num_skipped_waiting_reqs -= deferred
                stats.num_waiting_reqs -= len(hidden) - running - deferred
            metrics.send(stats, self.counts)
            return stats

    GuidedScheduler.__name__ = GuidedScheduler.__qualname__ = f"Guided{base.__name__}"
    return GuidedScheduler
