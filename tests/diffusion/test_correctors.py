"""Correctors: the probabilities of ReMDM by hand and by frequency, token editing, and laws over all of them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide.diffusion.correctors import (
    CORRECTORS,
    Corrector,
    ReMDM,
    ReMDMCap,
    ReMDMConf,
    ReMDMLoop,
    ReMDMRescale,
    TokenEditing,
    as_corrector,
    sigma_max,
)
from lmguide.serialization import to_dict
from tests.diffusion.moments import (
    ROWS,
    VOCAB,
    WIDTH,
    case,
    decisions_of,
    moment_of,
    random_laws,
    random_tokens,
    rows_of,
)
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmguide.diffusion.orders import Moment

EXAMPLES: list[Corrector] = [
    ReMDMCap(0.5),
    ReMDMRescale(0.8),
    ReMDMConf(),
    ReMDMLoop(0.3, 0.8, 0.2, 0.6),
    TokenEditing(0.3),
    TokenEditing(0.0, post_steps=0),
]

all_correctors = pytest.mark.parametrize("corrector", EXAMPLES, ids=repr)


def remasked(corrector: Corrector, moment: Moment, committed: Tensor, confidence: Tensor) -> Tensor:
    """What is opened again in a window whose candidates and steps do not count."""
    shape = committed.shape
    drawn = decisions_of(random_laws(shape[0], shape[1], 0))
    return corrector.remask(drawn, moment, committed, confidence, torch.zeros(shape, dtype=torch.int64))


def history(seed: int) -> tuple[Tensor, Tensor]:
    """Committed positions of half of a window, and their confidence."""
    generator = torch.Generator().manual_seed(seed)
    committed = torch.rand(ROWS, WIDTH, generator=generator) < 0.5
    committed[0] = False
    return committed, torch.rand(ROWS, WIDTH, generator=generator)


# ReMDM by hand: α_t = step / steps, α_s = (step + 1) / steps


def alphas(step: int, steps: int) -> tuple[float, float]:
    return step / steps, (step + 1) / steps


def cap(step: int, steps: int, confidence: list[float]) -> list[float]:
    alpha_t, alpha_s = alphas(step, steps)
    bound = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0
    return [min(0.5, bound) for _ in confidence]


def rescale(step: int, steps: int, confidence: list[float]) -> list[float]:
    alpha_t, alpha_s = alphas(step, steps)
    return [0.8 * (min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0) for _ in confidence]


def conf(step: int, steps: int, confidence: list[float]) -> list[float]:
    alpha_t, alpha_s = alphas(step, steps)
    bound = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0
    total = sum(math.exp(-each) for each in confidence)
    return [bound * math.exp(-each) / total for each in confidence]


def loop(step: int, steps: int, confidence: list[float]) -> list[float]:
    return [0.3 if 0.2 < 1 - step / steps <= 0.8 else 0.0 for _ in confidence]


SIGMAS: list[tuple[Corrector, Callable[[int, int, list[float]], list[float]]]] = [
    (ReMDMCap(0.5), cap),
    (ReMDMRescale(0.8), rescale),
    (ReMDMConf(), conf),
    (ReMDMLoop(0.3, 0.8, 0.2, 0.6), loop),
]


@pytest.mark.parametrize(("corrector", "rule"), SIGMAS, ids=[repr(corrector) for corrector, _ in SIGMAS])
def test_a_position_is_opened_again_where_its_noise_is_below_sigma(
    corrector: Corrector, rule: Callable[[int, int, list[float]], list[float]]
) -> None:
    opened, steps = 0, 8
    for seed in range(4):
        committed, confidence = history(seed)
        for step in range(steps):
            moment = moment_of(~committed, step=step, steps=steps, keys=torch.arange(ROWS) + 100 * seed)
            found = remasked(corrector, moment, committed, confidence)
            noise = moment.uniform("remask")
            for row in range(ROWS):
                columns = committed[row].nonzero()[:, 0].tolist()
                sigma = rule(step, steps, confidence[row, columns].tolist())
                expected = [each for each, limit in zip(columns, sigma, strict=True) if noise[row, each] < limit]
                assert found[row].nonzero()[:, 0].tolist() == (expected if step < steps - 1 else [])
            opened += int(found.sum())
    assert opened > 10


@pytest.mark.parametrize(("corrector", "rule"), SIGMAS, ids=[repr(corrector) for corrector, _ in SIGMAS])
def test_positions_are_opened_again_as_often_as_sigma_says(
    corrector: Corrector, rule: Callable[[int, int, list[float]], list[float]]
) -> None:
    n = 20_000
    committed = torch.tensor([True, True, False, True]).expand(n, 4)
    confidence = torch.tensor([0.9, 0.2, 0.5, 0.6])
    found = remasked(corrector, moment_of(~committed, step=4, steps=8), committed, confidence.expand(n, 4))
    share = found.double().mean(0)[[0, 1, 3]]
    sigma = torch.tensor(rule(4, 8, [0.9, 0.2, 0.6]), dtype=torch.float64)
    assert ((share - sigma).abs() < 4 * (sigma * (1 - sigma) / n).sqrt()).all()
    assert not found[:, 2].any()


def test_sigma_keeps_to_its_bound() -> None:
    for steps in (1, 2, 5, 40):
        assert sigma_max(0, steps) == 1
        for step in range(1, steps):
            alpha_t, alpha_s = alphas(step, steps)
            bound = sigma_max(step, steps)
            assert bound == pytest.approx(min(1, (1 - alpha_s) / alpha_t))
            # An open position stays open with probability (1 - α_s - σ α_t) / (1 - α_t), which must be none below 0.
            assert 1 - alpha_s - bound * alpha_t >= -1e-12
    committed = torch.ones(2, 5, dtype=torch.bool)
    for step in range(1, 8):
        moment = moment_of(~committed, step=step, steps=8)
        for corrector in (ReMDMCap(1.0), ReMDMRescale(1.0), ReMDMConf()):
            sigma = torch.as_tensor(corrector.sigma(moment, committed, torch.rand(2, 5)))
            assert (sigma <= sigma_max(step, 8) + 1e-6).all()


def test_conf_opens_at_most_one_on_average() -> None:
    committed, confidence = history(3)
    sigma = ReMDMConf().sigma(moment_of(~committed, step=2, steps=8), committed, confidence)
    assert torch.allclose(sigma.sum(1), committed.any(1).float())
    assert not sigma[~committed].any()
    lowest = confidence.masked_fill(~committed, 2.0).argmin(1)
    assert torch.equal(sigma.argmax(1)[1:], lowest[1:])


def test_a_strength_of_0_never_opens() -> None:
    committed, confidence = history(0)
    for corrector in (ReMDMCap(0), ReMDMRescale(0), ReMDMLoop(0)):
        for step in range(8):
            moment = moment_of(~committed, step=step, steps=8)
            assert not remasked(corrector, moment, committed, confidence).any()


def test_the_loop_fills_waits_and_fills() -> None:
    order, initial = torch.tensor([7, 7]), torch.tensor([100, 0])
    steps, window = 20, ReMDMLoop(0.1, t_on=0.5, t_off=0.25, alpha_on=0.8)
    counts = torch.stack([window.quota(order, initial, step, steps) for step in range(steps)], 1)
    assert counts[0].tolist() == [8] * 10 + [0] * 5 + [4] * 5
    assert not counts[1].any()
    # Odd numbers are rounded, but nothing is lost.
    for masks in (1, 7, 33):
        for steps in (1, 3, 11):
            one = [window.quota(order, torch.tensor([masks]), step, steps).item() for step in range(steps)]
            assert sum(one) == masks
            assert min(one) >= 0


def test_other_correctors_leave_the_quota_to_the_order() -> None:
    for corrector in EXAMPLES:
        if not isinstance(corrector, ReMDMLoop):
            assert corrector.quota(torch.tensor([3, 0]), torch.tensor([9, 9]), 1, 4).tolist() == [3, 0]


# Token editing


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 1.0])
def test_a_token_is_replaced_by_another_that_is_probable_enough(threshold: float) -> None:
    edited = 0
    for seed in range(10):
        drawn, open_ = case(seed)
        current = torch.where(torch.rand(ROWS, WIDTH) < 0.3, drawn.tokens, random_tokens(ROWS, WIDTH, seed + 50))
        moment = moment_of(open_)
        found = TokenEditing(threshold).edit(drawn, moment, ~open_, current)
        for row in range(ROWS):
            for column in range(WIDTH):
                token, probability = drawn.tokens[row, column], drawn.log_prob[row, column].exp()
                differs = token != current[row, column]
                expected = not open_[row, column] and differs and probability > threshold
                assert found[row, column] == expected
        edited += int(found.sum())
    assert (edited > 0) == (threshold < 1)


def test_a_probability_that_is_just_reached_does_not_edit() -> None:
    laws = torch.tensor([[[0.5, 0.25, 0.25], [0.6, 0.2, 0.2]]]).log()
    committed = torch.ones(1, 2, dtype=torch.bool)
    found = TokenEditing(0.5).edit(decisions_of(laws), moment_of(~committed), committed, torch.full((1, 2), 2))
    assert found.tolist() == [[False, True]]


def test_editing_is_for_models_that_were_trained_for_it() -> None:
    editing = [corrector for corrector in EXAMPLES if corrector.needs_editable]
    assert {type(corrector) for corrector in editing} == {TokenEditing}
    assert all(corrector.looks_at_committed for corrector in editing)
    assert TokenEditing().post_steps == 16
    assert ReMDMCap().post_steps == 0


# Laws over all correctors


def test_every_corrector_is_among_the_examples() -> None:
    assert {type(corrector) for corrector in EXAMPLES} == {CORRECTORS.get(name) for name in CORRECTORS.names()}


@all_correctors
def test_only_committed_positions_are_touched(corrector: Corrector) -> None:
    touched = 0
    for seed in range(10):
        drawn, _ = case(seed)
        committed, confidence = history(seed)
        current, steps = random_tokens(ROWS, WIDTH, seed), torch.zeros(ROWS, WIDTH, dtype=torch.int64)
        moment = moment_of(~committed, step=3, steps=8)
        for found in (
            corrector.remask(drawn, moment, committed, confidence, steps),
            corrector.edit(drawn, moment, committed, current),
        ):
            assert found.dtype == torch.bool
            assert found.shape == committed.shape
            assert not (found & ~committed).any()
            touched += int(found.sum())
    assert touched > 0


@all_correctors
def test_a_row_does_not_depend_on_the_others(corrector: Corrector) -> None:
    drawn, _ = case(1)
    committed, confidence = history(1)
    current, steps = random_tokens(ROWS, WIDTH, 7), torch.zeros(ROWS, WIDTH, dtype=torch.int64)
    moment = moment_of(~committed, step=3, steps=8)
    remask = corrector.remask(drawn, moment, committed, confidence, steps)
    edit = corrector.edit(drawn, moment, committed, current)
    for rows in (torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([2])):
        few, alone = rows_of(drawn, rows), moment_of(~committed[rows], step=3, steps=8, keys=rows)
        assert torch.equal(corrector.remask(few, alone, committed[rows], confidence[rows], steps[rows]), remask[rows])
        assert torch.equal(corrector.edit(few, alone, committed[rows], current[rows]), edit[rows])


@all_correctors
def test_nothing_is_opened_at_the_last_step(corrector: Corrector) -> None:
    committed, confidence = history(0)
    for steps in (1, 3, 30):
        moment = moment_of(~committed, step=steps - 1, steps=steps)
        assert not remasked(corrector, moment, committed, confidence).any()


@all_correctors
def test_dictionaries_and_strings_give_the_same_corrector_back(corrector: Corrector) -> None:
    data = json.loads(json.dumps(to_dict(corrector)))
    assert data["name"] == corrector.name == CORRECTORS.name_of(type(corrector))
    assert as_corrector(data) == corrector
    fields = ",".join(f"{key}={json.dumps(value)}" for key, value in data.items() if key != "name")
    assert as_corrector(f"{corrector.name}:{fields}") == corrector
    assert as_corrector(corrector) is corrector


def test_the_bases_say_what_is_missing() -> None:
    committed, confidence = history(0)
    moment = moment_of(~committed)
    plain = Corrector()
    assert not remasked(plain, moment, committed, confidence).any()
    assert not plain.edit(case(0)[0], moment, committed, torch.zeros(ROWS, WIDTH, dtype=torch.int64) + VOCAB).any()
    with pytest.raises(NotImplementedError):
        ReMDM().sigma(moment, committed, confidence)


BAD: list[tuple[Callable[[], Any], str, str, type[Exception]]] = [
    (lambda: ReMDMCap(1.5), "eta", "1.5", ValueError),
    (lambda: ReMDMCap("much"), "eta", "'much'", TypeError),  # type: ignore[arg-type]
    (lambda: ReMDMRescale(-0.1), "eta", "-0.1", ValueError),
    (lambda: ReMDMLoop(-0.1), "eta", "-0.1", ValueError),
    (lambda: ReMDMLoop(0.2), "eta", "0.111", ValueError),
    (lambda: ReMDMLoop(t_on=1), "t_on", "1", ValueError),
    (lambda: ReMDMLoop(t_off=0.6), "t_off", "0.6", ValueError),
    (lambda: ReMDMLoop(t_off=0), "t_off", "0", ValueError),
    (lambda: ReMDMLoop(0, alpha_on=1), "alpha_on", "1", ValueError),
    (lambda: TokenEditing(1.5), "edit_threshold", "1.5", ValueError),
    (lambda: TokenEditing(post_steps=-1), "post_steps", "-1", ValueError),
    (lambda: TokenEditing(post_steps=1.5), "post_steps", "1.5", TypeError),  # type: ignore[arg-type]
    (lambda: sigma_max(4, 4), "step", "4", ValueError),
    (lambda: as_corrector("remdm"), "expected the name of a corrector", "remdm_cap", ValueError),
    (lambda: as_corrector("remdm_cap:eta"), "corrector", "key=value", ValueError),
    (lambda: as_corrector(0.5), "corrector", "float", TypeError),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "argument", "said", "error"), BAD)
def test_bad_values_are_refused(make: Callable[[], Any], argument: str, said: str, error: type[Exception]) -> None:
    with refused(argument, said, error=error):
        make()
