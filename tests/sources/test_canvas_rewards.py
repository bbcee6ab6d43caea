"""Rewards of clean samples: against a tilted law that can be enumerated, and written out."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide.contexts import SampledCanvases
from lmguide.sources.canvas_rewards import bind_reward
from tests.refusals import refused
from tests.sources.canvases import MASK, canvas_of, everywhere, guided, no_law

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmguide.sources.canvas import Canvas


SMALL = 8
LOGITS = torch.randn(2, 4, SMALL, generator=torch.Generator().manual_seed(0)) * 1.5
LOGITS[..., MASK] = -torch.inf


def law_of(rows: Tensor, columns: Tensor) -> Tensor:
    """A law for each place of the two rows, by its distance from the right end."""
    return LOGITS[rows, columns].log_softmax(-1)


TASTE = torch.randn(SMALL, SMALL, generator=torch.Generator().manual_seed(1))


def taste(ids: Tensor) -> Tensor:
    """A reward that joins the two undecided places."""
    return TASTE[ids[:, 1], ids[:, 3]] + 0.5 * TASTE[ids[:, 0], ids[:, 1]]


def shifted(rows: Tensor, columns: Tensor, rows_by: int = 0, columns_by: int = 0) -> Tensor:
    """The law of another place."""
    return law_of(rows + rows_by, columns + columns_by)


PAIR = canvas_of([[5, MASK, 7, MASK], [6, MASK, 2, MASK]])
OPEN = PAIR.undecided.nonzero().unbind(1)


def tilted(row: int, temperature: float) -> Tensor:
    """Marginals `[2, V]` of `p(x) exp(reward(x) / temperature) / Z` by enumeration."""
    joint = torch.zeros(SMALL, SMALL)
    for first, second in itertools.product(range(SMALL), repeat=2):
        ids = PAIR.ids[row].clone()
        ids[1], ids[3] = first, second
        log_prob = LOGITS[row, 1].log_softmax(-1)[first] + LOGITS[row, 3].log_softmax(-1)[second]
        joint[first, second] = (log_prob + taste(ids[None])[0] / temperature).exp()
    joint /= joint.sum()
    return torch.stack([joint.sum(1), joint.sum(0)])


def sampled(context: SampledCanvases, canvas: Canvas = PAIR, **more: Any) -> Tensor:
    """The law at the undecided places after the reward at strength 1, `[n, V]`."""
    reward = bind_reward(context, guided(SMALL))
    reward.prepare(canvas, law_of, **more)
    rows, columns = canvas.undecided.nonzero().unbind(1)
    scores = law_of(rows, columns)
    return (scores + reward.log_rewards(rows, columns, scores)).exp()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_mixture_goes_to_the_tilted_law(temperature: float) -> None:
    count = 40_000
    found = sampled(SampledCanvases(taste, count, temperature, seed=3)).view(2, 2, SMALL)
    for row in range(2):
        exact = tilted(row, temperature)
        # four standard errors of a weighted share, whose weights are at most e^(range / temperature) uneven
        weights = torch.softmax(TASTE.flatten() / temperature, 0) * SMALL**2
        error = 4 * (exact * (1 - exact) / count * weights.max()).sqrt()
        assert ((found[row] - exact).abs() <= error + 1e-6).all()
        untilted = LOGITS[row, [1, 3]].softmax(-1)
        assert (untilted - exact).abs().max() > 3 * error.max(), "the reward must matter"


def test_without_a_reward_the_mixture_is_the_share_of_the_samples() -> None:
    found = sampled(SampledCanvases(lambda ids: torch.zeros(len(ids)), 5))
    torch.testing.assert_close(found.sum(-1), torch.ones(4))
    shares = found * 5
    torch.testing.assert_close(shares, shares.round(), atol=1e-5, rtol=0)


def test_the_mixture_is_the_weighted_share_written_out() -> None:
    seen: list[Tensor] = []

    def reward(ids: Tensor) -> Tensor:
        seen.append(ids)
        return taste(ids)

    found = sampled(SampledCanvases(reward, 6, 0.5))
    (clean,) = seen
    assert clean.shape == (12, 4)
    weights = (taste(clean).view(2, 6) / 0.5).softmax(1)
    plain = torch.zeros(4, SMALL)
    for place, (row, column) in enumerate(zip(*OPEN, strict=True)):
        for sample in range(6):
            plain[place, clean.view(2, 6, 4)[row, sample, column]] += weights[row, sample]
    torch.testing.assert_close(found, plain)
    stands = ~PAIR.undecided
    for row, ids in enumerate(clean.view(2, 6, 4)):
        assert (ids[:, stands[row]] == PAIR.ids[row, stands[row]]).all()
    assert not clean.eq(MASK).any()


def noise_of(seed: int, batch: int, columns: int) -> Callable[[str], Tensor]:
    """A loop's noise: another for every stream."""
    streams: dict[str, Tensor] = {}

    def uniform(stream: str) -> Tensor:
        generator = torch.Generator().manual_seed(seed + 1000 * len(streams))
        return streams.setdefault(stream, torch.rand(batch, columns, generator=generator))

    return uniform


