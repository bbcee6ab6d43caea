"""A topic to keep to and one to avoid, of which a language model itself says what belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from lmguide.checks import check_number, check_whole
from lmguide.contexts import CONTEXTS, Context
from lmguide.descriptions.words import check_exclude_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Topics: TypeAlias = str | tuple[str | None, ...] | None
"""A topic for all prompts, or one or `None` for each of them."""

EXAMPLES = "What are some examples of {topic}? Some examples are:"
"""What a model is asked for what belongs to a topic."""

IS_A = "Is {entity} a type of {topic}? The answer is"
"""What a model is asked whether something belongs to it."""

Extract: TypeAlias = Callable[[str], Sequence[str]]
"""From an answer to the words in it."""

Leading: TypeAlias = Callable[[str], str | None]
"""From the beginning of a text to what it begins with, if that can belong to a topic."""


@dataclass(frozen=True)
class TopicContext(Context):
    """What topics have in common, however the model is asked about them.

    Args:
        topic: What the answer is to be about, for all prompts or one for each.
        avoid: What it must not be about, likewise.
        beta: Added to tokens of the topic, at least 0, in nats.
        alpha: Taken from tokens of what is to be avoided, at least 0, in nats.
        model: Who is asked, a model of transformers or its name or path; `None` is the guided model itself. Only a
            name can be serialised.
        chat: Whether a question goes through the tokenizer's chat template, as a user's message.
        tokenizer: The asked model's. Loaded with it when that is a name.
    """

    topic: Topics = None
    avoid: Topics = None
    beta: float = 5.0
    alpha: float = 100.0
    model: PreTrainedModel | str | None = None
    chat: bool = False
    tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self) -> None:
        """Check the topics and the numbers."""
        for argument in ("topic", "avoid"):
            object.__setattr__(self, argument, _checked(argument, getattr(self, argument)))
        if not any(topic for given in (self.topic, self.avoid) for topic in listed(given)):
            raise ValueError(
                "topic: expected a topic or something to avoid, got neither. Give topic='animal' or avoid='dog'."
            )
        lengths = [len(given) for given in (self.topic, self.avoid) if isinstance(given, tuple)]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"avoid: expected one for each of {lengths[0]} topics, got {lengths[1]}. "
                "Give as many as there are prompts; None where there is nothing."
            )
        check_number("beta", self.beta, "The published value is 5; what is not wanted goes to avoid.", least=0)
        check_number("alpha", self.alpha, "The published value is 100; what is wanted goes to topic.", least=0)


@CONTEXTS.register("topic_examples")
@dataclass(frozen=True)
class TopicExamples(TopicContext):
    """Word lists that a model writes: `WordLists` of its examples of a topic.

    What is to be avoided is a word of its own list, and so are the singulars of the words there. A word in both lists
    is avoided.

    Args:
        topic: As in `TopicContext`.
        avoid: As in `TopicContext`.
        beta: As in `WordLists`.
        alpha: As in `WordLists`.
        model: As in `TopicContext`. Its vocabulary may be another one.
        chat: As in `TopicContext`.
        tokenizer: As in `TopicContext`.
        query: What is asked, with `{topic}` in it.
        max_new_tokens: Most tokens of a list, at least 1.
        variants: As in `WordLists`.
        exclude_at: As in `WordLists`.
        extract: From an answer to its words, a function or where to find it, `"package.module:function"`. `None` reads
            a list on one line, or one with an item on each line. Only the latter two can be serialised.
    """

    query: str = EXAMPLES
    max_new_tokens: int = 60
    variants: bool = True
    exclude_at: Literal["expected", "boundary", "last_token"] = "expected"
    extract: Extract | str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        _check_text("query", self.query, "{topic}")
        check_whole("max_new_tokens", self.max_new_tokens, "60 is room for some twenty words.", least=1)
        check_exclude_at(self.exclude_at)
        _check_function("extract", self.extract)


@CONTEXTS.register("topic_tokens")
@dataclass(frozen=True)
class TopicTokens(TopicContext):
    """The tokens of a word that a model finds likeliest behind a question: the beginnings of what belongs to a topic.

    Args:
        topic: As in `TopicContext`.
        avoid: As in `TopicContext`.
        beta: As in `TopicContext`.
        alpha: As in `TopicContext`.
        model: As in `TopicContext`. Its vocabulary must be the guided model's.
        chat: As in `TopicContext`.
        tokenizer: As in `TopicContext`.
        query: What is asked, with `{topic}` in it.
        include_top_k: Tokens of a topic, at least 1.
        exclude_top_k: Tokens of what is to be avoided, at least 1.
    """

    query: str = EXAMPLES
    include_top_k: int = 40
    exclude_top_k: int = 20

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        _check_text("query", self.query, "{topic}")
        check_whole("include_top_k", self.include_top_k, "The published value is 40.", least=1)
        check_whole("exclude_top_k", self.exclude_top_k, "The published value is 20.", least=1)


@CONTEXTS.register("topic_verdicts")
@dataclass(frozen=True)
class TopicVerdicts(TopicContext):
    """A model's verdict whether what a text is about to name belongs to a topic.

    Behind each of the likeliest next tokens that begin a word the guided model writes on, greedily; what it names
    first is the entity. It belongs to the topic if `P(yes) / (P(yes) + P(no))` behind the question is above the
    threshold.

    Args:
        topic: As in `TopicContext`.
        avoid: As in `TopicContext`.
        beta: As in `TopicContext`.
        alpha: As in `TopicContext`.
        model: As in `TopicContext`; who answers the questions. Its vocabulary may be another one.
        chat: As in `TopicContext`.
        tokenizer: As in `TopicContext`.
        question: What is asked, with `{entity}` and `{topic}` in it.
        answers: Yes and no, as they stand behind the question. `None` is `(" yes", " no")`, and `("Yes", "No")` of a
            chat.
        threshold: In [0, 1].
        look_ahead: Tokens that are looked at, the candidate included, at least 1.
        candidates: Next tokens of each row behind which the model looks ahead, at least 1. The published code looks
            behind the likeliest alone.
        extract: From the text ahead to its entity or `None`, a function or where to find it,
            `"package.module:function"`. `None` is `leading_entity`. Only the latter two can be serialised.
    """

    question: str = IS_A
    answers: tuple[str, str] | None = None
    threshold: float = 0.5
    look_ahead: int = 8
    candidates: int = 1
    extract: Leading | str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        _check_text("question", self.question, "{entity}")
        topics = {topic for given in (self.topic, self.avoid) for topic in listed(given) if topic}
        if len(topics) > 1:
            _check_text("question", self.question, "{topic}")
        if self.answers is not None:
            object.__setattr__(self, "answers", tuple(self.answers))
            if len(set(self.answers)) != 2 or not all(isinstance(answer, str) and answer for answer in self.answers):
                raise ValueError(
                    f"answers: expected two different texts, got {self.answers!r}. Give for example (' yes', ' no')."
                )
        check_number("threshold", self.threshold, "The published value is 0.5.", least=0, most=1)
        check_whole("look_ahead", self.look_ahead, "The published value is 8.", least=1)
        check_whole("candidates", self.candidates, "The published code looks behind 1.", least=1)
        _check_function("extract", self.extract)


def listed(topics: Topics) -> tuple[str | None, ...]:
    """One topic for all prompts, or one per prompt."""
    return topics if isinstance(topics, tuple) else (topics,)


def _checked(argument: str, topics: object) -> Topics:
    given = tuple(topics) if isinstance(topics, list | tuple) else (topics,)
    for topic in given:
        if topic is not None and not isinstance(topic, str):
            raise TypeError(f"{argument}: expected a text, one for each prompt or None, got {topic!r}. Give a text.")
        if topic is not None and not topic.strip():
            raise ValueError(f"{argument}: expected a text, got {topic!r}. Use None where there is nothing.")
    return given if isinstance(topics, list | tuple) else given[0]


def _check_text(argument: str, text: object, *holes: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{argument}: expected a text, got {type(text).__name__}. Write what is asked.")
    for hole in holes:
        if hole not in text:
            raise ValueError(f"{argument}: expected {hole} in it, got {text!r}. Write {hole} where that is to stand.")


def _check_function(argument: str, given: object) -> None:
    if isinstance(given, str) and not all(given.partition(":")):
        raise ValueError(f"{argument}: expected a function or 'package.module:function', got {given!r}. Name both.")
    if given is not None and not isinstance(given, str) and not callable(given):
        raise TypeError(
            f"{argument}: expected a function or where to find it, got {type(given).__name__}. "
            "Give 'package.module:function', or None."
        )
