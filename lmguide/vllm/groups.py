"""A guided request and its hidden companions, as the engine core sees them, and how they are made.

In every step either all members of a group sample or none does; `scheduler` sees to that. The exception are parked
conditionals, which have asked for their companions: the worker has the law, and the first companion draws from it.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.sampling_params import SamplingType
from vllm.v1.request import Request, RequestStatus

from lmguide.vllm.admission import lacks_alone, refusal
from lmguide.vllm.plan import PLAN, SUFFIX, row_arguments

if TYPE_CHECKING:
    from lmguide.vllm.plan import Plan
    from lmguide.vllm.sharing import Kept

DRAWING = ("temperature", "top_p", "top_k", "min_p")
"""Sampling parameters that say how a token is drawn from its law."""
ELSEWHERE = (
    *DRAWING,
    *("n", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "extra_args"),
    *("detokenize", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"),
    *("output_kind", "stream_interval", "skip_clone", "output_text_buffer_length", "skip_reading_prefix_cache"),
    *("_eos_token_id", "_all_stop_token_ids", "repetition_detection", "watermarking", "_watermarking_skipped", "seed"),
)
"""The same, those that workers do not look at when they sample, and those that are looked at another way below."""


@dataclass(eq=False)
class Group:
    """A conditional and its companions.

    Attributes:
        conditional: The request of the client.
        plan: What it asked for.
        selective: Whether it samples alone until the worker asks for the companions, which then live for one step.
        companions: Those that live now.
        wanted: Whether the next sample needs companions.
        fresh: Ids of members that entered beside vLLM's own admission and that the worker has not seen yet.
        made: How many companions there have been.
        ahead: Tokens of the conditional in the cache beyond those it counts: one, if it is to compute its last again.
        parks: Whether companions can draw the conditional's token in its place.
        parked: Whether they do: the conditional has nothing to compute until they have.
        kept: What companions have left of themselves, by their place.
        sampling: How companions sample, by their number and whether they draw; made once, since vLLM checks all of it.
    """

    conditional: Any
    plan: Plan
    selective: bool
    companions: list[Any] = field(default_factory=list)
    wanted: bool = True
    fresh: set[str] = field(default_factory=set)
    made: int = 0
    ahead: int = 0
    parks: bool = False
    parked: bool = False
    kept: dict[int, Kept] = field(default_factory=dict)
    sampling: dict[tuple[int, bool], SamplingParams] = field(default_factory=dict)

    @property
    def members(self) -> list[Any]:
        """The conditional and its companions."""
        return [self.conditional, *self.companions]

    @property
    def missing(self) -> list[Any]:
        """Members that do not run yet."""
        return [member for member in self.members if member.status != RequestStatus.RUNNING]

    @property
    def due(self) -> int:
        """Tokens that the conditional has to compute in the step in which the group samples."""
        return 0 if self.parked else 1

    @property
    def speaker(self) -> Any:
        """The member that draws the group's token."""
        return self.companions[0] if self.parked else self.conditional

    @property
    def is_open(self) -> bool:
        """Whether some but not all of those that are wanted run: nobody may take the places of the others."""
        if not self.wanted or not self.companions or not (missing := self.missing):
            return False
        if self.selective:
            return any(member.status == RequestStatus.RUNNING for member in self.companions)
        return len(missing) < len(self.members)

    @property
    def kept_places(self) -> int:
        """Rows of a batch that are kept for members that do not run yet."""
        if not self.wanted or not (missing := len(self.missing)):
            return 0
        return missing if self.is_open else int(self.parked)

    @property
    def more_places(self) -> int:
        """Rows that companions take beyond the one of a conditional that runs alone, or lends it while it is parked."""
        lends = self.parks and (self.parked or not self.wanted)
        return len(self.plan.companions) - lends

    @property
    def first(self) -> Any | None:
        """The member that opens the group by vLLM's own admission; `None` if all prompts are a single token."""
        candidates = self.companions if self.selective else self.members
        return next((member for member in candidates if member.num_tokens > 1), None)

    def ask(self) -> None:
        """Want companions for the sample that has been thrown away."""
        self.wanted = True
        if self.parks:
            self.parked, self.ahead = True, 0
        else:
            self._step_back()

    def unpark(self) -> None:
        """Let the conditional draw for itself again."""
        if self.parked:
            self.parked = False
            self._step_back()

    def _step_back(self) -> None:
        self.conditional.num_computed_tokens -= 1
        self.ahead = 1

    def make_companions(self) -> list[Any]:
        """New companions, up to the conditional's last token."""
        head = self.conditional
        for number, companion in enumerate(self.plan.companions, 1):
            ids = list(companion.ids)
            ids = [*head.all_token_ids, *ids] if companion.behind else [*ids, *head.output_token_ids]
            self.companions.append(_companion(head, ids, number, self.made, self._sampling(number)))
        self.made += 1
        return self.companions

    def _sampling(self, number: int) -> SamplingParams:
        """Until it is told to stop; its tokens are the conditional's, which it may draw in its place."""
        if (number, self.parked) not in self.sampling:
            theirs = self.conditional.sampling_params
            given = {name: getattr(theirs, name) for name in DRAWING} if self.parked else {"temperature": 0.0}
            self.sampling[number, self.parked] = SamplingParams(
                **given,
                max_tokens=self.conditional.max_tokens,
                ignore_eos=True,
                detokenize=False,
                extra_args=row_arguments(self.conditional.request_id, number),
            )
        return self.sampling[number, self.parked]


