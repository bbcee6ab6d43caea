"""The decoding loops of the papers, as plain as can be: no cache, no batching of choices, Python loops over positions.

Every loop takes `logits_fn(canvas [B, L]) -> [B, L, V]`, whose entry `i` scores the token AT position `i`, and works
at temperature 0. The token of a position is the likeliest one that is not the mask; its probability is that of the
whole law. Among equals the leftmost position goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]
Uniform = Callable[[int], Tensor]
"""Number of the step, from 0 over the whole answer, to `[B, L]` uniform numbers."""


class Decoded(NamedTuple):
    """What a loop made of the prompts."""

    sequences: Tensor
    """`[B, L]`."""
    commit_step: Tensor
    """`[B, A]`, the step at which each answer token was written, counted over the whole answer."""
    confidence: Tensor
    """`[B, A]` float64, its probability then."""
    nfe: list[int]
    """By row: steps at which something was open. With guidance each costs two."""


class Law(NamedTuple):
    """One position's law: the token that would be written and how sure that is."""

    token: int
    probability: float
    margin: float
    entropy: float


class Canvas:
    """The prompts and masks, and what was written when."""

    def __init__(self, prompt: Tensor, gen_length: int, mask_id: int) -> None:
        self.prompt_length, self.mask_id = prompt.shape[1], mask_id
        self.ids = torch.cat([prompt, torch.full((len(prompt), gen_length), mask_id)], 1)
        self.commit_step = torch.full(self.ids.shape, -1)
        self.confidence = torch.ones(self.ids.shape, dtype=torch.float64)
        self.nfe = [0] * len(prompt)
        self.step = 0

    def open(self, row: int, columns: Iterable[int]) -> list[int]:
        return [column for column in columns if self.ids[row, column] == self.mask_id]

    def write(self, row: int, laws: dict[int, Law], chosen: Iterable[int]) -> None:
        for column in chosen:
            self.ids[row, column] = laws[column].token
            self.commit_step[row, column] = self.step
            self.confidence[row, column] = laws[column].probability

    def decoded(self) -> Decoded:
        answer = slice(self.prompt_length, None)
        return Decoded(self.ids, self.commit_step[:, answer], self.confidence[:, answer], self.nfe)


def law_at(logits: Tensor, mask_id: int) -> Law:
    """The law of one position, from its logits `[V]`."""
    p = logits.double().softmax(-1)
    tokens = [token for token in range(len(p)) if token != mask_id]
    token = max(tokens, key=lambda each: p[each].item())
    top, second = p.sort(descending=True).values[:2].tolist()
    entropy = -sum(each * torch.tensor(each).log().item() for each in p.tolist() if each > 0)
    return Law(token, p[token].item(), top - second, entropy)


def llada_generate(
    logits_fn: Logits,
    prompt: Tensor,
    *,
    mask_id: int,
    gen_length: int,
    block_length: int,
    steps: int,
    cfg_scale: float = 0.0,
    remasking: Literal["low_confidence", "random"] = "low_confidence",
    uniform: Uniform | None = None,
) -> Decoded:
    """LLaDA's loop: blocks from left to right, an even split of each over its steps, guidance by a masked prompt.

    `cfg_scale` is LLaDA's own, 0 = off: `u + (cfg_scale + 1)(c - u)`, which is guidance_scale - 1.
    """
    canvas = Canvas(prompt, gen_length, mask_id)
    given = canvas.ids != mask_id
    blocks = gen_length // block_length
    steps_per_block = steps // blocks
    for block in range(blocks):
        start = prompt.shape[1] + block * block_length
        columns = range(start, start + block_length)
        counts = [even_split(len(canvas.open(row, columns)), steps_per_block) for row in range(len(prompt))]
        for step in range(steps_per_block):
            logits = logits_fn(canvas.ids)
            if cfg_scale > 0:
                unconditional = logits_fn(canvas.ids.masked_fill(given, mask_id))
                logits = unconditional + (cfg_scale + 1) * (logits - unconditional)
            for row in range(len(prompt)):
                open_ = canvas.open(row, columns)
                canvas.nfe[row] += bool(open_)
                laws = {column: law_at(logits[row, column], mask_id) for column in open_}
                score = {column: laws[column].probability for column in open_}
                if remasking == "random":
                    assert uniform is not None
                    score = {column: uniform(canvas.step)[row, column].item() for column in open_}
                canvas.write(row, laws, best(score, counts[row][step]))
            canvas.step += 1
    return canvas.decoded()


