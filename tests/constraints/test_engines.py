"""The engines say the same of a token twice: in the mask, and when it comes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lmguide.constraints import (
    Choice,
    Constraint,
    ConstraintError,
    FreeText,
    Grammar,
    JSONSchema,
    Literal,
    Regex,
    Triggered,
    Vocabulary,
    compile,
    fill_batch,
)
from lmguide.constraints import engine as engines
from lmguide.constraints.vocabulary import bytes_vocabulary
from tests.constraints.walks import BACKENDS, allowed, byte_vocabulary, tales

if TYPE_CHECKING:
    from lmguide.constraints import Matcher

OBJECT = JSONSchema(
    {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}, "required": ["n"]}
)
BOTH: list[Constraint] = [
    Regex(r"\d{2,3}-\w+( [a-c]*)?"), Choice(["the fisher", "the cook", ""]), OBJECT,
    Grammar('start: "a" start "b" | /[xy]+/'),
    Literal("\U0001f600\n"),
]  # fmt: skip
ALONE: list[Constraint] = ["<t>" + FreeText("</t>") + OBJECT, Triggered("a", Choice(["b", "c"]), repeat=True),
                           FreeText("!", max_tokens=3) + "x", Grammar('%ignore / /\nstart: "a" "b"+')]  # fmt: skip
CASES = [(each, backend) for each in BOTH for backend in BACKENDS] + [(each, "llguidance") for each in ALONE]


def _states(constraint: Constraint, vocabulary: Vocabulary, backend: str, steps: int = 12) -> list[Matcher]:
    """Matchers along random walks; ended ones are left out."""
    draw = random.Random(2)
    found = []
    for _ in range(3):
        matcher = compile(constraint, vocabulary, backend).start()
        for _ in range(steps):
            found.append(matcher.copy())
            token = draw.choice(allowed(matcher, vocabulary))
            assert matcher.accept(token)
            if token in vocabulary.eos:
                break
    return found


@pytest.mark.parametrize(("constraint", "backend"), CASES, ids=str)
def test_the_mask_is_what_would_be_accepted(constraint: Constraint, backend: str) -> None:
    vocabulary = tales()
    for state in _states(constraint, vocabulary, backend):
        mask = allowed(state, vocabulary)
        accepted = [token for token in range(vocabulary.size) if state.copy().accept(token)]
        if forced := state.forced():  # one way to cut the text that must come, out of several
            assert mask == forced[:1]
            assert set(mask) <= set(accepted)
        else:
            assert mask == accepted
        assert accepted == [token for token in range(vocabulary.size) if state.validate([token])]


@pytest.mark.parametrize(("constraint", "backend"), CASES, ids=str)
def test_an_end_is_allowed_where_the_text_may_end(constraint: Constraint, backend: str) -> None:
    vocabulary = byte_vocabulary()
    for state in _states(constraint, vocabulary, backend, steps=30):
        mask = allowed(state, vocabulary)
        assert set(vocabulary.eos) <= set(mask) if state.accepting() else not set(vocabulary.eos) & set(mask)
        assert state.finished() == (set(mask) == set(vocabulary.eos))
        ended = state.copy()
        assert ended.accept(vocabulary.eos[1]) == state.accepting()
        if state.accepting():
            assert ended.finished()
            assert ended.accepting()
            assert not ended.accept(97)
            assert ended.forced() == []
            assert allowed(ended, vocabulary) == list(vocabulary.eos)
            assert ended.validate([vocabulary.eos[0], 97]) == 1


@pytest.mark.parametrize(("constraint", "backend"), CASES, ids=str)
def test_copies_go_their_own_ways(constraint: Constraint, backend: str) -> None:
    vocabulary = tales()
    for state in _states(constraint, vocabulary, backend):
        mask = allowed(state, vocabulary)
        for token in mask[:5]:
            other = state.copy()
            assert other.accept(token)
        refused = next(token for token in range(vocabulary.size) if token not in mask and not state.validate([token]))
        assert not state.accept(refused)
        assert allowed(state, vocabulary) == mask


@pytest.mark.parametrize(("constraint", "backend"), CASES, ids=str)
def test_validate_counts_what_could_follow(constraint: Constraint, backend: str) -> None:
    vocabulary = byte_vocabulary()
    draw = random.Random(4)
    for state in _states(constraint, vocabulary, backend):
        row = state.copy()
        tokens: list[int] = []
        while len(tokens) < 6 and not row.finished():
            tokens.append(draw.choice(allowed(row, vocabulary)))
            row.accept(tokens[-1])
        assert state.validate(tokens) == len(tokens)
        before = allowed(state, vocabulary)
        never = next(token for token in range(vocabulary.size) if not row.copy().accept(token))
        assert state.validate([*tokens, never, *tokens]) == len(tokens)
        assert allowed(state, vocabulary) == before


REFERENCE = [("12-a\u00e9 cab", BOTH[0]), ('{"name": "the cook", "n": -3}', OBJECT), ("aaxyxbb", BOTH[3])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("text", "constraint"), REFERENCE)
def test_the_tokens_of_a_text_are_allowed(text: str, constraint: Constraint, backend: str) -> None:
    vocabulary = tales()
    matcher = compile(constraint, vocabulary, backend).start()
    for token in vocabulary.encode(text):
        assert token in allowed(matcher, vocabulary)
        assert matcher.accept(token)
    assert matcher.accepting()


@pytest.mark.parametrize("backend", BACKENDS)
def test_forced_tokens_are_the_only_way(backend: str) -> None:
    vocabulary = tales()
    closed = {"type": "object", "required": ["first_name"], "additionalProperties": False}
    schema = JSONSchema({**closed, "properties": {"first_name": {"const": "fisher"}}}, "compact")
    for constraint in (schema, Regex("the (fisher|cook) and the captain")):
        for state in _states(constraint, vocabulary, backend):
            forced = state.forced()
            assert state.validate(forced) == len(forced)
            text = vocabulary.spell(forced)
            for token in range(vocabulary.size):
                if state.validate([token]) and forced:
                    spelled = vocabulary.tokens[token]
                    assert text.startswith(spelled) or spelled.startswith(text)
    assert len(compile(schema, vocabulary, backend).start().forced()) > 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_filled_as_its_rows(backend: str) -> None:
    vocabulary = tales()
    states: list[Matcher | None] = [state for each in BOTH for state in _states(each, vocabulary, backend, 4)]
    ended = compile(Literal(""), vocabulary, backend).start()
    assert ended.accept(vocabulary.eos[0])
    budget = compile(FreeText("!", max_tokens=0) + "x", vocabulary).start()
    other = compile(OBJECT, vocabulary, BACKENDS[backend == BACKENDS[0]]).start()
    states += [None, ended, budget, other]
    out = np.full((len(states), vocabulary.words), 7, dtype=np.int32)
    fill_batch(states, out)
    for state, row in zip(states, out, strict=True):
        alone = np.full(vocabulary.words, 7, dtype=np.int32)
        if state is not None:
            state.fill(alone)
        assert (row == alone).all()


def test_what_was_compiled_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = byte_vocabulary()
    first = compile(Regex("[ab]"), vocabulary)
    assert compile(Regex("[ab]"), vocabulary) is first
    assert compile(Regex("[ab]"), vocabulary, "xgrammar") is not first
    assert compile(Regex("[ab]"), bytes_vocabulary()) is not first
    monkeypatch.setattr(engines, "_MOST_COMPILED", 2)
    for letter in "abc":
        compile(letter, vocabulary)
    assert compile(Regex("[ab]"), vocabulary) is not first


def test_the_engine_giving_up_is_an_error_and_not_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmguide.constraints import llguidance_engine

    monkeypatch.setitem(llguidance_engine._LIMITS, "step_max_items", 40)
    grammar = Grammar('start: expr\nexpr: expr expr | /[a-z]/ | "(" expr ")"')
    matcher = compile(grammar, Vocabulary([*(bytes([byte]) for byte in range(256)), b""], (256,))).start()
    out = np.empty(9, np.int32)
    with pytest.raises(ConstraintError, match=r"^llguidance gave up: .*limit"):
        for _ in range(200):
            matcher.fill(out)
            matcher.accept(ord("a"))
    batch = np.empty((2, 9), np.int32)
    with pytest.raises(ConstraintError, match=r"^row 1: llguidance gave up"):
        fill_batch([None, matcher], batch)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dead_end_is_an_error_and_not_an_end(backend: str) -> None:
    # Words of one token each: after " a" the text cannot go on, and a search that long is not made.
    tokens = [b" a", *(f" {word}".encode() for word in ("b", "c")), b""]
    vocabulary = Vocabulary(tokens, (3,))
    matcher = compile(Regex("( [bc])*| a!"), vocabulary, backend).start()
    assert 0 in allowed(matcher, vocabulary)
    assert matcher.accept(0)
    with pytest.raises(ConstraintError, match=r"no token may follow, and the text may not end here"):
        allowed(matcher, vocabulary)
    with pytest.raises(ConstraintError, match=r"^row 0: no token may follow"):
        fill_batch([matcher], np.empty((1, 1), np.int32))
