"""Languages read as grammars: what parsers take and nothing else, and programs with holes are filled to programs."""

from __future__ import annotations

import random
import shutil
from functools import cache

import numpy as np
import pytest

from lmguide.constraints import ContextFree, Language
from lmguide.constraints.context_free.chart import Column
from lmguide.constraints.context_free.grammar import Grammar
from lmguide.constraints.context_free.reading import productions_of
from lmguide.constraints.languages.description import LANGUAGES
from tests.constraints.programs import PROGRAMS
from tests.constraints.test_languages import BROKEN, checked
from tests.constraints.walks import takes

BYTES = [bytes([value]) for value in range(256)]
TOKENS = [
    *BYTES,
    b" x",
    b"if",
    b" if",
    b"return",
    b"    ",
    b"\n    ",
    b"):",
    b"()",
    b" =",
    b"==",
    b'"a"',
    b"SELECT",
    b"func",
]
SHORT = {
    "python": [
        "x = 1", "if x:\n    y = f(1, *a)\nelse:\n    pass\n", "def f(a, b=1):\n    return a + b\n", "x = (1,\n  2)",
        "for i in 'ab':  # c\n    while i:\n        break", "f'{x!r:>{w}}a'", "a if b else c", "@d\nclass A: x: int",
        "try:\n    pass\nexcept E as e:\n\n    raise\n", "with a as b, c:\n    del b[1:2]", "lambda x: -x ** 2",
    ],
    "go": [
        "package a", "package a\nfunc f() {\n\tif x := 1; x > 0 {\n\t\treturn\n\t}\n}\n",
        "package a\nvar x, y = 1, []int{2}",
        "package a; type T struct { a int; b *T }", "package a\n// c\nfunc f() { for range ch { } }",
    ],
    "c": [
        "int main(void) { return 0; }", "int x = 1 + +2;", "char *s = \"a\\n\", c = 'b';",
        "#define A 1\nstruct S { int a; } s;",
        "int f(int a) { for (;;) { if (a) break; else a -= 1; } /* c */ }", "typedef int t;",
    ],
    "sql": [
        "SELECT a, b AS c FROM t WHERE x = 'y' ORDER BY a DESC LIMIT 3", "INSERT INTO t VALUES (1, NULL);",
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)", "SELECT CASE WHEN 1 THEN 2 END -- c",
    ],
    "json": ["{}", '[1, -2.5e3, "a\\n", {"b": [true, null]}]', ' { "a" : [ ] }\n'],
}  # fmt: skip


@cache
def compiled(name: str) -> Grammar:
    return Grammar(productions_of(Language(name)), TOKENS, np.ones(len(TOKENS), np.bool_))  # type: ignore[arg-type]


def fits(name: str, text: str) -> bool:
    given = [Column(False, (byte,)) for byte in text.encode()]
    return compiled(name).completed(given, [len(given)]) is not None


def spelled(tokens: list[int]) -> str:
    return b"".join(TOKENS[token] for token in tokens).decode()


@pytest.mark.parametrize("name", LANGUAGES)
def test_what_engines_take_is_taken_and_what_is_broken_is_not(name: str) -> None:
    assert [text for text in SHORT[name] if not takes(Language(name), text)] == []  # type: ignore[arg-type]
    assert [text for text in SHORT[name] if not fits(name, text)] == []
    assert [text for text in BROKEN[name] if fits(name, text)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGES)
def test_whole_programs_are_taken(name: str) -> None:
    for line in PROGRAMS[name].split("\n\n") if name == "python" else [PROGRAMS[name]]:
        assert fits(name, line) == takes(Language(name), line), line  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LANGUAGES)
def test_holes_are_filled_to_programs(name: str) -> None:
    """Runs of bytes of a program are left open. Those bytes would do, so something is found, and it is a program."""
    draw, grammar = random.Random(name), compiled(name)
    for text in SHORT[name]:
        given: list[int | None] = [*text.encode()]
        for _ in range(2):
            first = draw.randrange(len(given))
            given[first : first + 6] = [None] * len(given[first : first + 6])
        columns = [Column(True) if byte is None else Column(False, (byte,)) for byte in given]
        found = grammar.completed(columns, [len(given)])
        assert found is not None, (text, given)
        assert all(byte in (None, token) for byte, token in zip(given, found, strict=True))
        assert takes(Language(name), spelled([*found])), spelled([*found])  # type: ignore[arg-type]
        if name in ("python", "json", "sql") or (name == "go" and shutil.which("gofmt")):
            assert checked(name, spelled([*found])), spelled([*found])


def test_words_are_read_as_a_whole() -> None:
    assert not fits("python", "ifx: pass")
    assert fits("python", "ifx")
    assert not fits("python", "a andb")
    assert not fits("sql", "SELECTa FROM t")
    assert not fits("c", "int a = b/*p;")
    assert fits("c", "int a = b/ *p;")


def test_blocks_are_nested_to_a_depth() -> None:
    def nested(depth: int) -> str:
        return "".join("    " * at + "if x:\n" for at in range(depth)) + "    " * depth + "y"

    assert [fits("python", nested(depth)) for depth in (0, 6, 7)] == [True, True, False]
    assert not fits("python", "if x:\n   y")
    tabs = productions_of(Language("python", indent="\t"))
    grammar = Grammar(tabs, TOKENS, np.ones(len(TOKENS), np.bool_))
    assert [
        grammar.completed([Column(False, (byte,)) for byte in text], [len(text)]) is not None
        for text in (b"if x:\n\ty", b"if x:\n    y")
    ] == [True, False]


def test_a_language_within_other_text() -> None:
    answer = "<" + ContextFree(Language("json")) + ">"
    found = Grammar(productions_of(answer), TOKENS, np.ones(len(TOKENS), np.bool_))
    assert [
        found.completed([Column(False, (byte,)) for byte in text], [len(text)]) is not None
        for text in (b"<[1, 2]>", b"<[1, 2>", b"[1]")
    ] == [True, False, False]
