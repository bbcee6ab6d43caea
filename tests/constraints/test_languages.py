"""Programs of a language: every token of a valid one may follow, what is broken is refused, what is drawn parses."""

from __future__ import annotations

import ast
import builtins
import json
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import textwrap
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lmguide as lg
from lmguide.constraints import Constraint, compile, parse_constraint
from lmguide.constraints.languages.description import LANGUAGES, Language
from tests.constraints.programs import PROGRAMS
from tests.constraints.walks import allowed, byte_vocabulary, takes, tales

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmguide.constraints import Matcher

LIBRARY = Path(sysconfig.get_path("stdlib"))
MODULES = [
    "abc", "bisect", "code", "codeop", "colorsys", "contextlib", "copy", "csv", "filecmp", "fnmatch", "fractions",
    "getpass", "graphlib", "heapq", "html/parser", "json/decoder", "json/scanner", "linecache", "numbers", "queue",
    "sched", "selectors", "stat", "string", "textwrap", "this", "timeit", "wave",
]  # fmt: skip


@cache
def _sources() -> dict[str, str]:
    """The standard library's modules, some of them."""
    return {name: (LIBRARY / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}


def _ast(text: str) -> bool:
    """Whether Python parses a text; which characters "\\N{...}" may name is not asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(re.sub(r"\\N\{[0-9A-Za-z -]+\}", r"\\N{DIGIT ONE}", text))
        except (SyntaxError, ValueError):
            return False
    return True


@cache
def _lark() -> Any:
    lark = pytest.importorskip("lark")
    indenter = pytest.importorskip("lark.indenter")
    options = {"parser": "lalr", "postlex": indenter.PythonIndenter(), "start": "file_input"}
    return lark.Lark.open_from_package("lark", "python.lark", ["grammars"], **options)


def _of_lark(text: str) -> bool:
    """Whether Lark's own grammar of Python has a text; it wants a newline at the end."""
    try:
        _lark().parse(text if text.endswith("\n") else text + "\n")
    except Exception:  # each part of it has errors of its own
        return False
    return True


# ---- what every language has in common


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_token_of_a_program_may_follow(name: str) -> None:
    vocabulary = tales()
    text = PROGRAMS[name]
    matcher = compile(Language(name), vocabulary).start()  # type: ignore[arg-type]
    for token in vocabulary.encode(text):
        assert token in allowed(matcher, vocabulary)
        assert matcher.accept(token)
    assert matcher.accepting()
    assert vocabulary.eos[0] in allowed(matcher, vocabulary)


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_program_cut_anywhere_can_go_on(name: str) -> None:
    data = PROGRAMS[name].encode()
    matcher = compile(Language(name), byte_vocabulary()).start()  # type: ignore[arg-type]
    for byte in data:
        assert matcher.accept(byte)
    assert matcher.accepting()


BROKEN = {
    "python": [
        "if x\n    y", "x = = 1", "def f(:\n    pass", "a andb", "1if", "x = 'a", "(1", "f()) ", "a b",
        "else:\n    x", "if x:\ny", "if x:\n      y\n    z", "  x", "f(a=1, b)", "f() = 1", "x: int: y",
        "lambda x=1, y: 0", "def f(a=1, b): pass", "try:\n    x", "f'{'", "f'{a!x}'", "f'}'", "'\\x1'", "b'\u00e9'",
        "0x", "1__0", "01", "from . import", "import a.b as c.d", "del f()", "x +=", "not", "a = yield = b",
        "print(*)", "return return", "class A(:\n    x", "@\ndef f(): x", "match x:\n    y", "with a as f(): x",
        "global x.y", "async x", "x if y", "a := 1", "{1: 2, 3}", "[x for y in]", "x\\ y",
    ],
    "go": [
        "", "package", "package a; x := 1", "package a\nfunc f() { if x { }", "package a\nfunc f() { if x\n{ } }",
        "package a\nvar x = 'ab'", "package a\nvar x int = ", "package a\nfunc f() { x y }", "package a\nimport fmt",
        "package a\nfunc f() { for i := range x; { } }", "package a\nvar x = 08",
        "package a\nfunc f() { a := b := c }", "package a\nfunc f()\n{ }", "package a\nvar x = \"a\n\"",
        "package a\nfunc f() { if T{} == x { } }", "package a\nfunc f() { return }\nfunc",
        "package a\ntype T struct { a, b }", "package func",
    ],
    "c": [
        "int", "int main( { }", "int main() { return 0 }", "int x = ;", "x = 1;;;)", "int a[;", "struct { int; x }",
        "int main() { if x { } }", "int main() { ''; }", "char *s = \"a;", "int main() { int x = 0xg; }",
        "int main() { for (;;;) { } }", "/* open", "int x = 1 + + ;", "int main() { do { } }", "#include", "#if 1\n",
        "int x; #define A 1\n", "int x = 08;", "int ifx return;", "return 0;",
    ],
    "sql": [
        "SELECT", "SELECT FROM t", "SELECT a FROM", "SELECT a, FROM t", "SELEC a", "SELECT 'a", "INSERT t VALUES (1)",
        "SELECT a FROM t WHERE", "SELECT a b c", "UPDATE t SET", "CREATE TABLE t", "CREATE TABLE t ()", "SELECT (1",
        "SELECT a FROM t ORDER a", "DROP t", "SELECT 1 LIMIT", "SELECT a FROM t GROUP BY", "SELECT 1 AND",
        "SELECT CASE END", "SELECT a BETWEEN 1", "SELECTa FROM t", "DELETE t",
    ],
    "json": [
        "", "{", "[1,]", "{\"a\" 1}", "{a: 1}", "01", "1.", ".5", "+1", "'a'", "\"\n\"", "\"\\x\"", "NaN", "tru",
        "1 2", "[1}", "\"\\u00g0\"",
    ],
}  # fmt: skip


def _finished(name: str, tries: int, most: int) -> list[str]:
    """Programs drawn token by token, each as likely as the others; those that end by themselves."""
    vocabulary, start = tales(), compile(Language(name), tales()).start()  # type: ignore[arg-type]
    texts = []
    for seed in range(tries):
        draw, matcher, tokens = random.Random(seed), start.copy(), list[int]()
        while len(tokens) < most:
            options = allowed(matcher, vocabulary)
            ends = [token for token in options if token in vocabulary.eos]
            token = ends[0] if ends and tokens and draw.random() < 0.3 else draw.choice(options)
            assert matcher.accept(token)
            if token in vocabulary.eos:
                texts.append(vocabulary.spell(tokens).decode())
                break
            tokens.append(token)
    assert len(texts) >= tries // 4
    return texts


def _json(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def _sqlite(text: str) -> bool:
    """Whether SQLite parses a text, up to the first thing that does not exist."""
    try:
        sqlite3.connect(":memory:").executescript(text)
    except sqlite3.Error as error:
        return not re.search("syntax error|unrecognized token|incomplete input", str(error))
    return True


PARSERS: dict[str, Callable[[str], bool]] = {"python": _ast, "json": _json, "sql": _sqlite}


def checked(name: str, text: str) -> bool | None:
    """What a parser of the language says, if there is one on this machine."""
    if name in PARSERS:
        return PARSERS[name](text)
    command = {"go": ["gofmt", "-e"], "c": ["gcc", "-fsyntax-only", "-std=c11", "-w", "-x", "c", "-"]}[name]
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run(command, input=text.encode(), capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize("name", LANGUAGES)
def test_broken_programs_are_refused(name: str) -> None:
    assert [text for text in BROKEN[name] if takes(Language(name), text)] == []  # type: ignore[arg-type]
    assert [text for text in BROKEN[name] if checked(name, text)] == []
    assert checked(name, PROGRAMS[name]) in (True, None)


@pytest.mark.parametrize("name", ["python", "json", "sql", "go"])
def test_what_is_drawn_parses(name: str) -> None:
    assert [text for text in _finished(name, 40, 200) if checked(name, text) is False] == []


# ---- Python


def test_modules_of_the_standard_library_are_programs() -> None:
    start = compile(Language("python"), byte_vocabulary()).start()
    assert [name for name, text in _sources().items() if not _taken(start, text)] == []
    assert [name for name, text in _sources().items() if not _of_lark(text)] == []


@pytest.mark.parametrize("name", ["bisect", "this", "fnmatch"])
def test_every_token_of_a_module_may_follow(name: str) -> None:
    vocabulary = tales()
    matcher = compile(Language("python"), vocabulary).start()
    for token in vocabulary.encode(_sources()[name]):
        assert token in allowed(matcher, vocabulary)
        assert matcher.accept(token)
    assert matcher.accepting()


def _taken(start: Matcher, text: str) -> bool:
    """Whether a text is one of those of a matcher on bytes."""
    matcher = start.copy()
    return all(matcher.accept(byte) for byte in text.encode()) and matcher.accepting()


def _statements() -> list[str]:
    """Short statements of the standard library, at the left margin."""
    found = []
    for text in _sources().values():
        lines = text.splitlines(keepends=True)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.stmt) and node.end_lineno is not None and node.end_lineno - node.lineno < 8:
                found.append(textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])))
    return [text for text in found if _ast(text)]


