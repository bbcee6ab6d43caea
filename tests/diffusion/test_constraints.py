"""Constrained decoding against all allowed answers written down: tokens, order, confidence, draws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.constraints import Choice, Constraint, Regex
from tests.denoisers.models import MASK, PAD, VOCAB, canvas_of, denoiser_of
from tests.diffusion import constrained
from tests.diffusion.constrained import END, TEXT, all_answers, law_of_rows, run, tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

PATTERN, COLUMNS = "(12|0)*3?", 4


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMGUIDE_CACHE", str(tmp_path))


def guided(scale: float) -> Callable[[Tensor], Tensor]:
    """LLaDA's guidance of a canvas of 5 tokens and an answer, without the mask token."""
    denoiser = denoiser_of("llada")

    @torch.no_grad()
    def logits(canvas: Tensor) -> Tensor:
        away = torch.where(torch.arange(len(canvas)) < 5, MASK, canvas)
        cond, uncond = (denoiser(row[None])[0, 5:].log_softmax(-1) for row in (canvas, away))
        return (uncond + scale * (cond - uncond)).log_softmax(-1)

    return logits


def confidence(law: Tensor, token: int) -> float:
    return float(law[token])


def margin(law: Tensor, token: int) -> float:
    best = law.topk(2).values
    return float(best[0] - best[1])


def minus_entropy(law: Tensor, token: int) -> float:
    return float((law * law.clamp_min(1e-300).log()).sum())


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(
    ("order", "score"), [("low_confidence", confidence), ("margin", margin), ("entropy", minus_entropy)]
)
def test_temperature_0(order: str, score: Callable[[Tensor, int], float], count: int, scale: float) -> None:
    """The likeliest allowed answer given what stands; where a position is surest by its marginal, it is written."""
    ids = canvas_of(2, 5, 0)
    steps = COLUMNS // count
    output = run("llada", ids, Regex(PATTERN), order=order, max_new_tokens=COLUMNS, steps=steps, guidance=lg.CFG(scale))
    for row in range(2):
        tokens, when, sure = constrained.decoded(guided(scale), ids[row], PATTERN, COLUMNS, score, count)
        end = tokens.index(END) if END in tokens else COLUMNS
        assert output.sequences[row, 5:].tolist() == [*tokens[: end + 1], *[PAD] * (COLUMNS - end - 1)]
        assert output.commit_step[row, : end + 1].tolist() == when[: end + 1]
        wanted = torch.tensor(sure[: end + 1])
        torch.testing.assert_close(output.confidences[row, : end + 1], wanted, atol=1e-5, rtol=1e-4)


def drawn(count: int, **options: Any) -> tuple[list[tuple[int, ...]], Tensor]:
    """Answers of one step, without padding written over what is behind an end, and the plain law `[columns, V]`."""
    ids = canvas_of(1, 5, 0).expand(count, -1)
    generator = torch.Generator().manual_seed(3)
    options = {"max_new_tokens": 3, "steps": 1, "generator": generator, "order": "random", **options}
    output = run("llada", ids, Regex(PATTERN), **options)
    canvas = torch.cat([ids[:1], torch.full((1, 3), MASK)], 1)
    logits = denoiser_of("llada")(canvas).detach()[0, 5:]
    return [tuple(row) for row in output.sequences[:, 5:].tolist()], logits.log_softmax(-1)


