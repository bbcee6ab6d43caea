"""Both answers to a prompt, token by token: the model's own, and the guided one with how far each token was moved."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from lmguide.huggingface import guide
from lmguide.huggingface.view import recorded
from lmguide.measures import entropy, kl_divergence
from lmguide.playground.turns import Turns
from lmguide.report import Part, spelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.huggingface import Stats
    from lmguide.playground.settings import Settings
    from lmguide.schedules import Progress

SPACE = Part("␣", sign=True)


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        id: Its id.
        parts: Its text, with signs for what leaves no trace on a page; none for one that ends the answer.
        divergence: KL(guided || unguided), nats: how far guidance and constraint moved the distribution it is from.
        entropy: Of the unguided distribution, nats.
        open: Whether guidance applied.
        before: The likeliest token without guidance, with signs for spaces, and its probability.
        after: The likeliest token with guidance and constraint, likewise.
    """

    id: int
    parts: tuple[Part, ...]
    divergence: float = 0.0
    entropy: float = 0.0
    open: bool = False
    before: tuple[str, float] | None = None
    after: tuple[str, float] | None = None


@dataclass(frozen=True)
class Answers:
    """Both answers as far as they are.

    Attributes:
        unguided: The model's own.
        guided: The guided one.
        stats: What guidance did, once both are done.
    """

    unguided: tuple[Token, ...] = ()
    guided: tuple[Token, ...] = ()
    stats: Stats | None = None

    @property
    def texts(self) -> tuple[str, str]:
        """Both answers as text, with signs."""
        return _text(self.unguided), _text(self.guided)


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> Iterator[Answers]:
    """Answer a prompt without and with guidance, a token of each at a time.

    Each answer is the one that `generate` gives by itself under the seed. Closing the iterator ends both.

    Args:
        model: A model that `lmguide.guide` takes.
        tokenizer: Its tokenizer.
        settings: What to do.

    Yields:
        Both answers as far as they are; at last complete, with `stats`.

    Raises:
        ValueError: The model cannot be guided like this, a chat has no template, or a constraint cannot be met.
        ConstraintError: No token can follow.

    Example:
        >>> import lmguide as lg
        >>> from lmguide.playground import Settings
        >>> model, tokenizer = lg.bundled("tales")
        >>> settings = Settings("A tale of the sea:", guidance_scale=3.0, max_new_tokens=5, temperature=0.0)
        >>> *_, last = answers(model, tokenizer, settings)
        >>> len(last.unguided), len(last.guided), last.stats.steps
        (5, 5, 5)
    """
    method, rule = settings.guidance(), settings.rule()
    guided = guide(model, [method] if rule is None else [method, rule], tokenizer=tokenizer)
    inputs = _inputs(model, tokenizer, settings)
    options: dict[str, Any] = {**inputs, "max_new_tokens": settings.max_new_tokens, "do_sample": False}
    if settings.temperature > 0:
        options |= {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    seen: list[_Record] = []
    traced = recorded(guided, functools.partial(_record, seen))

    def run(generate: Callable[..., Any], records: list[_Record], **others: Any) -> Turns[Token]:
        def work(put: Callable[[Token], bool]) -> None:
            handing = StoppingCriteriaList([_Handing(put, functools.partial(_token, tokenizer, records))])
            generate(**options, **others, stopping_criteria=handing)

        return Turns(work, settings.seed, model.device)

    plain: Any = model
    runs = (run(plain.generate, []), run(traced.generate, seen, close=rule is not None))
    found: tuple[list[Token], list[Token]] = ([], [])
    try:
        going = True
        while going:
            going = False
            for tokens, turns in zip(found, runs, strict=True):
                if (token := next(turns, None)) is not None:
                    tokens.append(token)
                    going = True
            if going:
                yield Answers(tuple(found[0]), tuple(found[1]))
    finally:
        for turns in runs:
            turns.close()
    yield Answers(tuple(found[0]), tuple(found[1]), traced.stats)


@dataclass(frozen=True)
class _Record:
    """What the engine told of the position that is decided next."""

    divergence: float
    entropy: float
    open: bool
    before: tuple[int, float]
    after: tuple[int, float]


class _Handing(StoppingCriteria):
    """Hands out each token as it comes, and ends the answer when it is told to."""

    def __init__(self, put: Callable[[Token], bool], make: Callable[[list[int]], Token]) -> None:
        self.put = put
        self.make = make

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Whether the answer is to end, `[1]`."""
        return torch.tensor([not self.put(self.make(input_ids[0].tolist()))], device=input_ids.device)


def _record(seen: list[_Record], cond: Tensor, scores: Tensor, opened: Tensor, progress: Progress) -> None:
    def likeliest(law: Tensor) -> tuple[int, float]:
        best = law[0].max(-1)
        return int(best.indices), float(best.values.exp())

    divergence, unsure = float(kl_divergence(scores, cond)[0]), float(entropy(cond)[0])
    seen.append(_Record(divergence, unsure, bool(opened[0]), likeliest(cond), likeliest(scores)))


def _token(tokenizer: PreTrainedTokenizerBase, seen: list[_Record], ids: list[int]) -> Token:
    """The last of some tokens, with what was recorded of it if anything was."""
    before, last = ids[:-1], ids[-1]
    parts = () if last in tokenizer.all_special_ids else spelled(tokenizer, before, last, spaces=False)
    parts = tuple(Part(" ") if part == SPACE else part for part in parts)  # an answer is read, a candidate looked at
    if not seen:
        return Token(last, parts)
    told = seen.pop()

    def named(candidate: tuple[int, float]) -> tuple[str, float]:
        return "".join(part.text for part in spelled(tokenizer, before, candidate[0], spaces=True)), candidate[1]

    return Token(last, parts, told.divergence, told.entropy, told.open, named(told.before), named(told.after))


def _inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> dict[str, Any]:
    text = settings.prompt
    if settings.chat:
        if not tokenizer.chat_template:
            raise ValueError("chat: the model's tokenizer has no chat template. Leave it out.")
        messages = [{"role": "user", "content": text}]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    # A template writes the special tokens itself.
    batch = tokenizer(text, return_tensors="pt", add_special_tokens=not settings.chat)
    return {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}


def _text(tokens: Sequence[Token]) -> str:
    return "".join(part.text for token in tokens for part in token.parts)
