"""The rewards of one guided call, bound to its prompts, and what they say at a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmguide.huggingface.constrained import end_tokens
from lmguide.sources.ids import Rows
from lmguide.sources.rewards.base import Generation, TokenReward, bind_token_reward

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from torch import Tensor

    from lmguide.contexts import Context
    from lmguide.huggingface.run import Run
    from lmguide.huggingface.sources import Pending, Sources


class Rewards:
    """What the methods that are rewards add, each with its own state: what one reads depends on what came before it.

    Args:
        run: The call.
        sources: Its sources, bound to the prompts.
        input_ids: The loop's rows at its start.
        arguments: The loop's keyword arguments.
        assisted: Whether drafts may be taken back.

    Raises:
        ValueError: A reward cannot be made from what there is; the argument is named.
    """

    def __init__(
        self, run: Run, sources: Sources, input_ids: Tensor, arguments: Mapping[str, Any], assisted: bool
    ) -> None:
        self.expand = sources.expand
        self._bound: dict[int, dict[str, TokenReward]] = {}
        self._seen: Tensor | None = None
        for index, method in enumerate(run.plan.methods):
            if not method.is_reward:
                continue
            self._bound[index] = {}
            for name, context in method.sources().items():
                generation = Generation(
                    model=run.plan.model,
                    tokenizer=run.plan.tokenizer,
                    prompts=_prompts(context, sources, input_ids, arguments),
                    batch=input_ids.shape[0],
                    vocab_size=run.plan.model.config.get_text_config(decoder=True).vocab_size,
                    device=input_ids.device,
                    total=run.config.max_length - run.prompt_length,
                    drafts=assisted,
                    ends=end_tokens(run.config),
                )
                self._bound[index][name] = bind_token_reward(context, generation)

    def __iter__(self) -> Iterator[TokenReward]:
        """Every reward."""
        for named in self._bound.values():
            yield from named.values()

    def now(self, pending: Pending, generated: int) -> None:
        """Turn to a new forward pass of the conditional; answers have `generated` tokens, drafts included."""
        if not self._bound:
            return
        if not pending.arguments.get("use_cache"):
            self._follow(pending.input_ids, pending.scored)
        for reward in self:
            reward.rewind(max(0, generated - pending.scored))  # what the conditional had consumed before stands

    def log_rewards(self, method: int, generated: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """What a method adds to `scores` `[B, V]` behind `generated` `[B, G]`, by the names its rule uses."""
        return {name: reward.log_rewards(generated, scores) for name, reward in self._bound[method].items()}

    def reorder(self, order: Tensor) -> None:
        """Follow a beam's re-ordering."""
        for reward in self:
            reward.reorder(order)

    def _follow(self, input_ids: Tensor, scored: int) -> None:
        """Find each row's past among the rows of its prompt: without a cache no loop tells how it re-orders beams."""
        seen, self._seen = self._seen, input_ids
        if seen is None or self.expand == 1:
            return
        past = input_ids[:, : input_ids.shape[1] - scored]
        same = (past[:, None] == seen[None, :, : past.shape[1]]).all(-1)
        prompt = torch.arange(len(past), device=past.device) // self.expand
        order = (same & (prompt[:, None] == prompt)).int().argmax(1)
        self.reorder(order)


def _prompts(context: Context, sources: Sources, input_ids: Tensor, arguments: Mapping[str, Any]) -> Rows:
    """What stands before the answer in the text that a reward reads, one row for each of the loop's.

    That of an encoder-decoder is what its decoder was given behind the start token: nothing, as a rule.
    """
    if sources.model.config.is_encoder_decoder:
        mask = arguments.get("decoder_attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        return Rows(input_ids[:, 1:], mask[:, 1:])
    return sources.builder.whole_prompt(context).repeat(sources.expand)
