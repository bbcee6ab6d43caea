"""Likelihood scores: against plain loops over masks, and what must not change them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf

import lmguide as lg
from lmguide.denoisers import Denoiser
from lmguide.diffusion.generate import generate
from lmguide.diffusion.likelihood import Likelihood, loglikelihood
from lmguide.diffusion.masking import mask_plan
from lmguide.guidance.rewards import ClassifierGuidance, RewardedSamples
from tests.denoisers.models import MASK, VOCAB, denoiser_of, model_of
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(4, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


CONTEXTS = [ids(5, 1), ids(5, 1), ids(3, 2), ids(7, 3)]
TARGETS = [ids(9, 11), ids(9, 12), ids(9, 13), ids(10, 14)]
LLADA = denoiser_of("llada")


def score(
    contexts: Sequence[Any] = CONTEXTS, targets: Sequence[Any] = TARGETS, model: Any = LLADA, **options: Any
) -> Likelihood:
    return loglikelihood(model, contexts, targets, **{"samples": 6, "batch_size": 5} | options)


def same(found: Likelihood, expected: Likelihood) -> None:
    torch.testing.assert_close(found.score, expected.score, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.standard_error, expected.standard_error, atol=1e-4, rtol=1e-4, equal_nan=True)


def log_probs(canvas: list[int], denoiser: Denoiser = LLADA) -> Tensor:
    """The model's laws `[L, V]` on one canvas."""
    with torch.no_grad():
        return denoiser(torch.tensor([canvas]))[0].float().log_softmax(-1)


def plain(context: list[int], target: list[int], guided: Callable[[list[int], int], Tensor], samples: int = 6) -> float:
    """The score of one target, mask by mask and token by token; `guided(canvas, column)` is a law."""
    plan, total = mask_plan(len(target), samples), 0.0
    for mask in plan.masks.tolist():
        canvas = context + [MASK if hidden else token for hidden, token in zip(mask, target, strict=True)]
        hidden_places = [place for place, hidden in enumerate(mask) if hidden]
        sums = sum(float(guided(canvas, len(context) + place)[target[place]]) for place in hidden_places)
        total += len(target) / len(hidden_places) * sums / len(plan.masks)
    return total


def unguided(canvas: list[int], column: int) -> Tensor:
    return log_probs(canvas)[column]


@pytest.mark.parametrize("name", ["llada", "dream", "masked_lm", "bidirectional", "mdlm"])
def test_it_is_the_plain_loop(name: str) -> None:
    """Batches, paddings and shifts do not show."""
    denoiser = denoiser_of(name)
    found = score(model=denoiser)
    for number, (context, target) in enumerate(zip(CONTEXTS, TARGETS, strict=True)):
        expected = plain(context, target, lambda canvas, column: log_probs(canvas, denoiser)[column])
        assert float(found.score[number]) == pytest.approx(expected, rel=1e-4)
    assert found.is_bound
    assert found.nfe.tolist() == [6] * 4
    assert found.greedy is None


def test_short_targets_are_scored_on_every_mask() -> None:
    context, target = CONTEXTS[0], TARGETS[0][:4]
    total = 0.0
    for count in range(1, 5):
        for hidden in itertools.combinations(range(4), count):
            canvas = context + [MASK if place in hidden else token for place, token in enumerate(target)]
            laws = log_probs(canvas)
            sums = sum(float(laws[5 + place, target[place]]) for place in hidden)
            total += 4 / count * sums / math.comb(4, count) / 4
    for seed in (0, 1):
        found = score([context], [target], samples=15, seed=seed)
        assert float(found.score) == pytest.approx(total, rel=1e-5)
        assert (float(found.standard_error), int(found.nfe)) == (0.0, 15)
    assert float(score([context], [target], samples=14).standard_error) > 0


@pytest.mark.parametrize("samples", [1, 128])
def test_one_token_is_one_exact_pass(samples: int) -> None:
    context, token = CONTEXTS[0], TARGETS[0][0]
    exact = float(log_probs([*context, MASK])[-1, token])
    for seed in (0, 1):
        found = score([context, context], [[token], [token]], samples=samples, seed=seed)
        assert found.score.tolist() == pytest.approx([exact, exact], rel=1e-6)
        assert found.nfe.tolist() == [1, 1]
        assert found.standard_error.tolist() == [0.0, 0.0]


def test_batches_and_order_change_nothing() -> None:
    whole = score()
    for batch_size in (1, 2, 64):
        same(score(batch_size=batch_size), whole)
    turned = score(CONTEXTS[::-1], TARGETS[::-1])
    torch.testing.assert_close(turned.score.flip(0), whole.score, atol=1e-4, rtol=1e-5)
    alone = score(CONTEXTS[2:3], TARGETS[2:3])
    torch.testing.assert_close(alone.score, whole.score[2:3], atol=1e-4, rtol=1e-5)
    tensors = score([torch.tensor(row) for row in CONTEXTS], [torch.tensor(row) for row in TARGETS])
    assert torch.equal(tensors.score, whole.score)


