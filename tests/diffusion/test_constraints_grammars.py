"""Under a grammar whatever stands has a completion, every answer is a text of it, and what is refused is refused."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import lmguide as lg
from lmguide.constraints import JSON, Choice, Constraint, ContextFree, Grammar, Language, Regex
from lmguide.constraints.context_free.chart import Column
from lmguide.constraints.context_free.grammar import Grammar as OverTokens
from lmguide.constraints.context_free.reading import productions_of
from lmguide.diffusion.spans import Span
from tests.constraints.test_languages import checked
from tests.denoisers.models import BLOCK_CAUSAL, MASK, PAD, UNPADDED, VOCAB, canvas_of, denoiser_of, left_padded
from tests.diffusion.constrained import END, TEXT, answers, run, spelled

if TYPE_CHECKING:
    from pathlib import Path

NESTED = Grammar('start: "a" start "b" | "12" | "0"')
LISTS = Grammar('start: "[" [start ("," start)*] "]" | NUMBER\nNUMBER: /[1-9][0-9]*|0/\n%ignore " "')
CONSTRAINTS: dict[str, Constraint] = {
    "json": ContextFree(JSON()),
    "nested": NESTED,
    "lists": LISTS,
    "composed": "e" + NESTED + Choice(("", "e")),
}
ORDERS = (
    *("low_confidence", "random", "margin", "entropy", "threshold:threshold=0.1", "factor", "entropy_bound:bound=2.0"),
    *("dream:alg=entropy,alg_temp=0.5", "fixed:counts=[5,2,1],direction=right_to_left"),
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMGUIDE_CACHE", str(tmp_path))


def is_nested(text: str) -> bool:
    depth = len(text) - len(text.lstrip("a"))
    return text in {"a" * depth + core + "b" * depth for core in ("12", "0")}


def assert_allowed(name: str, texts: list[str | None]) -> None:
    for text in texts:
        assert text is not None
        if name == "nested":
            assert is_nested(text)
        elif name == "composed":
            assert text[0] == "e"
            assert is_nested(text[1:].removesuffix("e"))
        else:
            json.loads(text)
            assert name == "json" or set(text) <= set("[], 0123456789")


def over_all_tokens(constraint: Constraint) -> tuple[OverTokens, tuple[int, ...]]:
    """The grammar, and every token, so that a column may hold whatever there is."""
    texts = [TEXT[token - 4].encode() if 4 <= token < 4 + len(TEXT) else b"" for token in range(VOCAB)]
    usable = np.array([bool(text) for text in texts])
    return OverTokens(productions_of(constraint), texts, usable), tuple(np.flatnonzero(usable).tolist())


def completable(grammar: OverTokens, everything: tuple[int, ...], answer: list[int]) -> bool:
    """Whether the masks of an answer can be filled: a text, then an end and padding."""
    least = next((at for at, token in enumerate(answer) if token in {END, PAD}), len(answer))
    text = answer[:least]
    if set(answer[least:]) - {END, PAD, MASK} or (least < len(answer) and answer[least] == PAD and MASK not in text):
        return False
    behind = [end for end in range(least + 1) if set(text[end:]) <= {MASK}]
    ends = [end for end in behind if end < least or answer[least:][:1] != [PAD]]
    columns = [Column(True, everything) if token == MASK else Column(False, (token,)) for token in text]
    return grammar.completed(columns, ends) is not None


@pytest.mark.parametrize(("order", "name"), list(zip(ORDERS, itertools.cycle(CONSTRAINTS), strict=False)))
def test_orders(name: str, order: str) -> None:
    """Every canvas on the way can be completed, and the last one is a text."""
    generator = torch.Generator().manual_seed(len(order))
    options: dict[str, Any] = {"temperature": 1.0, "generator": generator, "output_history": True, "steps": 6}
    options |= {"max_new_tokens": 12}
    output = run("llada", canvas_of(2, 5, 0), CONSTRAINTS[name], order=order, **options)
    assert_allowed(name, answers(output, 5))
    assert output.history is not None
    found = over_all_tokens(CONSTRAINTS[name])
    for canvas in output.history:
        assert all(completable(*found, row) for row in canvas[:, 5:].tolist())


@pytest.mark.parametrize("tokens_per_step", [1, 4, 16])
@pytest.mark.parametrize("block_length", [4, 16])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_blocks(name: str, block_length: int, tokens_per_step: int) -> None:
    steps = max(16 // tokens_per_step, 16 // block_length)
    output = run("llada", canvas_of(2, 5, 0), CONSTRAINTS[name], block_length=block_length, steps=steps)
    assert_allowed(name, answers(output, 5))
    assert output.verification is not None
    assert output.verification.refused > 0


@pytest.mark.parametrize("model", ["dream", "mdlm", "uniform", *BLOCK_CAUSAL])
def test_models(model: str) -> None:
    """Logits shifted, random tokens in the place of masks, blocks of the model's own and ragged prompts."""
    ids, mask = left_padded(canvas_of(3, 7, 0), [0, 3, 5])
    given = {} if model in UNPADDED else {"attention_mask": mask}
    output = run(model, ids if given else canvas_of(3, 7, 0), LISTS, temperature=1.0, **given)
    assert_allowed("lists", answers(output, 7))


