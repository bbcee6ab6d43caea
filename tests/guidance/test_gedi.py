"""GeDi's description and filter: the filter is the published loop's, and what makes no sense is refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.descriptions.gedi import ClassPosterior
from lmguide.guidance.gedi import best_by_posterior
from lmguide.guidance.rewards import add_reward
from tests.gedi import kept
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CODES = (" glad", " grim")
NINF = -math.inf


def drawn(rows: int = 6, size: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(rows, size, generator=generator)
    return scores.log_softmax(-1), torch.randn(rows, size, generator=generator).sigmoid().log()


@pytest.mark.parametrize("target_p", [None, 0.5, 0.8])
@pytest.mark.parametrize("filter_p", [0.0, 0.2, 0.8, 0.99])
def test_the_filter_is_that_of_a_plain_loop(filter_p: float, target_p: float | None) -> None:
    scores, posterior = drawn()
    found = best_by_posterior(scores, posterior, filter_p, target_p)
    rows = [kept(*row, filter_p, target_p) for row in zip(scores, posterior, strict=True)]
    assert torch.equal(found, torch.stack(rows))
    assert bool(found.all()) == (filter_p == 0)


@pytest.mark.parametrize("filter_p", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_tokens_of_one_posterior_stay_or_go_together(filter_p: float) -> None:
    size = 256  # equal scores: every token has 1/256 of the mass, and sums meet the bound exactly
    classes = torch.randint(0, 9, (5, size), generator=torch.Generator().manual_seed(0))
    posterior = (classes / 8.0).log()  # from minus infinity to 0
    better = (posterior[:, None] > posterior[:, :, None]).sum(-1)
    found = best_by_posterior(torch.zeros(5, size), posterior, filter_p)
    assert torch.equal(found, better <= (1 - filter_p) * size)
    settled = torch.zeros(1, size)
    settled[:, ::2] = -0.0
    assert best_by_posterior(torch.zeros(1, size), settled, filter_p).all(), "a class that is sure filters nothing"


@pytest.mark.parametrize("filter_p", [0.01, 0.2, 0.8, 0.99])
def test_the_filter_of_a_whole_vocabulary_is_that_of_a_sort(filter_p: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = 4 * torch.randn(2, 3, 20000, generator=generator)
    posterior = -torch.exp(20 * torch.randn(scores.shape, generator=generator))  # of every size there is
    posterior[0] = (posterior[0] * 4).round() / 4  # and many alike
    posterior[..., 7], scores[..., 9] = NINF, NINF
    found = best_by_posterior(scores, posterior, filter_p)
    for at in [(one, other) for one in range(2) for other in range(3)]:
        values, place = posterior[at].unique(return_inverse=True)
        mass = torch.zeros(len(values), dtype=torch.float64).index_add(0, place, scores[at].softmax(-1).double())
        better = mass.flip(0).cumsum(0).flip(0) - mass
        assert torch.equal(found[at], (better <= 1 - filter_p)[place])
    assert 0 < found.sum() < found.numel()


def test_a_broken_source_shows() -> None:
    scores, posterior = drawn(2)
    scores[0, 3] = posterior[0, 3] = math.nan
    found = lg.GeDi("g", CODES[0], CODES, filter_p=0.8).combine(scores, {"reward": posterior}, 1.0)
    assert found[0].isnan().any()
    assert not found[1].isnan().any()


def test_the_best_that_is_possible_always_stays() -> None:
    scores, posterior = drawn()
    scores[0, posterior[0].argmax()] = NINF
    for row in range(len(scores)):
        possible = torch.where(scores[row] > NINF, posterior[row], NINF)
        assert best_by_posterior(scores, posterior, 1.0)[row, possible.argmax()]
    assert best_by_posterior(scores, posterior, 1.0, target_p=0.0).all()
    assert (best_by_posterior(scores, posterior, 1.0).sum(-1) <= 2).all()


def test_the_filter_follows_the_weights() -> None:
    scores, posterior = drawn()
    method = lg.GeDi("g", CODES[0], CODES, 3.0, filter_p=0.8, target_p=0.7)
    found = method.combine(scores, {"reward": posterior}, 3.0)
    weighed = scores + 3.0 * posterior
    for row in range(len(scores)):
        keep = kept(weighed[row], posterior[row], 0.8, 0.7)
        torch.testing.assert_close(found[row], weighed[row].masked_fill(~keep, NINF))


def test_rows_without_strength_are_left_alone() -> None:
    scores, posterior = drawn(2)
    method = lg.GeDi("g", CODES[0], CODES, (0.0, 3.0), filter_p=0.8)
    found = method.combine(scores, {"reward": posterior}, torch.tensor([0.0, 3.0]))
    assert torch.equal(found[0], scores[0])
    assert torch.isneginf(found[1]).any()


def test_without_a_filter_it_is_a_reward() -> None:
    scores, posterior = drawn()
    found = lg.GeDi("g", CODES[0], CODES).combine(scores, {"reward": posterior}, 5.0)
    assert torch.equal(found, add_reward(scores, posterior, 5.0))


def test_the_strength_is_that_of_its_form() -> None:
    assert lg.GeDi("g", CODES[0], CODES).omega == 5.0
    assert lg.GeDi("g", CODES[0], CODES, form="normalized").omega == 30.0
    assert not lg.GeDi("g", CODES[0], CODES, 0.0).enabled
    assert lg.GeDi("g", CODES[0], CODES).strength(3) == 5.0


def test_it_becomes_its_posterior() -> None:
    method = lg.GeDi("g", [4, 5], [[4, 5], "w"], topic=[7], class_prior=[1, 3])  # type: ignore[arg-type]
    assert method.sources()["reward"] == ClassPosterior("g", (4, 5), ((4, 5), "w"), class_prior=(1.0, 3.0), topic=(7,))
    assert hash(method) == hash(lg.GeDi("g", (4, 5), ((4, 5), "w"), topic=(7,), class_prior=(1.0, 3.0)))


def test_the_string_form() -> None:
    parsed = lg.parse_guidance('gedi:guide=some/guide,code=glad,codes=["glad","grim"],omega=2,filter_p=0.8')
    assert parsed == lg.GeDi("some/guide", "glad", ("glad", "grim"), 2.0, filter_p=0.8)


def make(code: Any = CODES[0], codes: Any = CODES, **more: Any) -> lg.GeDi:
    return lg.GeDi("g", code, codes, **more)


BAD: dict[str, tuple[Callable[[], Any], str, type[Exception]]] = {
    "one code": (lambda: make(codes=CODES[:1]), "codes", ValueError),
    "no code": (lambda: make(codes=()), "codes", ValueError),
    "a code twice": (lambda: make(codes=(*CODES, CODES[0])), "codes", ValueError),
    "codes that are one text": (lambda: make(codes=" glad"), "codes", TypeError),
    "a code that is none of them": (lambda: make(" gled"), "code", ValueError),
    "an empty code": (lambda: make(""), "code", ValueError),
    "an empty code among codes": (lambda: make(codes=(*CODES, "")), "codes", ValueError),
    "a code without tokens": (lambda: make(codes=(*CODES, ())), "codes", ValueError),
    "a token below 0": (lambda: make((-1,), ((-1,), (3,))), "code", ValueError),
    "a code that is a number": (lambda: make(3), "code", TypeError),
    "a code of fractions": (lambda: make((1.5,)), "code", TypeError),
    "an empty topic": (lambda: make(topic=""), "topic", ValueError),
    "another form": (lambda: make(form="mean"), "form", ValueError),
    "a scale of the other form": (lambda: make(logit_scale=2.0), "logit_scale", ValueError),
    "a bias of the other form": (lambda: make(bias=(0.0, 1.0)), "bias", ValueError),
    "a scale of 0": (lambda: make(form="normalized", logit_scale=0.0), "logit_scale", ValueError),
    "a scale that is NaN": (lambda: make(form="normalized", logit_scale=math.nan), "logit_scale", ValueError),
    "one bias": (lambda: make(form="normalized", bias=1.0), "bias", TypeError),
    "a bias too few": (lambda: make(form="normalized", bias=(1.0,)), "bias", ValueError),
    "a bias that is NaN": (lambda: make(form="normalized", bias=(math.nan, 0.0)), "bias", ValueError),
    "class_bias NaN": (lambda: make(class_bias=math.nan), "class_bias", ValueError),
    "a prior of 0": (lambda: make(class_prior=(0.0, 1.0)), "class_prior", ValueError),
    "a prior too many": (lambda: make(class_prior=(0.2, 0.3, 0.5)), "class_prior", ValueError),
    "omega NaN": (lambda: make(omega=math.nan), "omega", ValueError),
    "omega below 0": (lambda: make(omega=-1.0), "omega", ValueError),
    "an omega below 0 among others": (lambda: make(omega=(1.0, -1.0)), "omega", ValueError),
    "omega a word": (lambda: make(omega="much"), "omega", TypeError),
    "filter_p above 1": (lambda: make(filter_p=1.5), "filter_p", ValueError),
    "filter_p NaN": (lambda: make(filter_p=math.nan), "filter_p", ValueError),
    "target_p below 0": (lambda: make(filter_p=0.8, target_p=-0.1), "target_p", ValueError),
    "target_p alone": (lambda: make(target_p=0.8), "target_p", ValueError),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_value_is_refused_where_it_is_written(case: str) -> None:
    given, argument, error = BAD[case]
    with refused(argument, error=error):
        given()


def test_a_code_close_to_one_is_pointed_out() -> None:
    with pytest.raises(ValueError, match="Did you mean ' glad'"):
        make(" gled")
