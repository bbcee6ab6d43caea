"""What guided models of lm-eval share: settings, chats, caches not to be mixed up, and batches over processes."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lm_eval.api.model import CacheHook, TemplateLM

from lmguide import contexts
from lmguide.bundled import MODELS, PREFIX
from lmguide.eval.harness.scoring import sources_of
from lmguide.eval.harness.settings import Setting, strength_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lm_eval.api.instance import Instance

    from lmguide.guidance import Guidance

B = TypeVar("B")
R = TypeVar("R")
STAMP = "lmguide setting"
"""Key of a cache of lm-eval under which the setting stands that its answers were made with."""


@dataclass
class Spent:
    """Forward evaluations, and the texts or decoding steps they were spent on.

    Attributes:
        passes: Evaluations per row.
        units: Scored texts, or decoding steps of a row.
    """

    passes: float = 0.0
    units: float = 0.0

    @property
    def each(self) -> float:
        """Evaluations for each unit; 1 before anything ran."""
        return self.passes / self.units if self.units else 1.0


class GuidedLM(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """A model of lm-eval whose scores and answers are guided.

    Attributes:
        setting: How.
        together: Settings whose scores are worked out in one go, for those that will be asked for next.
        spent: What the current setting has cost since `use`.
    """

    setting: Setting
    together: tuple[Setting, ...]
    spent: Spent

    def begin(self, setting: Setting) -> None:
        """Start with a setting; to be called by the constructor once the model is there."""
        self._conversations: dict[str, tuple[list[dict[str, str]], bool]] = {}
        self._task: str | None = None
        self._memo: dict[tuple[Any, ...], Any] = {}
        self.use(setting)

    def use(self, setting: Setting, together: Sequence[Setting] = ()) -> None:
        """Go on under another setting.

        Args:
            setting: The setting.
            together: Settings that are to follow on the same texts: where sources can be shared, scores for all of them
                are worked out at once and kept until other settings are named.

        Raises:
            ValueError: A setting that this kind of model has no such scores for.
        """
        for each in (setting, *together):
            self.check(each)
        if set(each.digest for each in together) != {each.digest for each in getattr(self, "together", ())}:
            self._memo = {}
        self.setting, self.together, self.spent = setting, tuple(together), Spent()
        self.cache_hook = CacheHook(None)  # a cache of answers that lm-eval left here is another setting's

    def check(self, setting: Setting) -> None:
        """Refuse a setting that cannot be served.

        Raises:
            ValueError: It cannot be; with what to do instead.
        """

    @classmethod
    def spends_more(cls, kinds: set[str]) -> bool:
        """Whether the unguided model has a use for further evaluations on requests of some kinds.

        Args:
            kinds: lm-eval's names of them, such as `"generate_until"`.
        """
        return "generate_until" in kinds

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text. It is remembered, because the contrast of a chat is another conversation."""
        text = self.render(chat_history, add_generation_prompt)
        self._conversations[text] = ([dict(message) for message in chat_history], add_generation_prompt)
        return text

    def render(self, chat_history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        """A conversation as text, by the template of the model."""
        return str(super().apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt))

    def speaks(self, source: contexts.Context) -> bool:
        """Whether a source is another prompt, and so in a chat another conversation."""
        return isinstance(source, contexts.NegativePrompt | contexts.EmptyPrompt | contexts.LastToken)

    def contrast(self, text: str, methods: Sequence[Guidance]) -> str | None:
        """The conversation, as text, to contrast a conversation with; `None` where the text is none.

        A negative prompt in text takes the place of the system message. Without one, or with an empty prompt, the last
        turn of the user is empty. What the assistant has begun to say stays.

        Raises:
            ValueError: The last token, which in a chat belongs to the template; or different contrasts.
        """
        if text not in self._conversations:
            return None
        messages, add_generation_prompt = self._conversations[text]
        found = [source for source in sources_of(methods) if self.speaks(source)]
        if not found:
            return None
        if contexts.LastToken() in found:
            raise ValueError(
                "source: the last token of a chat belongs to its template and says nothing of the prompt. "
                "Use source=default, which empties the user's last turn, or a negative prompt."
            )
        made = {json.dumps(_other(messages, source), ensure_ascii=False) for source in found}
        if len(made) > 1:
            raise ValueError(
                "guidance: the methods have several different negative prompts. In a chat give all of them the same."
            )
        return self.render(json.loads(made.pop()), add_generation_prompt)

    def negative_ids(self, text: str, methods: Sequence[Guidance], stripped: bool = False) -> list[int] | None:
        """The tokens of `contrast`; `stripped` leaves out the spaces that a scored text takes from the prompt's end."""
        other = self.contrast(text, methods)
        if other is None:
            return None
        spaces = len(text) - len(text.rstrip()) if stripped else 0
        return list(self.tok_encode(other[: len(other) - spaces]))

    def by_task(self, requests: Sequence[Instance]) -> list[tuple[str | None, list[int]]]:
        """Places of requests that have the same contrast, with a task that stands for it."""
        named = {task for setting in (self.setting, *self.together) for task in setting.sources}
        groups: dict[str | None, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[request.task_name if request.task_name in named else None].append(place)
        return list(groups.items())

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """`(sum of scores, is greedy)` of each request, task by task where tasks have sources of their own."""
        answers: list[Any] = [None] * len(requests)
        for task, places in self.by_task(requests):
            self._task = task
            found = super().loglikelihood([requests[place] for place in places], disable_tqdm=disable_tqdm)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As lm-eval has it, with guidance off.

        Raises:
            ValueError: With guidance on.
        """
        if self.setting.enabled:
            raise ValueError(
                "loglikelihood_rolling: perplexity over windows has no prompt to guide by. Run it without guidance."
            )
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return found

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take a cache of answers if it was made with this setting; lm-eval's keys do not say with which.

        Raises:
            ValueError: It was made with another one.
        """
        store = cache_hook.dbdict
        if store is not None and len(store) == 0:
            store[STAMP] = self.setting.digest
        if store is not None and store.get(STAMP) != self.setting.digest:
            raise ValueError(
                "use_cache: the answers in this cache were made with other guidance, and lm-eval cannot tell them "
                f"apart. Use another path, for example with the ending -{self.setting.digest}."
            )
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results; `guidance` is the setting."""
        parent = getattr(super(), "get_model_info", dict)
        return {**parent(), "guidance": {**self.setting.to_dict(), "label": self.setting.label}}


def over_processes(batches: Sequence[B], run: Callable[[B], R]) -> list[R]:
    """The result of each batch, worked out by all processes of torch's process group together.

    Batch number `i` runs on process `i mod n`, then all results go everywhere. So the batches, and with them every
    number, are the same whatever the number of processes.

    Args:
        batches: The same on all processes.
        run: From a batch to its result, which must be one that can be pickled.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [run(batch) for batch in batches]
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = {place: run(batches[place]) for place in range(rank, len(batches), size)}
    gathered: list[Any] = [None] * size
    torch.distributed.all_gather_object(gathered, (len(batches), mine))
    if len({count for count, _ in gathered}) > 1:
        raise RuntimeError("the processes have different batches: a cache of answers differs. Delete it and start over")
    results = {place: result for _, part in gathered for place, result in part.items()}
    return [results[place] for place in range(len(batches))]


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def check_alone(name: str, cure: str) -> None:
    """Refuse several processes for a model that runs in one.

    Raises:
        ValueError: There are several; `cure` says what to do instead.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
        if count > 1:
            raise ValueError(f"--model: {name} runs in one process, got {count}. {cure}")


def bar_off(disable: bool) -> bool | None:
    """What tqdm takes for `disable`: bars are for the first process, and `None` for a terminal."""
    return True if disable or not is_main() else None


def seeded(base: int, place: int) -> int:
    """A seed for batch number `place`: far from its neighbours', and the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{base} {place}".encode()).digest()[:6], "big")


def model_path(name: Any) -> tuple[Any, bool]:
    """Where a model is, and whether it is one of the package's own: `tales` and `bundled/tales` are."""
    if isinstance(name, str):
        inner = MODELS / name.removeprefix(PREFIX)
        if inner.parent == MODELS and (inner / "config.json").is_file():
            return str(inner), True
    return name, False


def check_arguments(given: Mapping[str, Any], guidance: Setting) -> None:
    """Refuse arguments of a method that stand beside `guidance`, where lm-eval would hand them to the model.

    Raises:
        ValueError: One does.
    """
    names = strength_names(guidance.guidance) | {"guidance_scale", "gamma", "entropy_threshold", "cfg"}
    for name in given:
        if name in names:
            raise ValueError(
                f"{name}: expected inside guidance, got it beside it; a comma ends a value of --model_args. Write "
                f'JSON: {{"guidance": "cfg:guidance_scale=1.5,...", ...}}.'
            )
        close = difflib.get_close_matches(name, ("guidance", "normalize", "source", "sources", "negative_prompt"), n=1)
        if close and name != close[0]:
            raise ValueError(f"{name}: expected an argument of the model, got an unknown one. Did you mean {close[0]}?")


def _other(messages: Sequence[Mapping[str, str]], source: contexts.Context) -> list[dict[str, str]]:
    """The conversation to contrast with."""
    prompt = source.prompt if isinstance(source, contexts.NegativePrompt) else None
    if isinstance(prompt, str):
        return [{"role": "system", "content": prompt}, *(dict(m) for m in messages if m["role"] != "system")]
    if prompt is not None:
        given: Any = prompt
        if not all(isinstance(message, dict) for message in given):
            raise ValueError("negative_prompt: expected a text or messages in a chat, got tokens. Write it as text.")
        begun = [dict(m) for m in messages[-1:] if m["role"] == "assistant"]
        return [*(dict(m) for m in given), *begun]
    last = max((place for place, m in enumerate(messages) if m["role"] == "user"), default=None)
    return [{**message, "content": ""} if place == last else dict(message) for place, message in enumerate(messages)]