@pytest.mark.parametrize(
    "options",
    [
        {"early_commit": "prophet:thresholds=[0.1,0.1,0.1]"},
        {"guidance": lg.CFG(3.0)},
        {"guidance": lg.AdaptiveCFG(2.0)},
        {"corrector": "remdm_conf", "steps": 12},
        {"top_p": 0.3, "temperature": 0.7},
        {"top_k": 1},
        {"suppress_tokens": [4, 5, 6], "temperature": 1.0},
        {"defer_tokens": [END, 7]},
        {"suppress_tokens": [END]},
    ],
)
def test_options(options: dict[str, Any]) -> None:
    output = run("llada", canvas_of(2, 5, 0), LISTS, **({"steps": 8} | options))
    assert_allowed("lists", answers(output, 5))
    for token in options.get("suppress_tokens", ()):
        assert token not in output.sequences[:, 5:]


@pytest.mark.parametrize(("name", "rows", "steps"), [("json", 2, 12), ("json", 2, 3), ("sql", 1, 2), ("python", 1, 4)])
def test_programs(name: Any, rows: int, steps: int) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "order": "random", "steps": steps, "max_new_tokens": 4 + 4 * rows}
    generator = torch.Generator().manual_seed(3)
    output = run("llada", canvas_of(rows, 5, 0), Language(name), generator=generator, **options)
    texts = answers(output, 5)
    assert all(text is not None and checked(name, text) for text in texts), texts


def test_rows_each_with_a_constraint_of_its_own() -> None:
    output = run("llada", canvas_of(4, 5, 0), [NESTED, None, Regex("[0-9]{3}"), LISTS], temperature=1.0)
    nested, _, digits, lists = answers(output, 5)
    assert_allowed("nested", [nested])
    assert_allowed("lists", [lists])
    assert digits is not None
    assert re.fullmatch("[0-9]{3}", digits)


def test_filling_in_and_spans() -> None:
    canvas = canvas_of(1, 20, 0)
    canvas[0, [3, 4, 6, 7, 8, 11, 12, 14, 15]] = MASK
    canvas[0, 5], canvas[0, 13] = 4 + TEXT.index(","), 4 + TEXT.index("12")
    spans = [Span(0, 3, 9, LISTS), Span(0, 11, 16, NESTED)]
    output = run("llada", canvas, spans, infill=True, eos_token_id=(), temperature=1.0)
    assert output.sequences[canvas != MASK].equal(canvas[canvas != MASK])
    for span, name in zip(spans, ("lists", "nested"), strict=True):
        assert_allowed(name, [spelled(output.sequences[0, span.start : span.stop].tolist())])


