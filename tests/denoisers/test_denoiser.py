"""The denoiser gives the logits that a plain call of the model gives, aligned, for the columns that are wanted."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from torch.testing import assert_close

from lmguide.denoisers import FAMILIES, Denoiser, Family
from tests.denoisers.models import (
    BLOCK_CAUSAL,
    MASK,
    MODELS,
    PAD,
    UNPADDED,
    VOCAB,
    LLaDALike,
    Small,
    canvas_of,
    denoiser_of,
    left_padded,
    model_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

PROMPT, ANSWER = 11, 13
PADDED = tuple(name for name in MODELS if name not in UNPADDED)
# Rows of a batch run together or alone go through other kernels.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_logits_are_those_of_the_plain_model() -> None:
    canvas = canvas_of(2, PROMPT, ANSWER)
    for name in ("llada", "masked_lm", "modernbert", "roberta"):
        assert_close(denoiser_of(name)(canvas), model_of(name)(canvas).logits, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", ["bidirectional", "bidirectional_llama", "uniform"])
def test_a_decoder_sees_the_whole_canvas(name: str) -> None:
    canvas = canvas_of(2, PROMPT, ANSWER)
    width = canvas.shape[1]
    seen = model_of(name)(canvas, attention_mask=torch.zeros(2, 1, width, width)).logits
    causal = model_of(name)(canvas).logits
    assert_close(denoiser_of(name)(canvas), seen, **CLOSE)
    assert (seen - causal).abs().max() > 0.1


def test_a_shift_is_undone() -> None:
    canvas = canvas_of(2, PROMPT, ANSWER)
    raw = model_of("dream")(canvas, "full").logits
    aligned = denoiser_of("dream")(canvas)
    assert_close(aligned[:, 1:], raw[:, :-1], rtol=0, atol=0)
    assert_close(aligned[:, 0], raw[:, 0], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "length"), [("sdar", 4), ("llada2", 8), ("blocks", 8), ("shifted_blocks", 8)])
def test_blocks_see_themselves_and_those_before(name: str, length: int) -> None:
    canvas = canvas_of(2, PROMPT, ANSWER)
    width = canvas.shape[1]
    seen = torch.tensor([[query // length >= key // length for key in range(width)] for query in range(width)])
    mask, positions = seen.expand(2, 1, width, width), torch.arange(width).expand(2, -1)
    if name in ("llada2", "blocks"):
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    output = model_of(name)(input_ids=canvas, attention_mask=mask, position_ids=positions)
    raw = output[0] if isinstance(output, tuple) else output.logits
    if name == "shifted_blocks":
        raw = torch.cat([raw[:, :1], raw[:, :-1]], 1)
    assert_close(denoiser_of(name)(canvas), raw, **CLOSE)


def test_the_first_token_of_a_block_is_scored_by_the_block_before() -> None:
    denoiser, canvas = denoiser_of("fast_dllm_v2"), canvas_of(1, 16, 8)
    raw = model_of("fast_dllm_v2")(canvas[:, :16], block_size=8).logits
    assert denoiser.family.seeds_block and denoiser.family.block_length == 8
    assert_close(denoiser(canvas, start=16, stop=17)[:, 0], raw[:, -1], **CLOSE)
    canvas[:, 16:] = 7
    assert_close(denoiser(canvas, start=16, stop=17)[:, 0], raw[:, -1], **CLOSE)


def test_substitution_takes_the_mask_away_and_copies_what_stands() -> None:
    canvas = canvas_of(2, 3, 4)
    raw, logits = model_of("mdlm")(canvas, torch.zeros(2)), denoiser_of("mdlm")(canvas)
    for row in range(2):
        for column, token in enumerate(canvas[row].tolist()):
            expected = torch.full((VOCAB,), -torch.inf)
            if token == MASK:
                expected = raw[row, column].clone()
                expected[MASK] = -torch.inf
            else:
                expected[token] = 0
            assert_close(logits[row, column], expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 24), (1, 2), (7, 9), (8, 16), (15, 24), (23, 24)])
def test_a_window_is_a_part_of_the_whole(name: str, start: int, stop: int) -> None:
    denoiser, canvas = denoiser_of(name), canvas_of(2, PROMPT, ANSWER)
    times = torch.full((2,), 0.5) if name == "udlm" else None
    whole = denoiser(canvas, timesteps=times)
    assert whole.shape == (2, canvas.shape[1], VOCAB)
    assert_close(denoiser(canvas, start=start, stop=stop, timesteps=times), whole[:, start:stop], **CLOSE)


@pytest.mark.parametrize("name", PADDED)
def test_a_row_of_a_ragged_batch_is_as_if_alone(name: str) -> None:
    denoiser, gaps = denoiser_of(name), [0, 3, PROMPT]  # the last row has no prompt
    canvas, mask = left_padded(canvas_of(3, PROMPT, ANSWER), gaps)
    for start, stop in ((PROMPT, PROMPT + 6), (PROMPT, PROMPT + 1), (0, PROMPT + 1), (2, PROMPT + 6)):
        logits = denoiser(canvas, mask, start=start, stop=stop)
        for row, gap in enumerate(gaps):
            alone = denoiser(canvas[row : row + 1, gap:], start=max(start - gap, 0), stop=stop - gap)
            assert_close(logits[row : row + 1, max(gap - start, 0) :], alone, **CLOSE)


@pytest.mark.parametrize("name", PADDED)
def test_what_stands_at_padding_does_not_matter(name: str) -> None:
    denoiser = denoiser_of(name)
    canvas, mask = left_padded(canvas_of(2, PROMPT, ANSWER), [0, 5])
    logits = denoiser(canvas, mask, start=PROMPT)
    assert logits.isfinite().all()
    assert_close(denoiser(canvas.masked_fill(mask == 0, 9), mask, start=PROMPT), logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", PADDED)
def test_a_mask_of_ones_is_no_mask(name: str) -> None:
    canvas = canvas_of(2, PROMPT, ANSWER)
    denoiser = denoiser_of(name)
    assert_close(denoiser(canvas, torch.ones_like(canvas)), denoiser(canvas), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "udlm"])
def test_later_columns_matter_where_attention_is_full(name: str) -> None:
    denoiser, canvas = denoiser_of(name), canvas_of(1, 16, 8)
    before = denoiser(canvas, start=9, stop=16).nan_to_num(neginf=0)
    if denoiser.family.substitution:
        canvas[:, 9:16] = MASK  # what stands is copied, whatever comes later
        before = denoiser(canvas, start=9, stop=16).nan_to_num(neginf=0)
    canvas[:, 16:] = torch.arange(10, 18)
    difference = (denoiser(canvas, start=9, stop=16).nan_to_num(neginf=0) - before).abs().max()
    assert difference == 0 if name in BLOCK_CAUSAL else difference > 0.01


def test_the_head_sees_the_wanted_columns_only() -> None:
    model = model_of("bidirectional")
    seen: list[int] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    denoiser, canvas = denoiser_of("bidirectional"), canvas_of(1, PROMPT, ANSWER)
    denoiser(canvas, start=12, stop=16)
    denoiser(canvas, start=PROMPT)
    handle.remove()
    assert seen == [4, ANSWER]


def test_the_columns_behind_the_block_are_not_run() -> None:
    model = model_of("sdar")
    seen: list[tuple[int, ...]] = []
    handle = model.core.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    denoiser_of("sdar")(canvas_of(2, 8, 16), start=8, stop=11)
    handle.remove()
    assert seen == [(2, 12)]


def test_masks_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmguide.denoisers import layouts

    made: list[object] = []
    read = layouts._read

    def counted(attention_mask: Tensor, family: Family) -> Any:
        made.append(attention_mask)
        return read(attention_mask, family)

    monkeypatch.setattr(layouts, "_read", counted)
    denoiser = denoiser_of("sdar")
    canvas, mask = left_padded(canvas_of(2, PROMPT, ANSWER), [0, 5])
    first = denoiser(canvas, mask, start=PROMPT)
    denoiser(canvas, mask, start=PROMPT)
    assert len(made) == 1
    mask[1, 5] = 0  # written to: what was read does not hold any more
    assert (denoiser(canvas, mask, start=PROMPT) - first)[1].abs().max() > 0.01
    assert len(made) == 2


def test_masks_of_inference_mode() -> None:
    denoiser = denoiser_of("dream")
    canvas, mask = left_padded(canvas_of(2, PROMPT, ANSWER), [0, 5])
    expected = denoiser(canvas, mask)
    with torch.inference_mode():
        assert_close(denoiser(canvas.clone(), mask.clone()), expected, rtol=0, atol=0)


class Deaf(LLaDALike):
    """Published code that drops the mask."""

    def forward(self, input_ids: Tensor, *arguments: Any, **kwargs: Any) -> SimpleNamespace:
        return super().forward(input_ids)


class CausalWhenPadded(Small):
    """Published code whose attention becomes causal when there is a mask."""

    settings = LLaDALike.settings

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        seen, width = None, input_ids.shape[1]
        if attention_mask is not None:
            seen = torch.ones(width, width).tril().bool() & attention_mask.bool()[:, None, None]
        positions = torch.arange(width)[None]
        return self.answer(self.core(input_ids, seen, positions, lambda _, keys, values: (keys, values)))


@pytest.mark.parametrize("model_class", [Deaf, CausalWhenPadded])
def test_code_that_does_not_serve_padding_is_found_out(model_class: type[Small]) -> None:
    denoiser = Denoiser(model_class().eval(), mask_token_id=MASK)
    canvas, mask = left_padded(canvas_of(2, PROMPT, ANSWER), [0, 5])
    assert denoiser(canvas).isfinite().all()
    for _ in range(2):
        with pytest.raises(ValueError, match="attention_mask: expected a model that leaves padding out.*one at a time"):
            denoiser(canvas, mask)


def test_adapters_are_looked_through() -> None:
    base = MODELS["bidirectional"]()
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    denoiser = Denoiser(adapted, "bidirectional", mask_token_id=MASK)
    canvas = canvas_of(1, PROMPT, ANSWER)
    width = canvas.shape[1]
    raw = adapted(canvas, attention_mask=torch.zeros(1, 1, width, width)).logits
    assert_close(denoiser(canvas, start=PROMPT), raw[:, PROMPT:], **CLOSE)


def test_the_dtype_is_the_models() -> None:
    model = MODELS["bidirectional"]().to(torch.bfloat16).eval()
    denoiser = Denoiser(model, "bidirectional", mask_token_id=MASK)
    canvas, mask = left_padded(canvas_of(2, PROMPT, ANSWER), [0, 5])
    assert denoiser.dtype == denoiser(canvas, mask).dtype == torch.bfloat16


def test_gradients_are_the_callers() -> None:
    denoiser, canvas = denoiser_of("mdlm"), canvas_of(1, 3, 4)
    with torch.enable_grad():
        denoiser(canvas, start=3).logsumexp(-1).sum().backward()
    weight = model_of("mdlm").head.weight
    assert weight.grad.abs().sum() > 0
    weight.grad = None


def test_times() -> None:
    denoiser, canvas = denoiser_of("udlm"), canvas_of(2, 3, 4)
    times = torch.tensor([0.0, 1.0])
    assert_close(denoiser(canvas, timesteps=times), model_of("udlm")(canvas, times), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"timesteps: expected how noisy each row is, got None.*tensor \[B\]"):
        denoiser(canvas)
    with pytest.raises(ValueError, match=r"timesteps: expected shape \(2,\), got shape \(2, 1\)"):
        denoiser(canvas, timesteps=times[:, None])
    with pytest.raises(ValueError, match="timesteps: expected None: the model has no time input"):
        denoiser_of("llada")(canvas, timesteps=times)


def test_the_mask_token_is_the_first_that_is_known() -> None:
    family = dataclasses.replace(FAMILIES["masked_lm"], mask_token_id=6)
    tokenizer = SimpleNamespace(mask_token_id=7, pad_token_id=PAD)
    model = MODELS["masked_lm"]().eval()
    assert Denoiser(model, tokenizer=tokenizer).mask_token_id == 7
    assert Denoiser(model, family, tokenizer=tokenizer).mask_token_id == 6
    model.config.mask_token_id = 5
    assert Denoiser(model, family, tokenizer=tokenizer).mask_token_id == 5
    assert Denoiser(model, family, tokenizer=tokenizer, mask_token_id=4).mask_token_id == 4
    assert denoiser_of("uniform").mask_token_id is None


def test_the_longest_canvas() -> None:
    assert denoiser_of("llada").max_length == denoiser_of("mdlm").max_length == 128
    # The first position of RoBERTa's table is for padding, and the one before it is unused.
    assert denoiser_of("roberta").max_length == 128 - PAD - 1
    with pytest.raises(ValueError, match="canvas: expected at most 128 columns, got 129. Give fewer new tokens"):
        denoiser_of("llada")(canvas_of(1, 100, 29))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask_token_id": None}, ValueError, "mask_token_id: expected a token, got None.*Give mask_token_id"),
        ({"mask_token_id": PAD}, ValueError, "mask_token_id: expected another token than the one that pads, got 0"),
        ({"mask_token_id": VOCAB}, ValueError, "mask_token_id: expected an id below .*, 48, got 48. Give"),
        ({"mask_token_id": -1}, ValueError, "mask_token_id: expected an id below"),
        ({"mask_token_id": 3.0}, TypeError, "mask_token_id: expected an int, got 3.0"),
        ({"family": "lada"}, ValueError, "family: expected the name of a family .* Did you mean 'llada'"),
        ({"family": "diffusion_gemma"}, ValueError, "family: expected one whose model reads a canvas.*generate"),
        (
            {"tokenizer": SimpleNamespace(pad_token_id=3)},
            ValueError,
            "mask_token_id: expected another token than the one that pads, got 3 for both. Set tokenizer.pad_token",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Denoiser(model_of("masked_lm"), **{"mask_token_id": MASK} | arguments)


def test_bad_models() -> None:
    with pytest.raises(ValueError, match="mask_token_id: expected None with uniform noise, got 3"):
        Denoiser(model_of("udlm"), mask_token_id=3)
    with pytest.raises(ValueError, match=r"model: expected evaluation mode, got training mode. Call model.eval\(\)"):
        Denoiser(LLaDALike(), mask_token_id=MASK)
    with pytest.raises(TypeError, match="model: expected a torch module, got str. Load the model first"):
        Denoiser("GSAI-ML/LLaDA-8B-Base")
    with pytest.raises(TypeError, match="model: expected a model with a config, got Linear"):
        Denoiser(torch.nn.Linear(2, 2).eval())
    model = MODELS["bidirectional"]().eval()
    model.config.layer_types = ["sliding_attention", "full_attention"]
    with pytest.raises(ValueError, match="model: expected layers that attend to the whole canvas"):
        Denoiser(model, "bidirectional", mask_token_id=MASK)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="got 'flash_attention_2'. Load it with attn_implementation"):
        Denoiser(model, "bidirectional", mask_token_id=MASK)


def test_bad_canvases() -> None:
    denoiser, canvas = denoiser_of("dream"), canvas_of(2, 4, 4)
    with pytest.raises(ValueError, match=r"canvas: expected token ids \[B, L\] of dtype int64, got \(8,\)"):
        denoiser(canvas[0])
    with pytest.raises(ValueError, match="canvas: expected .* of torch.float32"):
        denoiser(canvas.float())
    for start, stop in ((-1, 4), (4, 4), (0, 9)):
        with pytest.raises(ValueError, match=f"start, stop: expected 0 <= start < stop <= 8, got {start} and {stop}"):
            denoiser(canvas, start=start, stop=stop)
    with pytest.raises(ValueError, match=r"attention_mask: expected the shape of the canvas, \(2, 8\), got \(2, 7\)"):
        denoiser(canvas, torch.ones(2, 7))
    with pytest.raises(ValueError, match="attention_mask: expected real tokens .* a row without any"):
        denoiser(canvas, torch.tensor([[0], [1]]).expand(2, 8))
    with pytest.raises(ValueError, match="attention_mask: .* with padding between them. Pad the prompts on the left"):
        denoiser(canvas, torch.tensor([[1, 0] + [1] * 6] * 2))


@pytest.mark.parametrize("name", UNPADDED)
def test_padding_that_cannot_be_told_is_refused(name: str) -> None:
    canvas, mask = left_padded(canvas_of(2, PROMPT, ANSWER), [0, 5])
    with pytest.raises(ValueError, match=f"attention_mask: expected no padding, got some: .*'{name}' .*one at a time"):
        denoiser_of(name)(canvas, mask)