def is_companion(request_id: str) -> bool:
    """Whether a request is hidden from clients."""
    return SUFFIX in request_id


def left(request: Any) -> int:
    """Tokens a request has to compute before it samples."""
    tokens: int = request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
    return tokens


def open_group(request: Any, plan: Plan, scheduler: Any) -> Group:
    """Prepare a guided request: its parameters for the workers, and the length that all members leave room for.

    Args:
        request: The request, not yet known to the scheduler.
        plan: Its plan.
        scheduler: The scheduler, for the size of the cache.

    Raises:
        ValueError: This engine cannot guide it, or the members do not fit together.
    """
    if reason := refusal(scheduler.vllm_config, plan):
        raise ValueError(reason)
    lengths = [request.num_prompt_tokens]
    for companion in plan.companions:
        lengths.append(len(companion.ids) + (request.num_prompt_tokens if companion.behind else 0))
    room = min(request.max_tokens, scheduler.max_model_len - max(lengths))
    while room > 0 and sum(full_blocks(scheduler, length + room) for length in lengths) > total_blocks(scheduler):
        room -= scheduler.block_size
    if room < 1:
        raise ValueError(f"prompts of {lengths} tokens leave no room for an answer. Shorten them.")
    selective = not plan.companions or ((plan.selective or plan.behind) and not lacks_alone(scheduler.vllm_config))
    params = copy.copy(request.sampling_params)  # siblings of n > 1 may share one
    kept = {key: value for key, value in (params.extra_args or {}).items() if key != PLAN}
    alone = selective and plan.selective
    parks = alone and bool(plan.companions) and not kept and _samples_rows(scheduler) and draws_by_law(params)
    flags = {"alone": alone, "parks": parks, "signed": params.repetition_penalty != 1}
    params.extra_args = {**kept, **row_arguments(request.request_id, 0, plan, room, **flags)}
    params.max_tokens = request.max_tokens = room
    request.sampling_params = params
    return Group(request, plan, selective, wanted=not alone, parks=parks)


def draws_by_law(params: Any) -> bool:
    """Whether a token depends on nothing but its law: no seed, penalty, grammar or log-probability of the request."""
    if params.sampling_type == SamplingType.RANDOM_SEED:  # a greedy request may have a seed
        return False
    return all(getattr(params, name) == value for name, value in _unset().items())


def _samples_rows(scheduler: Any) -> bool:
    """Whether workers sample by laws alone, with tokens that the runner lets us put down for another request."""
    config = scheduler.vllm_config
    others = config.model_config.logits_processors or len(_processors()) > 1
    return not (scheduler.use_v2_model_runner or config.watermark_config is not None or others)


@functools.cache
def _processors() -> list[str]:
    """The logits processors that are installed, ours among them."""
    return [point.value for point in entry_points(group="vllm.logits_processors")]


@functools.cache
def _unset() -> dict[str, Any]:
    """Sampling parameters that bind a token to its request, as they are where that does not set them."""
    params = SamplingParams()
    return {name: getattr(params, name) for name in params.__struct_fields__ if name not in ELSEWHERE}


def total_blocks(scheduler: Any) -> int:
    """Blocks of the cache; one is vLLM's own."""
    return int(scheduler.kv_cache_manager.block_pool.num_gpu_blocks) - 1


def full_blocks(scheduler: Any, tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return sum(-(-tokens // manager.block_size) for manager in caches(scheduler))


def further_blocks(scheduler: Any, request: Any, tokens: int) -> int:
    """Blocks a running request needs beyond those it has, to compute so many tokens."""
    end = request.num_computed_tokens + tokens
    return sum(
        max(0, -(-end // manager.block_size) - len(manager.req_to_blocks.get(request.request_id, ())))
        for manager in caches(scheduler)
    )


def caches(scheduler: Any) -> Any:
    """Keepers of the blocks, one for each kind of cache."""
    return scheduler.kv_cache_manager.coordinator.single_type_managers


def _companion(head: Any, ids: list[int], number: int, generation: int, params: SamplingParams) -> Any:
    return Request(
        request_id=f"{head.request_id}{SUFFIX}{generation}-{number}",
        prompt_token_ids=ids,
        sampling_params=params,
        pooling_params=None,
        client_index=head.client_index,
        arrival_time=head.arrival_time,
        lora_request=head.lora_request,
        cache_salt=head.cache_salt,
        priority=head.priority,
        block_hasher=head._block_hasher,
    )
