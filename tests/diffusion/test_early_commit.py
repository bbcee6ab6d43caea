"""Early commits: Prophet's mean gap against a plain loop, its phases, its invariances."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide.diffusion.early_commit import EARLY_COMMITS, EarlyCommit, Prophet, as_early_commit
from lmguide.serialization import to_dict
from tests.diffusion.moments import ROWS, WIDTH, case, decisions_of, moment_of, random_laws, random_open
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

LOW = (3.0, 2.0, 1.0)
"""Gaps among which those of the random laws lie."""


@pytest.mark.parametrize(("fraction", "phase"), [(0.0, 0), (0.32, 0), (0.33, 1), (0.66, 1), (0.67, 2), (0.99, 2)])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_a_row_is_committed_at_its_mean_gap(fraction: float, phase: int, scale: float) -> None:
    answers = set()
    for seed in range(40):
        laws, open_ = random_laws(ROWS, WIDTH, seed, sharpness=9), random_open(ROWS, WIDTH, seed)
        found = Prophet(LOW, scale).commits(decisions_of(laws), moment_of(open_, fraction=fraction))
        for row in range(ROWS):
            gaps = []
            for column in open_[row].nonzero()[:, 0].tolist():
                first, second = laws[row, column].sort(descending=True).values[:2].tolist()
                gaps.append(first - second)
            expected = bool(gaps) and sum(gaps) / len(gaps) >= LOW[phase] * scale
            assert found[row] == expected
            answers.add(expected)
    assert answers == {True, False}


def test_the_gap_is_that_of_the_logits() -> None:
    logits = torch.tensor([[[9.0, 1.4, 0.0], [8.0, 0.6, -3.0]]])  # gaps 7.6 and 7.4
    moment = moment_of(torch.ones(1, 2, dtype=torch.bool), fraction=0.0)
    assert Prophet().commits(decisions_of((logits + 5).log_softmax(-1)), moment).tolist() == [True]
    assert Prophet().commits(decisions_of((logits * 0.9).log_softmax(-1)), moment).tolist() == [False]


def test_guidance_that_multiplies_the_gaps_is_made_up_for_by_the_scale() -> None:
    # Guidance against a uniform source multiplies logits, and so gaps, by the guidance scale.
    laws, open_ = random_laws(50, WIDTH, 0), random_open(50, WIDTH, 0)
    guided = decisions_of((2.5 * laws).log_softmax(-1))
    plain = Prophet(LOW).commits(decisions_of(laws), moment_of(open_))
    assert torch.equal(Prophet(LOW, scale=2.5).commits(guided, moment_of(open_)), plain)
    assert not torch.equal(Prophet(LOW).commits(guided, moment_of(open_)), plain)


def test_a_position_with_one_possible_token_does_not_count() -> None:
    unsure = torch.tensor([0.4, 0.3, 0.3]).log()
    forced = torch.tensor([1.0, 0.0, 0.0]).log()
    laws = torch.stack([torch.stack([unsure, forced]), torch.stack([forced, forced])])
    moment = moment_of(torch.ones(2, 2, dtype=torch.bool))
    assert Prophet().commits(decisions_of(laws), moment).tolist() == [False, True]


def test_rows_that_are_done_are_left_alone() -> None:
    decisions, _ = case(0)
    closed = moment_of(torch.zeros(ROWS, WIDTH, dtype=torch.bool))
    assert not Prophet((0.0, 0.0, 0.0)).commits(decisions, closed).any()


def test_it_reads_what_it_says() -> None:
    decisions, open_ = case(0)
    assert Prophet().reads == {"second"}
    blind = replace(decisions, entropy=torch.full_like(decisions.entropy, math.inf))
    assert torch.equal(Prophet(LOW).commits(blind, moment_of(open_)), Prophet(LOW).commits(decisions, moment_of(open_)))


@pytest.mark.parametrize("rule", [Prophet(), Prophet((1.0, 0.5, 0.0), scale=3.0)])
def test_dictionaries_and_strings_give_the_same_rule_back(rule: EarlyCommit) -> None:
    data = json.loads(json.dumps(to_dict(rule)))
    assert data["name"] == rule.name == EARLY_COMMITS.name_of(type(rule))
    assert as_early_commit(data) == rule
    fields = ",".join(f"{key}={json.dumps(value)}" for key, value in data.items() if key != "name")
    assert as_early_commit(f"{rule.name}:{fields}") == rule
    assert as_early_commit(rule) is rule


BAD: list[tuple[Callable[[], Any], str, str, type[Exception]]] = [
    (lambda: Prophet((7.5, 5.0)), "thresholds", "three", ValueError),  # type: ignore[arg-type]
    (lambda: Prophet(7.5), "thresholds", "7.5", TypeError),  # type: ignore[arg-type]
    (lambda: Prophet((7.5, 5.0, -1.0)), "thresholds", "-1", ValueError),
    (lambda: Prophet(scale=0), "scale", "0", ValueError),
    (lambda: as_early_commit("profit"), "expected the name of a rule of early commit", "prophet", ValueError),
    (lambda: as_early_commit("prophet:scale=big"), "prophet.scale", "'big'", ValueError),
    (lambda: as_early_commit(True), "early_commit", "bool", TypeError),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "argument", "said", "error"), BAD)
def test_bad_values_are_refused(make: Callable[[], Any], argument: str, said: str, error: type[Exception]) -> None:
    with refused(argument, said, error=error):
        make()
