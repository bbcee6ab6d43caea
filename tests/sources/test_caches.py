"""Caches joined, taken apart, lent out, filled and cropped hold what separate runs would hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lmguide.sources import caches
from lmguide.sources.branch import forward
from tests.families import made, tiny, tokens
from tests.huggingface.reference import next_token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tests.families import Model

FULL, SLIDING = ("llama", "gpt2"), ("mistral_sliding", "gemma3")
LINEAR = ("qwen3_next", "mamba2")
ATTENTION = FULL + SLIDING
LENGTHS = [(5, 12, 9), (12, 5), (9, 9), (3, 20, 6)]
"""Tokens of each prompt; the sliding window is 8, so some fill it and some do not."""


def run(model: Model, rows: Sequence[Sequence[int]], cache: Any, fresh: int | None = None) -> Tensor:
    """The law of the next token `[R, V]` after rows of one length, the last `fresh` tokens being new to the cache."""
    ids = torch.tensor(rows)
    with torch.no_grad():
        logits: Tensor = forward(model, ids, torch.ones_like(ids), cache, fresh, 1, {}).logits[:, -1]
    return logits.log_softmax(-1)


def prefilled(model: Model, row: Sequence[int], record_past: bool = False) -> Any:
    """A cache that has seen one row."""
    cache = caches.new_cache(model)
    assert cache is not None
    if record_past:
        cache.activate_past_recording()
    run(model, [row], cache)
    return cache


def content(cache: Any) -> list[dict[str, Any]]:
    """Everything a cache holds, cloned."""
    found = []
    for layer in cache.layers:
        state = {}
        for key, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                state[key] = value.clone()
            elif isinstance(value, dict):
                state |= {f"{key} {k}": v.clone() if isinstance(v, torch.Tensor) else v for k, v in value.items()}
            else:
                state[key] = value
        found.append(state)
    return found


def same(mine: Any, other: Any, exact: bool = False) -> None:
    tolerance = 0.0 if exact else 1e-5
    for left, right in zip(content(mine) if hasattr(mine, "layers") else mine, content(other), strict=True):
        assert left.keys() == right.keys()
        for key, value in left.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, right[key], atol=tolerance, rtol=tolerance)
            else:
                assert value == right[key], key


def joined(model: Model, rows: Sequence[Sequence[int]]) -> Any:
    cache, *others = (prefilled(model, row) for row in rows)
    caches.join(cache, others, [len(row) for row in rows])
    assert all(not caches.length(other) for other in others), "the others are emptied"
    return cache


def grow(model: Model, rows: Sequence[Sequence[int]], cache: Any, answers: Sequence[Sequence[int]]) -> Tensor:
    """The law after rows with answers behind them, the answers' last token being new to a joined cache."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + [*row, *answer] for row, answer in zip(rows, answers, strict=True)])
    mask = torch.tensor(
        [[0] * (width - len(row)) + [1] * (len(row) + len(answer)) for row, answer in zip(rows, answers, strict=True)]
    )
    with torch.no_grad():
        logits: Tensor = forward(model, ids, mask, cache, 1, 1, {}).logits[:, -1]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("family", ATTENTION + LINEAR)
def test_a_joined_cache_goes_on_as_its_parts_would(family: str, lengths: tuple[int, ...]) -> None:
    model, rows = tiny(family), [tokens(length, seed) for seed, length in enumerate(lengths)]
    cache = joined(model, rows)
    answers: list[list[int]] = [[] for _ in rows]
    for step in range(10):  # far enough for a window of 8 to leave the padding behind
        for row, answer in enumerate(answers):
            answer.append(tokens(1, 100 * row + step)[0])
        found = grow(model, rows, cache, answers)
        exact = torch.stack([next_token(model, row, answer) for row, answer in zip(rows, answers, strict=True)])
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("family", ATTENTION)
def test_a_joined_cache_holds_its_parts_row_by_row(family: str, lengths: tuple[int, ...]) -> None:
    model, rows = tiny(family), [tokens(length, seed) for seed, length in enumerate(lengths)]
    parts = [prefilled(model, row) for row in rows]
    cache = joined(model, rows)
    for index, layer in enumerate(cache.layers):
        assert layer.keys.shape[0] == layer.values.shape[0] == len(rows)
        for row, part in enumerate(parts):
            own = part.layers[index]
            held = min(own.keys.shape[-2], layer.keys.shape[-2])
            assert torch.equal(layer.keys[row, :, -held:], own.keys[0, :, -held:])
            assert torch.equal(layer.values[row, :, -held:], own.values[0, :, -held:])
            if not isinstance(layer, DynamicSlidingWindowLayer):
                assert held == len(rows[row])
                assert not layer.keys[row, :, :-held].any(), "padding is zeros"
        assert cache.get_seq_length() == max(lengths)


@pytest.mark.parametrize("grown", [0, 1, 4, 11])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("family", ATTENTION + LINEAR)
def test_taking_the_first_rows_back_undoes_a_join(family: str, lengths: tuple[int, ...], grown: int) -> None:
    """The first row's cache alone, grown by the same tokens: the same shapes, lengths and numbers."""
    model, rows = tiny(family), [tokens(length, seed) for seed, length in enumerate(lengths)]
    cache, alone = joined(model, rows), prefilled(model, rows[0])
    answer = tokens(grown, 7)
    for step in range(grown):
        grow(model, rows, cache, [answer[: step + 1]] * len(rows))
        run(model, [[*rows[0], *answer[: step + 1]]], alone, 1)
    caches.take(cache, 1, max(lengths) - lengths[0])
    for mine, other in zip(content(cache), content(alone), strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, other[key], atol=1e-4, rtol=1e-4)
            else:
                assert value == other[key], key
    more = [*rows[0], *answer, 33]
    torch.testing.assert_close(run(model, [more], cache, 1)[0], next_token(model, more, []), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral_sliding", "gemma3"])
def test_a_static_cache_filled_from_a_joined_one(family: str) -> None:
    model, rows = tiny(family), [tokens(5, 1), tokens(12, 2)]
    static = StaticCache(config=model.config, max_cache_len=32)
    caches.fill(static, joined(model, rows))
    answers: list[list[int]] = [[], []]
    for step in range(10):
        for row, answer in enumerate(answers):
            answer.append(tokens(1, 50 * row + step)[0])
        found = grow(model, rows, static, answers)
        exact = torch.stack([next_token(model, row, answer) for row, answer in zip(rows, answers, strict=True)])
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)


