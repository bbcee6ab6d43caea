"""Where a decoding loop goes wrong quietly: ends, holes, noise, models that prefer the mask, what is left to write."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import lmguide as lg
from lmguide.diffusion.generate import generate
from tests.denoisers.models import MASK, VOCAB, canvas_of, denoiser_of, left_padded
from tests.refusals import refused

ANSWER = 8


def run(denoiser: lg.diffusion.Denoiser, ids: torch.Tensor, **options: Any) -> lg.diffusion.DiffusionOutput:
    return generate(denoiser, ids, **{"max_new_tokens": ANSWER, "steps": None, "eos_token_id": (), **options})


def test_uniform_noise_fills_the_canvas_before_the_first_step() -> None:
    output = run(denoiser_of("uniform"), canvas_of(1, 5, 0), output_history=True)
    assert output.history is not None
    assert len(output.history[0][0, 5:].unique()) > 2


def fond_of_masks() -> lg.diffusion.Denoiser:
    denoiser = denoiser_of("llada")
    model = copy.deepcopy(denoiser.model)
    model.register_forward_hook(lambda module, inputs, outputs: _raise_mask(outputs))
    return lg.diffusion.Denoiser(model, denoiser.family, mask_token_id=MASK)


def _raise_mask(outputs: Any) -> Any:
    outputs.logits[:, ::2, MASK] += 9.0  # at every other column
    return outputs


@pytest.mark.parametrize("order", ["low_confidence", "margin", "entropy"])
def test_a_position_where_the_mask_is_likeliest_is_the_last_to_be_written(order: str) -> None:
    output = run(fond_of_masks(), canvas_of(1, 6, 0), order=order)
    late, early = output.commit_step[0, ::2], output.commit_step[0, 1::2]
    assert late.min() > early.max()
    assert (output.sequences != MASK).all()


def test_such_positions_are_no_reason_to_commit_everything() -> None:
    plain = run(denoiser_of("llada"), canvas_of(1, 6, 0), order="entropy_bound:bound=1.0").nfe
    assert run(fond_of_masks(), canvas_of(1, 6, 0), order="entropy_bound:bound=1.0").nfe >= plain - 1


def test_nothing_left_to_write_is_refused() -> None:
    def only(*tokens: int) -> Any:
        return lambda canvas, rows, columns: torch.isin(torch.arange(VOCAB), torch.tensor(tokens)).expand(len(rows), -1)

    with refused("constraint", "expected a token that may be written"):
        run(denoiser_of("llada"), canvas_of(1, 6, 0), constraint=only(MASK))
    with refused("constraint", "expected a token that may be written"):
        run(denoiser_of("llada"), canvas_of(1, 6, 0), constraint=only(7), suppress_tokens=[7])


def test_a_hole_between_given_tokens_is_no_end() -> None:
    denoiser = denoiser_of("llada")
    canvas = canvas_of(1, 16, 0)
    canvas[0, [4, 9, 15]] = MASK
    free = run(denoiser, canvas, infill=True, max_new_tokens=None)
    ends = free.sequences[0, [4, 9, 15]].tolist()
    output = run(denoiser, canvas, infill=True, max_new_tokens=None, eos_token_id=ends, pad_token_id=0)
    assert output.sequences.equal(free.sequences)


def test_text_behind_an_end_is_padding_with_a_corrector_too() -> None:
    options: dict[str, Any] = {"corrector": "remdm_cap:eta=0.3", "generator": None, "temperature": 1.0}
    ids = canvas_of(1, 6, 0)
    options["generator"] = torch.Generator().manual_seed(0)
    free = run(denoiser_of("llada"), ids, **options)
    end = int(free.sequences[0, 6 + 2])
    first = free.sequences[0, 6:].tolist().index(end)
    options["generator"] = torch.Generator().manual_seed(0)
    output = run(denoiser_of("llada"), ids, eos_token_id=end, pad_token_id=0, **options)
    assert output.sequences[0, : 6 + first + 1].equal(free.sequences[0, : 6 + first + 1])
    assert not output.sequences[0, 6 + first + 1 :].any()


def test_deferred_tokens_do_not_starve_the_schedule() -> None:
    denoiser = denoiser_of("llada")
    free = run(denoiser, canvas_of(1, 6, 0))
    common = free.sequences[0, 6:].unique().tolist()
    output = run(denoiser, canvas_of(1, 6, 0), steps=4, defer_tokens=common)
    assert output.commit_step[0].bincount().tolist() == [2, 2, 2, 2]


def test_a_window_with_nothing_to_change_costs_nothing() -> None:
    canvas = canvas_of(1, 16, 0)
    canvas[0, 9] = MASK
    output = run(
        denoiser_of("llada"), canvas, infill=True, max_new_tokens=None, block_length=4, steps=4, corrector="remdm_conf"
    )
    assert output.stats.steps == 1


def test_a_schedule_sees_the_same_progress_whatever_stands_beside() -> None:
    denoiser = denoiser_of("sdar")
    ids, mask = left_padded(canvas_of(2, 7, 0), [3, 0])
    guidance = lg.CFG(3.0, schedule=lg.Linear(0.0, 1.0))
    together = run(denoiser, ids, attention_mask=mask, guidance=guidance)
    for row, gap in enumerate([3, 0]):
        alone = run(denoiser, ids[row : row + 1, gap:], guidance=guidance)
        assert together.sequences[row, gap:].equal(alone.sequences[0])
        torch.testing.assert_close(together.confidences[row], alone.confidences[0], atol=1e-5, rtol=1e-4)


def test_confidences_of_a_waiting_row_stay_what_they_were() -> None:
    denoiser = denoiser_of("llada")
    ids = canvas_of(4, 6, 0)
    options: dict[str, Any] = {
        "guidance": lg.AdaptiveCFG(3.0, confidences="previous"),
        "order": "threshold:threshold=0.5",
        "block_length": 4,
    }
    together = run(denoiser, ids, **options)
    assert len(set(together.nfe.tolist())) > 1, "otherwise no row has waited"
    for row in range(4):
        assert together.sequences[row].equal(run(denoiser, ids[row : row + 1], **options).sequences[0])


def test_sources_that_run_alone_serve_rewards_of_the_whole_canvas() -> None:
    reward = lg.RewardedSamples(lambda ids: (ids % 2).sum(-1).float(), samples=8)
    for guidance in ([lg.AdaptiveCFG(2.0), reward], [lg.CFG(2.0, gate=lg.Confidence(0.9)), reward]):
        output = run(denoiser_of("llada"), canvas_of(1, 6, 0), guidance=guidance, block_length=4)
        assert (output.sequences != MASK).all()


def test_a_difference_is_used_again_only_where_there_is_one() -> None:
    options: dict[str, Any] = {"residual_interval": 2}
    for more in (
        {"corrector": "remdm_conf", "guidance": lg.CFG(2.0)},
        {"guidance": lg.CFG(2.0, gate=lg.Confidence(0.5))},
    ):
        with refused("residual_interval"):
            run(denoiser_of("llada"), canvas_of(1, 6, 0), **options, **more)
    output = run(denoiser_of("mdlm"), canvas_of(1, 6, 0), guidance=lg.CFG(2.0), residual_interval=3)
    assert output.confidences.isfinite().all()


def test_a_streamer_gets_no_padding_behind_the_end() -> None:
    tokens: list[int] = []

    class Streamer:
        def put(self, new: torch.Tensor) -> None:
            tokens.extend(new.flatten().tolist())

        def end(self) -> None:
            tokens.append(-1)

    ids = canvas_of(1, 5, 0)
    free = run(denoiser_of("llada"), ids, order="fixed:direction=left_to_right")
    end = int(free.sequences[0, 7])
    place = free.sequences[0, 5:].tolist().index(end)
    run(
        denoiser_of("llada"),
        ids,
        order="fixed:direction=left_to_right",
        eos_token_id=end,
        pad_token_id=0,
        streamer=Streamer(),
    )
    assert tokens == [*free.sequences[0, : 5 + place + 1].tolist(), -1]


def test_rewards_want_rows_whose_blocks_stand_in_the_same_columns() -> None:
    denoiser = denoiser_of("sdar")
    reward = lg.RewardedSamples(lambda ids: (ids % 2).sum(-1).float(), samples=4)
    ids, mask = left_padded(canvas_of(2, 8, 0), [0, 3])
    with refused("guidance", "modulo"):
        run(denoiser, ids, attention_mask=mask, guidance=reward)
    ids, mask = left_padded(canvas_of(2, 8, 0), [0, 4])
    assert (run(denoiser, ids, attention_mask=mask, guidance=reward).sequences != MASK).all()
