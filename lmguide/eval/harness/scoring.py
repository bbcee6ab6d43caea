"""Guided scores of given continuations of a causal model: every source runs over its prompt and the text once.

One forward pass of the prompt and one of each other source serve any number of settings. It knows no benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lmguide import contexts
from lmguide.schedules import Progress
from lmguide.sources.binding import bind
from lmguide.sources.ids import pack
from lmguide.sources.layers import candidate_layers, early_logits
from lmguide.sources.models import fitted
from lmguide.sources.rows import RowBuilder
from lmguide.step import guided_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from lmguide.guidance import Guidance

AT_ONCE = {"cpu": 2**19, "cuda": 2**26}
"""Scores that are combined at a time, positions times vocabulary: what a core's cache holds, or a quarter of a
gigabyte of a GPU's memory in float32."""


@dataclass(frozen=True)
class Text:
    """A continuation to score.

    Attributes:
        context: Token ids it stands behind, at least one.
        target: Its token ids, at least one.
        negative: Token ids that take the place of a negative prompt in a chat; `None` leaves it to the method.
    """

    context: tuple[int, ...]
    target: tuple[int, ...]
    negative: tuple[int, ...] | None = None


class Recipe(NamedTuple):
    """What to add up: methods, and whether their scores are renormalised at each token."""

    methods: tuple[Guidance, ...]
    normalize: bool


class Scored(NamedTuple):
    """The sum of the scores of a continuation in nats, and whether each of its tokens is the likeliest."""

    total: float
    greedy: bool


def sources_of(methods: Sequence[Guidance]) -> list[contexts.Context]:
    """The contexts of methods, each once."""
    found: list[contexts.Context] = []
    for method in methods:
        found += [each for each in method.sources().values() if each not in found]
    return found


