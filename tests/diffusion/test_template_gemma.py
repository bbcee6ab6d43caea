"""A template on DiffusionGemma's canvas: what comes out has its text and allowed fields, at whichever step it stops."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LogitsProcessorList

import lmguide as lg
from lmguide.constraints import JSON, Choice, ContextFree, Regex
from lmguide.diffusion import Field, Template, TemplateLogitsProcessor
from tests.diffusion import gemma
from tests.diffusion.constrained import TEXT, automaton, tokenizer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

TEMPLATE = Template(
    "a{{x}}-b{{y}}.", {"x": Field(Regex("[0-9]{2,3}"), 3, "1"), "y": Field(Choice(("cd", "e")), 3, "c")}
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMGUIDE_CACHE", str(tmp_path))


def processor(template: Template = TEMPLATE) -> TemplateLogitsProcessor:
    return TemplateLogitsProcessor(template, gemma.model(), tokenizer())


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("guidance", [None, lg.CFG(3.0, negative_prompt=(6, 7)), lg.AdaptiveCFG(2.0)])
def test_what_comes_out(guidance: Any, steps: int) -> None:
    model = gemma.model() if guidance is None else lg.diffusion.guide_gemma(gemma.model(), guidance)
    forced = processor()
    answer = torch.tensor(
        gemma.answer(model, logits_processor=LogitsProcessorList([forced]), max_denoising_steps=steps)
    )
    for filled, row in zip(forced.read(answer), answer.tolist(), strict=True):
        assert re.fullmatch(r"a[0-9]{2,3}-b(cd|e)\.", filled.text)
        assert filled.values["y"] in ("cd", "e")
        assert len(row) == 12


def test_without_it_the_model_writes_something_else() -> None:
    answer = torch.tensor(gemma.answer(gemma.model()))
    assert not all(re.fullmatch(r"a[0-9]{2,3}-b(cd|e)\.", filled.text) for filled in processor().read(answer))


def test_scores_are_log_marginals() -> None:
    """By writing all texts of a field down; but for the likeliest one's tokens, which stand above all."""
    forced = processor()
    scores = torch.randn(2, gemma.CANVAS, gemma.VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = forced(torch.zeros(2, 3, dtype=torch.long), scores)
    law = scores.log_softmax(-1)
    (slot, _) = forced.layout.slots
    dfa = automaton(slot.constraint, (0,), ())
    usable = [token for token in range(4 + len(TEXT)) if dfa.classes[token]]
    for row in range(2):
        shares = {}
        for text in itertools.product(usable, repeat=slot.stop - slot.start):
            if dfa.accepts(text):
                shares[text] = float(sum(law[row, slot.start + at, token] for at, token in enumerate(text)))
        total = float(torch.tensor(list(shares.values()), dtype=torch.float64).logsumexp(0))
        best = max(shares, key=lambda text: shares[text])
        expected = torch.zeros(slot.stop - slot.start, gemma.VOCAB, dtype=torch.float64)
        for text, share in shares.items():
            for at, token in enumerate(text):
                expected[at, token] += float(torch.tensor(share - total, dtype=torch.float64).exp())
        for at in range(slot.stop - slot.start):
            mine = found[row, slot.start + at].exp()
            assert int(mine.argmax()) == best[at]
            others = [token for token in range(gemma.VOCAB) if token != best[at]]
            assert torch.allclose(mine[others], expected[at, others], atol=1e-6)
    columns = torch.tensor(forced.layout.tokens)
    pinned = (columns >= 0).nonzero()[:, 0]
    assert found[:, pinned].argmax(-1).equal(columns[pinned].expand(2, -1))
    assert found[:, len(columns) :].argmax(-1).eq(gemma.EOS).all()
    assert forced.open_share == pytest.approx(6 / 12)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (Template("a{{x}}\n", {"x": Field(length=11, example="c")}), "at most the 12 columns"),
        (Template("a{{x}}\n", {"x": Field(length=(1, 2), example="1")}), "fields of one length"),
        (Template("a{{x}}\n", {"x": Field(ContextFree(JSON()), 3, "1")}), "a grammar in 'x'"),
        (Template("a{{x}}\n", {"x": Field(Regex("c{4}"), 3, "c")}), "in the 3 columns of 'x'"),
    ],
)
def test_what_is_refused(template: Template, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        processor(template)
