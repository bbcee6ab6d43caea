"""What topics do to the next token, worked out plainly: no cache, no padding, one question at a time.

For texts of `tests.families.words`, where every token is a word.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

import lmguide as lg
from tests.families import VOCAB, words
from tests.huggingface.reference import next_token

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from torch import Tensor

    from tests.families import Model

BETA, ALPHA = 4, 6
QUERY = "w5 {topic} w6"
QUESTION = "w5 {entity} w6 {topic}"
YES, NO = "w20", "w30 w31"
"""An answer of one token and one of two."""
COUNT = 9
"""Tokens of an answer, of each top, and behind which the model looks ahead."""
THRESHOLD = 0.9
_BOTH: dict[str, Any] = {"beta": BETA, "alpha": ALPHA}
EXAMPLES = _BOTH | {
    "query": QUERY,
    "max_new_tokens": COUNT,
    "variants": False,
    "exclude_at": "last_token",
    "extract": str.split,
}
TOKENS = _BOTH | {"query": QUERY, "include_top_k": COUNT, "exclude_top_k": COUNT}
VERDICTS = _BOTH | {"question": QUESTION, "answers": (YES, NO), "candidates": COUNT, "threshold": THRESHOLD}


def each(first: int, prompts: Sequence[object]) -> tuple[str | None, ...]:
    """A topic for each prompt, none for the third."""
    return tuple(None if row == 2 else f"w{first + row}" for row in range(len(prompts)))


def of(first: int, prompts: Sequence[Sequence[int]], prompt: Sequence[int]) -> str | None:
    """That of one prompt."""
    return each(first, prompts)[list(prompts).index(prompt)]


def ids(text: str) -> list[int]:
    """The tokens of a text."""
    found: list[int] = words()(text)["input_ids"]
    return found


@lru_cache
def answer(model: Model, question: str, count: int = COUNT) -> tuple[int, ...]:
    """The greedy answer to a question, no three tokens of which come twice."""
    found: list[int] = []
    for _ in range(count):
        law = next_token(model, ids(question), found).clone()
        for place in range(len(found) - 2):
            if found[place : place + 2] == found[-2:]:
                law[found[place + 2]] = -math.inf
        found.append(int(law.argmax()))
    return tuple(found)


def by_examples(model: Model, topic: str | None, avoid: str | None, written: Sequence[int]) -> Tensor:
    """All words of the one answer until one of them stands there; never those of the other, nor its topic."""
    listed = answer(model, QUERY.replace("{topic}", topic)) if topic else ()
    unwanted = [*answer(model, QUERY.replace("{topic}", avoid)), *ids(avoid)] if avoid else []
    wanted = [token for token in listed if token > 1 and token not in unwanted]
    return _changed([] if set(wanted) & set(written) else wanted, [token for token in unwanted if token > 1])


def by_tokens(model: Model, topic: str | None, avoid: str | None) -> Tensor:
    """As many of the likeliest words behind each question."""

    def best(about: str | None) -> list[int]:
        law = next_token(model, ids(QUERY.replace("{topic}", about)), []).clone() if about else torch.zeros(VOCAB)
        law[:2] = -math.inf
        found: list[int] = law.topk(COUNT).indices.tolist()
        return found if about else []

    return _changed(best(topic), best(avoid))


@lru_cache
def verdict(model: Model, entity: str, topic: str) -> float:
    """`P(yes) / (P(yes) + P(no))` behind the question."""
    question = ids(QUESTION.replace("{entity}", entity).replace("{topic}", topic))

    def likelihood(text: str) -> float:
        return math.exp(
            sum(float(next_token(model, question, ids(text)[:n])[ids(text)[n]]) for n in range(len(ids(text))))
        )

    return likelihood(YES) / (likelihood(YES) + likelihood(NO))


def by_verdicts(model: Model, scores: Tensor, topic: str | None, avoid: str | None) -> Tensor:
    """Each of the likeliest next tokens is a word; what is said of it decides."""
    best = [int(token) for token in scores.topk(COUNT).indices if token > 1]

    def said(about: str | None) -> list[int]:
        return [token for token in best if about and verdict(model, f"w{token}", about) > THRESHOLD]

    return _changed(said(topic), said(avoid))


def _changed(wanted: Collection[int], unwanted: Collection[int]) -> Tensor:
    found = torch.zeros(VOCAB)
    found[list(set(wanted))] += BETA
    found[list(set(unwanted))] -= ALPHA
    return found


METHODS: dict[str, tuple[Callable[[Any], lg.Guidance], Callable[[Any, Tensor, Any], Tensor]]] = {
    "examples": (
        lambda s: lg.ExampleGuidance(each(70, s.prompts), "w80", **EXAMPLES),
        lambda s, c, v: c + by_examples(v.model, of(70, s.prompts, v.prompt), "w80", v.answer),
    ),
    "top-k": (
        lambda s: lg.TopKGuidance("w70", each(80, s.prompts), model=s.judge, tokenizer=words(), **TOKENS),
        lambda s, c, v: c + by_tokens(s.judge, "w70", of(80, s.prompts, v.prompt)),
    ),
    "verifier": (
        lambda s: lg.VerifierGuidance(each(70, s.prompts), "w80", **VERDICTS),
        lambda s, c, v: c + by_verdicts(v.model, c, of(70, s.prompts, v.prompt), "w80"),
    ),
}
"""Cells of the matrix, as `tests.huggingface.methods` has them."""
