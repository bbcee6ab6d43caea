"""What is wrong is said before any forward pass: which argument, what was expected, what came, and the cure."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmguide.constraints import (
    Choice,
    Constraint,
    FreeText,
    Grammar,
    JSONSchema,
    Literal,
    Regex,
    Repeat,
    Sequence,
    Triggered,
    compile,
    parse_constraint,
)
from lmguide.constraints.lark_text import check_lark, outline
from tests.constraints.walks import byte_vocabulary, takes
from tests.programs import program

if TYPE_CHECKING:
    from collections.abc import Callable

SENTENCE = re.compile(r"[\w ()\[\]]+: expected .+, got .+[.] [A-Z0-9].+", re.DOTALL)

MADE: dict[str, tuple[Callable[[], Any], str]] = {
    "a broken schema": (lambda: JSONSchema('{"a": }'), r"schema: .*line 1, column 7"),
    "options of an engine": (lambda: JSONSchema({"x-guidance": {"lenient": True}}), "schema: .*'x-guidance'"),
    "a schema of a number": (lambda: JSONSchema(3), "schema: .*got int"),  # type: ignore[arg-type]
    "a schema of a class": (lambda: JSONSchema(Path), "schema: .*the class Path"),
    "a value JSON has not": (lambda: JSONSchema({"const": {1, 2}}), "schema: .*what JSON can write"),
    "a number JSON has not": (lambda: JSONSchema({"const": float("nan")}), "schema: .*what JSON can write"),
    "an unknown whitespace": (lambda: JSONSchema({}, "any"), "whitespace: .*got 'any'"),  # type: ignore[arg-type]
    "a pattern of bytes": (lambda: Regex(b"a"), "pattern: .*got bytes"),  # type: ignore[arg-type]
    "a lone surrogate": (lambda: Regex("\ud800"), "pattern: .*the lone surrogate '.ud800' at position 0"),
    "options in one string": (lambda: Choice("abc"), "options: .*got str"),  # type: ignore[arg-type]
    "an option that is none": (lambda: Choice(["a", 3]), r"options\[1\]: .*got int"),  # type: ignore[list-item]
    "a file that is not there": (lambda: Grammar(Path("nowhere.lark")), "text: .*nowhere.lark"),
    "a grammar of a number": (lambda: Grammar(3), "text: .*got int"),  # type: ignore[arg-type]
    "a trigger that is none": (lambda: Triggered("", Literal("a")), "trigger: .*empty"),
    "a bound below 0": (lambda: FreeText(max_tokens=-1), "max_tokens: .*got -1"),
    "half a time": (lambda: Repeat(Literal("a"), 0.5), "least: .*got 0.5"),  # type: ignore[arg-type]
    "parts in a string": (lambda: Sequence("ab"), "parts: .*got str"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", MADE)
def test_descriptions(name: str) -> None:
    make, words = MADE[name]
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        make()
    assert SENTENCE.fullmatch(str(caught.value))


def test_unknown_words_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"name of a constraint .*got 'regexp'. Did you mean 'regex'\?$"):
        parse_constraint("regexp:pattern=a")
    with pytest.raises(ValueError, match=r"^regex: .*got 'patern'. Did you mean 'pattern'\?$"):
        Constraint.from_dict({"name": "regex", "patern": "a"})
    with pytest.raises(TypeError, match=r"^expected a description of Regex, got one of Literal"):
        Regex.from_dict({"name": "literal", "text": "a"})


COMPILED: dict[str, tuple[str | Constraint, str | None, str]] = {
    "an unknown rule": (Grammar('start: "a" foo'), None, r"text: .*line 1, column 8.*\"foo\""),
    "lookahead in a grammar": (Grammar("start: /a(?=b)/"), None, "text: .*line 1, column 8: .*look-around"),
    "an open string": (Grammar('start: "a'), None, "text: .*line 1"),
    "no start": (Grammar('first: "a"'), None, "text: .*no start rule"),
    "a grammar within": ("x" + Grammar('start: "b"\n  | bar'), None, r"text: .*line 1.*\"bar\""),
    "broken GBNF": (Grammar("root ::= foo"), None, "text: .*GBNF.*'foo'"),
    "a rule without end": (
        Grammar('start: "a" more\nmore: "b" more'),
        None,
        r"text: .*'start' \(line 1\), 'more' \(line 2\)",
    ),
    "a rule within without end": (Grammar('start: "a" more?\nmore: "b" more'), None, r"text: .*'more' \(line 2\)"),
    "a terminal that is empty": (Grammar('start: "x" A\nA: /a/ & /b/'), None, "constraint: .*that some text meets"),
    "a terminal that takes all": (Grammar("start: /a+/ /ab/"), None, "constraint: .*the longest text they can"),
    "the same further in": (Grammar("start: /[bq]+/ /a+/ /ab/"), None, "constraint: .*the longest text they can"),
    "options in a grammar": (Grammar('start: %json {"x-guidance": {}}'), None, r"text \(line 1\): .*'x-guidance'"),
    "an unknown special token": (Grammar('start: <|call|> "a"'), None, "text: .*<|call|>"),
    "a schema for xgrammar": (JSONSchema({"not": {}}), "xgrammar", "schema: .*'not' (#/not)"),
    "a mixture for xgrammar": ("a" + JSONSchema({}), "xgrammar", "backend: .*got Sequence.*backend='llguidance'"),
    "a broken grammar for xgrammar": (Grammar("root ::= foo"), "xgrammar", 'constraint: .*"foo" is not defined'),
    "an unknown backend": ("a", "outlines", "backend: .*llguidance, xgrammar.*got 'outlines'"),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiling(name: str) -> None:
    constraint, backend, words = COMPILED[name]
    with pytest.raises(ValueError, match=words.replace("(#", r"\(#").replace("t)", r"t\)")) as caught:
        compile(constraint, byte_vocabulary(), backend)
    assert SENTENCE.fullmatch(str(caught.value))


GOOD = {
    'start: "a" start | "b"': "aab",
    'start: ("a" | x)+\nx: "(" x ")" | "b"': "a(b)",
    'start: x?\n  // start: start\nx: "c"{2,3}': "cc",
    "start: list::2\nlist::_: \"a\" list::decr([0:4]) %if gt([0:4], 0)\n      | \"\" %if is_zeros([0:4])": "aa",
    'start: first\nfirst[lazy]: /[^;]*;/': "ab;",
    'start: %lark {\n  start: A "}"\n  A: "a"\n}': "a}",
    'start: "a" [x] -> one\nx: "b"{1,2}': "abb",
    'start: %json {"type": "null"} ";"': "null;",
    '%ignore /\\s/\nstart: "a" "b" # and no more': "a b",
    'root ::= "a" rest\nrest ::= [b-c]* | "x"': "abcb",
}  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_grammars_that_end_are_taken(text: str) -> None:
    assert takes(Grammar(text), GOOD[text])
    assert not takes(Grammar(text), GOOD[text] + "?")


def test_the_outline_of_a_grammar() -> None:
    found = outline('start: (a | B)* c?\na: "x" a\nB: "b"\nc.2: %lark {\n%ignore " "\nstart: "d"\n}')
    assert found.lines == {"start": 1, "a": 2, "B": 3, "c": 4}
    assert found.endless() == ["a"]
    assert found.ignores
    assert not found.excludes
    assert outline("start: A\nA: B & ~C").excludes
    assert check_lark('start: "a"').rules == {"start": [[]]}


def test_without_the_extra_one_sentence_says_what_to_install() -> None:
    code = """
import sys
sys.modules["llguidance"] = None
import lmguide as lg
from lmguide.constraints.vocabulary import bytes_vocabulary
from lmguide.constraints import compile
lg.Regex("[a-z]"), lg.JSONSchema({"type": "null"}), lg.Grammar("start: x")
try:
    compile(lg.Regex("a"), bytes_vocabulary())
except ImportError as error:
    print(error)
"""
    found = program([sys.executable, "-c", code], cwd=Path.cwd())
    assert found.stdout == "constraints need llguidance, which is not installed. Run: pip install lmguide[grammar]\n"
