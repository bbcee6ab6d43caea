"""Constraints in `generate()`: the guided law on the allowed tokens, whatever the loop does with its rows."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers

import lmguide as lg
from lmguide.constraints.engine import compile
from lmguide.constraints.llguidance_engine import LLGuidanceMatcher
from lmguide.constraints.states import ConstraintState
from lmguide.constraints.vocabulary import Vocabulary
from lmguide.constraints.xgrammar_engine import XGrammarMatcher
from lmguide.huggingface.constrained import told
from tests.families import ENCODER_DECODERS, FAMILIES, STATEFUL, made, padded, tokens
from tests.huggingface.reference import First, cfg_law

if TYPE_CHECKING:
    from lmguide.constraints.base import Constraint
    from tests.families import Model
    from tests.huggingface.reference import Law

pytest.importorskip("llguidance", reason="the grammar engines are an extra: pip install lmguide[grammar]")

PATTERN = '(the |a )?[a-z]{2,9}( [0-9]{1,3}|: "[^"\n]{0,4}")'
CHOICES = ("north", "north east", "south by south")


@cache
def tokenizer() -> Any:
    return lg.bundled("tales")[1]


@cache
def model(family: str) -> Model:
    """A tiny model on the tokens of `tokenizer`."""
    found = made(family, vocab_size=len(tokenizer()))
    found.generation_config.eos_token_id = tokenizer().eos_token_id
    found.generation_config.pad_token_id = tokenizer().pad_token_id
    return found


def on_allowed(law: Law, constraints: list[Constraint | None]) -> Law:
    """A law on the tokens that a constraint allows: the state worked out anew at every step."""
    vocabulary = Vocabulary.of_tokenizer(tokenizer(), len(tokenizer()))

    def masked(row: int, answer: list[int]) -> Any:
        scores = law(row, answer)
        constraint = constraints[row % len(constraints)]
        if constraint is None or tokenizer().eos_token_id in answer:
            return scores
        matcher = compile(constraint, vocabulary).start()
        if not all(matcher.accept(token) for token in answer):
            return scores  # a beam of probability 0
        bits = np.zeros(vocabulary.words, np.int32)
        matcher.fill(bits)
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little", count=vocabulary.size)
        return scores.masked_fill(torch.from_numpy(allowed == 0), -torch.inf)

    return masked


MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({"do_sample": False}, {}),
    "sampling": ({"do_sample": True, "temperature": 0.7, "top_k": 20}, {}),
    "returned sequences": ({"do_sample": True, "top_k": 0, "num_return_sequences": 3}, {}),
    "beams": ({"do_sample": False, "num_beams": 4}, {}),
    "returned beams": ({"do_sample": False, "num_beams": 4, "num_return_sequences": 3}, {}),
    "no cache": ({"do_sample": False}, {"use_cache": False}),
    "no cache, beams": ({"do_sample": False, "num_beams": 3}, {"use_cache": False}),
    "static cache": ({"do_sample": False}, {"cache_implementation": "static"}),
}


def batch(family: str, sizes: tuple[int, ...]) -> tuple[list[list[int]], torch.Tensor, torch.Tensor]:
    rows = [tokens(size, seed) for seed, size in enumerate(sizes)]
    return rows, *padded(rows, right=family in ENCODER_DECODERS)


CELLS = [("llama", mode) for mode in MODES] + [
    (family, mode) for family in ("gpt2", "mamba", "t5") for mode in ("sampling", "beams")
]


@pytest.mark.parametrize(("family", "mode"), CELLS)
def test_answers_are_those_of_the_reference(family: str, mode: str) -> None:
    """CFG and a constraint of its own for each prompt, token for token."""
    arguments, engine = MODES[mode]
    constraints: list[Constraint | None] = [lg.Regex(PATTERN), lg.Choice(CHOICES)]
    rows, ids, mask = batch(family, (9, 6))
    negatives = [tokens(size, 100 + seed) for seed, size in enumerate((4, 12))]
    law = on_allowed(cfg_law(model(family), rows, negatives, [2.0, 2.0]), constraints)
    arguments = {"attention_mask": mask, "max_new_tokens": 24, **arguments}
    method = lg.CFG(2.0, negative_prompt=tuple(map(tuple, negatives)))
    guided = lg.guide(model(family), method, tokenizer())

    def run(which: Any, **more: Any) -> list[list[int]]:
        transformers.set_seed(0)
        found: list[list[int]] = which.generate(ids, **arguments, **more).tolist()
        return found

    found = run(guided, constraint=constraints, **engine)
    assert found == run(First(model(family), law))
    skip = 1 if family in ENCODER_DECODERS else ids.shape[1]
    texts = tokenizer().batch_decode([row[skip:] for row in found], skip_special_tokens=True)
    assert guided.stats.truncated == 0
    for index, text in enumerate(texts):
        assert re.fullmatch(PATTERN, text) if index < len(texts) // 2 else text in CHOICES


@pytest.mark.parametrize("drafts", ["prompt lookup", "assistant"])
def test_drafts_change_nothing(drafts: str) -> None:
    """Drafts that the constraint does not allow are taken back like any other."""
    ids = torch.tensor([tokens(9, 0) * 2])
    guided = lg.guide(
        model("llama"), [lg.CFG(2.0, negative_prompt=tuple(tokens(4, 100))), lg.Regex(PATTERN)], tokenizer()
    )
    plain = guided.generate(ids.repeat(2, 1), max_new_tokens=24, do_sample=False)
    assert isinstance(plain, torch.Tensor)
    more = {"prompt_lookup_num_tokens": 3} if drafts == "prompt lookup" else {"assistant_model": drafting()}
    found = guided.generate(ids, max_new_tokens=24, do_sample=False, **more)
    assert isinstance(found, torch.Tensor)
    assert found[0].tolist() == plain[0].tolist()


def drafting() -> Model:
    found = made("llama", 1, vocab_size=len(tokenizer()))
    found.generation_config.eos_token_id = tokenizer().eos_token_id
    found.generation_config.pad_token_id = tokenizer().pad_token_id
    return found


SCHEMA = lg.JSONSchema(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "happy": {"type": "boolean"}},
        "required": ["name", "happy"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in STATEFUL])
def test_forced_tokens_are_read_several_at_a_time_and_nothing_else_changes(family: str) -> None:
    """One row skips ahead, a row beside another does not."""
    rows, ids, mask = batch(family, (7,))
    negative = lg.CFG(2.0, negative_prompt=tuple(tokens(4, 100)))
    guided = lg.guide(model(family), [negative, SCHEMA], tokenizer())
    alone = guided.generate(ids, attention_mask=mask, max_new_tokens=60, do_sample=False)
    skipped = guided.stats
    beside = guided.generate(ids.repeat(2, 1), attention_mask=mask.repeat(2, 1), max_new_tokens=60, do_sample=False)
    assert isinstance(alone, torch.Tensor)
    assert isinstance(beside, torch.Tensor)
    assert alone[0].tolist() == beside[0].tolist()
    assert skipped.forced > 0
    assert guided.stats.forced == 0
    written = alone.shape[1] - (1 if family in ENCODER_DECODERS else ids.shape[1])
    assert skipped.steps == written - skipped.forced


def test_stop_strings_are_not_skipped_over() -> None:
    rows, ids, mask = batch("llama", (7,))
    guided = lg.guide(model("llama"), SCHEMA, tokenizer())
    with pytest.warns(UserWarning, match="1 of 1 answers stop before they are complete"):
        found = guided.generate(ids, max_new_tokens=60, do_sample=False, stop_strings=["am"], tokenizer=tokenizer())
    assert isinstance(found, torch.Tensor)
    assert guided.stats.forced == 0
    assert tokenizer().decode(found[0, ids.shape[1] :]).endswith("am")


def test_a_constraint_alone_costs_no_further_forward() -> None:
    _, ids, mask = batch("llama", (9, 6))
    guided = lg.guide(model("llama"), lg.Regex(PATTERN), tokenizer())
    found = guided.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False)
    assert isinstance(found, torch.Tensor)
    assert guided.stats.forwards == guided.stats.steps == found.shape[1] - ids.shape[1]


def test_a_view_serves_call_after_call() -> None:
    _, ids, mask = batch("llama", (9, 6))
    guided = lg.guide(model("llama"), lg.Regex(PATTERN), tokenizer())
    first, second = (guided.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False) for _ in range(2))
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert first.tolist() == second.tolist()


def test_a_cut_off_answer_is_told() -> None:
    _, ids, mask = batch("llama", (9, 6))
    guided = lg.guide(model("llama"), lg.Regex("[a-z]{30}"), tokenizer())
    with pytest.warns(UserWarning, match="2 of 2 answers stop before they are complete. Raise max_new_tokens."):
        guided.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    assert guided.stats.truncated == 2


def test_the_engine_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either gives the answers of the reference; here, that each is really the one that runs."""
    _, ids, mask = batch("llama", (9, 6))
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 24, "do_sample": False}
    constraint = lg.JSONSchema({"enum": ["north", "east"]})
    calls: list[str] = []
    for name, kind in (("llguidance", LLGuidanceMatcher), ("xgrammar", XGrammarMatcher)):

        def accept(*arguments: Any, name: str = name, own: Any = kind.accept) -> bool:
            calls.append(name)
            return bool(own(*arguments))

        monkeypatch.setattr(kind, "accept", accept)
    for backend in (None, "llguidance", "xgrammar"):
        processor = lg.ConstraintLogitsProcessor(constraint, tokenizer(), backend=backend)
        door = lg.decoding(constraint, tokenizer(), backend=backend)
        for run in (
            lambda backend=backend: lg.guide(model("llama"), constraint, tokenizer(), backend=backend).generate(
                ids, **arguments
            ),
            lambda door=door: model("llama").generate(ids, custom_generate=door, **arguments),
            lambda processor=processor: model("llama").generate(ids, logits_processor=[processor], **arguments),
        ):
            calls.clear()
            texts = tokenizer().batch_decode(run()[:, ids.shape[1] :], skip_special_tokens=True)
            assert set(texts) <= {'"north"', '"east"'}
            assert set(calls) == {backend or "llguidance"}
    for refuse in (lg.guide, lambda model, *rest, **more: lg.decoding(*rest, **more)):
        with pytest.raises(ValueError, match="backend: expected one of llguidance, xgrammar, got 'xgramar'"):
            refuse(model("llama"), constraint, tokenizer(), backend="xgramar")


