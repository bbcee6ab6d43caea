"""A guided DiffusionGemma says what the plain loop says, and off is the plain model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import SuppressTokensLogitsProcessor
from transformers.generation.streamers import BaseStreamer

import lmguide as lg
from lmguide import measures
from lmguide.contexts import EmptyPrompt
from lmguide.denoisers.guide import CHUNK
from lmguide.diffusion.gemma import guide_gemma
from tests.diffusion.gemma import (
    BOS,
    CANVAS,
    EOS,
    MASK,
    PAD,
    PROMPTS,
    STEPS,
    VOCAB,
    Reference,
    answer,
    generate,
    model,
    rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# torch deprecates what torch imports when transformers marks the beginning of a step
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

NEGATIVE = rows([BOS, 30, 31], [BOS, *range(25, 40)])
"""One shorter than its prompt and one longer, and than the window."""
LAST = rows([15], [23])


def cfg(gamma: float | Tensor) -> Callable[..., Tensor]:
    def score(reference: Reference, logp: Callable[[int], Tensor]) -> Tensor:
        return logp(1) + gamma * (logp(0) - logp(1))

    return score


def negative(**kwargs: Any) -> dict[str, Any]:
    return {"negative_prompt_ids": NEGATIVE[0], "negative_prompt_attention_mask": NEGATIVE[1], **kwargs}


@pytest.mark.parametrize("gamma", [1.7, 0.3, -1.0])
def test_cfg_with_its_default_negative_prompt(gamma: float) -> None:
    assert answer(guide_gemma(model(), lg.CFG(gamma))) == Reference([LAST], cfg(gamma)).answer()


def test_cfg_with_ragged_negative_prompts_over_several_canvases() -> None:
    guided = answer(guide_gemma(model(), lg.CFG(2.0)), **negative(canvases=3))
    assert guided == Reference([NEGATIVE], cfg(2.0)).answer(canvases=3)
    assert guided != answer(model(), canvases=3)


def test_one_negative_row_serves_the_batch() -> None:
    view = guide_gemma(model(), lg.CFG(2.0, negative_prompt=[BOS, 30, 31]))
    expected = Reference([rows([BOS, 30, 31], [BOS, 30, 31])], cfg(2.0)).answer(canvases=2)
    assert answer(view, canvases=2) == expected


def test_prompts_without_padding() -> None:
    view = guide_gemma(model(), lg.CFG(2.0, negative_prompt=EmptyPrompt()))
    ids, mask = rows([BOS, 5, 6, 7, 8])
    assert answer(view, ids, None, canvases=2) == Reference([rows([BOS])], cfg(2.0)).answer(ids, mask, canvases=2)


def test_a_strength_for_each_row() -> None:
    gamma = torch.tensor([0.5, 3.0])[:, None, None]
    expected = Reference([NEGATIVE], cfg(gamma)).answer(canvases=2)
    assert answer(guide_gemma(model(), lg.CFG()), **negative(guidance_scale=[0.5, 3.0], canvases=2)) == expected


def test_a_row_that_ends_becomes_padding() -> None:
    view = guide_gemma(model(), lg.CFG(2.0))
    plain = Reference([NEGATIVE], cfg(2.0)).answer(canvases=3)
    ends = next(token for token in plain[0][:CANVAS] if token not in plain[1])
    expected = Reference([NEGATIVE], cfg(2.0)).answer(canvases=3, eos=ends)
    assert expected[0][-CANVAS:] == [PAD] * CANVAS
    assert answer(view, **negative(canvases=3, eos_token_id=ends, pad_token_id=PAD)) == expected


def test_gate_by_position() -> None:
    opened = []

    def score(reference: Reference, logp: Callable[[int], Tensor]) -> Tensor:
        where = measures.entropy(logp(0)) > 2.6
        opened.append(where.float().mean().item())
        return torch.where(where[..., None], cfg(3.0)(reference, logp), logp(0))

    view = guide_gemma(model(), lg.SelectiveCFG(3.0, entropy_threshold=2.6))
    assert answer(view, **negative(canvases=2)) == Reference([NEGATIVE], score).answer(canvases=2)
    assert min(opened) > 0 and max(opened) < 1
    assert view.stats.fired == len(opened)


def test_a_gate_that_is_open_on_no_unfinished_row_saves_the_second_source() -> None:
    # which then remembers what it said when it last ran
    ran, tempted = [], []

    def score(reference: Reference, logp: Callable[[int], Tensor]) -> Tensor:
        unsure = measures.entropy(logp(0)) > 3.0
        where = unsure & ~reference.finished[:, None]
        ran.append(bool(where.any()))
        tempted.append(bool(unsure.any()) and not ran[-1])
        return torch.where(where[..., None], cfg(3.0)(reference, logp), logp(0)) if ran[-1] else logp(0)

    view = guide_gemma(model(), lg.CFG(3.0, gate=lg.Entropy(3.0)))
    expected = Reference([NEGATIVE], score, stop=(0, 1.4)).answer(canvases=2)
    assert answer(view, **negative(canvases=2, stability_threshold=0, confidence_threshold=1.4)) == expected
    assert any(tempted)
    assert view.stats.fired == sum(ran)
    assert view.stats.nfe == 2 + 2 + len(ran) + sum(ran)


@pytest.mark.parametrize("how", [{"gate": lg.Period(every=2, first=1)}, {"schedule": lg.Window(0.2, 0.7)}])
def test_steps_without_guidance_do_not_run_the_second_source(how: dict[str, Any]) -> None:
    on = {step for step in range(STEPS) if (step % 2 == 1 if "gate" in how else 1 <= step < 3.5)}

    def score(reference: Reference, logp: Callable[[int], Tensor]) -> Tensor:
        return cfg(3.0)(reference, logp) if reference.step in on else logp(0)

    view = guide_gemma(model(), lg.CFG(3.0, **how))
    assert answer(view, **negative(canvases=2)) == Reference([NEGATIVE], score).answer(canvases=2)
    assert view.stats.steps == 2 * STEPS
    assert view.stats.fired == 2 * len(on)
    # encoders, the conditional's decoder, the other's
    assert view.stats.nfe == 2 + 2 + 2 * STEPS + 2 * len(on)


def test_several_methods_and_prompts() -> None:
    def score(reference: Reference, logp: Callable[[int], Tensor]) -> Tensor:
        mixture = 0.8 * (logp(2) - logp(0)) - 0.4 * (logp(1) - logp(0))
        return logp(0) + mixture + 1.5 * (logp(0) - logp(1))

    first, second = [BOS, 40, 41], [BOS, *range(5, 20)]
    mixture = lg.PromptMixture((first, second), weights=(-0.4, 0.8))
    view = guide_gemma(model(), [mixture, lg.CFG(2.5, negative_prompt=first)])
    expected = Reference([rows(first, first), rows(second, second)], score).answer(canvases=2)
    assert answer(view, canvases=2) == expected
    # 2 canvases: an encoder pass for each of three prompts, and one decoder pass a step over three of them
    assert (view.stats.forwards, view.stats.nfe) == (6 + view.stats.steps, 6 + 3 * view.stats.steps)


def test_logits_processors_see_the_guided_law_and_what_each_source_remembers() -> None:
    ban = SuppressTokensLogitsProcessor(list(range(20)))
    view = guide_gemma(model(), lg.CFG(2.0))
    given = [ban]
    guided = answer(view, **negative(canvases=2, logits_processor=given))
    assert guided == Reference([NEGATIVE], cfg(2.0), ban).answer(canvases=2)
    assert min(min(row) for row in guided) >= 20
    assert given == [ban], "the user's list has been appended to"


def test_static_cache() -> None:
    view = guide_gemma(model(), lg.CFG(2.0, negative_prompt=([BOS, 30, 31], [BOS, *range(30, 36)])))
    ids, mask = rows([BOS, 5, 6, 7, 8], [BOS, 9])
    options: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}
    expected = Reference([rows([BOS, 30, 31], [BOS, *range(30, 36)])], cfg(2.0)).answer(ids, mask)
    for _ in range(2):  # the second call finds the cache of the first
        assert answer(view, ids, mask, **options) == expected
        assert view.stats.forwards == 2 + 2 * view.stats.steps
    # behind more tokens than the window transformers' static cache sees one more than its dynamic one
    off = answer(view, **negative(canvases=3, guidance_scale=0.0, **options))
    assert off == answer(model(), *NEGATIVE, canvases=3, **options)


def test_continuing_from_a_cache() -> None:
    ids, mask = rows([BOS, 5, 6, 7, 8])
    view = guide_gemma(model(), lg.CFG(2.0, negative_prompt=[BOS, 30, 31]))
    first = generate(view, ids, None)
    more = torch.tensor([[9, 10]])
    new = torch.cat([first.sequences[:, ids.shape[1] :], more], 1)
    whole = torch.cat([first.sequences, more], 1)
    expected = Reference([rows([BOS, 30, 31])], cfg(2.0)).answer(whole, torch.ones_like(whole), canvases=2)
    assert answer(view, new, None, past_key_values=first.past_key_values, canvases=2) == expected


def test_the_law_is_combined_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK, "cpu", 5 * VOCAB)
    guided = answer(guide_gemma(model(), lg.CFG()), **negative(guidance_scale=[0.5, 3.0]))
    assert guided == Reference([NEGATIVE], cfg(torch.tensor([0.5, 3.0])[:, None, None])).answer()


class Recorder(BaseStreamer):
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.drafts: list[Tensor] = []
        self.parts: list[Tensor] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.parts.append(value)

    def put_draft(self, value: Tensor) -> None:
        self.drafts.append(value)

    def end(self) -> None:
        self.ended = True


def test_streamer() -> None:
    streamer = Recorder()
    view = guide_gemma(model(), lg.CFG(2.0))
    output = generate(view, canvases=2, streamer=streamer, **negative())
    assert torch.equal(torch.cat(streamer.parts, 1), output.sequences)
    assert len(streamer.drafts) == view.stats.steps
    assert torch.equal(streamer.drafts[-1], output.sequences[:, -CANVAS:])
    assert streamer.ended


def test_early_stopping_looks_at_the_guided_law() -> None:
    steps = []

    def score(reference: Reference, logp: Callable[[int], Tensor]) -> Tensor:
        steps.append(reference.finished.tolist())
        return cfg(3.0)(reference, logp)

    options: dict[str, Any] = {"stability_threshold": 0, "confidence_threshold": 0.6}
    view = guide_gemma(model(), lg.CFG(3.0))
    expected = Reference([NEGATIVE], score, stop=(0, 0.6)).answer(canvases=3)
    assert answer(view, **negative(canvases=3, **options)) == expected
    assert view.stats.steps == len(steps) < 3 * STEPS
    assert [True, False] in steps or [False, True] in steps, "no row ends before the other"
    plain = generate(model(), canvases=3, **options)
    most = torch.full((2,), CANVAS / STEPS)
    assert torch.allclose(plain.tokens_per_forward, most), "the plain model is sure enough to stop as well"


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static", "disable_compile": True}])
def test_off_is_the_plain_model(options: dict[str, Any]) -> None:
    plain = generate(model(), canvases=2, **options)
    state = torch.random.get_rng_state()
    view = guide_gemma(model(), [lg.CFG(2.0), lg.PromptMixture(([BOS],), weights=(0.5,), scale=0.0)])
    off = generate(view, canvases=2, guidance_scale=[1.0, 1.0], **options)
    assert torch.equal(off.sequences, plain.sequences)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert view.stats.forwards == 0
    assert torch.equal(off.past_key_values.layers[0].keys, plain.past_key_values.layers[0].keys)


def test_laws_of_the_strength() -> None:
    # what each source remembers is its own: so 0 is the other prompt alone, a prompt against itself changes nothing,
    # and the roles may be exchanged
    ban = SuppressTokensLogitsProcessor([EOS, PAD])
    kwargs: dict[str, Any] = {"canvases": 2, "logits_processor": [ban]}
    view = guide_gemma(model(), lg.CFG())
    assert answer(view, **negative(guidance_scale=0.0, **kwargs)) == answer(model(), *NEGATIVE, **plain(kwargs))
    same = {"negative_prompt_ids": PROMPTS, "negative_prompt_attention_mask": MASK}
    assert answer(view, guidance_scale=2.0, **same, **kwargs) == answer(model(), **plain(kwargs))
    exchanged = answer(view, *NEGATIVE, guidance_scale=-1.0, **same, **kwargs)
    assert answer(view, **negative(guidance_scale=2.0, **kwargs)) == exchanged


def plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments for transformers' own `generate`, which appends to the list of processors."""
    from transformers import LogitsProcessorList

    return {**kwargs, "logits_processor": LogitsProcessorList(kwargs["logits_processor"])}