def test_a_pick_is_one_sample_drawn_by_its_weight() -> None:
    batch = 4000
    canvas = canvas_of([[5, MASK, 7, MASK]] * batch)
    seen: list[Tensor] = []

    def reward(ids: Tensor) -> Tensor:
        seen.append(ids)
        return torch.arange(3.0).repeat(batch)  # by the number of the sample

    bound = bind_reward(SampledCanvases(reward, 3, 1.0, "pick"), guided(SMALL))

    def law(rows: Tensor, columns: Tensor) -> Tensor:
        return LOGITS[0, columns].log_softmax(-1)

    bound.prepare(canvas, law, uniform=noise_of(0, batch, 4))
    rows, columns = canvas.undecided.nonzero().unbind(1)
    scores = law(rows, columns)
    result = (scores + bound.log_rewards(rows, columns, scores)).exp().view(batch, 2, SMALL)
    torch.testing.assert_close(result.amax(-1), torch.ones(batch, 2))  # a point
    clean = seen[0].view(batch, 3, 4)[..., [1, 3]]
    taken = (clean == result.argmax(-1)[:, None]).all(-1)
    assert taken.any(1).all(), "both places come from the same sample"
    told_apart = (clean[:, :1] != clean[:, 1:]).any(-1).all(1) & (clean[:, 1] != clean[:, 2]).any(-1)
    shares = taken[told_apart].float().mean(0)
    expected = torch.arange(3.0).softmax(0)
    error = 4 * (expected * (1 - expected) / int(told_apart.sum())).sqrt()
    assert ((shares - expected).abs() < error).all()
    assert (expected - 1 / 3).abs().max() > 3 * error.max()


def test_the_law_of_the_samples_is_the_law_they_were_drawn_from() -> None:
    batch = 4000
    canvas = canvas_of([[5, MASK, 7, MASK]] * batch)
    seen: list[Tensor] = []

    def reward(ids: Tensor) -> Tensor:
        seen.append(ids)
        return torch.zeros(len(ids))

    bound = bind_reward(SampledCanvases(reward, 2), guided(SMALL))
    bound.prepare(canvas, lambda rows, columns: LOGITS[0, columns].log_softmax(-1), uniform=noise_of(0, batch, 4))
    joint = torch.zeros(SMALL, SMALL)
    joint.index_put_((seen[0][:, 1], seen[0][:, 3]), torch.tensor(1 / (2 * batch)), accumulate=True)
    exact = LOGITS[0, 1].softmax(-1)[:, None] * LOGITS[0, 3].softmax(-1)
    assert ((joint - exact).abs() <= 4 * (exact * (1 - exact) / (2 * batch)).sqrt() + 1e-6).all()


def test_seeds_steps_and_torchs_own_generator() -> None:
    context = SampledCanvases(taste, 4, seed=1)
    state = torch.get_rng_state()
    first = sampled(context)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(sampled(context), first)
    assert not torch.equal(sampled(SampledCanvases(taste, 4, seed=2)), first)
    reward = bind_reward(context, guided(SMALL))
    laws = []
    for _ in range(2):
        reward.prepare(PAIR, law_of)
        laws.append(reward.log_rewards(OPEN[0], OPEN[1], law_of(OPEN[0], OPEN[1])))
    assert not torch.equal(*laws), "each step draws anew"
    assert torch.equal(sampled(context, uniform=noise_of(0, 2, 4)), sampled(context, uniform=noise_of(0, 2, 4)))


