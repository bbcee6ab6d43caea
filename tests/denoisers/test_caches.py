"""Caches: exact where attention is block-causal; where it is full, what Fast-dLLM computes, exact when refreshed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache

from lmguide.denoisers import CanvasCache, Denoiser
from tests.denoisers.models import (
    BLOCK_CAUSAL,
    CACHED,
    MODELS,
    UNPADDED,
    canvas_of,
    denoiser_of,
    left_padded,
    model_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

PROMPT, ANSWER = 11, 21
# Other widths go through other kernels.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
RAGGED = [0, 3, 7]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@contextmanager
def columns_run(denoiser: Denoiser) -> Iterator[list[int]]:
    """How many columns each forward runs."""
    seen: list[int] = []
    handle = denoiser.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    yield seen
    handle.remove()


def windows(length: int) -> list[tuple[int, int]]:
    """The blocks of the answer, the first being what the prompt leaves of one."""
    edges = [PROMPT, *range(PROMPT // length * length + length, PROMPT + ANSWER, length), PROMPT + ANSWER]
    return list(zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize("name", BLOCK_CAUSAL)
@pytest.mark.parametrize("grows", [False, True])
def test_block_causal_is_exact(name: str, grows: bool) -> None:
    denoiser = denoiser_of(name)
    canvas, mask = left_padded(canvas_of(3, PROMPT, ANSWER), [0, 0, 0] if name in UNPADDED else RAGGED)
    cache = denoiser.new_cache("prefix")
    for start, stop in windows(denoiser.family.block_length or 0):
        behind = stop if grows else canvas.shape[1]
        some, its_mask = canvas[:, :behind], mask[:, :behind].clone()
        cache.begin_block(start, stop)
        for column in range(start, stop):
            cached = denoiser(some, its_mask, cache=cache, start=start, stop=stop)
            assert_close(cached, denoiser(some, its_mask, start=start, stop=stop), **CLOSE)
            some[:, column] = cached[:, column - start].argmax(-1)


def test_what_is_final_runs_once() -> None:
    denoiser, canvas = denoiser_of("llada2"), canvas_of(1, PROMPT, ANSWER)
    cache = denoiser.new_cache()
    with columns_run(denoiser) as seen:
        for start, stop in [(PROMPT, 16), (16, 24), (24, 32)]:
            cache.begin_block(start, stop)
            for _ in range(3):
                denoiser(canvas, cache=cache, start=start, stop=stop)
    # A window's first call also runs the block before, whose last tokens have come since.
    assert seen == [16, 8, 8, 16, 8, 8, 16, 8, 8]


def test_with_a_shift_the_column_before_runs_too() -> None:
    denoiser, canvas = denoiser_of("fast_dllm_v2"), canvas_of(1, PROMPT, ANSWER)
    cache = denoiser.new_cache()
    with columns_run(denoiser) as seen:
        for start, stop in [(PROMPT, 16), (16, 24)]:
            cache.begin_block(start, stop)
            for _ in range(2):
                denoiser(canvas, cache=cache, start=start, stop=stop)
    assert seen == [16, 8, 16, 9]


@pytest.mark.parametrize("name", ["sdar", "shifted_blocks"])
def test_an_earlier_window_can_be_begun_again(name: str) -> None:
    denoiser, canvas = denoiser_of(name), canvas_of(2, PROMPT, ANSWER)
    cache = denoiser.new_cache()
    for start, stop in [(16, 24), (24, 32), (16, 24)]:
        cache.begin_block(start, stop)
        denoiser(canvas, cache=cache, start=start, stop=stop)
        canvas[:, start:stop] = canvas[:, start:stop] - 1
    cache.begin_block(8, 16)  # begun, and left without a call
    canvas[:, 11] = 9
    cache.begin_block(24, 32)
    cached = denoiser(canvas, cache=cache, start=24, stop=32)
    assert_close(cached, denoiser(canvas, start=24, stop=32), **CLOSE)


def test_columns_before_the_window_may_be_asked_for() -> None:
    denoiser, canvas = denoiser_of("sdar"), canvas_of(2, PROMPT, ANSWER)
    cache = denoiser.new_cache()
    cache.begin_block(16, 20)
    for start, stop in [(4, 8), (16, 20), (10, 14), (16, 20)]:  # the first runs two blocks alone
        cached = denoiser(canvas, cache=cache, start=start, stop=stop)
        assert_close(cached, denoiser(canvas, start=start, stop=stop), **CLOSE)


def plain(name: str, held: Tensor, canvas: Tensor, mask: Tensor, first: int, behind: int) -> Tensor:
    """Logits at the columns `[first, behind)`, run against keys and values that `held` gave everywhere else.

    With a cache of transformers alone: the columns' own keys and values are taken out of it, and stand last when they
    come back, which attention does not notice.
    """
    model, cache = model_of(name), DynamicCache()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    rows, length = canvas.shape
    seen = mask.bool()[:, None, None].expand(rows, 1, length, length)
    last = torch.cat([seen[..., :first], seen[..., behind:], seen[..., first:behind]], -1)[:, :, first:behind]
    if name != "dream":
        seen, last = (torch.zeros(each.shape).masked_fill(~each, -1e9) for each in (seen, last))
    model(held, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        for states in ("keys", "values"):
            stored = getattr(layer, states)
            setattr(layer, states, torch.cat([stored[:, :, :first], stored[:, :, behind:]], 2))
    output = model(
        canvas[:, first:behind],
        attention_mask=last,
        position_ids=positions[:, first:behind],
        past_key_values=cache,
        use_cache=True,
    )
    logits: Tensor = output.logits
    return logits


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_full_attention_is_that_of_the_last_refresh(name: str, kind: Any) -> None:
    denoiser, (start, stop) = denoiser_of(name), (14, 22)
    held, mask = left_padded(canvas_of(3, PROMPT, ANSWER), RAGGED)
    cache = denoiser.new_cache(kind)
    for begin in range(2):  # the second window is begun on another canvas
        cache.begin_block(start, stop)
        first_call = denoiser(held, mask, cache=cache, start=start, stop=stop)
        assert_close(first_call, denoiser(held, mask, start=start, stop=stop), rtol=0, atol=0)
        canvas = held.clone()
        for column in (start, stop - 1):
            canvas[:, column] = 7 + column + begin
            shift = int(denoiser.family.shift)
            first, behind = start - shift, stop if kind == "dual" else canvas.shape[1]
            # The reference and the cache agree at every call, not only the first after a refresh: columns that are
            # run again hold nothing of earlier calls.
            expected = plain(name, held, canvas, mask, first, behind)[:, : stop - start]
            cached = denoiser(canvas, mask, cache=cache, start=start, stop=stop)
            assert_close(cached, expected, **CLOSE)
            assert (cached - denoiser(canvas, mask, start=start, stop=stop)).abs().max() > 1e-3, "an approximation"
        held = canvas


# The shifted family runs one before the window.
@pytest.mark.parametrize(("name", "before"), [("uniform", 0), ("dream", 1)])
@pytest.mark.parametrize(("kind", "run"), [("prefix", 18), ("dual", 8)])
def test_how_many_columns_full_attention_runs(name: str, before: int, kind: Any, run: int) -> None:
    denoiser, canvas = denoiser_of(name), canvas_of(1, PROMPT, ANSWER)
    cache = denoiser.new_cache(kind)
    with columns_run(denoiser) as seen:
        for _ in range(2):
            cache.begin_block(14, 22)
            for _ in range(3):
                denoiser(canvas, cache=cache, start=14, stop=22)
    assert seen == [32, run + before, run + before] * 2


@pytest.mark.parametrize("name", ["dream", "bidirectional", "sdar", "llada2"])
def test_branches_stack_in_one_cache(name: str) -> None:
    # The second half of the rows has another prompt, three columns shorter.
    denoiser, (start, stop) = denoiser_of(name), (16, 20)
    first = canvas_of(2, PROMPT, ANSWER)
    second = canvas_of(2, PROMPT - 3, ANSWER, seed=1)
    both, mask = left_padded(torch.cat([first, torch.nn.functional.pad(second, (3, 0))]), [0, 0, 3, 3])
    stacked, alone = denoiser.new_cache(), (denoiser.new_cache(), denoiser.new_cache())
    stacked.begin_block(start, stop)
    alone[0].begin_block(start, stop)
    alone[1].begin_block(start - 3, stop - 3)
    for token in (8, 9, 10):
        together = denoiser(both, mask, cache=stacked, start=start, stop=stop)
        assert_close(together[:2], denoiser(first, cache=alone[0], start=start, stop=stop), **CLOSE)
        assert_close(together[2:], denoiser(second, cache=alone[1], start=start - 3, stop=stop - 3), **CLOSE)
        both[:, token + 8] = first[:, token + 8] = second[:, token + 5] = token


@pytest.mark.parametrize("name", ["dream", "bidirectional", "shifted_blocks"])
def test_a_row_without_a_prompt(name: str) -> None:
    denoiser = denoiser_of(name)
    canvas, mask = left_padded(canvas_of(2, PROMPT, ANSWER), [0, PROMPT])
    cache = denoiser.new_cache()
    cache.begin_block(PROMPT, 16)
    for _ in range(2):
        cached = denoiser(canvas, mask, cache=cache, start=PROMPT, stop=16)
        assert_close(cached[1:], denoiser(canvas[1:, PROMPT:], stop=16 - PROMPT), **CLOSE)


@pytest.mark.parametrize("name", ["dream", "sdar"])
def test_rows_can_leave(name: str) -> None:
    denoiser, (start, stop) = denoiser_of(name), (16, 20)
    canvas = canvas_of(3, PROMPT, ANSWER)
    cache, kept = denoiser.new_cache(), torch.tensor([2, 0])
    cache.begin_block(start, stop)
    denoiser(canvas, cache=cache, start=start, stop=stop)
    canvas[:, 17] = 9
    expected = denoiser(canvas, cache=cache, start=start, stop=stop)[kept]
    cache.keep_rows(kept)
    assert_close(denoiser(canvas[kept], cache=cache, start=start, stop=stop), expected, **CLOSE)


@pytest.mark.parametrize("name", ["dream", "bidirectional", "sdar", "shifted_blocks"])
def test_a_part_of_the_window_may_be_asked_for(name: str) -> None:
    denoiser, canvas = denoiser_of(name), canvas_of(2, PROMPT, ANSWER)
    whole, part = denoiser.new_cache(), denoiser.new_cache()
    for cache in (whole, part):
        cache.begin_block(14, 22)
        denoiser(canvas, cache=cache, start=14, stop=22)
    canvas[:, 15] = 9
    expected = denoiser(canvas, cache=whole, start=14, stop=22)[:, 3:5]
    assert_close(denoiser(canvas, cache=part, start=17, stop=19), expected, **CLOSE)


def test_room_is_made_for_the_whole_canvas_at_once() -> None:
    denoiser, canvas = denoiser_of("sdar"), canvas_of(2, PROMPT, ANSWER)
    cache, rooms = denoiser.new_cache(), set()
    for start in (12, 16, 20):
        cache.begin_block(start, start + 4)
        denoiser(canvas, cache=cache, start=start, stop=start + 4)
        rooms.add(tuple(each.data_ptr() for each in cache._keys + cache._values if each is not None))
    assert len(rooms) == 1


def test_a_cache_keeps_no_gradients() -> None:
    denoiser, canvas = denoiser_of("dream"), canvas_of(2, PROMPT, ANSWER)
    cache = denoiser.new_cache()
    cache.begin_block(14, 22)
    with torch.enable_grad():
        assert not denoiser(canvas, cache=cache, start=14, stop=22).requires_grad


@pytest.mark.parametrize("name", [name for name in MODELS if name not in CACHED + BLOCK_CAUSAL])
def test_models_without_a_cache_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"cache: expected a family whose forward takes keys.* Decode without a cache"):
        denoiser_of(name).new_cache("prefix")


class TakesNone(torch.nn.Module):
    """A model that takes no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.config = model_of("bidirectional"), model_of("bidirectional").config
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.model(input_ids, attention_mask=attention_mask)


