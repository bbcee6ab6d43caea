"""Drawing of tokens: the filters are transformers' own, the draws follow the filtered law."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lmguide.diffusion.noise import RowNoise
from lmguide.diffusion.sampling import draw, likeliest
from tests.refusals import refused

V = 40


def laws(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.1, 6, rows)[:, None]
    return (spread * torch.randn(rows, V, generator=generator)).log_softmax(-1)


def noise(rows: int, step: int = 0) -> Tensor:
    return RowNoise(torch.arange(rows)).gumbel(torch.arange(rows), torch.zeros(rows, dtype=torch.int64), step, V)


SETTINGS: list[tuple[float, float | None, int | None]] = [
    (1.0, 0.9, None),
    (1.0, None, 5),
    (1.0, 0.9, 5),
    (0.7, 0.5, 20),
    (2.0, 0.95, 30),
    (0.3, 0.0, None),
    (0.3, 0.2, 3),
    (1.5, 1.0, 0),
    (0.8, None, 1000),
    (1.0, None, None),
]


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), SETTINGS)
def test_the_filtered_law_is_that_of_transformers(temperature: float, top_p: float | None, top_k: int | None) -> None:
    logp = laws(64)
    logp[3, :10] = -math.inf
    logp[4] = -math.inf
    logp[4, 7] = 0.0
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)] if temperature != 1 else [])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(torch.zeros(64, 0, dtype=torch.long), logp)  # type: ignore[arg-type]
    found = draw(logp, temperature, top_p, top_k, noise(64))[1]
    assert torch.equal(found == -math.inf, expected == -math.inf)
    torch.testing.assert_close(found, expected.log_softmax(-1))


BY_HAND = [(None, 2, 2), (0.6, None, 2), (0.66, None, 3), (0.5, None, 2), (0.5, 2, 1), (0.66, 2, 2)]
"""Of 0.35, 0.3, 0.25, 0.1: `top_p`, `top_k`, tokens kept. Top-k comes first and leaves 0.54 and 0.46."""


@pytest.mark.parametrize(("top_p", "top_k", "kept"), BY_HAND)
def test_filters_by_hand(top_p: float | None, top_k: int | None, kept: int) -> None:
    law = torch.tensor([[0.1, 0.35, 0.3, 0.25]])
    filtered = draw(law.log(), top_p=top_p, top_k=top_k)[1].exp()
    likeliest = torch.tensor([1, 2, 3][:kept])
    expected = torch.zeros(1, 4)
    expected[0, likeliest] = law[0, likeliest] / law[0, likeliest].sum()
    torch.testing.assert_close(filtered, expected)


def test_temperature_0_takes_the_likeliest_token_the_leftmost_of_equals() -> None:
    logp = laws(20)
    tokens, law = draw(logp)
    assert torch.equal(tokens, logp.argmax(-1))
    torch.testing.assert_close(law, logp)
    assert draw(torch.tensor([[0.2, 0.4, 0.4]]).log())[0] == 1
    assert torch.equal(draw(logp, 0.0, 0.5, 3)[0], tokens)


def test_scores_count_up_to_a_constant_of_the_row() -> None:
    logp = laws(20)
    shifted = logp + torch.arange(20)[:, None]
    for temperature, top_p in ((0.0, None), (1.0, None), (0.7, 0.8)):
        (tokens, law), (others, other) = (draw(each, temperature, top_p, None, noise(20)) for each in (logp, shifted))
        assert torch.equal(tokens, others)
        torch.testing.assert_close(law, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1.0, None, None), (0.5, 0.99, 12)])
def test_draws_follow_the_filtered_law(temperature: float, top_p: float | None, top_k: int | None) -> None:
    n = 100_000
    logp = laws(9)[1:2].expand(n, V)
    tokens, law = draw(logp, temperature, top_p, top_k, noise(n))
    expected = n * law[0].exp().double()
    counts = tokens.bincount(minlength=V).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    degrees = int(possible.sum()) - 1
    assert degrees >= 8
    statistic = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    assert abs(statistic - degrees) < 5 * math.sqrt(2 * degrees)


def test_a_token_that_cannot_follow_is_never_drawn() -> None:
    logp = laws(1000)
    logp[:, ::2] = -math.inf
    assert (draw(logp, 5.0, None, None, noise(1000))[0] % 2 == 1).all()
    assert (draw(logp)[0] % 2 == 1).all()


def test_laws_of_low_precision_are_worked_out_in_float32() -> None:
    logp = laws(4).to(torch.bfloat16)
    assert draw(logp)[1].dtype == torch.float32
    assert torch.equal(draw(logp, 1.0, 0.9, 5, noise(4))[1], draw(logp.float(), 1.0, 0.9, 5, noise(4))[1])


def test_the_input_is_left_as_it_is() -> None:
    logp = laws(4)
    before = logp.clone()
    draw(logp, 0.7, 0.9, 5, noise(4))
    assert torch.equal(logp, before)


def test_bad_values_are_refused() -> None:
    logp = laws(2)
    with refused("gumbel", "temperature 0.5"):
        draw(logp, 0.5)
    with refused("temperature", "-1"):
        draw(logp, -1)
    with refused("temperature", "nan"):
        draw(logp, math.nan)
    with refused("temperature", "'hot'", error=TypeError):
        draw(logp, "hot")  # type: ignore[arg-type]
    with refused("top_p", "1.5"):
        draw(logp, 0, 1.5)
    with refused("top_p", "-0.5"):
        draw(logp, 0, -0.5)
    with refused("top_k", "-1"):
        draw(logp, 0, None, -1)
    with refused("top_k", "2.5", error=TypeError):
        draw(logp, 0, None, 2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("vocab_size", [1, 5, 256, 257, 300, 1000])
def test_the_likeliest_token_is_the_leftmost_largest(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    scores = torch.randint(-3, 4, (200, vocab_size), generator=generator).float()  # many ties
    scores[::7] = -torch.inf
    scores[0, -1] = 9.0
    assert likeliest(scores).equal(scores.argmax(-1))
