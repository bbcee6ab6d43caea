"""One guided step: what is composed, what is fetched, and where nothing happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.guidance.rewards import ClassifierGuidance
from lmguide.measures import kl_divergence
from lmguide.schedules import Progress
from lmguide.step import guided_step, scheduled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmguide.step import Guided

ROWS, VOCAB = 3, 7


def logp(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (ROWS, VOCAB)), generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


COND, UNCOND, OTHER = logp(1), logp(2), logp(3)
MIDDLE = Progress(2, 8)


@dataclass
class Fetch:
    """Gives the sources and remembers who asked."""

    sources: Sequence[Mapping[str, Tensor]]

    def __post_init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, index: int) -> Mapping[str, Tensor]:
        self.asked.append(index)
        return self.sources[index]


def step(
    methods: Sequence[lg.Guidance], progress: Progress = MIDDLE, live: Tensor | None = None, **sources: Tensor
) -> tuple[Guided, list[int]]:
    """A step of methods that all have the source `uncond`, and the methods whose sources were fetched."""
    fetch = Fetch([sources or {"uncond": UNCOND}] * len(methods))
    result = guided_step(COND, methods, [method.strength(ROWS) for method in methods], fetch, progress, live)
    return result, fetch.asked


def mix(scale: float | Tensor) -> Tensor:
    return UNCOND + scale * (COND - UNCOND)


def same(found: Tensor, scores: Tensor) -> None:
    torch.testing.assert_close(found, scores.log_softmax(-1), atol=1e-6, rtol=1e-5)


def test_one_method_is_its_rule_normalised_once() -> None:
    result, asked = step([lg.CFG(2.0)])
    assert torch.equal(result.scores, lg.CFG(2.0).combine(COND, {"uncond": UNCOND}, 2.0).log_softmax(-1))
    assert result.open.tolist() == [True] * ROWS
    assert asked == [0]


def test_several_methods_add_their_changes() -> None:
    """score = c + sum (rule - c): the order of the methods does not matter."""
    result, asked = step([lg.CFG(2.0), lg.CFG(0.5)])
    same(result.scores, COND + (mix(2.0) - COND) + (mix(0.5) - COND))
    assert asked == [0, 1]
    torch.testing.assert_close(step([lg.CFG(0.5), lg.CFG(2.0)])[0].scores, result.scores)
    off, _ = step([lg.CFG(2.0), lg.CFG(1.0)])
    torch.testing.assert_close(off.scores, step([lg.CFG(2.0)])[0].scores)


def test_a_token_that_one_method_cuts_stays_cut() -> None:
    """And nothing is NaN where two methods cut."""
    sources: dict[str, Any] = {"uncond": UNCOND, "amateur": OTHER}
    cut = lg.Contrastive("x", 0.5, plausibility=0.8)
    for methods in ([cut, lg.CFG(2.0)], [lg.CFG(2.0), cut], [cut, cut, lg.CFG(2.0)]):
        result, _ = step(methods, **sources)
        kept = COND.ge(COND.amax(-1, keepdim=True) + torch.tensor(0.8).log())
        assert torch.equal(result.scores > -torch.inf, kept)
        assert not result.scores.isnan().any()
        torch.testing.assert_close(result.scores.logsumexp(-1), torch.zeros(ROWS), atol=1e-6, rtol=0)


def test_a_token_that_the_conditional_masks_stays_masked() -> None:
    masked = COND.clone()
    masked[:, 3] = -torch.inf
    for methods in ([lg.CFG(2.0)], [lg.CFG(2.0), lg.CFG(0.5)]):
        fetch = Fetch([{"uncond": UNCOND}] * 2)
        result = guided_step(masked, methods, [2.0, 0.5][: len(methods)], fetch, MIDDLE)
        assert torch.isneginf(result.scores[:, 3]).all()
        assert not result.scores.isnan().any()


ENTROPIES = -(COND.exp() * COND).sum(-1)


def test_closed_rows_keep_the_conditional_bit_for_bit() -> None:
    threshold = float(ENTROPIES.median())
    result, asked = step([lg.SelectiveCFG(2.0, entropy_threshold=threshold)])
    opened = ENTROPIES.gt(threshold)
    assert 0 < int(opened.sum()) < ROWS
    assert asked == [0]
    assert torch.equal(result.open, opened)
    assert torch.equal(result.scores[~opened], COND[~opened].log_softmax(-1))
    same(result.scores[opened], mix(2.0)[opened])


def test_a_gate_that_is_open_everywhere_is_none_bit_for_bit() -> None:
    always, _ = step([lg.CFG(2.0)])
    for gate in (lg.Entropy(-1.0), lg.Period(1)):
        opened, _ = step([lg.CFG(2.0, gate=gate)])
        assert torch.equal(opened.scores, always.scores)
        assert opened.open.tolist() == [True] * ROWS


def test_a_closed_gate_fetches_nothing() -> None:
    for method in (
        lg.SelectiveCFG(2.0, entropy_threshold=99.0),
        lg.CFG(2.0, gate=lg.Period(2, first=3)),
        lg.CFG(2.0, gate=lg.Interval(start=3)),
        lg.CFG(2.0, gate=lg.Calibrated(0.0)),
        lg.CFG(2.0, gate=lg.Entropy(0.0) & lg.Period(2, first=1)),
    ):
        result, asked = step([method])
        assert asked == [], method
        assert torch.equal(result.scores, COND.log_softmax(-1))
        assert not result.open.any()


def test_finished_rows_open_no_gate() -> None:
    live = torch.tensor([True, False, False])
    method = lg.SelectiveCFG(2.0, entropy_threshold=0.0)
    result, asked = step([method], live=live)
    assert (asked, result.open.tolist()) == ([0], live.tolist())
    result, asked = step([method], live=torch.zeros(ROWS, dtype=torch.bool))
    assert (asked, bool(result.open.any())) == ([], False)
    divergent, _ = step([lg.CFG(2.0, gate=lg.Divergence(0.0))], live=live)
    assert divergent.open.tolist() == live.tolist()


def test_each_method_has_its_own_gate() -> None:
    threshold = float(ENTROPIES.median())
    result, asked = step([lg.SelectiveCFG(2.0, entropy_threshold=threshold), lg.CFG(3.0, gate=lg.Period(9))])
    assert asked == [0]
    assert torch.equal(result.open, ENTROPIES.gt(threshold))
    result, asked = step(
        [lg.SelectiveCFG(2.0, entropy_threshold=threshold), lg.SelectiveCFG(3.0, entropy_threshold=0.0)]
    )
    assert asked == [0, 1]
    assert result.open.all()
    same(result.scores, COND + (mix(3.0) - COND) + (mix(2.0) - COND) * ENTROPIES.gt(threshold)[:, None])


def test_a_gate_that_needs_the_contrast_is_given_it() -> None:
    divergences = kl_divergence(COND, UNCOND)
    threshold = float(divergences.median())
    result, asked = step([lg.CFG(2.0, gate=lg.Divergence(threshold))])
    opened = divergences > threshold
    assert 0 < int(opened.sum()) < ROWS
    assert asked == [0]
    assert torch.equal(result.open, opened)
    same(result.scores, torch.where(opened[:, None], mix(2.0), COND))


@pytest.mark.parametrize(
    ("schedule", "progress", "weight"),
    [
        (lg.Constant(), MIDDLE, 1.0),
        (lg.Linear(0.0, 2.0), MIDDLE, 0.5),
        (lg.Cosine(), Progress(4, 8), 0.5),
        (lg.Window(1, 3), MIDDLE, 1.0),
        (lg.Beta(2.0, 2.0), Progress(4, 8), 1.0),
    ],
)
def test_a_schedule_moves_the_strength_between_off_and_full(schedule: Any, progress: Progress, weight: float) -> None:
    result, _ = step([lg.CFG(3.0, schedule=schedule)], progress)
    same(result.scores, mix(1.0 + 2.0 * weight))
    result, _ = step([lg.DExperts("e", "a", 3.0, schedule=schedule)], progress, expert=OTHER, antiexpert=UNCOND)
    same(result.scores, COND + 3.0 * weight * (OTHER - UNCOND))


def test_a_schedule_that_is_off_fetches_nothing() -> None:
    for schedule in (lg.Window(3), lg.Window(0, 2), lg.Linear(-0.25, 0.75), lg.Window(0.5, 0.75)):
        result, asked = step([lg.CFG(3.0, schedule=schedule), lg.CFG(2.0, schedule=schedule)])
        assert asked == [], schedule
        assert torch.equal(result.scores, COND.log_softmax(-1))
        assert not result.open.any()


def test_a_schedule_from_the_divergence_weighs_each_row() -> None:
    divergences = kl_divergence(COND, UNCOND)
    target = float(divergences.median())
    result, _ = step([lg.CFG(3.0, schedule=lg.FromDivergence(target))])
    weights = (target / divergences).clamp_max(1.0)
    assert 0 < int((weights < 1).sum()) < ROWS
    same(result.scores, mix((1.0 + 2.0 * weights)[:, None]))


def test_strengths_of_rows() -> None:
    result, _ = step([lg.CFG((1.0, 2.0, 0.0))])
    same(result.scores, mix(torch.tensor([1.0, 2.0, 0.0])[:, None]))
    assert torch.equal(result.scores[0], COND[0].log_softmax(-1))
    assert torch.equal(result.scores[2], UNCOND[2].log_softmax(-1))
    result, _ = step([lg.CFG((1.0, 2.0, 0.0), schedule=lg.Linear())])
    same(result.scores, mix((1.0 + (torch.tensor([1.0, 2.0, 0.0]) - 1.0) * 0.25)[:, None]))


def test_gate_and_schedule_together() -> None:
    threshold = float(ENTROPIES.median())
    result, _ = step([lg.SelectiveCFG(3.0, entropy_threshold=threshold, schedule=lg.Linear())])
    same(result.scores, torch.where(ENTROPIES.gt(threshold)[:, None], mix(1.5), COND))


def test_scheduled_is_exact_at_full_weight() -> None:
    strength = 0.1
    assert scheduled(strength, 1.0, 1.0) == strength
    assert 1.0 + (strength - 1.0) * 1.0 != strength, "the plain formula would have rounded"
    assert scheduled(3.0, 1.0, 0.0) == 1.0
    assert torch.equal(torch.as_tensor(scheduled(torch.tensor([1.0, 3.0]), 1.0, 0.5)), torch.tensor([1.0, 2.0]))


def test_no_method_is_the_conditional() -> None:
    result, asked = step([])
    assert asked == []
    assert torch.equal(result.scores, COND.log_softmax(-1))
    assert not result.open.any()


def test_rows_do_not_know_of_each_other() -> None:
    methods = [lg.SelectiveCFG(2.0, entropy_threshold=float(ENTROPIES.median())), lg.APG(3.0)]
    whole, _ = step(methods)
    for row in range(ROWS):
        fetch = Fetch([{"uncond": UNCOND[row : row + 1]}] * 2)
        alone = guided_step(COND[row : row + 1], methods, [2.0, 3.0], fetch, MIDDLE)
        torch.testing.assert_close(alone.scores[0], whole.scores[row], atol=1e-6, rtol=1e-5)
        assert bool(alone.open[0]) == bool(whole.open[row])


# Rewards: added after all rules, one after the other.

REWARD, BONUS = torch.randn(2, ROWS, VOCAB, generator=torch.Generator().manual_seed(4))


def a_reward(scale: Any = 1.0, **more: Any) -> ClassifierGuidance:
    return ClassifierGuidance("some/classifier", 0, scale, **more)


def rewarded(
    methods: Sequence[lg.Guidance], progress: Progress = MIDDLE, log_rewards: Sequence[Tensor] = (REWARD, BONUS)
) -> tuple[Guided, list[int], list[tuple[int, Tensor]]]:
    """A step; the methods whose sources were fetched; the rewards that were asked for, and what they are added to."""
    fetch, asked = Fetch([{"uncond": UNCOND}] * len(methods)), []
    rewards = iter(log_rewards)

    def give(index: int, scores: Tensor) -> Mapping[str, Tensor]:
        asked.append((index, scores))
        return {"reward": next(rewards)}

    strengths = [method.strength(ROWS) for method in methods]
    result = guided_step(COND, methods, strengths, fetch, progress, rewards=give)
    return result, fetch.asked, asked


def test_a_reward_alone_is_the_conditional_plus_its_share() -> None:
    result, fetched, asked = rewarded([a_reward(1.5)])
    same(result.scores, COND + 1.5 * REWARD)
    assert result.open.tolist() == [True] * ROWS
    assert fetched == []
    assert [index for index, _ in asked] == [0]
    assert torch.equal(asked[0][1], COND)


def test_rewards_come_after_rules_in_whatever_order() -> None:
    rules, reward = [lg.CFG(2.0), lg.CFG(0.5)], a_reward(1.5)
    guided = COND + (mix(2.0) - COND) + (mix(0.5) - COND)
    for place in range(3):
        methods = [*rules[:place], reward, *rules[place:]]
        result, fetched, asked = rewarded(methods)
        same(result.scores, guided + 1.5 * REWARD)
        assert fetched == [index for index, method in enumerate(methods) if method is not reward]
        ((index, scores),) = asked
        assert index == place
        torch.testing.assert_close(scores, guided, atol=1e-6, rtol=1e-5)


def test_a_rule_that_is_not_linear_sees_no_reward() -> None:
    """What a rule cuts is cut by the conditional alone, and a reward does not bring it back."""
    cut = lg.Contrastive("x", 0.5, plausibility=0.8)
    fetch = Fetch([{"amateur": UNCOND}, {"amateur": UNCOND}])
    methods = [a_reward(50.0), cut]
    result = guided_step(COND, methods, [50.0, 0.5], fetch, MIDDLE, rewards=lambda index, scores: {"reward": REWARD})
    kept = COND.ge(COND.amax(-1, keepdim=True) + torch.tensor(0.8).log())
    assert torch.equal(result.scores > -torch.inf, kept)
    same(result.scores, cut.combine(COND, {"amateur": UNCOND}, 0.5) + 50 * REWARD)


def test_several_rewards_add() -> None:
    result, _, asked = rewarded([a_reward(1.5), lg.CFG(2.0), a_reward(0.5)])
    same(result.scores, mix(2.0) + 1.5 * REWARD + 0.5 * BONUS)
    assert [index for index, _ in asked] == [0, 2]
    torch.testing.assert_close(asked[1][1], asked[0][1] + 1.5 * REWARD)


def test_a_reward_excludes_tokens() -> None:
    first, second = REWARD.clone(), BONUS.clone()
    first[:, 2] = second[0, 4] = -torch.inf
    for methods in ([a_reward(), a_reward(2.0)], [a_reward(), lg.CFG(2.0), a_reward(2.0)]):
        result, _, _ = rewarded(methods, log_rewards=(first, second))
        gone = torch.zeros(ROWS, VOCAB, dtype=torch.bool)
        gone[:, 2] = gone[0, 4] = True
        assert torch.equal(torch.isneginf(result.scores), gone)
        torch.testing.assert_close(result.scores.logsumexp(-1), torch.zeros(ROWS), atol=1e-6, rtol=0)


def test_a_reward_of_strength_0_is_off() -> None:
    cut = REWARD.masked_fill(REWARD < 0, -torch.inf)
    for methods, plain in (([a_reward(0.0)], []), ([lg.CFG(2.0), a_reward(0.0)], [lg.CFG(2.0)])):
        result, _, _ = rewarded(methods, log_rewards=(cut,))
        assert torch.equal(result.scores, step(plain)[0].scores)
        assert not methods[-1].enabled
    result, _, _ = rewarded([a_reward((0.0, 1.0, -0.5))])
    same(result.scores, COND + torch.tensor([0.0, 1.0, -0.5])[:, None] * REWARD)
    assert torch.equal(result.scores[0], COND[0].log_softmax(-1))


def test_gates_and_schedules_of_rewards() -> None:
    threshold = float(ENTROPIES.median())
    opened = ENTROPIES.gt(threshold)
    result, _, asked = rewarded([a_reward(3.0, gate=lg.Entropy(threshold), schedule=lg.Linear())])
    same(result.scores, torch.where(opened[:, None], COND + 0.75 * REWARD, COND))
    assert torch.equal(result.open, opened)
    assert torch.equal(result.scores[~opened], COND[~opened].log_softmax(-1))
    assert len(asked) == 1
    for method in (a_reward(gate=lg.Entropy(99.0)), a_reward(schedule=lg.Window(3)), a_reward(gate=lg.Period(9))):
        result, _, asked = rewarded([lg.CFG(2.0), method])
        assert asked == [], method
        assert torch.equal(result.scores, step([lg.CFG(2.0)])[0].scores)
    # the gate of a reward looks at the conditional, not at what the rules have made of it
    result, _, _ = rewarded([lg.CFG(9.0), a_reward(1.5, gate=lg.Entropy(threshold))])
    same(result.scores, mix(9.0) + torch.where(opened[:, None], 1.5 * REWARD, 0.0))


def allow(*tokens: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Which tokens are allowed, and the constraint that says so."""
    mask = torch.zeros(VOCAB, dtype=torch.bool)
    mask[list(tokens)] = True
    return mask, lambda scores: scores.masked_fill(~mask, -torch.inf)


