"""The plausibility cut and the normalisation of scores."""

from __future__ import annotations

import math

import torch

from lmguide import rules
from tests.rules.examples import NINF


def test_plausible_is_relative_to_the_likeliest() -> None:
    law = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25]]).log()
    assert rules.plausible(law, 0.0).tolist() == [[True, True, True, False], [True] * 4]
    assert rules.plausible(law, 0.4).tolist() == [[True, True, False, False], [True] * 4]
    assert rules.plausible(law, 1.0).tolist() == [[True, False, False, False], [True] * 4]
    assert not rules.plausible(torch.full((3,), NINF), 0.1).any()
    torch.testing.assert_close(rules.plausible(law + 7.0, 0.4), rules.plausible(law, 0.4))


def test_normalize() -> None:
    scores = torch.tensor([[1.0, 2.0, NINF], [NINF, NINF, NINF]])
    result = rules.normalize(scores)
    torch.testing.assert_close(result[0].exp(), torch.tensor([1 / (1 + math.e), math.e / (1 + math.e), 0.0]))
    assert result[1].isneginf().all()
    assert torch.equal(result[:1], scores[:1].log_softmax(-1))
    assert rules.normalize(torch.tensor([math.nan, 0.0])).isnan().all()
    assert rules.normalize(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