def law_at(canvas: torch.Tensor) -> torch.Tensor:
    """The model's laws of the answer without the mask token, `[A, V]`."""
    logits = denoiser_of("llada")(canvas[None], start=5)[0].detach().double().log_softmax(-1)
    logits[:, MASK] = -torch.inf
    return logits


def test_temperature_0() -> None:
    """The surest position is written if it can be; its token is the likeliest that can stand there."""
    columns, prompt = 4, canvas_of(1, 5, 0)
    grammar, everything = over_all_tokens(NESTED)
    answer = [MASK] * columns
    refused = 0
    while MASK in answer:
        laws = law_at(torch.cat([prompt[0], torch.tensor(answer)]))
        known: dict[int, tuple[float, int]] = {}
        while True:
            best = [known.get(at, (float(laws[at].max()), int(laws[at].argmax()))) for at in range(columns)]
            place = max((at for at in range(columns) if answer[at] == MASK), key=lambda at: best[at][0])
            if place in known or completable(
                grammar, everything, [*answer[:place], best[place][1], *answer[place + 1 :]]
            ):
                break
            refused += 1
            ranked = laws[place].argsort(descending=True).tolist()
            fit = next(
                at
                for at, token in enumerate(ranked)
                if completable(grammar, everything, [*answer[:place], token, *answer[place + 1 :]])
            )
            left = 1 - float(laws[place, ranked[:fit]].exp().sum())
            known[place] = float(laws[place, ranked[fit]]) - math.log(left), ranked[fit]
        answer[place] = best[place][1]
    output = run("llada", prompt, NESTED, max_new_tokens=columns)
    assert output.sequences[0, 5:].tolist() == answer
    assert output.verification is not None
    assert output.verification.refused == refused > 0


def test_draws_are_from_the_law_of_what_can_stand() -> None:
    """One open position: the law of its tokens, given that the text is allowed."""
    canvas = canvas_of(1, 9, 0)
    a, zero, b = (4 + TEXT.index(text) for text in "a0b")
    canvas[0, 5:] = torch.tensor([a, zero, MASK, PAD])
    canvas[0, 8] = END
    wider = Grammar('start: "a" start ("b" | "ba" | "b1") | "0"')
    law = law_at(canvas[0])[2].exp()
    allowed = [token for token in range(4, 4 + len(TEXT)) if TEXT[token - 4] in ("b", "ba", "b1")]
    shares = law[allowed] / law[allowed].sum()
    assert b in allowed
    runs = 400
    generators = [torch.Generator().manual_seed(seed) for seed in range(runs)]
    output = run(
        "llada",
        canvas.repeat(runs, 1),
        [Span(row, 5, 9, wider) for row in range(runs)],
        infill=True,
        temperature=1.0,
        generator=generators,
    )
    counts = Counter(output.sequences[:, 7].tolist())
    assert set(counts) <= set(allowed)
    for token, share in zip(allowed, shares.tolist(), strict=True):
        assert abs(counts[token] / runs - share) < 4 * math.sqrt(share * (1 - share) / runs) + 1e-9


def test_counts() -> None:
    """A grammar that allows everything refuses nothing; one that allows one text settles what no law would write."""
    letters = " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys("".join(TEXT)))
    free = run(
        "llada",
        canvas_of(2, 5, 0),
        Grammar(f"start: ({letters})*"),
        suppress_tokens=[0, 1, *range(4 + len(TEXT), VOCAB)],
    )
    assert free.verification is not None
    assert free.verification.refused == 0
    plain = run("llada", canvas_of(2, 5, 0), None, suppress_tokens=[0, 1, *range(4 + len(TEXT), VOCAB)])
    assert free.sequences.equal(plain.sequences)
    assert plain.verification is None
