"""Constraints as context-free grammars: the texts are those that llguidance takes, or fewer where lexers differ."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lmguide.constraints import (
    JSON,
    Choice,
    Constraint,
    ContextFree,
    FreeText,
    Grammar,
    Literal,
    Regex,
    Repeat,
    Triggered,
    compile,
)
from lmguide.constraints.context_free.chart import Column
from lmguide.constraints.context_free.grammar import Grammar as OverTokens
from lmguide.constraints.context_free.reading import is_context_free, productions_of
from lmguide.constraints.vocabulary import bytes_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS = r"""
start: call | NAME
call: NAME "(" [start ("," start)*] ")"
NAME: /[a-z]+/
%ignore / +/
"""
SAME = {
    "nested": (Grammar('start: "a" start "b" | ""'), "ab"),
    "gbnf": (Grammar('root ::= "a" root "b" | "x"'), "abx"),
    "groups and repetitions": (Grammar('start: ("a" "b"?)+ | "x" "x" "x"?'), "abx"),
    "calls": (Grammar(CALLS), "f(,) "),
    "lines": (Grammar('start: (line "\\n")*\nline: "a"* "b"'), "ab\n"),
    "composed": ("<" + Grammar('start: "a" start "b" | "ab"') + Choice((">", ">>")), "<ab>"),
    "either": (Grammar('start: "a" start "b" | "ab"') | Regex("b{2,3}"), "ab"),
    "repeated": (Repeat(Grammar('start: "a" start "b" | "ab"') + Literal(","), 1, 2), "ab,"),
    "repeated without end": (Repeat(Grammar('start: "a" start "b" | "ab"') + Literal(","), 1), "ab,"),
}
FEWER = {
    "keywords": (Grammar('start: "if" NAME | NAME "=" NAME\nNAME: /[a-z]+/\n%ignore " "'), "if= x"),
    "numbers": (Grammar('start: N ("." N?)?  | N "..." N\nN: /1+/'), "1."),
}


def ours(constraint: Constraint) -> OverTokens:
    vocabulary = bytes_vocabulary()
    return OverTokens(
        productions_of(constraint), vocabulary.tokens, np.array([bool(text) for text in vocabulary.tokens])
    )


def texts(letters: str, most: int) -> Iterator[str]:
    for length in range(most + 1):
        yield from map("".join, itertools.product(letters, repeat=length))


def taken(grammar: OverTokens, text: str) -> bool:
    columns = [Column(False, (byte,)) for byte in text.encode()]
    return grammar.completed(columns, [len(columns)]) is not None


def taken_by_llguidance(constraint: Constraint, letters: str, most: int) -> set[str]:
    """But for blanks at the end, which it takes where something else could follow."""
    start = compile(constraint, bytes_vocabulary()).start()
    found, work = set(), [("", start)]
    while work:
        text, matcher = work.pop()
        if matcher.accepting() and not text.endswith(" "):
            found.add(text)
        for letter in letters if len(text) < most else "":
            there = matcher.copy()
            if there.accept(ord(letter)):
                work.append((text + letter, there))
    return found


@pytest.mark.parametrize("name", SAME)
def test_texts_are_those_of_llguidance(name: str) -> None:
    constraint, letters = SAME[name]
    most = 7 if len(letters) < 4 else 6
    grammar = ours(constraint)
    found = {text for text in texts(letters, most) if not text.endswith(" ") and taken(grammar, text)}
    assert found
    assert found == taken_by_llguidance(constraint, letters, most)


@pytest.mark.parametrize("name", FEWER)
def test_terminals_end_where_a_lexer_ends_them(name: str) -> None:
    """What may stand beside a terminal by its neighbours is more than what its place in the text allows."""
    constraint, letters = FEWER[name]
    grammar = ours(constraint)
    found = {text for text in texts(letters, 6) if not text.endswith(" ") and taken(grammar, text)}
    assert found
    assert found <= taken_by_llguidance(constraint, letters, 6)


def test_blanks_behind_the_last_terminal() -> None:
    grammar = ours(Grammar(CALLS))
    assert taken(grammar, "f(f) ")
    assert not taken(grammar, " f(f)")


def test_keywords() -> None:
    grammar = ours(Grammar('start: "if" NAME | NAME "=" NAME\nNAME: /[a-z]+/\n%ignore " "'))
    assert taken(grammar, "if x")
    assert taken(grammar, "if=x")
    assert not taken(grammar, "ifx")


def test_json_of_any_depth() -> None:
    """Whatever `json` writes with a space behind commas and colons, and nothing that it cannot read."""
    grammar = ours(ContextFree(JSON()))
    values: tuple[Any, ...] = (
        0,
        -1.5e300,
        'a\n\u20ac"',
        [],
        {},
        [[[[[[]]]]]],
        {"a": {"b": {"c": {"d": [None, True]}}}},
        ["x", {"y": 2}],
    )
    for value in values:
        assert taken(grammar, json.dumps(value))
        assert taken(grammar, json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    for text in texts('[]{}",:1-. t', 4):
        if taken(grammar, text):
            json.loads(text)
    compact = ours(ContextFree(JSON("compact")))
    assert taken(compact, "[1,2]")
    assert not taken(compact, "[1, 2]")


def test_triggers_beside_a_grammar() -> None:
    grammar = ours("<" + Grammar('start: "b" start | "c"') + Triggered("a", Choice(("b",))))
    assert taken(grammar, "<bcd")
    assert taken(grammar, "<bcdab")
    assert not taken(grammar, "<bcdad")


def test_which_are_context_free() -> None:
    assert is_context_free("a" + Grammar('start: "b"'))
    assert is_context_free(Repeat(ContextFree(JSON())))
    assert not is_context_free(JSON() + Regex("a*"))


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (Grammar('start: "a'), "line 1"),
        (Grammar("start: x\nx::_: 'a'"), "plain rules and terminals"),
        (Grammar("start: A\n%declare A"), "'A', which is declared"),
        (Grammar("start: /(?=a)b/"), "a lookahead"),
        (Grammar('start: %json {"type": "string"}'), "plain rules and terminals"),
        (FreeText("x", max_tokens=3) + Grammar('start: "a"'), "max_tokens"),
    ],
)
def test_what_cannot_be_read(constraint: Constraint, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        productions_of(constraint)
