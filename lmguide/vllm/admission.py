"""Admission in the frontend: what this server cannot guide is refused with one sentence, the rest gets its plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmguide import contexts
from lmguide.vllm.parameters import KEYS, read
from lmguide.vllm.plan import Served, make_plan
from lmguide.vllm.rewards import check_readers

if TYPE_CHECKING:
    from lmguide.vllm.plan import Plan


def attach(processor: Any, request: Any) -> None:
    """Put the plan of a guided request into its private arguments.

    Args:
        processor: vLLM's input processor, for the server's configuration and tokenizer.
        request: The request it has made, whose sampling parameters are its own copy.

    Raises:
        ValueError: The server or the request cannot be guided; one sentence says why.
    """
    params = request.sampling_params
    if params is None or not params.extra_args:
        return
    requested = read(params.extra_args)
    if requested is None:
        return
    config = processor.vllm_config
    _check_request(request, params)
    if request.mm_features:
        fixed = all(
            isinstance(context, contexts.NegativePrompt)
            for method in requested.methods
            for context in method.sources().values()
        )
        if not fixed:
            raise ValueError("guidance: a prompt with images or audio takes a negative prompt only. Use cfg.")
    prompt = None if request.prompt_embeds is not None else request.prompt_token_ids
    check_readers(requested.methods, prompt, _served(processor), params.max_tokens, config)
    plan = make_plan(requested, prompt, _served(processor))
    if reason := refusal(config, plan):
        raise ValueError(f"guidance: {reason}")
    kept = {key: value for key, value in params.extra_args.items() if key not in KEYS}
    params.extra_args = {**kept, **plan.arguments()}


def refusal(config: Any, plan: Plan | None = None) -> str | None:
    """Why a server cannot guide, or cannot follow a plan; `None` if it can.

    Args:
        config: vLLM's configuration.
        plan: The plan; without it only what holds for every plan is looked at.
    """
    if reasons := refusals(config):
        return reasons[0]
    if plan is None:
        return None
    sequences = config.scheduler_config.max_num_seqs
    if len(plan.companions) + 1 > sequences:
        count = len(plan.companions)
        return f"needs {count} companions, which do not fit into {sequences} sequences at a time. Raise --max-num-seqs."
    if plan.behind and (lacks := lacks_alone(config)):
        return (
            f"runs a suffix behind tokens that the scheduler must know, which takes {' and '.join(lacks)}. "
            "Use a negative prompt instead."
        )
    asynchronous = config.scheduler_config.async_scheduling and not config.use_v2_model_runner
    if plan.reads and asynchronous and config.parallel_config.pipeline_parallel_size > 1:
        return (
            "reads what was written, which a pipeline of model runner V1 knows with --no-async-scheduling only. Add it."
        )
    return None


def refusals(config: Any) -> list[str]:
    """Everything about a server for which no request can be guided, each with its cure."""
    model, parallel, sequences = config.model_config, config.parallel_config, config.scheduler_config.max_num_seqs
    checks = (
        (
            config.speculative_config is not None,
            "does not go with speculative decoding",
            "Start without --speculative-config.",
        ),
        (
            config.kv_transfer_config is not None,
            "does not go with a KV connector",
            "Start without --kv-transfer-config.",
        ),
        (model.runner_type == "pooling", "needs a model that generates", "Serve a language model."),
        (model.is_encoder_decoder, "does not go with encoder-decoder models", "Use lmguide.guide."),
        (model.is_diffusion, "does not go with diffusion models", "Use lmguide.diffusion."),
        (model.is_hybrid or model.is_attention_free, "was not tested with recurrent state", "Use lmguide.guide."),
        (
            parallel.enable_batch_sharded_sampling,
            "needs both rows of a pair on one rank",
            "Start with --no-enable-batch-sharded-sampling.",
        ),
        (sequences < 2, "needs two sequences at a time", "Raise --max-num-seqs."),
    )
    return [f"{what}. {cure}" for wrong, what, cure in checks if wrong]


def lacks_alone(config: Any) -> list[str]:
    """What a server lacks for conditionals to sample without their companions and be asked again; empty if they can.

    The scheduler must hear of the worker's verdict before it plans the next step, and companions must find what they
    have computed before in the prefix cache.
    """
    checks = (
        (config.scheduler_config.async_scheduling, "--no-async-scheduling"),
        (config.parallel_config.pipeline_parallel_size > 1, "no pipeline"),
        (not config.cache_config.enable_prefix_caching, "prefix caching"),
    )
    return [cure for lacking, cure in checks if lacking]


def _check_request(request: Any, params: Any) -> None:
    if request.resumable:
        raise ValueError("guidance: streaming input cannot be guided. Send the whole prompt.")
    for name in ("prompt_logprobs", "prompt_logprob_token_ids"):
        if getattr(params, name) is not None:
            raise ValueError(f"guidance: {name} would be those without guidance. Leave one of them out.")


def _served(processor: Any) -> Served:
    model = processor.model_config
    return Served(
        vocab_size=model.get_vocab_size(),
        bos_token_id=getattr(model.hf_text_config, "bos_token_id", None),
        tokenizer=processor.tokenizer,
        max_model_len=model.max_model_len,
    )