@dataclass(frozen=True)
class Scorer:
    """Scores batches of texts.

    Attributes:
        model: The causal model.
        tokenizer: Its tokenizer.
        device: Where it runs.
        max_length: Tokens it reads at most; contexts are cut on the left.
        call: From ids `[B, T]`, padded on the right, to the model's logits `[B, T, V]`.
        softmax_dtype: Of the conditional's log-softmax; `None` is that of the logits.
        pad: A token to fill up with.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    max_length: int
    call: Callable[[Tensor], Tensor]
    softmax_dtype: torch.dtype | None = None
    pad: int = 0

    @torch.no_grad()
    def score(self, batch: Sequence[Text], recipes: Sequence[Recipe]) -> list[list[Scored]]:
        """The scores of each text under each recipe, `[texts][recipes]`.

        Raises:
            ValueError: A source cannot be made from what there is; it is named.
        """
        logits = self.call(self._rows([text.context for text in batch], batch))
        dtype = self.softmax_dtype
        cond = self._at_targets(torch.log_softmax(logits, -1, dtype=dtype), [text.context for text in batch], batch)
        wanted = sources_of([method for recipe in recipes for method in recipe.methods])
        laws = [torch.cat(self._laws(context, batch, cond[0].shape[-1])) for context in wanted]
        columns = [self._column(recipe, batch, torch.cat(cond), wanted, laws) for recipe in recipes]
        return [list(row) for row in zip(*columns, strict=True)]

    def cost(self, recipe: Recipe, text: Text) -> int:
        """Forward evaluations that a text takes under a recipe by itself."""
        wanted = sources_of(recipe.methods)
        return 1 + sum(len(text.target) if isinstance(each, contexts.Suffix) else 1 for each in wanted)

    def _column(
        self,
        recipe: Recipe,
        batch: Sequence[Text],
        cond: Tensor,
        wanted: Sequence[contexts.Context],
        laws: Sequence[Tensor],
    ) -> list[Scored]:
        """`sum_l score(target_l)` of each text under a recipe, from the rows `[N, V]` of all texts together."""
        lengths = [len(text.target) for text in batch]
        targets = torch.tensor([token for text in batch for token in text.target], device=cond.device)
        picked, right = [], []
        for rows, progress in _steps(recipe, lengths, cond):
            scores = cond[rows]
            if recipe.methods:
                scores = self._step(recipe, scores.float(), progress, wanted, [law[rows] for law in laws])
            picked.append(scores.gather(1, targets[rows, None])[:, 0])
            right.append(scores.argmax(-1).eq(targets[rows]))
        sums = zip(torch.cat(picked).split(lengths), torch.cat(right).split(lengths), strict=True)
        return [Scored(float(scores.sum()), bool(greedy.all())) for scores, greedy in sums]

    @staticmethod
    def _step(
        recipe: Recipe,
        cond: Tensor,
        progress: Progress,
        wanted: Sequence[contexts.Context],
        laws: Sequence[Tensor],
    ) -> Tensor:
        def fetch(index: int) -> dict[str, Tensor]:
            sources = recipe.methods[index].sources()
            return {name: laws[wanted.index(context)] for name, context in sources.items()}

        strengths = [method.strength(1) for method in recipe.methods]
        return guided_step(cond, recipe.methods, strengths, fetch, progress, normalize=recipe.normalize).scores

    def _laws(self, context: contexts.Context, batch: Sequence[Text], size: int) -> list[Tensor]:
        """The log-probabilities of one source for the target tokens of each text, `[L, V]` or `[L, K, V]`."""
        if isinstance(context, contexts.Suffix):
            return [self._behind_suffix(context, text) for text in batch]
        if isinstance(context, contexts.EarlyLayers):
            prompts = [text.context for text in batch]
            states = self.model(self._rows(prompts, batch), output_hidden_states=True).hidden_states
            layers = candidate_layers(context, self.model)
            by_text = zip(*(self._at_targets(state, prompts, batch) for state in states), strict=True)
            return [early_logits(self.model, found, layers).float().log_softmax(-1) for found in by_text]
        bound = [self._bound(context, text) for text in batch]
        prompts = [rows for _, rows in bound]
        ids = self._rows(prompts, batch)
        model = bound[0][0]
        logits = self.call(ids) if model is self.model else model(ids).logits
        return [fitted(law, size).float().log_softmax(-1) for law in self._at_targets(logits, prompts, batch)]

    def _bound(self, context: contexts.Context, text: Text) -> tuple[Any, tuple[int, ...]]:
        """The model of a source and its prompt, made for each text alone so that no batch can change it."""
        if isinstance(context, contexts.NegativePrompt | contexts.EmptyPrompt) and text.negative is not None:
            return self.model, text.negative
        if context == contexts.NegativePrompt(None):  # of a template the text does not stand in
            context = contexts.LastToken()
        builder = RowBuilder(pack([list(text.context)], self.device), 1, self.model, self.tokenizer, self.device)
        model, rows = bind(context, builder)
        return model, tuple(rows.tokens()[0])

    def _behind_suffix(self, context: contexts.Suffix, text: Text) -> Tensor:
        """The law behind the suffix, put behind every prefix of the target, `[L, V]`."""
        builder = RowBuilder(pack([list(text.context)], self.device), 1, self.model, self.tokenizer, self.device)
        suffix = tuple(builder.suffix(context).tokens()[0])
        prefixes = [text.context + text.target[:place] + suffix for place in range(len(text.target))]
        behind = [Text(prefix, (self.pad,)) for prefix in prefixes]  # some token, to stand behind the suffix
        laws = self._at_targets(self.call(self._rows(prefixes, behind)), prefixes, behind)
        return torch.cat(laws).float().log_softmax(-1)

    def _rows(self, prompts: Sequence[tuple[int, ...]], batch: Sequence[Text]) -> Tensor:
        """Prompt and target without its last token, cut on the left, padded on the right, `[B, T]`."""
        rows = [self._fed(prompt, text) for prompt, text in zip(prompts, batch, strict=True)]
        width = max(map(len, rows))
        return torch.tensor([[*row, *[self.pad] * (width - len(row))] for row in rows], device=self.device)

    def _fed(self, prompt: tuple[int, ...], text: Text) -> tuple[int, ...]:
        return (prompt + text.target)[-(self.max_length + 1) :][:-1]

    def _at_targets(self, values: Tensor, prompts: Sequence[tuple[int, ...]], batch: Sequence[Text]) -> list[Tensor]:
        """What stands where the target tokens are predicted, `[L, ...]` for each text."""
        stops = [len(self._fed(prompt, text)) for prompt, text in zip(prompts, batch, strict=True)]
        return [
            values[row, stop - len(text.target) : stop]
            for row, (stop, text) in enumerate(zip(stops, batch, strict=True))
        ]


def _steps(recipe: Recipe, lengths: Sequence[int], cond: Tensor) -> Iterator[tuple[slice, Progress]]:
    """Rows that are one step together: many, or one where a gate or a schedule asks for progress."""
    if any(method.schedule is not None or method.when() is not None for method in recipe.methods):
        places = [Progress(step, length) for length in lengths for step in range(length)]
        yield from ((slice(row, row + 1), progress) for row, progress in enumerate(places))
        return
    most = max(1, AT_ONCE.get(cond.device.type, AT_ONCE["cuda"]) // cond.shape[-1])
    for start in range(0, len(cond), most):
        yield slice(start, start + most), Progress(0, None)  # nobody reads it
