"""The description of budgets: what it keeps and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest

import lmguide as lg
from lmguide.descriptions.budget import WithinBudget
from tests.budgets import ByText
from tests.refusals import refused

PATH: dict[str, Any] = {"predictor": "some/predictor", "budget": 9}


def test_lists_become_tuples_and_defaults_are_the_papers() -> None:
    method = lg.BudgetGuidance(ByText(), [3, None], start=[4, 5])  # type: ignore[arg-type]
    assert (method.budget, method.start) == ((3, None), (4, 5))
    found = method.sources()["reward"]
    assert isinstance(found, WithinBudget)
    assert (found.min_shape, found.min_rate, found.min_remaining) == (1.0, 10.0, 0.9)
    assert (found.every, found.plausibility, method.scale) == (False, 0.0, 1.0)
    assert found.rest == "mean"


@pytest.mark.parametrize(
    ("arguments", "argument", "words"),
    [
        ({"budget": 0}, "budget", ["at least 1", "got 0", "None"]),
        ({"budget": (5, 0)}, "budget", ["got 0"]),
        ({"budget": ()}, "budget", ["got none"]),
        ({"start": ""}, "start", ["''"]),
        ({"end": ()}, "end", [r"\(\)"]),
        ({"end": (3, -1)}, "end", ["-1"]),
        ({"start": "x", "end": "x"}, "end", ["'x'"]),
        ({"min_rate": -1.0}, "min_rate", ["-1", "10"]),
        ({"min_shape": math.nan}, "min_shape", ["nan"]),
        ({"min_remaining": math.inf}, "min_remaining", ["inf"]),
        ({"rest": "none"}, "rest", ["'none'", "'excluded'"]),
        ({"plausibility": 1.5}, "plausibility", ["1.5"]),
        ({"scale": -1.0}, "scale", ["-1"]),
        ({"scale": (1.0, -0.5)}, "scale", ["-0.5"]),
    ],
)
def test_bad_values_are_refused(arguments: dict[str, Any], argument: str, words: list[str]) -> None:
    with refused(argument, *words):
        lg.BudgetGuidance(**PATH | arguments)


@pytest.mark.parametrize(
    ("arguments", "argument", "words"),
    [
        ({"predictor": object()}, "predictor", ["object", "log_prob_within or gamma"]),
        ({"predictor": lambda text: text}, "predictor", ["function"]),
        ({"budget": 2.5}, "budget", ["2.5"]),
        ({"budget": True}, "budget", ["True"]),
        ({"budget": math.inf}, "budget", ["inf", "None for no budget"]),
        ({"start": 5}, "start", ["got 5"]),
        ({"end": (1.5,)}, "end", ["1.5"]),
        ({"min_rate": "10"}, "min_rate", ["'10'"]),
    ],
)
def test_values_of_another_kind_are_refused(arguments: dict[str, Any], argument: str, words: list[str]) -> None:
    with refused(argument, *words, error=TypeError):
        lg.BudgetGuidance(**PATH | arguments)


def test_gates_that_compare_two_laws_are_refused() -> None:
    with refused("gate", "conditional"):
        lg.BudgetGuidance("some/predictor", 9, gate=lg.Divergence(0.5))


def test_only_a_path_goes_to_json() -> None:
    assert lg.BudgetGuidance("some/predictor", (9, None)).to_dict()["budget"] == [9, None]
    with refused("predictor", "name or path", error=TypeError):
        lg.BudgetGuidance(ByText(), 9).to_json()
