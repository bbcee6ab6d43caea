"""Canvas processors in somebody else's loop: the same scores as the library's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lmguide as lg
from tests.denoisers.models import MASK, canvas_of, denoiser_of, left_padded

ANSWER, STEPS = 6, 3


def loop(denoiser: lg.diffusion.Denoiser, canvas: torch.Tensor, mask: torch.Tensor | None, guided: Any) -> torch.Tensor:
    """A plain denoising loop: the two most confident positions of each row at every step."""
    for step in range(STEPS):
        scores = guided(canvas, denoiser(canvas, mask), step)
        law = scores.float().log_softmax(-1)
        draw = law.clone()
        draw[..., MASK] = -torch.inf
        tokens = draw.argmax(-1)
        confidence = law.gather(-1, tokens[..., None])[..., 0].masked_fill(canvas != MASK, -torch.inf)
        places = confidence.topk(ANSWER // STEPS, -1).indices
        canvas = canvas.scatter(1, places, tokens.gather(1, places))
    return canvas


PROCESSORS: dict[str, tuple[Any, lg.Guidance]] = {
    "masked": (lambda d, **k: lg.MaskedCFGLogitsProcessor(d, 3.0, **k), lg.CFG(3.0)),
    "negative": (
        lambda d, **k: lg.MaskedCFGLogitsProcessor(d, 3.0, torch.tensor([[9, 10]]), **k),
        lg.CFG(3.0, negative_prompt=(9, 10)),
    ),
    "adaptive": (lambda d, **k: lg.AdaptiveCFGLogitsProcessor(d, 3.0, 0.5, **k), lg.AdaptiveCFG(3.0, 0.5)),
    "scheduled": (
        lambda d, **k: lg.CanvasLogitsProcessor(d, lg.CFG(3.0, schedule=lg.Window(0.5)), steps=STEPS, **k),
        lg.CFG(3.0, schedule=lg.Window(0.5)),
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_same_as_generate(name: str, family: str) -> None:
    denoiser = denoiser_of(family)
    make, method = PROCESSORS[name]
    canvas, mask = left_padded(canvas_of(2, 5, ANSWER), [0, 2])
    processor = make(denoiser, attention_mask=mask)
    options: dict[str, Any] = {"max_new_tokens": ANSWER, "steps": STEPS, "eos_token_id": ()}
    expected = lg.diffusion.generate(denoiser, canvas[:, :5], mask[:, :5], guidance=method, **options)
    unguided = lg.diffusion.generate(denoiser, canvas[:, :5], mask[:, :5], **options)
    assert not expected.sequences.equal(unguided.sequences)
    for _ in range(2):  # used again without a reset
        assert loop(denoiser, canvas, mask, processor).equal(expected.sequences)


def test_dreams_hook_hands_over_step_canvas_and_logits() -> None:
    denoiser = denoiser_of("dream")
    canvas = canvas_of(1, 5, ANSWER)
    processor, hook = (lg.MaskedCFGLogitsProcessor(denoiser, 2.0) for _ in range(2))
    logits = denoiser(canvas)
    assert hook.dream_hook()(0, canvas, logits).equal(processor(canvas, logits, 0))


def test_off_is_the_scores_themselves() -> None:
    denoiser = denoiser_of("llada")
    canvas = canvas_of(1, 5, ANSWER)
    scores = denoiser(canvas)
    assert lg.AdaptiveCFGLogitsProcessor(denoiser, 1.0)(canvas, scores) is scores


def test_a_canvas_with_another_prompt_is_a_new_call() -> None:
    denoiser = denoiser_of("llada")
    processor = lg.MaskedCFGLogitsProcessor(denoiser, 3.0)
    first, second = canvas_of(1, 5, ANSWER), canvas_of(1, 5, ANSWER, seed=1)
    loop(denoiser, first, None, processor)
    fresh = lg.MaskedCFGLogitsProcessor(denoiser, 3.0)
    assert loop(denoiser, second, None, processor).equal(loop(denoiser, second, None, fresh))
    assert processor.stats.steps == STEPS


def law_of(canvas: torch.Tensor) -> torch.Tensor:
    """What a fresh processor says of a canvas."""
    denoiser = denoiser_of("llada")
    return lg.MaskedCFGLogitsProcessor(denoiser, 3.0)(canvas, denoiser(canvas))


def masked_cfg() -> lg.CanvasLogitsProcessor:
    return lg.CanvasLogitsProcessor(denoiser_of("llada"), lg.CFG(3.0, schedule=lg.Linear(0.0, 1.0)), steps=9)


@pytest.mark.parametrize("step", [None, 0])
def test_a_longer_prompt_that_begins_alike_is_a_new_call(step: int | None) -> None:
    denoiser = denoiser_of("llada")

    long = canvas_of(1, 7, ANSWER - 2)
    short = long.clone()
    short[:, 5:] = MASK
    processor = lg.MaskedCFGLogitsProcessor(denoiser, 3.0)
    loop(denoiser, short, None, lambda canvas, scores, _: processor(canvas, scores))
    assert processor(long, denoiser(long), step).equal(law_of(long)), "all of the longer prompt is masked"
    assert processor.stats.steps == 1


def test_a_tensor_that_is_written_in_place() -> None:
    denoiser = denoiser_of("llada")

    canvas, second = canvas_of(1, 5, ANSWER), canvas_of(1, 5, ANSWER, seed=1)
    processor = lg.MaskedCFGLogitsProcessor(denoiser, 3.0)
    processor(canvas, denoiser(canvas))
    canvas[:, 7] = 9
    processor(canvas, denoiser(canvas))
    assert processor.stats.steps == 2, "a later canvas of the same call"
    canvas.copy_(second)
    assert processor(canvas, denoiser(canvas)).equal(law_of(second))
    assert processor.stats.steps == 1


@pytest.mark.parametrize("counted", [True, False])
def test_the_same_prompt_again_starts_the_schedule_again(counted: bool) -> None:
    denoiser, canvas = denoiser_of("llada"), canvas_of(2, 5, ANSWER)
    processor = masked_cfg()

    def guided(canvas: torch.Tensor, scores: torch.Tensor, step: int) -> torch.Tensor:
        found: torch.Tensor = processor(canvas, scores, step) if counted else processor(canvas, scores)
        return found

    first = loop(denoiser, canvas, None, guided)
    assert loop(denoiser, canvas, None, guided).equal(first)
    assert processor.stats.steps == STEPS


def test_masks_that_come_back_one_by_one_are_the_same_call() -> None:
    denoiser, canvas = denoiser_of("llada"), canvas_of(1, 5, ANSWER)
    processor = masked_cfg()
    for places in ([], [6, 8], [8], [8, 10]):  # a loop that masks a token again
        now = canvas.clone()
        now[:, places] = 9
        processor(now, denoiser(now))
    assert processor.stats.steps == 4
    counted = masked_cfg()
    for step, places in enumerate(([], [5], [])):  # even all of them, where the steps are told
        now = canvas.clone()
        now[:, places] = 9
        counted(now, denoiser(now), step)
    assert counted.stats.steps == 3


def test_a_canvas_without_masks_keeps_its_scores() -> None:
    denoiser = denoiser_of("llada")
    canvas = canvas_of(2, 9, 0)
    processor = lg.AdaptiveCFGLogitsProcessor(denoiser, 3.0)
    scores = denoiser(canvas)
    assert processor(canvas, scores).equal(scores.float().log_softmax(-1))
    assert processor.stats.steps == 0


def test_refused() -> None:
    with pytest.raises(ValueError, match="^model: expected one with a mask token"):
        lg.MaskedCFGLogitsProcessor(denoiser_of("udlm"))
    denoiser = denoiser_of("llada")
    canvas = canvas_of(1, 5, ANSWER)
    with pytest.raises(ValueError, match="^scores: expected"):
        lg.MaskedCFGLogitsProcessor(denoiser)(canvas, denoiser(canvas)[:, 5:])
    with pytest.raises(ValueError, match="^attention_mask: expected the canvas' shape"):
        lg.MaskedCFGLogitsProcessor(denoiser, attention_mask=torch.ones(1, 5))(canvas, denoiser(canvas))
