"""Whatever is committed has an allowed completion, and every answer is allowed: any order, block, model, corrector."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.constraints import Choice, FreeText, JSONSchema, Regex
from lmguide.diffusion.spans import Span
from tests.denoisers.models import BLOCK_CAUSAL, CACHED, MASK, PAD, UNPADDED, canvas_of, left_padded
from tests.diffusion import constrained
from tests.diffusion.constrained import END, TEXT, answers, automaton, completable, run

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 4}, "c": {"type": "boolean"}},
    "required": ["a"],
}
CONSTRAINTS = {
    "digits": Regex("[0-9]{4}-[0-9]{2}(-[0-9]{2})?"),
    "words": Regex("((ab)+|c[^\n]{1,9}d)(, \u20ac\u00e9)*"),
    "schema": JSONSchema(SCHEMA),
    "free": FreeText("ba") + Choice(("1", "22", "{}")),
}
ORDERS = (
    *("low_confidence", "random", "margin", "entropy", "threshold:threshold=0.1", "factor", "entropy_bound:bound=2.0"),
    *("dream:alg=origin", "dream:alg=entropy,alg_temp=0.5", "fixed:counts=[5,2,1],direction=right_to_left"),
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMGUIDE_CACHE", str(tmp_path))


def assert_allowed(name: str, texts: list[str | None]) -> None:
    for text in texts:
        assert text is not None
        if name == "schema":
            document = json.loads(text)
            assert type(document["a"]) is int
            assert set(document) <= {"a", "b", "c"}
            assert len(document.get("b", "")) <= 4
            assert type(document.get("c", True)) is bool
        elif name == "free":
            assert re.fullmatch("ba(1|22|{})", text[text.index("ba") :])
        else:
            assert re.fullmatch(str(getattr(CONSTRAINTS[name], "pattern", "")), text)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_orders(name: str, order: str) -> None:
    """At each step there is a completion, and what stands at the end is a text."""
    constraint = CONSTRAINTS[name]
    options = {"order": order, "temperature": 1.0, "steps": 4, "generator": torch.Generator().manual_seed(0)}
    output = run("llada", canvas_of(4, 5, 0), constraint, output_history=True, **options)
    assert_allowed(name, answers(output, 5))
    dfa = automaton(constraint)
    assert output.history is not None
    assert all(completable(dfa, row[5:].tolist()) for canvas in output.history for row in canvas)


@pytest.mark.parametrize("tokens_per_step", [1, 4, 16])
@pytest.mark.parametrize("block_length", [1, 2, 8, 16])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_blocks(name: str, block_length: int, tokens_per_step: int) -> None:
    """A block ends where the rest can still be finished in the columns that are left."""
    steps = 16 // block_length * max(1, block_length // tokens_per_step)
    options: dict[str, Any] = {"block_length": block_length, "steps": steps}
    for temperature in (0.0, 1.5):
        output = run("llada", canvas_of(3, 5, 0), CONSTRAINTS[name], temperature=temperature, **options)
        assert_allowed(name, answers(output, 5))


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("model", ["dream", "mdlm", "uniform", "udlm", *BLOCK_CAUSAL])
def test_models(model: str, name: str) -> None:
    """Ragged prompts too: where blocks are the model's, those of the rows stand in different columns."""
    ids, mask = left_padded(canvas_of(3, 7, 0), [0, 3, 5])
    given = {} if model in UNPADDED else {"attention_mask": mask}
    output = run(model, ids if given else canvas_of(3, 7, 0), CONSTRAINTS[name], temperature=1.0, **given)
    assert_allowed(name, answers(output, 7))


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("model", CACHED)
def test_caches(model: str, cache: Any) -> None:
    output = run(model, canvas_of(3, 5, 0), CONSTRAINTS["digits"], cache=cache, block_length=4, steps=8)
    assert_allowed("digits", answers(output, 5))


@pytest.mark.parametrize(
    "corrector", ["remdm_cap:eta=0.5", "remdm_conf", "remdm_rescale:eta=0.5", "remdm_loop:eta=0.1"]
)
def test_correctors(corrector: str) -> None:
    """What is opened again can be filled again."""
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"corrector": corrector, "temperature": 1.0, "generator": generator, "steps": 12}
    output = run("llada", canvas_of(6, 5, 0), CONSTRAINTS["schema"], output_history=True, **options)
    assert_allowed("schema", answers(output, 5))
    assert output.history is not None
    opened = [(old != MASK) & (new == MASK) for old, new in zip(output.history, output.history[1:], strict=False)]
    assert any(bool(each.any()) for each in opened)


