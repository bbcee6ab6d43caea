"""A grammar with INDENT and DEDENT, rewritten, has the texts that Lark's indenter and parser take."""

from __future__ import annotations

import random
from typing import Any

import pytest

import lmguide as lg
from lmguide.constraints import compile
from tests.constraints.walks import byte_vocabulary, takes

TODO = r"""
start: item*
item: NAME ("," NAME)* _NEWLINE
    | "if" NAME ":" _NEWLINE _INDENT item+ _DEDENT
    | NAME "(" [NAME ("," NAME)*] ")" _NEWLINE
NAME: /[a-z]+/
_NEWLINE: (/\r?\n[\t ]*/ | COMMENT)+
COMMENT: /#[^\n]*/
%declare _INDENT _DEDENT
%ignore " "
%ignore COMMENT
"""
PIECES = [
    "a",
    "b",
    "if a:\n",
    "if",
    " ",
    "\n",
    "\n",
    "  ",
    "  ",
    "    ",
    "(",
    ")",
    ",",
    "# c\n",
    "if b:",
    "a\n",
    "a\n  ",
]


def _lark() -> Any:
    lark = pytest.importorskip("lark")
    indenter = pytest.importorskip("lark.indenter")

    class Indenter(indenter.Indenter):  # type: ignore[misc,name-defined]
        NL_type = "_NEWLINE"
        OPEN_PAREN_types = ["LPAR"]  # noqa: RUF012
        CLOSE_PAREN_types = ["RPAR"]  # noqa: RUF012
        INDENT_type = "_INDENT"
        DEDENT_type = "_DEDENT"
        tab_len = 8

    return lark.Lark(TODO, parser="lalr", postlex=Indenter())


def _in_columns(text: str, unit: str) -> bool:
    """Whether every line outside of brackets is indented by at most one unit more than the one before, and by units."""
    before, depth = -1, 0
    for line in text.split("\n"):
        content = line.split("#")[0].strip()
        if content and depth == 0:
            column = len(line) - len(line.lstrip(" "))
            if column % len(unit) or column // len(unit) > before + 1:
                return False
            before = column // len(unit)
        depth += line.split("#")[0].count("(") - line.split("#")[0].count(")")
    return True


def test_it_has_the_texts_that_lark_parses() -> None:
    parser, draw = _lark(), random.Random(2)
    start = compile(lg.indented(TODO, unit="  "), byte_vocabulary()).start()
    taken = 0
    for _ in range(6000):
        text = "".join(draw.choice(PIECES) for _ in range(draw.randrange(1, 9)))
        # Lark wants an end to the last line, and its grammar has no empty lines before the first.
        lines = text.rstrip(" \n").split("\n") + [""]
        while len(lines) > 1 and not lines[0].split("#")[0].strip():
            del lines[0]
        try:
            parser.parse("\n".join(lines).lstrip("\n"))
            parses = _in_columns(text, "  ")
        except Exception:  # of the lexer, the parser or the indenter
            parses = False
        matcher = start.copy()
        ours = all(matcher.accept(byte) for byte in text.encode()) and matcher.accepting()
        assert ours == parses, text
        taken += ours
    assert 300 < taken < 5000


def test_units_depths_and_ends() -> None:
    todo = r"""
        start: item+
        item: NAME _NEWLINE | NAME ":" _NEWLINE _INDENT item+ _DEDENT
        NAME: /[a-z]+/
        %declare _NEWLINE _INDENT _DEDENT
    """
    lists = lg.indented(todo, unit="- ", comment="")
    assert takes(lists, "a:\n- b:\n- - c\n- d\ne")
    assert not takes(lists, "a:\n- - b\n")
    assert not takes(lists, "a:\n")
    deep = "".join("- " * depth + "a:\n" for depth in range(16))
    assert takes(lists, "".join(deep.splitlines(keepends=True)[:15]) + "- " * 15 + "a")
    assert not takes(lists, deep + "- " * 16 + "a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("start: (", "text: expected Lark's notation, got .*line 1 column 9"),
        ("start: foo", "text: expected Lark's notation, got .*'foo'"),
        ('first: "a"', "text: expected a rule 'start', got none"),
        ("start: start", "text: expected a rule 'start' that derives a text, got none"),
        ('start: "(" x\nx: ")"', "text: expected RPAR in the alternative that opens its bracket, got LPAR x"),
        ("start: NAME _NEWLINE\nNAME: /a(?=b)/\n%declare _NEWLINE", "pattern: .*got a lookahead at position 1"),
    ],
)
def test_what_is_no_such_grammar(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)^{words}.*\. [A-Z][a-z ]+\.$"):
        lg.indented(text)