# A suffix runs behind drafts of which some are dropped; recurrent states and static caches never meet drafts.
LENT = [(family, 0) for family in (*ATTENTION, *LINEAR, "static")] + [(f, drop) for f in ATTENTION for drop in (1, 3)]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize(("family", "drop"), LENT)
def test_a_lent_cache_comes_back_bit_for_bit(family: str, drop: int, error: type[BaseException] | None) -> None:
    model, row = tiny("llama" if family == "static" else family), tokens(6, 1)
    if family == "static":
        cache: Any = StaticCache(config=model.config, max_cache_len=16)
        run(model, [row], cache)
    else:
        cache = prefilled(model, row, record_past=bool(drop))
    before = content(cache)
    suffix = tokens(4, 2)
    try:
        with caches.lent(cache, drop):
            found = run(model, [[*row[: len(row) - drop], *suffix]], cache, len(suffix))
            if error is not None:
                raise error
    except KeyboardInterrupt:
        assert error is not None
    same(before, cache, exact=True)
    torch.testing.assert_close(found[0], next_token(model, row[: len(row) - drop], suffix), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run(model, [[*row, 9]], cache, 1)[0], next_token(model, row, [9]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("record_past", [False, True])
@pytest.mark.parametrize("length", [3, 7, 8, 9, 15])
@pytest.mark.parametrize("family", (*ATTENTION, *LINEAR))
def test_what_is_croppable_can_be_cropped(family: str, length: int, record_past: bool) -> None:
    """Tokens that `croppable` lets go are gone, and the cache goes on as if they had never been."""
    model, row = tiny(family), tokens(length, 1)
    record_past = record_past and family not in LINEAR
    for drop in range(length):
        cache = prefilled(model, row, record_past)
        if caches.croppable(cache, drop) and drop:
            caches.crop(cache, drop)
            kept = [*row[: length - drop], 44]
            torch.testing.assert_close(
                run(model, [kept], cache, 1)[0], next_token(model, kept, []), atol=1e-4, rtol=1e-4
            )
        elif family in FULL or (family in SLIDING and record_past):
            assert drop == 0, "nothing is in the way"


def test_what_cannot_be_cropped() -> None:
    assert not caches.croppable(prefilled(tiny("qwen3_next"), tokens(6, 1)), 1)
    assert not caches.croppable(prefilled(tiny("mamba2"), tokens(6, 1)), 1)
    assert not caches.croppable(prefilled(tiny("mistral_sliding"), tokens(12, 1)), 1), "the window has slid"
    assert caches.croppable(prefilled(tiny("mistral_sliding"), tokens(5, 1)), 1), "the window has not slid yet"


def test_a_layer_that_was_never_used_is_passed_over() -> None:
    """The cache of a thinned model has layers of blocks that are skipped."""
    model = tiny("llama")
    cache = prefilled(model, tokens(6, 1))
    cache.layers.insert(2, DynamicLayer())
    caches.crop(cache, 2)
    assert [layer.get_seq_length() for layer in cache.layers] == [4, 4, 0, 4, 4]


def test_what_is_joinable() -> None:
    class Mine(DynamicLayer):
        pass

    class Own(DynamicCache):
        pass

    config = tiny("llama").config
    assert caches.joinable(DynamicCache(config=config))
    assert caches.joinable(DynamicCache(config=tiny("qwen3_next").config))
    assert not caches.joinable(StaticCache(config=config, max_cache_len=8))
    assert not caches.joinable(Own(config=config))
    assert not caches.joinable(None)
    odd = DynamicCache(config=config)
    odd.layers[1] = Mine()  # type: ignore[no-untyped-call]
    assert not caches.joinable(odd), "a subclass of a layer may keep more state"


def test_rows_are_selected_with_repeats() -> None:
    model, rows = tiny("llama"), [tokens(6, 1), tokens(6, 2)]
    cache: Any = caches.new_cache(model)
    run(model, rows, cache)
    caches.expand(cache, torch.tensor([1, 1, 0]))
    more = [[*rows[1], 5], [*rows[1], 6], [*rows[0], 7]]
    exact = torch.stack([next_token(model, row, []) for row in more])
    torch.testing.assert_close(run(model, more, cache, 1), exact, atol=1e-4, rtol=1e-4)


def test_names_lengths_and_families() -> None:
    assert caches.cache_name(tiny("mamba")) == caches.cache_name(tiny("mamba2")) == "cache_params"
    assert caches.cache_name(tiny("llama")) == "past_key_values"
    assert caches.length(prefilled(tiny("llama"), tokens(6, 1))) == 6
    assert caches.length(prefilled(tiny("mamba2"), tokens(6, 1))) == 0, "recurrent layers do not count"
    assert len(caches.parts(caches.new_cache(tiny("t5")))) == 2  # type: ignore[arg-type]
    assert made("llama")._supports_default_dynamic_cache()
