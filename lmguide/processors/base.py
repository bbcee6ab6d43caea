"""Guidance as a `LogitsProcessor`, for anyone's own decoding loop.

A processor sees token ids and scores, nothing else. Its state is a memo keyed on the prefix it last saw: when the ids
do not extend it, rows are matched, drafts taken back, or the memo is built anew. So beams, rewinds and a second call
are right by construction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, PreTrainedModel

from lmguide import contexts
from lmguide.guidance import Guidance, as_methods
from lmguide.processors.prefix import step_from
from lmguide.schedules import Progress
from lmguide.sources.binding import bind, given_negative
from lmguide.sources.branch import Branch
from lmguide.sources.ids import Rows, pack
from lmguide.sources.layers import candidate_layers, early_logits
from lmguide.sources.models import fitted
from lmguide.sources.rewards.base import Generation, TokenReward, bind_token_reward
from lmguide.sources.rows import RowBuilder
from lmguide.step import guided_step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lmguide.rules import Scale


class GuidanceLogitsProcessor(LogitsProcessor):
    """Any guidance method or several, as an item of `logits_processor=[...]`.

    The conditional scores are those the loop hands over; every other source is run here, with its own cache, where its
    method's gate is open. `lmguide.guide` does the same with one batched forward per step and knows the prompt's mask:
    prefer it where you can.

    Transformers runs its own penalties before a user's processors, and temperature and top-k after them. The first ids
    of a call are taken for the prompt. A call whose prompt is exactly the last sequence and one more token cannot be
    told from the next step of that call: `reset()` tells it.

    Args:
        model: The model being decoded, a decoder-only model of transformers.
        guidance: A method or several.
        tokenizer: Its tokenizer, where a method is given text or messages.
        negative_prompt: Instead of the method's own: text, messages or ids; one for all prompts or one per prompt.
        negative_prompt_attention_mask: The mask of a negative prompt given as a tensor of ids.
        prompt_attention_mask: The mask of the prompts, `[B, L]` or `[1, L]`, for sources that run on the prompt itself;
            by default leading padding tokens are inferred.
        max_new_tokens: Tokens an answer may have, which schedules and gates in fractions of the answer need to know.

    Raises:
        TypeError: No guidance, or not a model.
        ValueError: An encoder-decoder, whose encoder input a processor does not see.

    Example:
        >>> import lmguide as lg
        >>> model, tokenizer = lg.bundled("tales")
        >>> inputs = tokenizer("A tale of the sea:", return_tensors="pt")
        >>> processor = lg.CFGLogitsProcessor(model, guidance_scale=3.0)
        >>> output = model.generate(**inputs, max_new_tokens=20, logits_processor=[processor])
        >>> output.shape[1] - inputs.input_ids.shape[1]
        20
    """

    supports_continuous_batching = False

    def __init__(
        self,
        model: PreTrainedModel,
        guidance: Guidance | Sequence[Guidance],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        negative_prompt: contexts.Prompt | Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        if not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"model: expected a transformers model, got {type(model).__name__}. Load it with AutoModelForCausalLM."
            )
        if model.config.is_encoder_decoder:
            raise ValueError(
                "model: a processor does not see an encoder's input. Use lmguide.guide for encoder-decoders."
            )
        self.model = model
        methods = as_methods(guidance)
        self.methods = tuple(method for method in methods if method.enabled)
        self.tokenizer = tokenizer
        self.negative = given_negative(methods, negative_prompt, mask=negative_prompt_attention_mask)
        self.max_new_tokens = max_new_tokens
        self.prompt_attention_mask = prompt_attention_mask
        self._branches: list[Branch] = []
        self._strengths: list[Scale] = []
        self._suffixes: dict[int, Tensor] = {}
        self._bound: dict[int, dict[str, TokenReward]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the last prefix; the next ids are a prompt."""
        self._prompt: Tensor | None = None
        self._seen: Tensor | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guided log-probabilities `[B, V]` in the place of `scores`; the scores themselves if every method is off."""
        if not self.methods:
            return scores
        matched = step_from(self._prompt, self._seen, input_ids)
        if matched is None:
            self._begin(input_ids, scores.shape[-1])
        valid, order = matched or (0, None)
        assert self._prompt is not None
        generated = input_ids[:, self._prompt.shape[1] :]
        for branch in self._branches:
            if order is not None:
                branch.reorder(order)
            branch.rewind(valid)
        for reward in self._rewards():
            if order is not None:
                reward.reorder(order)
            reward.rewind(valid)
        self._seen = input_ids
        memo: dict[int, Tensor] = {}

        def source(index: int) -> Tensor:
            if index not in memo:
                suffix = self._suffixes.get(index)
                tokens = (
                    generated if suffix is None else torch.cat([generated, suffix.expand(generated.shape[0], -1)], 1)
                )
                logits = self._branches[index].logits(tokens)
                memo[index] = fitted(logits[:, -1], scores.shape[-1]).float().log_softmax(-1)
            return memo[index]

        def fetch(method: int) -> dict[str, Tensor]:
            return {name: source(index) for name, index in self._wiring[method].items()}

        def rewards(method: int, combined: Tensor) -> dict[str, Tensor]:
            return {name: reward.log_rewards(generated, combined) for name, reward in self._bound[method].items()}

        cond = scores.float().log_softmax(-1)
        progress = Progress(generated.shape[1], self.max_new_tokens)
        return guided_step(cond, self.methods, self._strengths, fetch, progress, rewards=rewards).scores

    def _rewards(self) -> Iterator[TokenReward]:
        for named in self._bound.values():
            yield from named.values()

    def _begin(self, input_ids: Tensor, vocab_size: int) -> None:
        """Take the ids for a prompt and bind the sources and rewards to it."""
        self._prompt = self._seen = input_ids
        batch = input_ids.shape[0]
        found: list[contexts.Context] = []
        self._wiring: list[dict[str, int]] = []
        for method in self.methods:
            wanted = {} if method.is_reward else method.sources()
            for context in wanted.values():
                if context not in found:
                    found.append(context)
            self._wiring.append({name: found.index(context) for name, context in wanted.items()})
        prompt = pack(Rows(input_ids, self._mask(input_ids)).tokens(), input_ids.device)
        self._branches = []
        self._suffixes = {}
        builder = RowBuilder(prompt, batch, self.model, self.tokenizer, input_ids.device, expanded=True)
        for index, context in enumerate(found):
            self._branches.append(self._branch(index, context, builder))
        self._strengths = [self._strength(method, builder) for method in self.methods]
        generation = Generation(
            self.model, self.tokenizer, prompt, batch, vocab_size, input_ids.device, self.max_new_tokens
        )
        self._bound = {
            index: {name: bind_token_reward(context, generation) for name, context in method.sources().items()}
            for index, method in enumerate(self.methods)
            if method.is_reward
        }

    def _branch(self, index: int, context: contexts.Context, builder: RowBuilder) -> Branch:
        batch = builder.batch
        if isinstance(context, contexts.Suffix):
            self._suffixes[index] = builder.suffix(context).ids
            return Branch(self.model, builder.whole_prompt(context), batch, record_past=True)
        if isinstance(context, contexts.EarlyLayers):
            layers = candidate_layers(context, self.model)

            def read(outputs: Any, keep: int) -> Tensor:
                return early_logits(self.model, [state[:, -keep:] for state in outputs.hidden_states], layers)

            extra = {"output_hidden_states": True}
            return Branch(self.model, builder.whole_prompt(context), batch, record_past=True, extra=extra, read=read)
        if isinstance(context, contexts.RandomPrompt | contexts.ShuffledPrompt):
            builder = _of_prompts(builder)  # the beams of a prompt share a draw
        model, rows = bind(context, builder, self.negative)
        if (given := rows.ids.shape[0]) > 1:
            self._check_groups(builder, given, "negative_prompt")
            rows = rows.repeat(batch // given)
        return Branch(model, rows, batch, record_past=True)

    def _strength(self, method: Guidance, builder: RowBuilder) -> Scale:
        value = getattr(method, method.strength_field)
        given = len(value) if isinstance(value, tuple) else 1
        repeat = builder.batch // given if builder.batch % given == 0 else 1
        self._check_groups(builder, given, method.strength_field)
        return method.strength(builder.batch // repeat, repeat, builder.device)

    def _check_groups(self, builder: RowBuilder, given: int, argument: str) -> None:
        """Refuse fewer items than prompts: beams of one prompt share one, two prompts do not."""
        assert builder.prompt is not None
        if given == 1:
            return
        prompts = builder.prompt.tokens()
        size = len(prompts) // given
        if not size or any(prompts[row] != prompts[row - row % size] for row in range(len(prompts))):
            raise ValueError(
                f"{argument}: expected one, or one per prompt, got {given} for {len(prompts)} rows. "
                "Give as many as there are prompts."
            )

    def _mask(self, input_ids: Tensor) -> Tensor:
        if self.prompt_attention_mask is not None:
            mask = self.prompt_attention_mask
            if mask.ndim != 2 or mask.shape[1] != input_ids.shape[1] or input_ids.shape[0] % mask.shape[0]:
                raise ValueError(
                    f"prompt_attention_mask: expected shape {list(input_ids.shape)}, got {list(mask.shape)}. "
                    "Pass the prompt's own mask."
                )
            return mask.repeat_interleave(input_ids.shape[0] // mask.shape[0], 0)
        pad = self.model.generation_config.pad_token_id
        if pad is None:
            return torch.ones_like(input_ids)
        tokens: Tensor = (input_ids != pad).long().cummax(-1).values
        return tokens


def _of_prompts(builder: RowBuilder) -> RowBuilder:
    """A builder that sees each prompt once, where every one is repeated equally often in a row."""
    assert builder.prompt is not None
    rows = builder.prompt.tokens()
    size = next((count for count in range(1, len(rows)) if rows[count] != rows[0]), len(rows))
    if len(rows) % size or any(rows[row] != rows[row - row % size] for row in range(len(rows))):
        return builder
    return replace(builder, prompt=pack(rows[::size], builder.device), batch=len(rows) // size)
