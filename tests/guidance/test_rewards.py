"""Methods that are rewards: what they add, where they exclude, and what they refuse."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.contexts import ClassifierGradient, SampledCanvases
from lmguide.guidance import GUIDANCE, Guidance
from lmguide.guidance.rewards import ClassifierGuidance, RewardedSamples, add_reward
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

NINF = -math.inf
REWARDS: dict[str, Guidance] = {
    "classifier_guidance": ClassifierGuidance("some/classifier", 1, 2.0),
    "rewarded_samples": RewardedSamples("some.module:reward", 2.0),
    "caif": lg.CAIF("some/classifier", 1, 2.0),
    "fudge": lg.Fudge("some/classifier", 1, 2.0),
    "word_guidance": lg.WordGuidance("sea", "cat"),
    "example_guidance": lg.ExampleGuidance("sea", "cat"),
    "top_k_guidance": lg.TopKGuidance("sea", "cat"),
    "verifier_guidance": lg.VerifierGuidance("sea", "cat"),
    "budget": lg.BudgetGuidance("some/predictor", 9),
    "gedi": lg.GeDi("some/guide", "glad", ("glad", "grim")),
}
all_rewards = pytest.mark.parametrize("name", REWARDS)


def drawn(seed: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


def test_every_reward_is_here() -> None:
    assert set(REWARDS) == {name for name in GUIDANCE.names() if GUIDANCE.get(name).is_reward}
    assert all(method.off == 0.0 for method in REWARDS.values())


@all_rewards
def test_scale_times_the_log_reward_is_added(name: str) -> None:
    scores, reward = drawn(1).log_softmax(-1), drawn(2)
    found = REWARDS[name].combine(scores, {"reward": reward}, 1.5)
    torch.testing.assert_close(found, scores + 1.5 * reward)
    rows = torch.tensor([0.0, 1.0, -2.0, 0.5])
    found = REWARDS[name].combine(scores, {"reward": reward}, rows)
    torch.testing.assert_close(found, scores + rows[:, None] * reward)
    assert torch.equal(found[0], scores[0])


@all_rewards
def test_minus_infinity_excludes_and_makes_no_nan(name: str) -> None:
    scores, reward = drawn(1).log_softmax(-1), drawn(2)
    scores[:, 1] = NINF
    reward[:, 2] = NINF
    scores[:, 3] = reward[:, 3] = NINF
    rows = torch.tensor([0.0, 1.0, -2.0, 0.5])
    found = REWARDS[name].combine(scores, {"reward": reward}, rows)
    assert torch.isneginf(found[:, [1, 3]]).all()
    assert torch.equal(torch.isneginf(found[:, 2]), rows != 0)
    assert torch.equal(found[0], scores[0])
    assert not found.isnan().any()
    assert not torch.isposinf(found).any()


def test_the_clamp_bounds_the_change_and_not_the_score() -> None:
    scores, reward = drawn(1), torch.tensor([-100.0, -1.0, 0.0, 1.0, 30.0, 100.0]).expand(4, 6)
    found = ClassifierGuidance("c", 1, 2.0, clamp=40.0).combine(scores, {"reward": reward}, 2.0)
    torch.testing.assert_close(found, scores + torch.tensor([-200.0, -2.0, 0.0, 2.0, 40.0, 40.0]))
    # the published bound is on gamma times the ratio, so a large gamma reaches it sooner
    assert ClassifierGuidance("c", 1).clamp == 80.0
    assert torch.equal(add_reward(scores, reward, 2.0, 80.0)[:, -1], scores[:, -1] + 80)
    unbounded = ClassifierGuidance("c", 1, 2.0, clamp=None).combine(scores, {"reward": reward}, 2.0)
    torch.testing.assert_close(unbounded, scores + 2 * reward)


def test_single_precision_at_least() -> None:
    assert add_reward(drawn(1).half(), drawn(2).half(), 1.0).dtype == torch.float32
    with pytest.raises(ValueError, match="broadcast"):
        add_reward(drawn(1)[:1], drawn(2), 1.0)


def test_a_description_becomes_its_context() -> None:
    assert ClassifierGuidance("c", (0, 1)).sources() == {"reward": ClassifierGradient("c", (0, 1))}
    assert ClassifierGuidance("c", [0, 1]).label == (0, 1)  # type: ignore[arg-type]
    assert RewardedSamples("m:f", 1.0, 4, 0.5, "pick", 2).sources() == {
        "reward": SampledCanvases("m:f", 4, 0.5, "pick", 2)
    }


def test_the_string_form() -> None:
    parsed = lg.parse_guidance("rewarded_samples:reward=my.module:score,samples=4,mode=pick")
    assert parsed == RewardedSamples("my.module:score", samples=4, mode="pick")
    parsed = lg.parse_guidance("classifier_guidance:model=some/model,label=1,scale=3,clamp=null")
    assert parsed == ClassifierGuidance("some/model", 1, 3, None)


def test_a_function_has_no_json_and_says_so() -> None:
    method = RewardedSamples(lambda ids: ids.sum(-1))
    with refused("reward", error=TypeError):
        method.to_json()


BAD: dict[str, tuple[Callable[[], Any], str, type[Exception]]] = {
    "scale NaN": (lambda: ClassifierGuidance("c", 1, math.nan), "scale", ValueError),
    "a label below 0": (lambda: ClassifierGuidance("c", -1), "label", ValueError),
    "no labels": (lambda: ClassifierGuidance("c", ()), "label", ValueError),
    "a label that is a word": (lambda: ClassifierGuidance("c", "positive"), "label", TypeError),  # type: ignore[arg-type]
    "a label below 0 among labels": (lambda: ClassifierGuidance("c", (1, -1)), "label", ValueError),
    "clamp 0": (lambda: ClassifierGuidance("c", 1, clamp=0.0), "clamp", ValueError),
    "clamp NaN": (lambda: ClassifierGuidance("c", 1, clamp=math.nan), "clamp", ValueError),
    "a scale below 0": (lambda: RewardedSamples("m:f", -1.0), "scale", ValueError),
    "a scale below 0 among scales": (lambda: RewardedSamples("m:f", (1.0, -1.0)), "scale", ValueError),
    "no samples": (lambda: RewardedSamples("m:f", samples=0), "samples", ValueError),
    "half a sample": (lambda: RewardedSamples("m:f", samples=1.5), "samples", TypeError),  # type: ignore[arg-type]
    "a temperature of 0": (lambda: RewardedSamples("m:f", temperature=0.0), "temperature", ValueError),
    "another mode": (lambda: RewardedSamples("m:f", mode="best"), "mode", ValueError),  # type: ignore[arg-type]
    "a seed below 0": (lambda: RewardedSamples("m:f", seed=-1), "seed", ValueError),
    "a reward without a module": (lambda: RewardedSamples("score"), "reward", ValueError),
    "a reward without a name": (lambda: RewardedSamples("module:"), "reward", ValueError),
    "a reward that is a number": (lambda: RewardedSamples(3), "reward", TypeError),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_value_is_refused_where_it_is_written(case: str) -> None:
    make, argument, error = BAD[case]
    with refused(argument, error=error):
        make()


def test_what_compares_two_laws_is_refused() -> None:
    for gate in (lg.Divergence(0.1), lg.Divergence(0.1) & lg.Period(2)):
        with refused("gate", "conditional law alone"):
            ClassifierGuidance("c", 1, gate=gate)
    with refused("schedule", "progress"):
        RewardedSamples("m:f", schedule=lg.FromDivergence(0.5))
    assert RewardedSamples("m:f", gate=lg.Entropy(0.1), schedule=lg.Linear()).enabled
