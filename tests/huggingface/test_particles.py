"""Rows that somebody else draws for see the laws of what they have written, whatever was dropped and doubled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.huggingface.view import drawn
from tests.families import FAMILIES, tiny, tokens
from tests.huggingface.reference import cfg_law

if TYPE_CHECKING:
    from torch import Tensor

PROMPT, NEGATIVE = tokens(9, 0), tokens(4, 100)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_cache", [True, False])
def test_every_row_sees_the_law_of_its_own_text(family: str, use_cache: bool) -> None:
    """Random tokens, and rows dropped and doubled at random; each step is checked against CFG worked out anew."""
    model = tiny(family)
    guided = lg.guide(model, lg.CFG(2.0, negative_prompt=tuple(NEGATIVE)))
    law = cfg_law(model, [PROMPT], [NEGATIVE], [2.0])
    random = torch.Generator().manual_seed(3)
    lineage: list[list[int]] = [[], [], []]

    def draw(generated: Tensor, scores: Tensor, finished: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal lineage
        assert generated.tolist() == lineage
        for row, answer in enumerate(lineage):
            torch.testing.assert_close(scores[row], law(0, answer).log_softmax(-1), atol=2e-4, rtol=1e-4)
        drawn_tokens = torch.randint(14, scores.shape[-1], (3,), generator=random)
        order = torch.randint(0, 3, (3,), generator=random)
        written = [answer + [int(token)] for answer, token in zip(lineage, drawn_tokens, strict=True)]
        lineage = [written[int(row)] for row in order]
        return drawn_tokens, order, torch.zeros(3, dtype=torch.bool)

    sequences = drawn(
        guided,
        lambda state, ends: draw,
        torch.tensor([PROMPT]),
        num_return_sequences=3,
        do_sample=True,
        top_k=0,
        max_new_tokens=5,
        use_cache=use_cache,
    )
    assert sequences[:, -5:].tolist() == lineage


def test_the_likeliest_token_each_time_is_greedy_search() -> None:
    model, tokenizer = lg.bundled("tales")
    inputs = tokenizer("A tale of the sea:", return_tensors="pt")
    guided = lg.guide(model, lg.CFG(2.0), tokenizer)
    expected: Any = guided.generate(**inputs, do_sample=False, max_new_tokens=60)

    def draw(generated: Tensor, scores: Tensor, finished: Tensor) -> tuple[Tensor, None, Tensor]:
        return scores.argmax(-1), None, torch.zeros(len(scores), dtype=torch.bool)

    found = drawn(
        guided,
        lambda state, ends: draw,
        inputs.input_ids,
        attention_mask=inputs.attention_mask,
        do_sample=False,
        max_new_tokens=60,
    )
    assert found.tolist() == expected.tolist()
    assert guided.stats.steps == found.shape[1] - inputs.input_ids.shape[1]
