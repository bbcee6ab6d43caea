"""Guidance on a canvas, against loops without batches, caches or windows, written to be read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lmguide as lg
from lmguide.denoisers import Denoiser
from tests.denoisers.models import MASK, denoiser_of

Logits = torch.Tensor
Contrast = Callable[[torch.Tensor, Logits, int], Logits | None]
"""Canvas, conditional logits and step to the other source's logits; `None` is no guidance."""

ANSWER, STEPS = 8, 4


def prompts(denoiser: Denoiser, *lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded random prompts without the mask token."""
    generator = torch.Generator().manual_seed(1)
    width = max(lengths)
    ids = torch.randint(8, denoiser.vocab_size, (len(lengths), width), generator=generator)
    ids[ids == MASK] = 8
    mask = torch.stack([torch.arange(width) >= width - length for length in lengths]).long()
    return ids * mask, mask


def plain(denoiser: Denoiser, prompt: torch.Tensor, scale: float, contrast: Contrast) -> list[int]:
    """LLaDA's loop for one prompt `[P]`: the most confident positions first, at temperature 0."""
    canvas = torch.cat([prompt, torch.full((ANSWER,), MASK)])[None]
    for step in range(STEPS):
        cond = denoiser(canvas).float().log_softmax(-1)
        other = contrast(canvas, cond, step)
        law = cond
        if other is not None:
            uncond = other.float().log_softmax(-1)
            law = (uncond + scale * (cond - uncond)).log_softmax(-1)
        draw = law.clone()
        draw[..., MASK] = -torch.inf
        tokens = draw.argmax(-1)
        confidence = law.gather(-1, tokens[..., None])[0, :, 0]
        confidence[canvas[0] != MASK] = -torch.inf
        for place in confidence.topk(ANSWER // STEPS).indices.tolist():
            canvas[0, place] = tokens[0, place]
    return canvas[0, len(prompt) :].tolist()


def masked_prompt(denoiser: Denoiser, length: int) -> Contrast:
    def contrast(canvas: torch.Tensor, cond: Logits, step: int) -> Logits:
        other = canvas.clone()
        other[:, :length] = MASK
        return denoiser(other)

    return contrast


def other_prompt(denoiser: Denoiser, negative: list[int], length: int) -> Contrast:
    def contrast(canvas: torch.Tensor, cond: Logits, step: int) -> Logits:
        logits = denoiser(torch.cat([torch.tensor([negative]), canvas[:, length:]], 1))[:, len(negative) :]
        return torch.cat([torch.zeros(1, length, logits.shape[-1]), logits], 1)

    return contrast


def remasked(
    denoiser: Denoiser,
    length: int,
    ratio: float,
    candidates: str = "all",
    measure: str = "max_probability",
    lag: int = 0,
) -> Contrast:
    """Algorithm 1 of A-CFG, a position at a time."""
    seen: list[list[float]] = []

    def contrast(canvas: torch.Tensor, cond: Logits, step: int) -> Logits | None:
        law = cond[0].exp()
        entropy = -(law * law.log()).sum(-1)
        seen.append((law.max(-1).values if measure == "max_probability" else -entropy).tolist())
        if step - lag < 0:
            return None
        confidence = seen[step - lag]
        written = [place for place, token in enumerate(canvas[0].tolist()) if token != MASK]
        if candidates != "all":
            written = [place for place in written if (place < length) == (candidates == "prompt")]
        count = -(-len(written) * round(ratio * 100) // 100)
        other = canvas.clone()
        for place in sorted(written, key=lambda place: confidence[place])[:count]:
            other[0, place] = MASK
        return denoiser(other)

    return contrast


def test_references_differ_from_the_unguided_answer() -> None:
    """Otherwise the equalities below would say nothing."""
    denoiser = denoiser_of("llada")
    ids, _ = prompts(denoiser, 6)
    unguided = plain(denoiser, ids[0], 1.0, lambda *_: None)
    guided = [plain(denoiser, ids[0], 3.0, c) for c in (masked_prompt(denoiser, 6), remasked(denoiser, 6, 0.7))]
    assert len({tuple(answer) for answer in (unguided, *guided)}) == 3


NEGATIVES = {"shorter": [9, 10, 11], "longer": [9, 10, 11, 12, 13, 14, 15, 16, 17], "as long": [9, 10, 11, 12, 13, 14]}
METHODS: dict[str, tuple[lg.Guidance, Callable[[Denoiser, int], Contrast]]] = {
    "cfg": (lg.CFG(3.0), masked_prompt),
    "masked prompt": (lg.CFG(3.0, negative_prompt=lg.MaskedPrompt()), masked_prompt),
    **{
        f"negative {name}": (
            lg.CFG(3.0, negative_prompt=tuple(ids)),
            lambda denoiser, length, ids=ids: other_prompt(denoiser, ids, length),  # type: ignore[misc]
        )
        for name, ids in NEGATIVES.items()
    },
    "a-cfg": (lg.AdaptiveCFG(3.0), lambda d, n: remasked(d, n, 0.7)),
    "a-cfg small ratio": (lg.AdaptiveCFG(3.0, remask_ratio=0.3), lambda d, n: remasked(d, n, 0.3)),
    "a-cfg generated": (lg.AdaptiveCFG(3.0, candidates="generated"), lambda d, n: remasked(d, n, 0.7, "generated")),
    "a-cfg prompt": (lg.AdaptiveCFG(3.0, candidates="prompt"), lambda d, n: remasked(d, n, 0.7, "prompt")),
    "a-cfg entropy": (lg.AdaptiveCFG(3.0, confidence="entropy"), lambda d, n: remasked(d, n, 0.7, measure="entropy")),
    "a-cfg previous": (lg.AdaptiveCFG(3.0, confidences="previous"), lambda d, n: remasked(d, n, 0.7, lag=1)),
}


@pytest.mark.parametrize("family", ["llada", "dream", "bidirectional"])
@pytest.mark.parametrize("name", METHODS)
def test_every_row_of_a_ragged_batch_is_the_plain_loop_on_it_alone(name: str, family: str) -> None:
    denoiser = denoiser_of(family)
    method, contrast = METHODS[name]
    lengths = (6, 3)
    ids, mask = prompts(denoiser, *lengths)
    output = lg.diffusion.generate(
        denoiser, ids, mask, guidance=method, max_new_tokens=ANSWER, steps=STEPS, eos_token_id=()
    )
    for row, length in enumerate(lengths):
        alone = ids[row, -length:]
        assert output.sequences[row, -ANSWER:].tolist() == plain(denoiser, alone, 3.0, contrast(denoiser, length))
    assert output.sequences[:, :-ANSWER].equal(ids)


def generate(denoiser: Denoiser, guidance: Any, *lengths: int, **options: Any) -> lg.diffusion.DiffusionOutput:
    ids, mask = prompts(denoiser, *(lengths or (6, 3)))
    options = {"max_new_tokens": ANSWER, "steps": STEPS, "eos_token_id": (), **options}
    return lg.diffusion.generate(denoiser, ids, mask, guidance=guidance, **options)


def test_passes_are_batched_where_their_inputs_are_known() -> None:
    denoiser = denoiser_of("llada")
    counts = {}
    for name, (method, _) in METHODS.items():
        stats = generate(denoiser, method).stats
        counts[name] = stats.forwards, stats.nfe
        assert stats.steps == STEPS
    assert counts["cfg"] == counts["negative shorter"] == counts["negative longer"] == (STEPS, 2 * STEPS)
    assert counts["a-cfg"] == (2 * STEPS, 2 * STEPS)
    assert counts["a-cfg previous"] == (STEPS, 2 * STEPS - 1), "the first step has no confidences"


def test_scale_one_is_the_unguided_run_bit_for_bit_and_free() -> None:
    denoiser = denoiser_of("llada")
    unguided = generate(denoiser, None)
    for method in (lg.CFG(1.0), lg.AdaptiveCFG(1.0), [lg.CFG(1.0), lg.AdaptiveCFG(1.0)]):
        same = generate(denoiser, method)
        assert same.sequences.equal(unguided.sequences)
        assert same.confidences.equal(unguided.confidences)
        assert same.stats.nfe == STEPS


def test_each_row_its_own_scale() -> None:
    denoiser = denoiser_of("llada")
    both = generate(denoiser, lg.CFG((3.0, 1.0)))
    for row, scale in enumerate((3.0, 1.0)):
        assert both.sequences[row].equal(generate(denoiser, lg.CFG(scale)).sequences[row])


def test_negative_prompts_of_a_call_take_the_place_of_the_methods_own() -> None:
    denoiser = denoiser_of("llada")
    own = generate(denoiser, lg.CFG(3.0, negative_prompt=(9, 10, 11)))
    call = generate(denoiser, lg.CFG(3.0), negative_prompt_ids=torch.tensor([[9, 10, 11]]))
    assert call.sequences.equal(own.sequences)
    ragged = generate(
        denoiser,
        lg.CFG(3.0),
        negative_prompt_ids=torch.tensor([[9, 10, 11], [0, 12, 13]]),
        negative_prompt_attention_mask=torch.tensor([[1, 1, 1], [0, 1, 1]]),
    )
    assert ragged.sequences[0].equal(own.sequences[0])
    assert ragged.sequences[1].equal(generate(denoiser, lg.CFG(3.0, negative_prompt=(12, 13))).sequences[1])


def test_another_model_of_the_family() -> None:
    denoiser = denoiser_of("llada")
    worse = copy.deepcopy(denoiser.model)
    for parameter in worse.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    weak = Denoiser(worse, denoiser.family, mask_token_id=MASK)
    ids, _ = prompts(denoiser, 6)
    models: list[Any] = [weak, weak.model]
    for model in models:
        output = generate(denoiser, lg.AutoGuidance(model, 3.0), 6)
        expected = plain(denoiser, ids[0], 3.0, lambda canvas, cond, step: weak(canvas))
        assert output.sequences[0, -ANSWER:].tolist() == expected
        assert output.stats.forwards == 2 * STEPS


def test_two_methods_add_their_changes() -> None:
    denoiser = denoiser_of("llada")
    ids, _ = prompts(denoiser, 6)
    first, second = masked_prompt(denoiser, 6), remasked(denoiser, 6, 0.7)

    # c + 2 (c - a) + 2 (c - b) = m + 5 (c - m) with m = (a + b) / 2, up to a constant for each position
    def contrast(canvas: torch.Tensor, cond: Logits, step: int) -> Logits:
        a, b = first(canvas, cond, step), second(canvas, cond, step)
        assert a is not None and b is not None
        return (a.float().log_softmax(-1) + b.float().log_softmax(-1)) / 2

    output = generate(denoiser, [lg.CFG(3.0), lg.AdaptiveCFG(3.0)], 6)
    assert output.sequences[0, -ANSWER:].tolist() == plain(denoiser, ids[0], 5.0, contrast)


def test_a_gate_is_asked_at_every_position_and_saves_the_second_pass() -> None:
    denoiser = denoiser_of("llada")
    ids, _ = prompts(denoiser, 6)
    threshold = 0.15

    def contrast(canvas: torch.Tensor, cond: Logits, step: int) -> Logits:
        other = masked_prompt(denoiser, 6)(canvas, cond, step)
        assert other is not None
        sure = cond.exp().max(-1).values >= threshold
        return torch.where(sure[..., None], cond, other.float().log_softmax(-1))

    output = generate(denoiser, lg.CFG(3.0, gate=lg.Confidence(threshold)), 6)
    assert output.sequences[0, -ANSWER:].tolist() == plain(denoiser, ids[0], 3.0, contrast)
    never = generate(denoiser, lg.CFG(3.0, gate=lg.Confidence(0.0)), 6)
    assert never.stats.nfe == STEPS and never.stats.fired == 0
    assert never.sequences.equal(generate(denoiser, None, 6).sequences)


def test_a_schedule_goes_by_denoising_steps() -> None:
    denoiser = denoiser_of("llada")
    ids, _ = prompts(denoiser, 6)

    def contrast(canvas: torch.Tensor, cond: Logits, step: int) -> Logits | None:
        return masked_prompt(denoiser, 6)(canvas, cond, step) if step >= 2 else None

    output = generate(denoiser, lg.CFG(3.0, schedule=lg.Window(0.5)), 6)
    assert output.sequences[0, -ANSWER:].tolist() == plain(denoiser, ids[0], 3.0, contrast)
    assert output.stats.nfe == 6, "two steps alone, two with the other canvas"


def test_a_residual_that_is_made_anew_every_step_is_plain_guidance() -> None:
    denoiser = denoiser_of("llada")
    fresh = generate(denoiser, lg.CFG(3.0), residual_interval=1, steps=8)
    reused = generate(denoiser, lg.CFG(3.0), residual_interval=3, steps=8)
    assert fresh.stats.nfe == 16
    assert reused.stats.nfe == 8 + 5 + 1, "the first five steps, and one of the other three"
    assert reused.sequences[:, :-ANSWER].equal(fresh.sequences[:, :-ANSWER])