def test_rows_and_padding_do_not_matter_to_samples() -> None:
    context = SampledCanvases(taste, 4, 0.5)
    both = sampled(context).view(2, 2, SMALL)
    for row in range(2):
        alone = canvas_of([PAIR.ids[row].tolist()])
        reward = bind_reward(context, guided(SMALL))
        reward.prepare(alone, partial(shifted, rows_by=row))
        places = alone.undecided.nonzero().unbind(1)
        scores = law_of(places[0] + row, places[1])
        torch.testing.assert_close((scores + reward.log_rewards(places[0], places[1], scores)).exp(), both[row])

    def from_the_right(ids: Tensor, attention_mask: Tensor) -> Tensor:
        assert (ids[attention_mask == 0] == 0).all()
        assert attention_mask.sum(1).eq(4).all()
        return taste(ids[:, -4:])

    for gap in (0, 3):
        padded = canvas_of([PAIR.ids[0].tolist()], [gap])
        reward = bind_reward(SampledCanvases(from_the_right, 4, 0.5), guided(SMALL))
        reward.prepare(padded, partial(shifted, columns_by=-gap))
        rows, columns = padded.undecided.nonzero().unbind(1)
        scores = law_of(rows, columns - gap)
        torch.testing.assert_close((scores + reward.log_rewards(rows, columns, scores)).exp(), both[0])


def test_places_that_stand_are_left_alone() -> None:
    reward = bind_reward(SampledCanvases(taste, 4), guided(SMALL))
    reward.prepare(PAIR, law_of)
    rows, columns = everywhere(PAIR)
    found = reward.log_rewards(rows, columns, torch.zeros(8, SMALL))
    stands = ~PAIR.undecided[rows, columns]
    assert torch.equal(found[stands], torch.zeros(4, SMALL))
    assert (found[~stands] == -torch.inf).any(1).all()
    done = canvas_of([[5, 6, 7, 2]])
    reward.prepare(done, no_law)
    zeros = torch.zeros(4, dtype=torch.long)
    assert torch.equal(reward.log_rewards(zeros, torch.arange(4), torch.zeros(4, SMALL)), torch.zeros(4, SMALL))


def test_the_law_is_asked_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sampled(SampledCanvases(taste, 4))
    monkeypatch.setattr("lmguide.sources.canvas_rewards.CHUNK", {"cpu": 3 * SMALL})
    asked: list[int] = []

    def law(rows: Tensor, columns: Tensor) -> Tensor:
        asked.append(len(rows))
        return law_of(rows, columns)

    reward = bind_reward(SampledCanvases(taste, 4), guided(SMALL))
    reward.prepare(PAIR, law)
    assert asked == [3, 1]
    scores = law_of(OPEN[0], OPEN[1])
    assert torch.equal((scores + reward.log_rewards(OPEN[0], OPEN[1], scores)).exp(), whole)


def test_impossible_texts_are_left_out_unless_all_are() -> None:
    def never(ids: Tensor) -> Tensor:
        return torch.full((len(ids),), -torch.inf)

    assert torch.equal(sampled(SampledCanvases(never, 4)), sampled(SampledCanvases(lambda ids: ids[:, 0] * 0.0, 4)))
    kept = int(LOGITS[0, 1].argmax())

    def only(ids: Tensor) -> Tensor:
        return torch.where(ids[:, 1] == kept, 0.0, -torch.inf)

    found = sampled(SampledCanvases(only, 64))
    torch.testing.assert_close(found[0, kept], torch.tensor(1.0))


def module_reward(ids: Tensor) -> Tensor:
    """Found by its name in the test below."""
    return taste(ids)


def test_a_reward_is_found_by_its_name() -> None:
    named = SampledCanvases("builtins:len", 2)
    with refused("reward", "one number per text", "int"):
        sampled(named)
    torch.manual_seed(0)
    assert bind_reward(SampledCanvases("torch.linalg:norm"), guided(SMALL))
    for path, said in (("no.such.module:f", "No module"), ("torch:no_such", "no_such"), ("torch:inf", "float")):
        with refused("reward", path, said):
            bind_reward(SampledCanvases(path), guided(SMALL))


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda ids: ids.float(), r"\[32, 4\]"),
        (lambda ids: torch.tensor(1.0), r"\[\]"),
        (lambda ids: torch.full((len(ids),), torch.nan), "NaN"),
        (lambda ids: torch.full((len(ids),), torch.inf), "NaN or infinity"),
    ],
)
def test_a_reward_that_scores_nothing_is_refused(reward: Any, said: str) -> None:
    with refused("reward", said):
        sampled(SampledCanvases(reward))
