"""What is said of constraints that cannot be: before any forward pass, by name, with the cure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.constraints import Choice, FreeText, Grammar, JSONSchema, Regex, Triggered
from lmguide.diffusion.constraints import bound_spans
from lmguide.diffusion.spans import Span
from tests.denoisers.models import MASK, canvas_of, denoiser_of, model_of
from tests.diffusion.constrained import TEXT, run, tokenizer
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is refused, is refused before the model runs."""
    monkeypatch.setenv("LMGUIDE_CACHE", str(tmp_path))

    def never(*args: Any) -> None:
        raise AssertionError("a forward pass")

    handle = denoiser_of("llada").model.register_forward_pre_hook(never)
    yield
    handle.remove()


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Regex("[0-9]{17}"), ["needs 9 tokens at least, and there are 8 columns"]),
        (Regex("x+"), ["can spell"]),
        (Grammar('start: "' + "a" * 17 + '"'), ["has no text in 8 columns", "Raise max_new_tokens"]),
        (Grammar('start: "a'), ["plain rules and terminals", "line 1"]),
        (Triggered("a", Grammar('start: "b"')), ["sequences, unions and repetitions around a grammar"]),
        (FreeText(max_tokens=3), ["got max_tokens of FreeText"]),
        (FreeText("</s>") + "1", ["got '</s>', a special token"]),
        (Triggered("<mask>", Choice(("1",))) | "1", ["got '<mask>', a special token"]),
        (Regex("(.{1,50}a){3}"), ["smaller bounds of repetitions"]),
        ([Regex("1")], ["each of the 2 rows, got 1"]),
        ([Span(0, 4, 20, Regex("1"))], ["spans on the canvas of 2 rows and 13 columns, got row 0, columns 4 to 20"]),
        ([Span(2, 5, 8, Regex("1"))], ["got row 2"]),
        ([Span(0, 8, 8, Regex("1"))], ["columns 8 to 8"]),
        ([Span(0, 5, 9, Regex("1")), Span(0, 8, 13, Regex("1"))], ["do not overlap"]),
        ("regexp:pattern=1", ["regex"]),
    ],
)
def test_constraints_that_cannot_be(constraint: Any, words: list[str]) -> None:
    with refused("constraint", *words):
        run("llada", canvas_of(2, 5, 0), constraint, max_new_tokens=8)


@pytest.mark.parametrize("constraint", [3, {"name": "regex"}, [Regex("1"), 3], (None, object())])
def test_what_is_no_constraint(constraint: Any) -> None:
    with refused("constraint", "expected a constraint", error=TypeError):
        run("llada", canvas_of(2, 5, 0), constraint)


def test_schemas_that_are_not_honoured() -> None:
    with refused("schema", "got 'uniqueItems'"):
        run("llada", canvas_of(2, 5, 0), JSONSchema({"type": "array", "uniqueItems": True}))


def test_a_canvas_that_no_text_fits() -> None:
    with refused("constraint", "has no text of 16 tokens, and no token ends it before"):
        run("llada", canvas_of(1, 5, 0), Regex("[a-d]{3}"), eos_token_id=())
    with refused("suppress_tokens", "spell a text"):
        run("llada", canvas_of(1, 5, 0), Regex("[a-d]{3}"), suppress_tokens=range(4, 4 + len(TEXT)))
    canvas = canvas_of(2, 6, 0)
    canvas[:, 2:4] = MASK
    canvas[:, 4:] = 4 + TEXT.index("a")
    with refused("constraint", "in row 0 does not fit the tokens that are given"):
        run("llada", canvas, Regex("[0-9]+"), infill=True)


def test_a_text_that_suppressed_tokens_make_too_long() -> None:
    twelve = 4 + TEXT.index("12")
    with refused("constraint", "without those suppressed"):
        run("llada", canvas_of(1, 5, 0), Regex("12121212"), max_new_tokens=4, suppress_tokens=[twelve])


def test_two_constraints() -> None:
    with refused("constraint", "one in guidance and another here"):
        run("llada", canvas_of(1, 5, 0), Regex("1"), guidance=[lg.CFG(2.0), Regex("2")])
    with refused("guidance", "at most one constraint"):
        run("llada", canvas_of(1, 5, 0), None, guidance=[Regex("1"), Regex("2")])


def test_a_constraint_needs_a_tokenizer() -> None:
    with refused("constraint", "expected a tokenizer"):
        run("llada", canvas_of(1, 5, 0), Regex("1"), tokenizer=None)


def test_devices_without_doubles() -> None:
    canvas: Any = SimpleNamespace(ids=SimpleNamespace(device=torch.device("mps")))
    with refused("constraint", "got mps"):
        bound_spans([Span(0, 5, 9, Regex("1"))], canvas, denoiser_of("llada"), tokenizer(), (), (), ())


def test_edits_do_not_go_with_constraints() -> None:
    denoiser = lg.diffusion.Denoiser(model_of("llada"), lg.diffusion.Family("llada", editable=True), mask_token_id=MASK)
    options: dict[str, Any] = {"tokenizer": tokenizer(), "corrector": "token_editing", "max_new_tokens": 8}
    with refused("corrector", "TokenEditing rewrites tokens one by one"):
        lg.diffusion.generate(denoiser, canvas_of(1, 5, 0), constraint=Regex("1+"), **options)