def test_the_other_door() -> None:
    _, ids, mask = batch("llama", (9, 6))
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 24, "do_sample": False}
    guided = lg.guide(model("llama"), [lg.CFG(2.0), lg.Regex(PATTERN)], tokenizer())
    door = lg.decoding([lg.CFG(2.0), lg.Regex(PATTERN)], tokenizer())
    found = model("llama").generate(ids, **arguments, custom_generate=door)
    expected: Any = guided.generate(ids, **arguments)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"constraint": "[0-9]"}, TypeError, "constraint: expected a constraint such as Regex"),
        ({"constraint": [lg.Regex("a")] * 3}, ValueError, r"constraint: expected one, or one per prompt \(2\), got 3"),
        ({"eos_token_id": -1}, ValueError, "eos"),
        (
            {"bad_words_ids": [[2]], "suppress_tokens": list(range(1, 512))},
            lg.ConstraintError,
            "other processors exclude",
        ),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    _, ids, mask = batch("llama", (9, 6))
    guided = lg.guide(model("llama"), lg.Choice(("a", "b")), tokenizer())
    with pytest.raises(error, match=message):
        guided.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False, **change)


def test_what_a_view_refuses() -> None:
    with pytest.raises(ValueError, match="at most one constraint, got 2"):
        lg.guide(model("llama"), [lg.Regex("a"), lg.Regex("b")], tokenizer())
    with pytest.raises(ValueError, match="tokenizer: a constraint is about text"):
        lg.guide(model("llama"), lg.Regex("a")).generate(torch.tensor([tokens(5, 0)]), max_new_tokens=4)
    with pytest.raises(ValueError, match="eos_token_id: a constraint ends an answer"):
        guided = lg.guide(made("llama", vocab_size=512), lg.Regex("a"), tokenizer())
        guided.generate(torch.tensor([tokens(5, 0)]), max_new_tokens=4)


