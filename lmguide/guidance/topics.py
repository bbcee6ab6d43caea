"""Rewards of topics: what the answer is to be about and what it must not be about, as a language model knows it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar, Literal

from lmguide.descriptions.topics import (
    EXAMPLES,
    IS_A,
    Extract,
    Leading,
    TopicContext,
    TopicExamples,
    Topics,
    TopicTokens,
    TopicVerdicts,
)
from lmguide.guidance.base import GUIDANCE
from lmguide.guidance.rewards import Reward, add_reward

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.contexts import Context
    from lmguide.rules import Scale


@dataclass(frozen=True)
class TopicGuidance(Reward):
    """What the methods of CognacGen share; each asks a model about the topics in another way.

    Args:
        topic: As in `TopicContext`.
        avoid: As in `TopicContext`.
        beta: As in `TopicContext`; published 5.
        alpha: As in `TopicContext`; published 100.
        model: As in `TopicContext`.
        chat: As in `TopicContext`.
        scale: Strength of both, one for all or one per prompt; 0 is off.
        tokenizer: As in `TopicContext`.
    """

    context: ClassVar[type[TopicContext]]

    topic: Topics = None
    avoid: Topics = None
    beta: float = 5.0
    alpha: float = 100.0
    model: PreTrainedModel | str | None = None
    chat: bool = False
    scale: float | tuple[float, ...] = 1.0
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the values, and keep them in the form that contexts have them."""
        super().__post_init__()
        context = self._context()
        for each in fields(context):
            object.__setattr__(self, each.name, getattr(context, each.name))

    def sources(self) -> Mapping[str, Context]:
        """What is asked, as `reward`."""
        return {"reward": self._context()}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`add_reward`."""
        return add_reward(cond, sources["reward"], strength)

    def _context(self) -> TopicContext:
        return self.context(**{each.name: getattr(self, each.name) for each in fields(self.context)})


@GUIDANCE.register("example_guidance")
@dataclass(frozen=True)
class ExampleGuidance(TopicGuidance):
    """Words of a topic and of what to avoid, both lists written by a model: `WordGuidance` without the lists.

    The textual examples of CognacGen, Chen et al., 2212.10466. Each topic is asked about once in a call; no forward
    pass is added to a step.

    Args:
        topic: As in `TopicExamples`.
        avoid: As in `TopicExamples`.
        beta: As in `TopicExamples`; published 5.
        alpha: As in `TopicExamples`; published 100.
        model: As in `TopicExamples`.
        chat: As in `TopicExamples`.
        scale: Strength of both, one for all or one per prompt; 0 is off.
        query: As in `TopicExamples`.
        max_new_tokens: As in `TopicExamples`.
        variants: As in `TopicExamples`.
        exclude_at: As in `TopicExamples`.
        extract: As in `TopicExamples`.
        tokenizer: As in `TopicExamples`.

    Raises:
        ValueError: No topic, a query without its hole, a number out of range, or a gate or schedule that compares two
            laws.
        TypeError: A topic or query that is no text, or an `extract` that is no function.

    Example:
        >>> ExampleGuidance("animal", avoid="dog").sources()["reward"].query
        'What are some examples of {topic}? Some examples are:'
    """

    context: ClassVar[type[TopicContext]] = TopicExamples

    query: str = EXAMPLES
    max_new_tokens: int = 60
    variants: bool = True
    exclude_at: Literal["expected", "boundary", "last_token"] = "expected"
    extract: Extract | str | None = None


@GUIDANCE.register("top_k_guidance")
@dataclass(frozen=True)
class TopKGuidance(TopicGuidance):
    """The likeliest next tokens of a question: `c(v) + scale * (beta [v in top of topic] - alpha [v in top of avoid])`.

    The top-k guidance of CognacGen, Chen et al., 2212.10466. Each topic is asked about once in a call; no forward pass
    is added to a step.

    Args:
        topic: As in `TopicTokens`.
        avoid: As in `TopicTokens`.
        beta: As in `TopicTokens`; published 5.
        alpha: As in `TopicTokens`; published 100.
        model: As in `TopicTokens`.
        chat: As in `TopicTokens`.
        scale: Strength of both, one for all or one per prompt; 0 is off.
        query: As in `TopicTokens`.
        include_top_k: As in `TopicTokens`; published 40.
        exclude_top_k: As in `TopicTokens`; published 20.
        tokenizer: As in `TopicTokens`.

    Raises:
        ValueError: No topic, a query without its hole, a number out of range, or a gate or schedule that compares two
            laws.
        TypeError: A topic or query that is no text.

    Example:
        >>> TopKGuidance("animal").sources()["reward"].include_top_k
        40
    """

    context: ClassVar[type[TopicContext]] = TopicTokens

    query: str = EXAMPLES
    include_top_k: int = 40
    exclude_top_k: int = 20


@GUIDANCE.register("verifier_guidance")
@dataclass(frozen=True)
class VerifierGuidance(TopicGuidance):
    """Tokens about to name something: `c(v) + scale * (beta [is of topic] - alpha [is of avoid])`, as a model says.

    The binary verifier of CognacGen, Chen et al., 2212.10466. The model looks some tokens ahead, and is asked of what
    it would name there whether that is a type of the topic, once in a call for each name and topic.

    Args:
        topic: As in `TopicVerdicts`.
        avoid: As in `TopicVerdicts`.
        beta: As in `TopicVerdicts`; published 5.
        alpha: As in `TopicVerdicts`; published 100.
        model: As in `TopicVerdicts`.
        chat: As in `TopicVerdicts`.
        scale: Strength of both, one for all or one per prompt; 0 is off.
        question: As in `TopicVerdicts`.
        answers: As in `TopicVerdicts`.
        threshold: As in `TopicVerdicts`; published 0.5.
        look_ahead: As in `TopicVerdicts`; published 8.
        candidates: As in `TopicVerdicts`; published 1.
        extract: As in `TopicVerdicts`.
        tokenizer: As in `TopicVerdicts`.

    Raises:
        ValueError: No topic, a question without its holes, a number out of range, or a gate or schedule that compares
            two laws.
        TypeError: A topic or question that is no text, or an `extract` that is no function.

    Example:
        >>> VerifierGuidance(avoid="dog", candidates=5).sources()["reward"].question
        'Is {entity} a type of {topic}? The answer is'
    """

    context: ClassVar[type[TopicContext]] = TopicVerdicts

    question: str = IS_A
    answers: tuple[str, str] | None = None
    threshold: float = 0.5
    look_ahead: int = 8
    candidates: int = 1
    extract: Leading | str | None = None
