"""The tokens that a model finds likeliest behind a question, as a reward that is the same at every step."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from lmguide.descriptions.topics import listed
from lmguide.sources.models import check_vocabulary, fitted
from lmguide.sources.rewards.questions import Questions, asked_about
from lmguide.sources.rewards.spelling import spelling
from lmguide.sources.rewards.words import per_row

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.descriptions.topics import Topics, TopicTokens
    from lmguide.sources.rewards.base import Generation

_WORD = re.compile(r"\w")


class TopTokensReward:
    """`beta [v in top of topic] - alpha [v in top of avoid]`, see `TopicTokens`.

    Tokens without a letter or digit are in no such list: a comma behind "examples are:" says nothing about the topic.

    Attributes:
        forwards: Forward passes of the questions.
        nfe: The same counted per row of the loop.

    Args:
        context: The description.
        generation: The call.

    Raises:
        ValueError: No tokenizer, neither one topic nor one per prompt, or a model of another vocabulary.
    """

    def __init__(self, context: TopicTokens, generation: Generation) -> None:
        asked = Questions(context, generation)
        topics = asked_about(context, generation)
        if asked.model is not generation.model:
            check_vocabulary(generation.model, generation.tokenizer, asked.model, asked.tokenizer)
        spelled = spelling(asked.tokenizer, generation.vocab_size)
        named = torch.tensor([bool(_WORD.search(text.decode("utf-8", "replace"))) for text in spelled.texts])
        laws = asked.laws([context.query.replace("{topic}", topic) for topic in topics])
        laws = fitted(laws, generation.vocab_size).masked_fill(~named.to(laws.device), -torch.inf)
        prompts = generation.prompts.tokens()

        def changed(argument: str, given: Topics, count: int, by: float) -> Tensor:
            """Changes `[B, V]` by one of the two lists."""
            best = torch.zeros_like(laws)
            values, tokens = laws.topk(min(count, laws.shape[1]), -1)
            best.scatter_(-1, tokens, (values > -torch.inf) * float(by))
            none = best.new_zeros(best.shape[1])
            each = [best[topics.index(topic)] if topic else none for topic in listed(given)]
            return torch.stack(per_row(argument, each, prompts)).to(generation.device)

        self._rewards = changed("topic", context.topic, context.include_top_k, context.beta) + changed(
            "avoid", context.avoid, context.exclude_top_k, -context.alpha
        )
        self.forwards, self.nfe = asked.forwards, asked.nfe

    def log_rewards(self, generated: Tensor, scores: Tensor) -> Tensor:
        """Log-rewards `[B, V]`, whatever has been generated."""
        return self._rewards

    def reorder(self, order: Tensor) -> None:
        """Nothing is kept by row: beams of a prompt have its topics, whatever their order."""

    def rewind(self, valid: int) -> None:
        """Nothing is kept by token."""
