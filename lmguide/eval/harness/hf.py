"""`lmguide-hf`: lm-eval's Hugging Face model, guided."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from lmguide.contexts import Context, NegativePrompt
from lmguide.eval.harness.base import (
    GuidedLM,
    bar_off,
    check_arguments,
    model_path,
    over_processes,
    seeded,
)
from lmguide.eval.harness.scoring import Recipe, Scored, Scorer, Text, sources_of
from lmguide.eval.harness.settings import Setting, read_setting, with_source
from lmguide.huggingface import guide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval.api.instance import Instance
    from torch import Tensor

    from lmguide.guidance import Guidance


class GuidedHFLM(GuidedLM, HFLM):  # type: ignore[misc]  # lm-eval ships no types
    """A causal model of transformers in lm-eval: log-likelihoods, multiple choice and generation under guidance.

    With guidance off its numbers are those of lm-eval's own `hf`, with `logits_cache=False`, bit for bit. Rolling
    perplexity has no prompt to guide by and is refused under guidance.

    Under `accelerate launch` or `torchrun` the processes share the batches; the batches, and so all numbers, are those
    of one process.

    Args:
        pretrained: As in `hf`; also `tales`, the bundled model.
        guidance: See `read_setting`, for the next four too.
        normalize: Whether scores are renormalised.
        source: The contrast.
        negative_prompt: A text or messages to contrast with.
        sources: The contrast of each task.
        logits_cache: Refused: it gives texts one score that are cut into prompt and answer at different places, and the
            contrast depends on the cut.
        device: As in `hf`; by default a GPU if there is one.
        **kwargs: As in `hf`.

    Raises:
        ValueError: An argument is wrong; it is named.

    Example:
        >>> import lm_eval
        >>> from lmguide.eval.harness import manager
        >>> model = GuidedHFLM("tales", guidance="cfg:guidance_scale=3", device="cpu", batch_size=16)
        >>> found = lm_eval.simple_evaluate(model, tasks=["tales_mc"], limit=8, task_manager=manager(defaults=False))
        >>> found["results"]["tales_mc"]["topic_probability,none"] > 0.8
        True
    """

    def __init__(
        self,
        pretrained: Any,
        guidance: Any = None,
        normalize: Any = True,
        source: Any = None,
        negative_prompt: Any = None,
        sources: Any = None,
        logits_cache: Any = False,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        setting = read_setting(guidance, normalize, source, negative_prompt, sources)
        check_arguments(kwargs, setting)
        if logits_cache:
            raise ValueError("logits_cache: expected false, got true: it mixes up contrasts. Leave it out.")
        pretrained, bundled = model_path(pretrained)
        if bundled:
            kwargs.setdefault("dtype", "float32")  # stored in half precision to be small, which is slow on a CPU
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained, logits_cache=False, device=device, **kwargs)
        # lm-eval deals out documents; here the processes share batches instead, so it is to see one process.
        self._rank, self._world_size = 0, 1
        self.begin(setting)

    def check(self, setting: Setting) -> None:
        """Refuse guidance for encoder-decoders."""
        if setting.enabled and self.backend != "causal":
            raise ValueError(
                f"pretrained: expected a causal model to guide here, got {type(self.model).__name__}. "
                "Encoder-decoders are guided by lmguide.guide alone."
            )

    @property
    def model(self) -> Any:
        """The model; while guided text is written, the guided view of it."""
        return super().model if self._view is None else self._view

    _view: Any = None
    batch_size_per_gpu: Any

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        if self.backend != "causal":
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return found
        settings = self._scored_together()
        recipes = [Recipe(setting.methods(self._task), setting.normalize) for setting in settings]
        for recipe in recipes:
            _check_recipe(recipe)
        texts = [self._text(request, recipes) for request in requests]
        missing = sorted(
            dict.fromkeys(text for text in texts if self._key(text) not in self._memo),
            key=lambda text: (-len(text.context + text.target), text.context + text.target),
        )
        size = override_bs or self._batch_size(requests)
        batches = [missing[first : first + size] for first in range(0, len(missing), size)]
        bar = tqdm(total=len(missing), disable=bar_off(disable_tqdm), desc="loglikelihood")

        def run(batch: Sequence[Text]) -> list[list[Scored]]:
            scored = self._scorer().score(batch, recipes)
            bar.update(len(batch))
            return scored

        for batch, scored in zip(batches, over_processes(batches, run), strict=True):
            for text, row in zip(batch, scored, strict=True):
                self._memo[self._key(text)] = dict(zip((each.digest for each in settings), row, strict=True))
        bar.close()
        recipe = recipes[settings.index(self.setting)]
        answers = []
        for request, text in zip(requests, texts, strict=True):
            self.spent.passes += self._scorer().cost(recipe, text)
            self.spent.units += 1
            answer = tuple(self._memo[self._key(text)][self.setting.digest])
            answers.append(answer)
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        if not self.together:
            self._memo = {}
        return answers

    def _scored_together(self) -> tuple[Setting, ...]:
        """The settings to score in one go: in chats only those of one contrast, because a text has one."""
        settings = self.together if self.setting in self.together else (self.setting,)
        if not self._conversations:
            return settings

        def spoken(setting: Setting) -> list[Context]:
            return [source for source in sources_of(setting.methods(self._task)) if self.speaks(source)]

        wanted = spoken(self.setting) or next(filter(None, map(spoken, settings)), [])
        return tuple(setting for setting in settings if spoken(setting) in ([], wanted))

    def _key(self, text: Text) -> tuple[str | None, Text]:
        return self._task, text

    def _text(self, request: tuple[tuple[str, str] | None, list[int], list[int]], recipes: Sequence[Recipe]) -> Text:
        strings, context, target = request
        if not context or not target or len(target) > self.max_length:
            raise ValueError(
                f"max_length: expected an answer of 1 to {self.max_length} tokens behind a prompt, got {len(target)}. "
                "Leave the task out, or use a model that reads more."
            )
        negative: list[int] | None = None
        if strings is not None and strings[0] in self._conversations:
            methods = [method for recipe in recipes for method in recipe.methods]
            negative = self.negative_ids(strings[0], methods, stripped=True)
        return Text(tuple(context), tuple(target), None if negative is None else tuple(negative))

    def _scorer(self) -> Scorer:
        return Scorer(
            model=self.model,
            tokenizer=self.tokenizer,
            device=self.device,
            max_length=self.max_length,
            call=self._model_call,
            softmax_dtype=self.softmax_dtype,
        )

    def _batch_size(self, requests: Sequence[Any]) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise ValueError("batch_size: expected a number when several processes share the batches, got 'auto'.")
        # lm-eval tries rows of one source; the others are held beside it.
        rows = max(len(sources_of(setting.methods())) for setting in (self.setting, *self.together)) + 1
        ordered = sorted(requests, key=lambda request: -len(request[1] + request[2])) if requests else None
        return max(1, int(self._detect_batch_size(ordered, 0)) // rows)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers, in batches that every number of processes cuts alike, each with a seed of its own."""
        batches: list[tuple[str | None, list[int]]] = []
        size = self._batch_size([])
        for task, places in self.by_task(requests):
            kinds: dict[str, list[int]] = {}
            for place in places:
                kinds.setdefault(repr(sorted(requests[place].args[1].items(), key=str)), []).append(place)
            for alike in kinds.values():
                alike.sort(key=lambda place: (-len(self.tok_encode(requests[place].args[0])), requests[place].args[0]))
                batches += [(task, alike[first : first + size]) for first in range(0, len(alike), size)]
        base = torch.initial_seed()
        bar = tqdm(total=len(requests), disable=bar_off(disable_tqdm), desc="generate_until")
        numbers = {id(places): number for number, (_, places) in enumerate(batches)}

        def run(batch: tuple[str | None, list[int]]) -> tuple[list[str], float, float]:
            self._task, places = batch
            before, given = replace(self.spent), self.batch_size_per_gpu
            self.batch_size_per_gpu = size
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(seeded(base, numbers[id(places)]))
                self._contexts = [requests[place].args[0] for place in places]
                texts = super(GuidedHFLM, self).generate_until([requests[place] for place in places], True)
            bar.update(len(places))
            self.batch_size_per_gpu = given
            after, self.spent = self.spent, before
            return texts, after.passes - before.passes, after.units - before.units

        answers = [""] * len(requests)
        for (_, places), (texts, passes, units) in zip(batches, over_processes(batches, run), strict=True):
            self.spent.passes += passes
            self.spent.units += units
            for place, text in zip(places, texts, strict=True):
                answers[place] = text
        bar.close()
        return answers

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        methods = self.setting.methods(self._task)
        if self.setting.passes > 1:
            kwargs["num_beams"] = self.setting.passes
        if methods:
            methods, kwargs = self._negatives(methods, context, kwargs)
            self._view = guide(self.model, methods, tokenizer=self.tokenizer)
        try:
            written: Tensor = super()._model_generate(context, max_length, stop, **kwargs)
            steps = written.shape[1] - context.shape[1]
            self.spent.units += steps * len(context)
            passes = self._view.stats.nfe if self._view is not None else steps * self.setting.passes
            self.spent.passes += passes * len(context)
        finally:
            self._view = None
        return written

    def _negatives(
        self, methods: tuple[Guidance, ...], context: Tensor, kwargs: dict[str, Any]
    ) -> tuple[tuple[Guidance, ...], dict[str, Any]]:
        """Methods, and arguments that give each row of a chat the conversation it is contrasted with."""
        found = [self.negative_ids(text, methods) for text in self._contexts]
        if any(ids is not None for ids in found):
            methods = with_source(methods, None)
        elif NegativePrompt(None) in sources_of(methods):
            found = [[int(row[-1])] for row in context]
        rows = [ids for ids in found if ids is not None]
        if not rows:
            return methods, kwargs
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=context.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=context.device)
        return methods, {**kwargs, "negative_prompt_ids": ids, "negative_prompt_attention_mask": mask}


def _check_recipe(recipe: Recipe) -> None:
    for method in recipe.methods:
        if method.is_reward:
            raise ValueError(
                f"guidance: expected methods that combine sources for a task that scores answers, got "
                f"{type(method).__name__}, a reward. Use tasks that generate."
            )
