"""A tokenizer for the small random denoisers, and laws of whole answers worked out by writing all of them down."""

from __future__ import annotations

import itertools
import math
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

import lmguide as lg
from lmguide.constraints.automaton.ends import with_ends
from lmguide.constraints.automaton.store import token_dfa
from tests.denoisers.models import MASK, PAD, VOCAB, denoiser_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from lmguide.constraints import Constraint
    from lmguide.constraints.automaton.lift import TokenDfa

END = 2
SPECIAL = ("<pad>", "<s>", "</s>", "<mask>")
TEXT = (
    *"0123456789",
    *'abcde{}[]":,. -\n',
    *("12", "34", "00", "ab", "ba", '":', '{"', '"}', ", ", ": ", "true", "false", "null", "a1", "\u00e9", "\u20ac"),
    *("1,", "- "),
)
"""Tokens of text, from id 4 on; the last ids of the vocabulary spell nothing."""
Row = tuple[int, ...]


@cache
def tokenizer() -> Any:
    names = {name: index for index, name in enumerate((*SPECIAL, *TEXT))}
    assert len(names) <= VOCAB
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="<pad>"))
    backend.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>"
    )


def spelled(tokens: Iterable[int]) -> str | None:
    """The text up to the first end; `None` where something else stands in it, or text behind the end."""
    row = list(tokens)
    end = row.index(END) if END in row else len(row)
    if any(not 4 <= token < 4 + len(TEXT) for token in row[:end]) or set(row[end:]) - {END, PAD}:
        return None
    return "".join(TEXT[token - 4] for token in row[:end])


def run(name: str, ids: Tensor, constraint: Any, **options: Any) -> lg.diffusion.DiffusionOutput:
    options = {"eos_token_id": END, "pad_token_id": PAD, "tokenizer": tokenizer(), **options}
    if not options.get("infill"):
        options = {"max_new_tokens": 16, **options}
    return lg.diffusion.generate(denoiser_of(name), ids, constraint=constraint, **options)


def answers(output: lg.diffusion.DiffusionOutput, prompt_length: int) -> list[str | None]:
    return [spelled(row[prompt_length:].tolist()) for row in output.sequences]


def automaton(constraint: Constraint, ends: Sequence[int] = (END,), padding: Sequence[int] = (PAD,)) -> TokenDfa:
    """Of whole answers."""
    texts = [b"" if token < 4 else TEXT[token - 4].encode() if token < 4 + len(TEXT) else b"" for token in range(VOCAB)]
    return with_ends(token_dfa(constraint, texts), ends, padding, [MASK])


def completable(dfa: TokenDfa, row: Iterable[int]) -> bool:
    """Whether the masks of an answer can be filled, state by state."""
    states = {dfa.start}
    for token in row:
        tokens = range(VOCAB) if token == MASK else (token,)
        states = {int(dfa.table[state, dfa.classes[each]]) for state in states for each in tokens} - {0}
    return any(dfa.accept[state] for state in states)


def all_answers(pattern: str, columns: int, standing: Sequence[int | None]) -> list[Row]:
    """Every allowed answer of so many columns that has what stands; the pattern names its characters one by one."""
    usable = [token for token in range(4, 4 + len(TEXT)) if set(TEXT[token - 4]) <= set(pattern)]
    pools = [[token] if token is not None else [*usable, END, PAD] for token in standing]
    found = []
    for row in itertools.product(*pools[:columns]):
        text = spelled(row)
        if text is not None and re.fullmatch(pattern, text):
            found.append(row)
    return found


def law_of_rows(rows: Sequence[Row], logp: Tensor, standing: Sequence[int | None]) -> dict[Row, float]:
    """`∏ p_i(x_i)` over what does not stand, normalised over these rows; `logp` is `[columns, V]`."""
    scores = [sum(float(logp[i, t]) for i, t in enumerate(row) if standing[i] is None) for row in rows]
    total = float(torch.tensor(scores, dtype=torch.float64).logsumexp(0))
    return {row: math.exp(score - total) for row, score in zip(rows, scores, strict=True)}


def marginals(law: dict[Row, float], columns: int) -> Tensor:
    """`[columns, V]`."""
    found = torch.zeros(columns, VOCAB, dtype=torch.float64)
    for row, share in law.items():
        for place, token in enumerate(row):
            found[place, token] += share
    return found


def decoded(
    logits: Callable[[Tensor], Tensor],
    prompt: Tensor,
    pattern: str,
    columns: int,
    score: Callable[[Tensor, int], float],
    count: int = 1,
) -> tuple[Row, list[int], list[float]]:
    """A loop at temperature 0 over all allowed answers: tokens, the step of each, and its marginal then.

    Args:
        logits: Canvas `[L]` to guided log-probabilities `[columns, V]` of the answer.
        prompt: `[P]`.
        pattern: What the answer is.
        columns: Of the answer.
        score: What positions are ranked by, of a marginal `[V]` and the token that would be written.
        count: Positions a step.
    """
    standing: list[int | None] = [None] * columns
    when, sure = [-1] * columns, [1.0] * columns
    for step in range(-(-columns // count)):
        canvas = torch.cat([prompt, torch.tensor([MASK if token is None else token for token in standing])])
        logp = logits(canvas).double()
        law = law_of_rows(all_answers(pattern, columns, standing), logp, standing)
        shares, best = marginals(law, columns), max(law, key=lambda row: law[row])
        open_ = [place for place, token in enumerate(standing) if token is None]
        for place in sorted(open_, key=lambda place: -score(shares[place], best[place]))[:count]:
            standing[place], when[place], sure[place] = best[place], step, float(shares[place, best[place]])
    return tuple(token or 0 for token in standing), when, sure