def dream_generate(
    logits_fn: Logits,
    prompt: Tensor,
    *,
    mask_id: int,
    gen_length: int,
    steps: int,
    alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy"],
    eps: float = 1e-3,
    uniform: Uniform | None = None,
) -> Decoded:
    """Dream's loop on the whole answer; counts are those of each row by itself, as in a batch of one."""
    canvas = Canvas(prompt, gen_length, mask_id)
    columns = range(prompt.shape[1], prompt.shape[1] + gen_length)
    times = torch.linspace(1, eps, steps + 1)
    for step in range(steps):
        share = 1 - times[step + 1] / times[step]
        logits = logits_fn(canvas.ids)
        for row in range(len(prompt)):
            open_ = canvas.open(row, columns)
            canvas.nfe[row] += bool(open_)
            laws = {column: law_at(logits[row, column], mask_id) for column in open_}
            if step == steps - 1:
                chosen = open_
            elif alg == "origin":
                assert uniform is not None
                chosen = [column for column in open_ if uniform(step)[row, column] < share]
            else:
                score = {column: dream_confidence(laws[column], alg) for column in open_}
                chosen = best(score, int(torch.tensor(float(len(open_))) * share))
            canvas.write(row, laws, chosen)
        canvas.step += 1
    return canvas.decoded()


def fast_dllm_generate(
    logits_fn: Logits,
    prompt: Tensor,
    *,
    mask_id: int,
    gen_length: int,
    block_length: int,
    threshold: float | None = None,
    factor: float | None = None,
) -> Decoded:
    """Fast-dLLM's parallel loop without its caches: by `threshold`, or by `factor`."""

    def choose(laws: dict[int, Law]) -> list[int]:
        probability = {column: law.probability for column, law in laws.items()}
        if threshold is not None:
            return above_threshold(probability, threshold)
        assert factor is not None
        return within_factor(probability, factor)

    return _until_full(logits_fn, prompt, mask_id, gen_length, block_length, choose)


def eb_generate(
    logits_fn: Logits, prompt: Tensor, *, mask_id: int, gen_length: int, block_length: int, bound: float
) -> Decoded:
    """The EB-Sampler's loop, by entropy."""

    def choose(laws: dict[int, Law]) -> list[int]:
        return within_entropy({column: law.entropy for column, law in laws.items()}, bound)

    return _until_full(logits_fn, prompt, mask_id, gen_length, block_length, choose)


def _until_full(
    logits_fn: Logits,
    prompt: Tensor,
    mask_id: int,
    gen_length: int,
    block_length: int,
    choose: Callable[[dict[int, Law]], list[int]],
) -> Decoded:
    canvas = Canvas(prompt, gen_length, mask_id)
    for start in range(prompt.shape[1], prompt.shape[1] + gen_length, block_length):
        columns = range(start, start + block_length)
        while any(canvas.open(row, columns) for row in range(len(prompt))):
            logits = logits_fn(canvas.ids)
            for row in range(len(prompt)):
                open_ = canvas.open(row, columns)
                if open_:
                    canvas.nfe[row] += 1
                    laws = {column: law_at(logits[row, column], mask_id) for column in open_}
                    canvas.write(row, laws, choose(laws))
            canvas.step += 1
    return canvas.decoded()


def even_split(masks: int, steps: int) -> list[int]:
    """LLaDA's transfer counts: `masks` over `steps`, the first steps taking one more."""
    return [masks // steps + (1 if step < masks % steps else 0) for step in range(steps)]


def best(score: dict[int, float], count: int) -> list[int]:
    """The columns with the highest scores; `sorted` keeps the order of equals."""
    return sorted(sorted(score), key=lambda column: -score[column])[:count]


def above_threshold(probability: dict[int, float], threshold: float) -> list[int]:
    """All that reach the threshold; else the best."""
    return [column for column in probability if probability[column] >= threshold] or best(probability, 1)


def within_factor(probability: dict[int, float], factor: float) -> list[int]:
    """The largest n with `(n + 1)(1 - c_(n)) < factor`, at least 1."""
    ranked = best(probability, len(probability))
    passing = [n for n in range(1, len(ranked) + 1) if (n + 1) * (1 - probability[ranked[n - 1]]) < factor]
    return ranked[: max(passing, default=1)]


def within_entropy(entropy: dict[int, float], bound: float) -> list[int]:
    """The largest set of lowest entropies with `sum - max <= bound`; one alone always passes."""
    ranked = best({column: -each for column, each in entropy.items()}, len(entropy))
    chosen: list[int] = []
    for column in ranked:
        inside = [entropy[each] for each in (*chosen, column)]
        if sum(inside) - max(inside) > bound:
            break
        chosen.append(column)
    return chosen


def dream_confidence(law: Law, alg: str) -> float:
    """What Dream's algorithms rank by."""
    return {"maskgit_plus": law.probability, "topk_margin": law.margin, "entropy": -law.entropy}[alg]