def assert_drawn_from(rows: list[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> None:
    """Chi-square within five standard deviations of its mean. Behind an end a row is padded."""
    padded: dict[tuple[int, ...], float] = {}
    for row, share in law.items():
        end = row.index(END) if END in row else len(row)
        key = (*row[: end + 1], *[PAD] * (len(row) - end - 1))
        padded[key] = padded.get(key, 0.0) + share
    assert set(rows) <= set(padded)
    common = {row: share for row, share in padded.items() if share * len(rows) >= 5}
    square = sum((rows.count(row) - len(rows) * p) ** 2 / (len(rows) * p) for row, p in common.items())
    assert abs(square - len(common)) < 5 * math.sqrt(2 * len(common))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_draws(temperature: float) -> None:
    rows, logp = drawn(3000, temperature=temperature)
    free: list[int | None] = [None] * 3
    assert_drawn_from(rows, law_of_rows(all_answers(PATTERN, 3, free), logp.double() / temperature, free))


@pytest.mark.parametrize("cut", [{"top_k": 2}, {"top_p": 0.6}])
def test_filters_cut_marginals(cut: dict[str, Any]) -> None:
    """What stays are the tokens that are likeliest given what is allowed, and of these the allowed answers."""
    rows, logp = drawn(3000, temperature=1.0, **cut)
    free: list[int | None] = [None] * 3
    every = all_answers(PATTERN, 3, free)
    shares = constrained.marginals(law_of_rows(every, logp.double(), free), 3)
    ranked = shares.sort(-1, descending=True)
    if "top_k" in cut:
        kept = ranked.values.cumsum(-1) < 0
        kept[:, : cut["top_k"]] = True
    else:
        kept = ranked.values.cumsum(-1) - ranked.values < cut["top_p"]
    allowed = [set(ranked.indices[place, kept[place]].tolist()) for place in range(3)]
    left = [row for row in every if all(token in allowed[place] for place, token in enumerate(row))]
    assert 1 < len(left) < len(every)
    assert_drawn_from(rows, law_of_rows(left, logp.double(), free))


@pytest.mark.parametrize("order", ["low_confidence", "dream:alg=maskgit_plus"])
@pytest.mark.parametrize("how", [{"temperature": 0.6}, {"temperature": 0.6, "top_k": 2}, {"top_k": 2}])
def test_confidence_is_a_marginal(how: dict[str, float], order: str) -> None:
    """Of the guided law, or for orders that go by it, of the law after temperature and filters."""
    ids, free = canvas_of(4, 5, 0), [None] * 3
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"max_new_tokens": 3, "steps": 1, "order": order, "generator": generator, **how}
    output = run("llada", ids, Regex(PATTERN), **options)
    every = all_answers(PATTERN, 3, free)
    for row in range(4):
        canvas = torch.cat([ids[row], torch.full((3,), MASK)])
        logp = denoiser_of("llada")(canvas[None]).detach()[0, 5:].log_softmax(-1).double()
        warm = logp / how.get("temperature", 1.0)
        if "top_k" in how:
            kept = constrained.marginals(law_of_rows(every, warm, free), 3).topk(2).indices
            warm = torch.full_like(warm, -torch.inf).scatter(1, kept, warm.gather(1, kept))
        law = law_of_rows(every, warm if order.startswith("dream") else logp, free)
        shares = constrained.marginals(law, 3)
        tokens = output.sequences[row, 5:]
        written = output.commit_step[row] >= 0
        wanted = shares.gather(1, tokens[:, None])[:, 0].float()
        torch.testing.assert_close(output.confidences[row][written], wanted[written], atol=1e-5, rtol=1e-4)


def test_a_row_that_filters_leave_nothing_does_without() -> None:
    """The likeliest tokens of each position, each by itself, are no answer together."""
    model = denoiser_of("llada").model
    one, zero, ab = (4 + TEXT.index(text) for text in ("1", "0", "ab"))

    def bias(module: Any, inputs: Any, outputs: Any) -> Any:
        outputs.logits[:, :, [one, zero]] += 40.0
        outputs.logits[:, :, ab] += 39.0
        return outputs

    handle = model.register_forward_hook(bias)
    try:
        constraint = Choice(("10ab", "ab01", "ababab"))
        options: dict[str, Any] = {"max_new_tokens": 3, "temperature": 1.0, "top_k": 1, "eos_token_id": ()}
        rows = run("llada", canvas_of(4, 5, 0), constraint, **options).sequences[:, 5:].tolist()
    finally:
        handle.remove()
    assert all("".join(TEXT[token - 4] for token in row) in ("10ab", "ab01", "ababab") for row in rows)


def excluding(tokens: list[int]) -> Any:
    """A hook that gives tokens no probability at all."""

    def exclude(module: Any, inputs: Any, outputs: Any) -> Any:
        outputs.logits[:, :, tokens] = -torch.inf
        return outputs

    return denoiser_of("llada").model.register_forward_hook(exclude)


def test_excluded_tokens_are_written_where_nothing_else_is_allowed() -> None:
    """As few of them as can be: one digit and letters, not three digits."""
    handle = excluding([4 + TEXT.index(str(digit)) for digit in range(10)])
    try:
        for temperature in (0.0, 1.0):
            options: dict[str, Any] = {"max_new_tokens": 3, "temperature": temperature, "eos_token_id": ()}
            rows = run("llada", canvas_of(3, 5, 0), Regex("[0-9]{3}|[0-9][cd]{2}"), **options).sequences[:, 5:]
            assert all(TEXT[row[0] - 4].isdigit() and TEXT[row[1] - 4] in "cd" for row in rows.tolist())
    finally:
        handle.remove()


def test_scores_that_are_nan_are_refused() -> None:
    def spoil(module: Any, inputs: Any, outputs: Any) -> Any:
        outputs.logits[:] = torch.nan
        return outputs

    handle = denoiser_of("llada").model.register_forward_hook(spoil)
    try:
        with pytest.raises(ValueError, match="the model's scores are NaN"):
            run("llada", canvas_of(1, 5, 0), Regex("[0-9]+"))
    finally:
        handle.remove()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_that_allows_everything_changes_nothing(temperature: float) -> None:
    ids, generator = canvas_of(3, 5, 0), torch.Generator()
    silent = [token for token in range(VOCAB) if not 4 <= token < 4 + len(TEXT)]
    options: dict[str, Any] = {"temperature": temperature, "order": "random", "eos_token_id": (), "max_new_tokens": 8}
    options["suppress_tokens"] = [token for token in silent if token != MASK]
    free = run("llada", ids, None, generator=generator.manual_seed(0), **options)
    bound = run("llada", ids, Regex(r"[\s\S]*"), generator=generator.manual_seed(0), **options)
    assert free.sequences.equal(bound.sequences)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rows_are_independent(temperature: float) -> None:
    """Each row under its own constraint, or none, as it is alone."""
    ids = canvas_of(3, 5, 0)
    each: list[Constraint | None] = [Regex("[0-9]{3,9}"), None, Choice(("abba", "true"))]
    options: dict[str, Any] = {"max_new_tokens": 8, "steps": 4, "temperature": temperature}

    def generators(rows: range) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row) for row in rows]

    together = run("llada", ids, each, generator=generators(range(3)), **options)
    for row in range(3):
        alone = run("llada", ids[row, None], each[row], generator=generators(range(row, row + 1)), **options)
        assert together.sequences[row].equal(alone.sequences[0])
        torch.testing.assert_close(together.confidences[row], alone.confidences[0])


def test_a_constraint_may_stand_among_the_methods() -> None:
    ids = canvas_of(2, 5, 0)
    by_itself = run("llada", ids, Regex("[ab]{3,8}"), guidance=lg.CFG(2.0))
    among = run("llada", ids, None, guidance=[lg.CFG(2.0), Regex("[ab]{3,8}")])
    text = run("llada", ids, 'regex:pattern="[ab]{3,8}"', guidance="cfg:guidance_scale=2.0")
    assert by_itself.sequences.equal(among.sequences)
    assert by_itself.sequences.equal(text.sequences)
    assert tokenizer().eos_token_id == END


def test_the_end_is_the_tokenizers_own() -> None:
    ids = canvas_of(2, 5, 0)
    options: dict[str, Any] = {"eos_token_id": None, "pad_token_id": None}
    assert run("llada", ids, Regex("[ab]{3}")).sequences.equal(run("llada", ids, Regex("[ab]{3}"), **options).sequences)