PIECES = [
    "*", "**", ":=", " not ", " in ", " is ", "async ", "await ", "lambda ", "yield ", "match ", "case ", "_", "1e5",
    "f'{x}'", "f\"{a!r:>{w}}\"", "b'a'", "0x1f", "1_0", "1j", "...", "->", "@", "\\\n", "\n", "\n    ", "# c\n", ";",
    "None", "del ", "global ", "else", "import ", "from ", " as ", " if ", " for ", "{", "}", "[", "]", "(", ")", ",",
    ":", "=", "==", " ", "0", "07", "'", "\"", "\\", "a", "j", "\t", "!", "<", ">", "-", "%", "\u00e9",
]  # fmt: skip


def _mutated(text: str, draw: random.Random) -> str:
    for _ in range(draw.choice([1, 1, 2])):
        first = draw.randrange(len(text) + 1)
        last = min(len(text), first + draw.choice([0, 0, 1, 1, 3]))
        text = text[:first] + draw.choice([*PIECES, "", ""]) + text[last:]
    return text


def _compiles(text: str) -> bool:
    """Whether Python parses a text as one of 3.10 and finds no fault with it later; f-strings are others since 3.12."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(text, feature_version=(3, 10))
            builtins.compile(text, "text", "exec")
        except (SyntaxError, ValueError):
            return False
    return sys.version_info < (3, 12) or not any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree))


def test_changed_statements_are_taken_if_and_only_if_they_are_python() -> None:
    """What Python compiles is taken, as it stands or, if its blocks are indented otherwise, as `ast.unparse` has it."""
    draw, start, statements = random.Random(5), compile(Language("python"), byte_vocabulary()).start(), _statements()
    texts = [_mutated(draw.choice(statements), draw) for _ in range(3000)]
    ours = [text for text in texts if _taken(start, text)]
    assert [text for text in ours if not _ast(text)] == []
    left_out = [text for text in texts if text not in ours and _compiles(text)]
    assert [text for text in left_out if not _taken(start, ast.unparse(ast.parse(text)))] == []
    assert 500 < len(ours) < 2500
    # Lark's own grammar has them too.
    assert [text for text in ours[::3] if not _of_lark(text)] == []


NEWER_THAN_LARK = [
    "match x:\n    case -1: pass", "match x:\n    case A(1, b=2): pass", "f = lambda a, /, b: a",
    "g = (i for j in x if j for i in j)", "@a[0]\ndef f(): pass",
]  # fmt: skip
NEWER_THAN_PYTHON_3_10 = [
    "try:\n    a\nexcept* b:\n    c", "type X = int", "def f[T](x): pass", "x = f'{'a' 'b'}'", "x = f'{a['b']}'",
]  # fmt: skip
BEYOND_PYTHON = ["f() = 1", "x + 1 = 2", "lambda x=1, y: 0", "x: int = y = z", "'\\x1'", "f'{'"]


def test_where_lark_and_python_differ() -> None:
    python = Language("python")
    assert [text for text in NEWER_THAN_LARK if not (takes(python, text) and _ast(text)) or _of_lark(text)] == []
    assert [text for text in NEWER_THAN_PYTHON_3_10 if takes(python, text)] == []
    assert [text for text in BEYOND_PYTHON if takes(python, text) or _ast(text)] == []


LONGEST_MATCH = {
    "ifx = 1": True, "if x: y": True, "if(x): y": True, "ifx: y": True, "if x:y": True, "x = y if(z)else w": True,
    "x=1if y else 2": True, "x = 0x1for y in z": True, "[0 for x in y]": True, "notx": True, "not x": True,
    "not(x)": True, "x = a andb": False, "x = a and b": True, "x = a and(b)": True, "x >>= 1": True, "x > >= 1": False,
    "x >> = 1": False, "x - > y": False, "def f() -> y: z": True, "a ** b": True, "a * * b": False, "a := 1": False,
    "(a := 1)": True, "(a : = 1)": False, "x = '''a'b''c'''": True, "x = ''''a'''": True, "x = '' 'a'": True,
    "x = '''a": False,
    'x = rb"\\"': False, 'x = bR"\\\\"': True, "x = ub''": False, "x = Rf'{a}'": True, "x = f''": True,
    "lambdax = 1": True, "lambda x: 1": True, "lambda: 1": True, "lambda*x: 1": True, "importx": True, "import x": True,
    "from.import x": True, "from .x import y": True, "from ...x import y": True, "from . . import y": True,
    "x = 1.real": False, "x = 1..real": True, "x = 1 .real": True, "x = 1_0": True, "x = 1_": False, "x = 1._0": False,
    "match = case = _ = 1": True, "match(x)": True, "match x:\n    case _: y": True, "async = 1": False,
    "print x": False, "True = 1": False, "None.x = 1": True, "x = yield": True, "yieldx": True, "x.if": False,
    "f(if_=1)": True, "f(if=1)": False, "\u00e9 = \u6f22 = 1": True, "x = a<-b": True, "x = a if b else-c": True,
    "x = f'{\"\"}' rf'\\{y}'": True, "x = f'{''''}'": False, "x = '\\N{DIGIT ONE}'": True, "x = b'\\N'": True,
}  # fmt: skip


def test_the_longest_match_is_read() -> None:
    python = Language("python")
    assert {text: takes(python, text) for text in LONGEST_MATCH} == LONGEST_MATCH
    assert [text for text, valid in LONGEST_MATCH.items() if _ast(text) != valid] == []


def test_blocks_are_indented_by_the_unit() -> None:
    for indent, unit in ((None, "    "), ("  ", "  "), ("\t", "\t"), (" ", " ")):
        python = Language("python", indent)
        heads = ["".join(unit * at + "if x:\n" for at in range(depth)) + unit * depth for depth in range(17)]
        assert [depth for depth in (1, 2, 15, 16) if takes(python, heads[depth] + "y\n")] == [1, 2, 15]
        assert takes(python, f"if x:\n{unit}y\n\n   # any column\n{unit}z\nelse:\n{unit}w")
        assert not takes(python, f"if x:\n{unit} y\n")
        assert not takes(python, f"if x:\n{unit}y\n{unit}{unit}z\n")
    assert takes(Language("python"), "x = [\n1,\n         2\n  ]\nif x: y\n")
    assert takes(Language("python"), "x = 1 + \\\n  2\n\n\n")


# ---- JSON


def test_json_is_what_python_reads(shared_data: Path) -> None:
    """But for `NaN` and its like, which JSON has not. Whether a file is UTF-8 is asked before."""
    folder = shared_data / "jsontestsuite" / "test_parsing"
    if not folder.is_dir():
        pytest.skip("JSONTestSuite is not at ../shared/data/jsontestsuite")
    start = compile(Language("json"), byte_vocabulary()).start()
    seen = 0
    for file in sorted(folder.glob("*.json")):
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if len(text) < 20_000:  # others are nothing but brackets that are never closed
            seen += 1
            assert _taken(start, text) == _json(text), file.name
            assert file.name[0] == "i" or _taken(start, text) == (file.name[0] == "y"), file.name
    assert seen > 250


# ---- the description


def test_a_language_is_a_constraint_like_others() -> None:
    language = Language("python", indent="\t")
    assert Constraint.from_json(language.to_json()) == language == lg.Language("python", "\t")
    assert parse_constraint("language:python") == Language("python") == parse_constraint("language:language=python")
    fenced = "```python\n" + Language("python") + "```"
    assert takes(fenced, "```python\nprint(1)\n```")
    assert not takes(fenced, "```python\nprint(1\n```")
    assert takes(Language("json") | Language("sql"), "select 1")
    with pytest.raises(
        ValueError, match=r"^backend: expected .* for xgrammar, got Language\. Use backend='llguidance'\."
    ):
        compile(Language("json"), byte_vocabulary(), "xgrammar")


WRONG: list[tuple[tuple[Any, ...], str]] = [
    (("pyhton",), "language: expected one of python, .*, got 'pyhton'. Did you mean 'python'"),
    (("go", "  "), "indent: expected nothing for 'go'"),
    (("python", ""), "indent: expected spaces or one tab, got ''"),
    (("python", " \t"), "indent: expected spaces or one tab"),
    (("python", "\t\t"), "indent: expected spaces or one tab"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_what_is_no_language(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        Language(*arguments)
