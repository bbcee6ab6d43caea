"""What a bound reward is, what it may know of the call it serves, and how it is bound.

The modules of bound rewards import names from here for their types alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lmguide import contexts
from lmguide.descriptions.budget import WithinBudget
from lmguide.descriptions.caif import TextClassifier
from lmguide.descriptions.gedi import ClassPosterior
from lmguide.descriptions.topics import TopicExamples, TopicTokens, TopicVerdicts
from lmguide.descriptions.words import WordLists
from lmguide.sources.binding import canvas_only
from lmguide.sources.rewards.budget import BudgetReward
from lmguide.sources.rewards.caif import bind_classifier
from lmguide.sources.rewards.examples import bind_examples
from lmguide.sources.rewards.gedi import PosteriorReward
from lmguide.sources.rewards.top_tokens import TopTokensReward
from lmguide.sources.rewards.verifier import VerdictReward
from lmguide.sources.rewards.words import WordReward

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lmguide.sources.ids import Rows


@dataclass(frozen=True)
class Generation:
    """What a reward must know of the call it serves.

    Attributes:
        model: The guided model.
        tokenizer: Its tokenizer, or `None`.
        prompts: One row per row of the loop, `[B, P]`, left-padded.
        batch: Rows of the loop, B; beams and returned sequences included.
        vocab_size: Width of the guided model's logits, V.
        device: Where scores live.
        total: Tokens the answer may have; `None` if nobody knows.
        drafts: Whether generated tokens may be taken back, which some caches must know beforehand.
        ends: Tokens that end an answer of this call; `None` where only the model's generation configuration tells.
    """

    model: Any
    tokenizer: Any
    prompts: Rows
    batch: int
    vocab_size: int
    device: torch.device
    total: int | None
    drafts: bool = True
    ends: tuple[int, ...] | None = None


class TokenReward(Protocol):
    """log r(token | prefix) for every token, with the state of one call."""

    @property
    def forwards(self) -> int:
        """Forward passes of any model so far."""

    @property
    def nfe(self) -> int:
        """The same counted per loop row: a pass over two codes counts two."""

    def log_rewards(self, generated: Tensor, scores: Tensor) -> Tensor:
        """Log-rewards `[B, V]` of the token behind `generated`.

        Several tokens may have come since the last call, if a gate was closed in between.

        Args:
            generated: The answer so far, `[B, G]`.
            scores: What the rules have combined, `[B, V]`: it tells which candidates matter.

        Returns:
            Log-rewards `[B, V]`, float32; minus infinity excludes a token.
        """

    def reorder(self, order: Tensor) -> None:
        """Beams were re-ordered: row `i` now continues what was row `order[i]`."""

    def rewind(self, valid: int) -> None:
        """Generated tokens behind the first `valid` were taken back, as assisted decoding does."""


def bind_token_reward(context: contexts.Context, generation: Generation) -> TokenReward:
    """The bound form of a description of a reward.

    Raises:
        ValueError: It cannot be made from what there is; the argument is named.
    """
    match context:
        case TextClassifier():
            return bind_classifier(context, generation)
        case WordLists():
            return WordReward(context, generation)
        case TopicExamples():
            return bind_examples(context, generation)
        case TopicTokens():
            return TopTokensReward(context, generation)
        case TopicVerdicts():
            return VerdictReward(context, generation)
        case WithinBudget():
            return BudgetReward(context, generation)
        case contexts.ClassifierGradient() | contexts.SampledCanvases():
            raise ValueError(canvas_only(context, generation.model))
        case ClassPosterior():
            return PosteriorReward(context, generation)
    raise ValueError(
        f"{type(context).__name__}: expected a reward of tokens, got a source of its own. "
        "Use it in a method that is no reward."
    )
