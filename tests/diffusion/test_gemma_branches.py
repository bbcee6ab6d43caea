"""Prompts of DiffusionGemma as one batch or apart: the decoder says the same, and nobody's cache is written to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from lmguide.denoisers import gemma_branches as branches
from lmguide.denoisers.gemma_branches import Block, Prefix, PromptSource
from lmguide.denoisers.stats import Stats
from lmguide.sources.ids import Rows
from tests.diffusion.gemma import BOS, CANVAS, MASK, PROMPTS, VOCAB, laws, model, rows

SETS = {
    "shorter": rows([BOS], [BOS, 30]),
    "ragged": rows([BOS, 30, 31], [BOS, *range(25, 45)]),
    "as long": (PROMPTS.flip(1), MASK.flip(1).flip(1)),
    "longer than the window": rows([*range(5, 30)], [*range(10, 35)]),
}
TOLERANCE = 2e-6


def source(ids: torch.Tensor, mask: torch.Tensor, cache: Any = None) -> PromptSource:
    batch = PROMPTS.shape[0]
    cache = branches.dynamic_cache(model()) if cache is None else cache
    return PromptSource(model(), Rows(ids, mask), batch, cache, Stats())


def decoded(reading: branches.Reading, blocks: list[Block]) -> torch.Tensor:
    arguments = branches.stack(blocks)
    logits: torch.Tensor = model()(
        past_key_values=reading.cache,
        decoder_attention_mask=reading.masks,
        decoder_position_ids=reading.positions,
        **arguments,
    ).logits
    return logits


@torch.no_grad()
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("canvases", [0, 2])
def test_joined_is_apart(name: str, canvases: int) -> None:
    prompts = [(PROMPTS, MASK), SETS[name], rows([BOS, 40], [BOS, 40])]
    sources = [source(*prompt) for prompt in prompts]
    done = torch.randint(VOCAB, (2, canvases * CANVAS))
    canvas = torch.randint(VOCAB, (2, CANVAS))
    blocks = [Block(canvas, torch.randn(2, CANVAS, VOCAB).double()) for _ in sources]
    for part in done.split(CANVAS, 1) if canvases else ():
        for each in sources:
            each.prefix()  # encoded canvas by canvas
            each.commit(part)
    prefixes = [each.prefix() for each in sources]
    layers: list[Any] = [layer for prefix in prefixes for layer in prefix.cache.layers]
    before = [(layer.keys, layer.keys.clone()) for layer in layers]
    reading = branches.joined(model(), prefixes)
    assert reading is not None
    together = decoded(reading, blocks).split(2)
    for prompt, prefix, block, logits in zip(prompts, prefixes, blocks, together, strict=True):
        apart = decoded(branches.reading(model(), prefix), [block])
        ids, mask = torch.cat([prompt[0], done], 1), torch.cat([prompt[1], torch.ones_like(done)], 1)
        # float32 logits of equal float64 states
        torch.testing.assert_close(logits, apart, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(apart, laws(ids, mask, canvas, block.state), rtol=0, atol=TOLERANCE)
    for (tensor, values), layer in zip(before, layers, strict=True):
        assert layer.keys is tensor and torch.equal(tensor, values)


@torch.no_grad()
def test_a_source_encodes_late_what_it_would_have_encoded_early() -> None:
    done = torch.randint(VOCAB, (2, 2 * CANVAS))
    canvas = torch.randint(VOCAB, (2, CANVAS))
    late = source(*rows([BOS, 30, 31]))
    for part in done.split(CANVAS, 1):
        late.commit(part)
    ids = torch.cat([torch.tensor([[BOS, 30, 31]]).expand(2, -1), done], 1)
    expected = laws(ids, torch.ones_like(ids), canvas, None)
    logits = decoded(branches.reading(model(), late.prefix()), [Block(canvas, None)])
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)
    assert late.stats.forwards == 1


@torch.no_grad()
def test_sources_with_and_without_an_estimate_run_together() -> None:
    prefixes = [source(PROMPTS, MASK).prefix(), source(*SETS["ragged"]).prefix()]
    canvas, state = torch.randint(VOCAB, (2, CANVAS)), torch.randn(2, CANVAS, VOCAB).double()
    for states in ([state, None], [None, state], [None, None]):
        blocks = [Block(canvas, each) for each in states]
        reading = branches.joined(model(), prefixes)
        assert reading is not None
        together = decoded(reading, blocks).split(2)
        for prefix, block, logits in zip(prefixes, blocks, together, strict=True):
            apart = decoded(branches.reading(model(), prefix), [block])
            torch.testing.assert_close(logits, apart, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_what_cannot_be_joined_exactly_is_not() -> None:
    known = source(PROMPTS, MASK).prefix()
    static = source(*rows([BOS, 30], [BOS, 31]), branches.static_cache(model(), 40)).prefix()
    flat = source(*rows([BOS, 30], [BOS, 31]), DynamicCache()).prefix()  # no windows
    assert branches.joined(model(), [known, static]) is None
    assert branches.joined(model(), [known, flat]) is None

    class Other(DynamicCache):
        pass

    other: Any = Other(config=model().config.get_text_config(decoder=True))
    other.layers = known.cache.layers
    assert branches.joined(model(), [known, Prefix(other, known.mask)]) is None
    assert branches.joined(model(), [known, known]) is not None