def test_a_model_becomes_a_denoiser() -> None:
    config = tf.BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.mask_token_id = MASK
    model = tf.BertForMaskedLM(config).eval()
    assert torch.equal(score(model=model).score, score(model=Denoiser(model, mask_token_id=MASK)).score)
    with refused("model", "training"):
        score(model=model.train())


def test_seeds() -> None:
    state = torch.get_rng_state()
    first, again, other = score(seed=1), score(seed=1), score(seed=2)
    assert torch.equal(first.score, again.score)
    assert not torch.equal(first.score, other.score)
    assert torch.equal(torch.get_rng_state(), state)


def test_common_masks_make_differences_surer() -> None:
    """Two answers that differ in one token: the difference varies less than with masks of their own."""
    context, target = CONTEXTS[0], TARGETS[0]
    other = [*target[:4], TARGETS[1][4], *target[5:]]
    scores = torch.stack(
        [score([context, context], [target, other], seed=seed, batch_size=64).score for seed in range(40)]
    )
    together = (scores[:, 0] - scores[:, 1]).var()
    apart = (scores[:, 0] - scores[:, 1].roll(1)).var()
    assert together < 0.5 * apart


def test_antithetic_pairs_estimate_the_same() -> None:
    exact = score([CONTEXTS[0]], [TARGETS[0][:6]], samples=63)
    many = score([CONTEXTS[0]] * 2, [TARGETS[0][:6]] * 2, samples=41, antithetic=True, batch_size=64)
    assert many.nfe.tolist() == [41, 41]
    assert abs(float(many.score[0] - exact.score)) < 4 * float(many.standard_error[0])
    assert float(many.standard_error[0]) > 0


def test_off_is_unguided_bit_for_bit() -> None:
    bare = score()
    for method in (lg.CFG(1.0), lg.AdaptiveCFG(1.0), ClassifierGuidance("no/such", 1, 0.0)):
        found = score(guidance=method)
        assert torch.equal(found.score, bare.score)
        assert torch.equal(found.standard_error, bare.standard_error)
        assert torch.equal(found.nfe, bare.nfe)
        assert found.is_bound


def test_guidance_with_the_prompt_masked_is_the_plain_loop() -> None:
    found = score(guidance=lg.CFG(2.0))
    for number, (context, target) in enumerate(zip(CONTEXTS, TARGETS, strict=True)):

        def guided(canvas: list[int], column: int, given: int = len(context)) -> Tensor:
            cond, uncond = log_probs(canvas)[column], log_probs([MASK] * given + canvas[given:])[column]
            return (uncond + 2.0 * (cond - uncond)).log_softmax(-1)

        assert float(found.score[number]) == pytest.approx(plain(context, target, guided), rel=1e-4)
    assert found.nfe.tolist() == [12] * 4
    assert not found.is_bound
    same(score(guidance="cfg:guidance_scale=2"), found)
    same(score(guidance=lg.CFG(2.0, tuple(ids(2, 5))), batch_size=64), score(guidance=lg.CFG(2.0, tuple(ids(2, 5)))))


def test_adaptive_guidance_masks_again_among_context_and_revealed_target() -> None:
    found = score(CONTEXTS[2:3], TARGETS[2:3], guidance=lg.AdaptiveCFG(2.5, remask_ratio=0.5))
    seen: set[int] = set()

    def guided(canvas: list[int], column: int) -> Tensor:
        laws = log_probs(canvas)
        stands = [place for place, token in enumerate(canvas) if token != MASK]
        stands.sort(key=lambda place: float(laws[place].max()))
        unsure = stands[: math.ceil(0.5 * len(stands))]
        seen.update(unsure)
        again = [MASK if place in unsure else token for place, token in enumerate(canvas)]
        uncond = log_probs(again)[column]
        return (uncond + 2.5 * (laws[column] - uncond)).log_softmax(-1)

    assert float(found.score) == pytest.approx(plain(CONTEXTS[2], TARGETS[2], guided), rel=1e-4)
    assert min(seen) < len(CONTEXTS[2]) <= max(seen), "context and target were both masked again"
    assert found.nfe.tolist() == [12]


def test_progress_is_the_share_of_the_target_that_stands() -> None:
    found = score(CONTEXTS[:1], TARGETS[:1], guidance=lg.CFG(3.0, schedule=lg.Linear(0.25, 1.0)))

    def guided(canvas: list[int], column: int) -> Tensor:
        answer = canvas[5:]
        stands = sum(token != MASK for token in answer) / len(answer)
        cond, uncond = log_probs(canvas)[column], log_probs([MASK] * 5 + answer)[column]
        strength = 1.0 + 2.0 * (0.25 + 0.75 * stands)
        return (uncond + strength * (cond - uncond)).log_softmax(-1)

    assert float(found.score) == pytest.approx(plain(CONTEXTS[0], TARGETS[0], guided), rel=1e-4)
    method = lg.CFG(3.0, schedule=lg.Linear(0.25, 1.0))
    same(score(guidance=method, batch_size=64), score(guidance=method, batch_size=1))
    gated = score(CONTEXTS[:1], TARGETS[:1], guidance=lg.CFG(3.0, gate=lg.Interval(0, 1)), samples=9)
    assert gated.nfe.tolist() == [9 + 1], "guided where nothing stands yet, once in nine, and nowhere else"