def test_an_answer_that_is_not_allowed_is_never_passed_over() -> None:
    vocabulary = Vocabulary.of_tokenizer(tokenizer(), len(tokenizer()))
    state = ConstraintState([compile(lg.Choice(("ab", "cd")), vocabulary)], vocabulary)
    good, bad = (torch.tensor([tokenizer().encode(text, add_special_tokens=False)]) for text in ("ab", "ad"))
    assert told(state, good, 1) == 0
    with pytest.raises(lg.ConstraintError, match="got another in row 0"):
        told(state, bad, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3, "renormalize_logits": True},
        {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
        {"do_sample": False, "use_cache": False},
    ],
    ids=str,
)
def test_the_processor_does_the_same_call_after_call(arguments: dict[str, Any]) -> None:
    _, ids, mask = batch("llama", (9, 6))
    processor = lg.ConstraintLogitsProcessor(lg.Regex(PATTERN), tokenizer())
    guided = lg.guide(model("llama"), lg.Regex(PATTERN), tokenizer())
    arguments = {"attention_mask": mask, "max_new_tokens": 24, **arguments}
    transformers.set_seed(0)
    expected: Any = guided.generate(ids, **arguments)
    for _ in range(2):
        transformers.set_seed(0)
        found = model("llama").generate(ids, **arguments, logits_processor=[processor])
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("constraint", [SCHEMA, lg.Regex("[a-z ]{30}"), lg.Regex("([0-9]{3}-)*x")], ids=str)
@pytest.mark.parametrize("room", [33, 40])
def test_answers_are_closed_in_the_tokens_left(constraint: Constraint, room: int) -> None:
    """Random weights never come to an end by themselves; no warning is given, and warnings are errors here."""
    _, ids, mask = batch("llama", (9, 6))
    guided = lg.guide(model("llama"), [lg.CFG(2.0), constraint], tokenizer())
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": room, "do_sample": True, "top_k": 0}
    torch.manual_seed(0)
    guided.generate(ids, **arguments, close=True)
    assert guided.stats.truncated == 0


def test_closing_changes_nothing_that_is_far_from_the_end() -> None:
    _, ids, mask = batch("llama", (9, 6))
    guided = lg.guide(model("llama"), lg.Regex(PATTERN), tokenizer())
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 110, "do_sample": True}
    found: list[Any] = []
    for close in (False, True):
        torch.manual_seed(0)
        found.append(guided.generate(ids, **arguments, close=close))
    assert found[0].tolist() == found[1].tolist()