@pytest.mark.parametrize(
    "options",
    [
        {"early_commit": "prophet:thresholds=[0.1,0.1,0.1]"},
        {"guidance": lg.CFG(3.0)},
        {"guidance": lg.AdaptiveCFG(2.0)},
        {"guidance": lg.CFG(2.0, gate=lg.Confidence(0.5)), "temperature": 0.5},
        {"guidance": lg.CFG(2.0), "residual_interval": 3},
        {"top_p": 0.3, "temperature": 0.7},
        {"top_k": 1},
        {"suppress_tokens": [4, 5, 6], "temperature": 1.0},
        {"defer_tokens": [END, 7]},
        {"suppress_tokens": [END]},
    ],
)
def test_options(options: dict[str, Any]) -> None:
    output = run("llada", canvas_of(4, 5, 0), CONSTRAINTS["words"], **options)
    assert_allowed("words", answers(output, 5))
    for token in options.get("suppress_tokens", ()):
        assert token not in output.sequences[:, 5:]


def test_without_an_end_the_text_fills_the_answer() -> None:
    output = run("llada", canvas_of(4, 5, 0), Regex("[0-9]{6,20}"), eos_token_id=(), max_new_tokens=6)
    for row in output.sequences[:, 5:].tolist():
        assert re.fullmatch("[0-9]{6,20}", "".join(TEXT[token - 4] for token in row))


def test_several_ends() -> None:
    """A text ends at whichever comes first, also where one of them would be text."""
    dash = 4 + TEXT.index("-")
    output = run("llada", canvas_of(8, 5, 0), Regex("[ab-]{2,}"), eos_token_id=[END, dash], temperature=1.0)
    for row in output.sequences[:, 5:].tolist():
        end = min(row.index(token) if token in row else 16 for token in (END, dash))
        assert end >= 1
        assert re.fullmatch("[ab]{2,}", "".join(TEXT[token - 4] for token in row[:end]))
        assert set(row[end + 1 :]) <= {PAD}


def test_filling_in() -> None:
    """The text begins at the first mask, and what is given behind it is a part of it."""
    canvas = canvas_of(2, 12, 0)
    comma, one = 4 + TEXT.index(","), 4 + TEXT.index("1")
    canvas[:, [4, 5, 7, 8, 10, 11]] = MASK
    canvas[0, 6], canvas[0, 9] = comma, one
    canvas[1, 6], canvas[1, 9] = one, comma
    output = run("llada", canvas, Regex("[0-9]+,[0-9]*"), infill=True, temperature=1.0)
    for row, given in zip(output.sequences, canvas, strict=True):
        assert re.fullmatch("[0-9]+,[0-9]*", constrained.spelled(row[4:].tolist()) or "")
        assert row[given != MASK].equal(given[given != MASK])


def test_spans() -> None:
    """Texts side by side, each with its own end, and free columns between them."""
    canvas = canvas_of(2, 16, 0)
    canvas[:, [2, 3, 4, 7, 8, 11, 12, 13, 14]] = MASK
    null = 4 + TEXT.index("null")
    spans = [
        Span(0, 2, 5, Regex("[0-9]{1,2}"), ends=(null,), padding=()),
        Span(0, 11, 15, Choice(("true", "false")), ends=(null,)),
        Span(1, 2, 5, Choice(("ab", "12")), ends=(null,)),
    ]
    for temperature in (0.0, 1.0):
        output = run("llada", canvas, spans, infill=True, temperature=temperature, eos_token_id=())
        for span in spans:
            tokens = output.sequences[span.row, span.start : span.stop].tolist()
            end = tokens.index(null) if null in tokens else len(tokens)
            assert set(tokens[end:]) <= {null, PAD}
            text = "".join(TEXT[token - 4] for token in tokens[:end])
            assert automaton(span.constraint, ()).accepts(tokens[:end]), text
        assert output.sequences[canvas != MASK].equal(canvas[canvas != MASK])
        assert MASK not in output.sequences


def test_free_columns_are_as_without_a_constraint() -> None:
    canvas = canvas_of(1, 12, 0)
    canvas[0, [2, 3, 8, 9]] = MASK
    options: dict[str, Any] = {"infill": True, "eos_token_id": (), "steps": 1}
    bound = run("llada", canvas, [Span(0, 2, 4, Regex("[0-9]{2}"))], **options)
    free = run("llada", canvas, None, **options)
    assert bound.sequences[0, 8:].equal(free.sequences[0, 8:])
    assert bound.confidences[0, 8:].equal(free.confidences[0, 8:])
    assert not bound.sequences[0, 2:4].equal(free.sequences[0, 2:4])
