"""`lmguide-completions`: lm-eval's client of an OpenAI-compatible server, guided where the server is lmguide's vLLM."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import requests
import tenacity
import torch
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from tqdm import tqdm

from lmguide.eval.harness.base import GuidedLM, bar_off, check_alone, check_arguments, seeded
from lmguide.eval.harness.requests import check_served, extra_arguments
from lmguide.eval.harness.scoring import sources_of
from lmguide.eval.harness.settings import Setting, read_setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lm_eval.api.instance import Instance

PROBE = "guidance_probe"
"""A key that looks like one of guidance and is none: a server that guides refuses it, all others overlook it."""


class GuidedCompletions(GuidedLM, LocalCompletionsAPI):  # type: ignore[misc]  # lm-eval ships no types
    """A server of completions in lm-eval, with guidance in `vllm_xargs`: tasks that generate.

    Before the first guided answer the server is asked whether it reads guidance, because others overlook what they do
    not know. Tasks that score texts are refused under guidance: a request for the log-probabilities of a prompt has no
    place for it. Each answer is a request of its own with a seed of its own; `num_concurrent` says how many at a time.

    Args:
        base_url: Of completions, such as `http://localhost:8000/v1/completions`.
        guidance: See `read_setting`, for the next four too.
        normalize: Only matters to scores of texts, and there are none.
        source: The contrast.
        negative_prompt: A text or messages to contrast with.
        sources: The contrast of each task.
        **kwargs: As in `local-completions`; `model` is the name it is served by, `tokenizer` where its tokenizer is.

    Raises:
        ValueError: An argument is wrong; it is named.
    """

    def __init__(
        self,
        base_url: str | None = None,
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
        if not isinstance(base_url, str) or not base_url.rstrip("/").endswith("/completions"):
            raise ValueError(
                f"base_url: expected the address of completions, got {base_url!r}. Write for example "
                "base_url=http://localhost:8000/v1/completions."
            )
        check_alone("lmguide-completions", "Raise num_concurrent in --model-args.")
        if kwargs.pop("device", None) is not None:
            raise ValueError("device: the server has chosen its own. Leave it out.")
        self._special = kwargs.pop("add_bos_token", None)
        # The tokenizer of its own makes chats into text, which is what their contrast is made of.
        super().__init__(base_url=base_url, **{"tokenizer_backend": "huggingface", **kwargs})
        if self.tokenizer_backend != "huggingface" or not self.tokenized_requests:
            raise ValueError("tokenizer_backend: expected huggingface and tokenized requests. Leave both out.")
        self.begin(setting)

    def check(self, setting: Setting) -> None:
        """Refuse methods that a vLLM server does not run."""
        check_served(setting)

    @classmethod
    def spends_more(cls, kinds: set[str]) -> bool:
        """Never: vLLM's beam search is another program."""
        return False

    def tok_encode(self, string: str, *_: Any, add_special_tokens: bool | None = None, **__: Any) -> list[int]:
        """The tokens of a text as `hf` makes them: `local-completions` leaves out what a tokenizer puts in front."""
        special = self._special if add_special_tokens is None else add_special_tokens
        if has_bos_prefix(string, self.tokenizer.bos_token):
            special = False
        options = {} if special is None else {"add_special_tokens": bool(special)}
        return list(self.tokenizer(string, **options)["input_ids"])

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        if self.setting.enabled:
            raise ValueError(
                "guidance: a server's log-probabilities of a prompt are those without guidance. For tasks that score "
                "texts use --model lmguide-vllm or lmguide-hf."
            )
        self.spent.passes += len(requests)
        self.spent.units += len(requests)
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **kwargs)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers, each with a seed of its own."""
        base = torch.initial_seed()
        bodies: list[tuple[list[int], dict[str, Any]]] = [([], {})] * len(requests)
        passes = [1] * len(requests)
        for task, places in self.by_task(requests):
            methods = self.setting.methods(task)
            for place in places:
                text, options = requests[place].args
                given: dict[str, Any] = {"seed": seeded(base, place)}
                given |= normalize_gen_kwargs(options, default_max_gen_toks=self._max_gen_toks)
                given["temperature"] = given.get("temperature", 1.0) if given["do_sample"] else 0.0  # as in hf
                extra = extra_arguments(methods, self.negative_ids(text, methods))
                if extra:
                    given["vllm_xargs"] = {**given.get("vllm_xargs", {}), **extra}
                tokens = self.tok_encode(text)
                bodies[place] = (tokens[-self._room(given["max_gen_toks"]) :], given)
                passes[place] += len(sources_of(methods))
        if self.setting.enabled:
            self._check_guides()
        bar = tqdm(total=len(requests), disable=bar_off(disable_tqdm), desc="generate_until")

        def answer(place: int) -> tuple[str, int]:
            found = self._ask(*bodies[place])
            bar.update()
            return found

        with ThreadPoolExecutor(self._concurrent) as pool:
            try:
                answers = list(pool.map(answer, range(len(requests))))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        bar.close()
        for request, (text, count), each in zip(requests, answers, passes, strict=True):
            self.spent.units += count
            self.spent.passes += count * each  # a server does not tell which steps of a gated method were guided
            self.cache_hook.add_partial("generate_until", request.args, text)
        return [text for text, _ in answers]

    def _room(self, answer: int) -> int:
        """Tokens that a prompt may have in front of an answer."""
        if answer >= self.max_length:
            raise ValueError(
                f"max_length: expected more than the {answer} tokens of an answer, got {self.max_length + 1}. "
                "Give the server's --max-model-len as max_length in --model-args."
            )
        return int(self.max_length) - answer

    def _check_guides(self) -> None:
        """Refuse a server that would overlook guidance."""
        try:
            self._ask([self.prefix_token_id], {"max_gen_toks": 1, "vllm_xargs": {PROBE: 1}})
        except ValueError as error:
            if PROBE in str(error):
                return
            raise
        raise ValueError(
            f"base_url: the server at {self.base_url} overlooks guidance, and all answers would be unguided. Start it "
            "with lmguide serve, where lmguide is installed."
        )

    def _ask(self, tokens: Sequence[int], options: Mapping[str, Any]) -> tuple[str, int]:
        """An answer and its number of tokens; a refusal is told in the server's words, anything else tried again."""

        def post() -> Any:
            body = self._create_payload(
                [list(tokens)], generate=True, gen_kwargs=dict(options), seed=self._seed, eos=self.eos_string
            )
            response = requests.post(
                self.base_url, json=body, headers=self.header, verify=self.verify_certificate, timeout=self.timeout
            )
            if response.status_code == 400:
                raise ValueError(f"The server refuses: {_words(response)}")
            response.raise_for_status()
            return response.json()

        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.max_retries),
            wait=tenacity.wait_exponential(multiplier=0.5, min=1, max=10),
            retry=tenacity.retry_if_exception_type(requests.RequestException),
            reraise=True,
        )
        try:
            told = tries(post)
        except requests.ConnectionError:
            raise ConnectionError(
                f"base_url: no server answers at {self.base_url}. Start one with lmguide serve."
            ) from None
        return self.parse_generations(told)[0], int(told["usage"]["completion_tokens"])

    def get_model_info(self) -> dict[str, Any]:
        """Beside the setting, where it was asked."""
        return {**super().get_model_info(), "base_url": self.base_url, "model": self.model}


def _words(response: requests.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (KeyError, TypeError, ValueError):
        return response.text[:200]