def test_a_classifier_guides_a_score() -> None:
    weight = torch.randn(14, VOCAB, generator=torch.Generator().manual_seed(3))

    class Linear:
        embedding = torch.eye(VOCAB)

        def log_prob(self, embeds: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
            return (embeds * weight).sum((1, 2))

    found = score(CONTEXTS[:1], TARGETS[:1], guidance=ClassifierGuidance(Linear(), 0, 1.5))

    def guided(canvas: list[int], column: int) -> Tensor:
        change = weight[column] - weight[column, canvas[column]]
        return (log_probs(canvas)[column] + 1.5 * change).log_softmax(-1)

    assert float(found.score) == pytest.approx(plain(CONTEXTS[0], TARGETS[0], guided), rel=1e-4)
    assert not found.is_bound


@pytest.mark.parametrize("guidance", [None, lg.CFG(2.0)])
def test_greedy_is_what_low_confidence_decoding_writes(guidance: Any) -> None:
    prompts = torch.tensor([CONTEXTS[0], CONTEXTS[3][:5]])
    output = generate(LLADA, prompts, max_new_tokens=5, steps=5, guidance=guidance, eos_token_id=())
    written = output.sequences[:, 5:].tolist()
    wrong = [*written[0][:-1], (written[0][-1] - 4 + 1) % (VOCAB - 4) + 4]
    contexts = [CONTEXTS[0], CONTEXTS[3][:5], CONTEXTS[0], CONTEXTS[0]]
    targets = [*written, wrong, [written[0][0]]]
    found = score(contexts, targets, guidance=guidance, greedy=True, batch_size=64)
    assert found.greedy is not None
    first = generate(LLADA, prompts[:1], max_new_tokens=1, guidance=guidance, eos_token_id=())
    assert found.greedy.tolist() == [True, True, False, bool(first.sequences[0, -1] == written[0][0])]
    passes = 2 if guidance else 1
    assert found.nfe.tolist() == [passes * (6 + 5)] * 3 + [passes * 2]
    torch.testing.assert_close(found.score, score(contexts, targets, guidance=guidance).score, atol=1e-4, rtol=1e-5)


def test_a_token_cut_by_guidance_scores_minus_infinity() -> None:
    cut = lg.Contrastive(model_of("llada"), plausibility=1.0)
    found = score(CONTEXTS[:1], TARGETS[:1], guidance=cut)
    assert found.score.tolist() == [-math.inf]
    assert found.standard_error.isnan().all()


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no batch": ({"batch_size": 0}, "batch_size", "got 0"),
    "no samples": ({"samples": 0}, "samples", "got 0"),
    "fewer targets": ({"targets": TARGETS[:3]}, "targets", "got 3"),
    "an empty target": ({"targets": [*TARGETS[:3], []]}, "targets", "at least one"),
    "an empty context": ({"contexts": [*CONTEXTS[:3], []]}, "contexts", "beginning-of-sequence"),
    "text": ({"targets": ["a", "b", "c", "d"]}, "targets", "Tokenise"),
    "numbers": ({"contexts": [[0.5]] * 4}, "contexts", "token ids"),
    "ids too large": ({"targets": [*TARGETS[:3], [VOCAB]]}, "targets", str(VOCAB)),
    "ids below 0": ({"contexts": [*CONTEXTS[:3], [-1]]}, "contexts", "-1"),
    "a mask token": ({"targets": [*TARGETS[:3], [MASK]]}, "targets", "mask token"),
    "uniform noise": ({"model": denoiser_of("uniform")}, "model", "mask token"),
    "blocks": ({"model": denoiser_of("blocks")}, "model", "full attention"),
    "strengths per prompt": ({"guidance": lg.CFG((2.0,) * 4)}, "guidance_scale", "per prompt"),
    "texts per prompt": ({"guidance": lg.CFG(2.0, ("a", "b"))}, "negative_prompt", "per prompt"),
    "ids per prompt": ({"guidance": lg.CFG(2.0, ((4, 5), (6,)))}, "negative_prompt", "per prompt"),
    "labels per prompt": ({"guidance": ClassifierGuidance("c", (1, 0))}, "label", "per prompt"),
    "samples of a reward": ({"guidance": RewardedSamples("m:f")}, "guidance", "RewardedSamples"),
    "confidences of a step before": (
        {"guidance": lg.AdaptiveCFG(2.0, confidences="previous")},
        "confidences",
        "'current'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_has_no_score_is_refused(case: str) -> None:
    options, argument, said = BAD[case]
    with refused(argument, said):
        score(**options)


def test_nothing_is_scored_for_nothing() -> None:
    found = score([], [])
    assert found.score.shape == found.nfe.shape == (0,)


def test_the_result_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        score(CONTEXTS[:1], [[5]]).score = torch.zeros(1)  # type: ignore[misc]