def test_a_constraint_conditions_the_guided_law() -> None:
    mask, constrain = allow(1, 4, 5)
    methods = [lg.CFG(2.0)]
    free = guided_step(COND, methods, [2.0], Fetch([{"uncond": UNCOND}]), MIDDLE).scores
    held = guided_step(COND, methods, [2.0], Fetch([{"uncond": UNCOND}]), MIDDLE, constrain=constrain).scores
    expected = free.exp() * mask
    torch.testing.assert_close(held.exp(), expected / expected.sum(-1, keepdim=True))


def test_a_constraint_does_not_move_a_gate() -> None:
    _, constrain = allow(1, 4)
    method = lg.SelectiveCFG(2.0, entropy_threshold=1.0)
    free = guided_step(COND, [method], [2.0], Fetch([{"uncond": UNCOND}]), MIDDLE)
    held = guided_step(COND, [method], [2.0], Fetch([{"uncond": UNCOND}]), MIDDLE, constrain=constrain)
    assert free.open.tolist() == held.open.tolist()


def test_a_method_that_cuts_chooses_among_the_allowed() -> None:
    """The likeliest tokens of the expert are not allowed; without the constraint's word the cut would leave none."""
    worst = COND.argsort(-1)[:, :2]
    mask = torch.zeros(ROWS, VOCAB, dtype=torch.bool).scatter_(1, worst, True)
    method = lg.Contrastive("some/amateur", beta=0.5, plausibility=0.9)
    held = guided_step(
        COND,
        [method],
        [0.5],
        Fetch([{"amateur": OTHER}]),
        MIDDLE,
        constrain=lambda scores: scores.masked_fill(~mask, -torch.inf),
    ).scores
    assert bool(held.isfinite().any(-1).all())
    assert not bool((held.isfinite() & ~mask).any())