class UsesNone(TakesNone):
    """A model that takes a cache and lets it be."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any = None) -> Any:
        return super().forward(input_ids, attention_mask)


def test_models_that_do_not_use_a_cache_are_refused() -> None:
    denoiser = Denoiser(TakesNone(), "bidirectional", mask_token_id=3)
    with pytest.raises(ValueError, match="cache: expected a model whose forward takes past_key_values, got TakesNone"):
        denoiser.new_cache()
    denoiser = Denoiser(UsesNone(), "bidirectional", mask_token_id=3)
    cache = denoiser.new_cache()
    cache.begin_block(14, 22)
    with pytest.raises(ValueError, match="cache: expected layers that store keys and values, got none"):
        denoiser(canvas_of(1, PROMPT, ANSWER), cache=cache, start=14, stop=22)


def test_bad_kinds() -> None:
    with pytest.raises(ValueError, match="kind: expected 'prefix' or 'dual', got 'static'"):
        denoiser_of("dream").new_cache("static")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind: expected 'prefix' for the block-causal family 'sdar', got 'dual'"):
        denoiser_of("sdar").new_cache("dual")


def test_bad_calls() -> None:
    denoiser, canvas = denoiser_of("dream"), canvas_of(2, PROMPT, ANSWER)
    cache = denoiser.new_cache("dual")
    with pytest.raises(ValueError, match=r"cache: expected columns of the window None, got \[14, 22\). Call .*begin_"):
        denoiser(canvas, cache=cache, start=14, stop=22)
    for start, stop in ((4, 4), (-1, 4)):
        with pytest.raises(ValueError, match=f"start, stop: expected 0 <= start < stop, got {start} and {stop}"):
            cache.begin_block(start, stop)
    cache.begin_block(14, 22)
    for start, stop in ((13, 22), (14, 23)):
        with pytest.raises(ValueError, match=r"cache: expected columns of the window \(14, 22\)"):
            denoiser(canvas, cache=cache, start=start, stop=stop)
    denoiser(canvas, cache=cache, start=14, stop=22)
    with pytest.raises(ValueError, match="cache: expected the 2 rows it holds, got 1. Call cache.keep_rows"):
        denoiser(canvas[:1], cache=cache, start=14, stop=22)
    with pytest.raises(ValueError, match=r"cache: expected the 32 columns it holds, got 31. Call cache.begin_block"):
        denoiser(canvas[:, :31], cache=cache, start=14, stop=22)


def test_a_prefix_cache_serves_what_is_behind_the_window() -> None:
    denoiser, canvas = denoiser_of("bidirectional"), canvas_of(2, PROMPT, ANSWER)
    cache = denoiser.new_cache("prefix")
    cache.begin_block(14, 22)
    denoiser(canvas, cache=cache, start=14, stop=22)
    whole = denoiser(canvas, cache=cache, start=14)
    assert_close(whole, denoiser(canvas, start=14), **CLOSE)


def test_a_cache_is_one_of_transformers() -> None:
    # Published code checks the type, counts the layers and asks how many tokens it holds.
    from transformers import Cache

    cache = denoiser_of("sdar").new_cache()
    assert isinstance(cache, Cache) and isinstance(cache, CanvasCache)
    assert (len(cache), cache.get_seq_length()) == (0, 0)
    cache.begin_block(16, 20)
    denoiser_of("sdar")(canvas_of(1, PROMPT, ANSWER), cache=cache, start=16, stop=20)
    assert len(cache) == 2
    denoiser_of("sdar")(canvas_of(1, PROMPT, ANSWER), cache=cache, start=16, stop=20)
    assert cache.get_seq_length() == 16
