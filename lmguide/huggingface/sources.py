"""The sources of one guided call, bound to its prompts, and their scores at a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from lmguide import contexts
from lmguide.schedules import Progress
from lmguide.sources import caches
from lmguide.sources.binding import bind
from lmguide.sources.branch import Branch, forward, passes
from lmguide.sources.ids import Rows, check_positions, pack
from lmguide.sources.layers import candidate_layers, early_logits
from lmguide.sources.models import fitted
from lmguide.sources.rows import RowBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from transformers import Cache, PreTrainedModel

    from lmguide.guidance import Guidance
    from lmguide.huggingface.run import Run

LAZY_SHARE = 0.25
"""A schedule that is off on more than this share of the steps makes its sources run lazily: a stacked source costs
about a fifth of a step whether used or not, a lazy one a whole step when used."""


@dataclass(frozen=True)
class Pending:
    """What a forward pass is for.

    Attributes:
        input_ids: The conditional's tokens, drafts included, `[B, L]`.
        scored: Positions to score, from the end backwards.
        first: Whether it is the first pass of the call.
        arguments: The loop's keyword arguments: masks, positions, cache.
        fresh: Tokens of each row that are run.
    """

    input_ids: Tensor
    scored: int
    first: bool
    arguments: Mapping[str, Any]
    fresh: int = 1


@dataclass
class Sources:
    """All sources of a call, each once, however many methods use it.

    Attributes:
        model: The guided model.
        batch: Rows of the loop.
        expand: Rows of each prompt: beams, or several returned sequences.
        found: The contexts, in order; sources are known by their index here.
        wiring: For each method, source indices by the names its rule uses; none for rewards, see `Rewards`.
        stacked: Sources that may run as further rows of the conditional's own forward pass.
        suffix_forwards: Forward passes spent on suffixes.
    """

    model: PreTrainedModel
    batch: int
    expand: int
    found: list[contexts.Context] = field(default_factory=list)
    wiring: list[dict[str, int]] = field(default_factory=list)
    stacked: list[int] = field(default_factory=list)
    suffix_forwards: int = 0

    @classmethod
    def build(
        cls, run: Run, input_ids: Tensor, arguments: Mapping[str, Any], cache: Cache | None, assisted: bool
    ) -> Sources:
        """Bind the contexts of a run's methods to its prompts.

        Raises:
            ValueError: A context cannot be made from what there is; the argument is named.
        """
        plan = run.plan
        expand = max(run.config.num_beams or 1, run.config.num_return_sequences or 1)
        sources = cls(plan.model, input_ids.shape[0], expand)
        total = run.config.max_length - run.prompt_length
        for method in plan.methods:
            names: dict[str, int] = {}
            wanted = {} if method.is_reward else method.sources()
            for name, context in wanted.items():
                if context not in sources.found:
                    sources.found.append(context)
                names[name] = sources.found.index(context)
                if _stackable(context) and not _lazy(method, total) and names[name] not in sources.stacked:
                    sources.stacked.append(names[name])
            sources.wiring.append(names)
        sources._bind(run, input_ids, arguments, cache, assisted)
        return sources

    def _bind(
        self, run: Run, input_ids: Tensor, arguments: Mapping[str, Any], cache: Cache | None, assisted: bool
    ) -> None:
        expand = self.expand
        prompt, partial = _prompt(run, input_ids, arguments, cache, expand)
        builder = RowBuilder(prompt, self.batch // expand, self.model, run.plan.tokenizer, input_ids.device, partial)
        self.builder = builder
        decoder = arguments.get("decoder_attention_mask")
        start = Rows(input_ids, torch.ones_like(input_ids) if decoder is None else decoder)
        self._branches: dict[int, Branch] = {}
        self._suffix_ids: dict[int, Tensor] = {}
        self._layers: dict[int, tuple[int, ...]] = {}
        for index, context in enumerate(self.found):
            if isinstance(context, contexts.Suffix):
                self._suffix_ids[index] = builder.suffix(context).ids
                continue
            if isinstance(context, contexts.EarlyLayers):
                self._layers[index] = candidate_layers(context, self.model)
                continue
            model, rows = bind(context, builder, run.negative)
            rows = rows.repeat(expand) if rows.ids.shape[0] > 1 else rows
            argument = (run.negative or {}).get("argument", "negative_prompt")
            check_positions(model, rows, run.config.max_length - run.prompt_length, argument)
            extra = None
            if self.model.config.is_encoder_decoder:
                hidden, mask = _encode(model, rows, self.batch)
                rows, extra = (
                    start,
                    {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden), "attention_mask": mask},
                )
            self._branches[index] = Branch(
                model, rows, self.batch, use_cache=bool(arguments.get("use_cache")), record_past=assisted, extra=extra
            )

    @property
    def longest_suffix(self) -> int:
        """Tokens of the longest suffix; 0 if no source runs on the conditional's own cache."""
        return max((ids.shape[1] for ids in self._suffix_ids.values()), default=0)

    @property
    def hidden_states(self) -> bool:
        """Whether the conditional's hidden states are needed."""
        return bool(self._layers)

    def branches(self) -> Iterator[Branch]:
        """The sources that have a forward pass and a cache of their own."""
        yield from self._branches.values()

    def encoded(self, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The conditional's encoder output and its mask."""
        hidden = arguments["encoder_outputs"].last_hidden_state
        mask = arguments.get("attention_mask")
        return hidden, hidden.new_ones(hidden.shape[:2], dtype=torch.long) if mask is None else mask

    def encoded_stack(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Encoder outputs and masks of the stacked sources."""
        for source in self.stacked:
            extra = self._branches[source].extra
            yield extra["encoder_outputs"].last_hidden_state, extra["attention_mask"]

    def now(self, pending: Pending, outputs: Any, generated: Tensor, known: dict[int, Tensor]) -> None:
        """Turn to a new forward pass of the conditional.

        Args:
            pending: What the pass was for.
            outputs: The model's output.
            generated: The answer so far, `[B, G]`.
            known: Log-probabilities `[B, n, V]` of stacked sources, which the pass has brought along.
        """
        self._pending, self._outputs, self._generated, self._known = pending, outputs, generated, known
        for branch in self.branches():
            branch.rewind(
                generated.shape[1] - pending.scored
            )  # what the conditional had consumed before this pass stands

    def prefill(self, source: int) -> Branch:
        """Run a source on its own prompt and remember its scores for this step."""
        self.scores(source)
        return self._branches[source]

    def scores(self, source: int) -> Tensor:
        """Log-probabilities `[B, n, V]` of a source at the scored positions (`[B, n, K, V]` for early layers)."""
        if source not in self._known:
            if source in self._suffix_ids:
                logits = self._suffix_logits(self._suffix_ids[source])
            elif source in self._layers:
                logits = self._early_logits(self._layers[source])
            else:
                branch, scored = self._branches[source], self._pending.scored
                logits = branch.logits(self._generated, scored)
            vocab_size = self._outputs.logits.shape[-1]
            self._known[source] = fitted(logits, vocab_size).float().log_softmax(-1)
        return self._known[source]

    def _early_logits(self, layers: tuple[int, ...]) -> Tensor:
        states = self._outputs.get("decoder_hidden_states") or self._outputs["hidden_states"]
        scored = self._pending.scored
        return early_logits(self.model, [state[: self.batch, -scored:] for state in states], layers)

    def _suffix_logits(self, suffix: Tensor) -> Tensor:
        """The suffix behind every scored prefix, on the conditional's cache, which is left as it was."""
        pending, scored = self._pending, self._pending.scored
        cache = self._outputs.get(caches.cache_name(self.model)) if pending.arguments.get("use_cache") else None
        ids = pending.input_ids
        width = ids.shape[1] if cache is None else max(caches.length(cache), ids.shape[1])
        prefix = "decoder_" if self.model.config.is_encoder_decoder else ""
        mask = pending.arguments.get(f"{prefix}attention_mask")
        mask = ids.new_ones(self.batch, width) if mask is None else mask[:, :width]
        suffix = suffix.expand(self.batch, -1)
        encoder = {"encoder_outputs", "attention_mask"} if prefix else set()
        extra = {key: value for key, value in pending.arguments.items() if key in encoder}
        logits = []
        for drop in range(scored - 1, -1, -1):
            kept = torch.cat([mask[:, : width - drop], torch.ones_like(suffix)], 1)
            self.suffix_forwards += 1 if cache is None else passes(self.model, suffix.shape[1])
            if cache is None:
                whole = torch.cat([ids[:, : ids.shape[1] - drop], suffix], 1)
                outputs = forward(self.model, whole, kept, None, None, 1, extra)
            else:
                with caches.lent(cache, drop):
                    outputs = forward(self.model, suffix, kept, cache, suffix.shape[1], 1, extra)
            logits.append(outputs.logits[:, -1:])
        return torch.cat(logits, 1)


def _stackable(context: contexts.Context) -> bool:
    kinds = (contexts.Suffix, contexts.EarlyLayers, contexts.OtherModel, contexts.DroppedBlocks)
    return not isinstance(context, kinds)


def _lazy(method: Guidance, total: int) -> bool:
    """Whether a method leaves its sources alone on so many steps that they had better run only when wanted."""
    gate, schedule = method.when(), method.schedule
    if gate is not None and not gate.needs_uncond:
        return True
    if schedule is None or schedule.needs_divergence:
        return False
    off = sum(schedule.weight(Progress(step, total)) == 0 for step in range(total))
    return off > LAZY_SHARE * total


def _prompt(
    run: Run, input_ids: Tensor, arguments: Mapping[str, Any], cache: Cache | None, expand: int
) -> tuple[Rows | None, bool]:
    """The prompts' own rows, one per prompt, and whether they are only the new part of a continued one."""
    if run.plan.model.config.is_encoder_decoder:
        if run.encoder_input is None:
            return None, False
        ids, mask = run.encoder_input
        mask = torch.ones_like(ids) if mask is None else mask
        return pack(Rows(ids, mask).tokens(), input_ids.device), False
    if not input_ids.shape[1]:
        return None, False
    mask = arguments.get("attention_mask")
    whole = getattr(run.config, "_mask_length", -1) if mask is None else mask.shape[1]
    partial = cache is not None and bool(caches.length(cache)) and whole != input_ids.shape[1]
    ids = input_ids[::expand]
    mask = torch.ones_like(ids) if mask is None else mask[::expand, -ids.shape[1] :]
    return pack(Rows(ids, mask).tokens(), ids.device), partial


def _encode(model: Any, rows: Rows, batch: int) -> tuple[Any, Tensor]:
    """Encoder output and mask for rows, which encoders want padded on the right."""
    lists = rows.tokens()
    width = max(map(len, lists))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in lists], device=rows.ids.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in lists], device=rows.ids.device)
    hidden = model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
    times = batch // len(lists)
    return hidden.repeat_interleave(times, 0), mask.repeat_interleave(times, 0)
