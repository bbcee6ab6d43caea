"""The lexing of each language that is shipped: its white space, reserved words and brackets.

Written, as the grammars beside it, from the languages' specifications. Terminals are called by their names in the
grammar, or by their text; Lark names brackets LPAR, RPAR and so on.
"""

from __future__ import annotations

import keyword
from functools import partial
from typing import TYPE_CHECKING

from lmguide.constraints.languages.lexing import Lines, Place, Semicolons, Words

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmguide.constraints.languages.bnf import Rules
    from lmguide.constraints.languages.layout import Lexing

_Opened = dict[str, tuple[str, tuple[str, ...]]]


def _brackets(place: str) -> _Opened:
    return {"LPAR": (place, ("RPAR",)), "LSQB": (place, ("RSQB",)), "LBRACE": (place, ("RBRACE",))}


def _fields(**places: str) -> _Opened:
    return {f"OPEN_{name}": (place, ("CLOSE", "CLOSE_GLUED")) for name, place in places.items()}


def python(rules: Rules, unit: str) -> Lexing:
    """Python: lines and blocks; line ends count for nothing in brackets, and quotes for much in f-strings."""
    comment = r"#[^\r\n\x00]*"
    strings = {"STRING", "BYTES"} | {name for name in rules.terminals if name.startswith(("FORMAT_", "RAW_"))}
    single = {"FIELD_SINGLE", "FIELD_NONE_SINGLE", "NESTED_SINGLE"}
    double = {"FIELD_DOUBLE", "FIELD_NONE_DOUBLE", "NESTED_DOUBLE"}
    in_fields = {*single, *double, "FIELD_LONG"}
    replaced = _fields(DOUBLE="d", SINGLE="s", DOUBLE3="dl", SINGLE3="sl")

    def field(place: str, *allowed: str) -> Place:
        return Place(
            "field",
            _brackets(place) | _fields(NESTED="n", INNER=place),
            frozenset((strings | in_fields) - set(allowed)),
        )

    places = {
        "o": Place("line", _brackets("b") | replaced, frozenset(in_fields)),
        "b": Place("brackets", _brackets("b") | replaced, frozenset(in_fields)),
        "d": field("d", *single),
        "s": field("s", *double),
        "dl": field("dl", *single, "FIELD_LONG"),
        "sl": field("sl", *double, "FIELD_LONG"),
        "n": field("n"),
    }
    inside = ("TEXT_", "RAWTEXT_", "END_", "QUOTE_", "OPEN_", "SPEC", "BRACES", "CLOSE_GLUED", "COLON_GLUED")
    return Lines(
        rules,
        {"line": r"[ \t]|\\\r?\n", "brackets": rf"[ \t]|\\\r?\n|(?:{comment})?\r?\n", "field": r"[ \t]"},
        places,
        unit=unit,
        comment=comment,
        names=("NAME", "CAPTURE"),
        reserved=keyword.kwlist,
        open_words=("match", "case", "_"),
        closed=("AND_OR", "SCOPE", "IN_OR_IS"),
        apart={"FIELD_NONE_SINGLE": "'", "FIELD_NONE_DOUBLE": '"'},
        # A number may stand right before "if" and "and", but not before these.
        spaced=("as", "from", "async"),
        glued=[name for name in rules.terminals if name.startswith(inside)],
    )


_BLOCK_COMMENT = r"/\*(?:[^*\x00\ufeff]|\*+[^*/\x00\ufeff])*\*+/"
_GO_WORDS = (
    "break case chan const continue default defer else fallthrough for func go goto if import interface map package "
    "range return select struct switch type var"
)


def go(rules: Rules) -> Lexing:
    """Go: a newline is a semicolon where a statement may end; no composite literal of a named type in a header."""
    opened = _brackets("o") | {"COMPOSITE": ("o", ("RBRACE",))}
    opened |= {name: ("h", ("LBRACE",)) for name in ("FOR", "IF", "SWITCH")}
    one_line = r"/\*(?:[^*\n\x00\ufeff]|\*+[^*/\n\x00\ufeff])*"
    remark = r"//[^\n\x00\ufeff]*"
    return Semicolons(
        rules,
        {"any": rf"[ \t\r\n]|{remark}\n|{_BLOCK_COMMENT}", "inline": rf"[ \t\r]|{one_line}\*+/"},
        {"o": Place("any", opened), "h": Place("any", opened, frozenset({"COMPOSITE"}))},
        semicolon="_SEMI",
        ending=(
            *("NAME", "PACKAGE", "LITERAL", "TEXT", "JUMP", "STEP"),
            *("fallthrough", "return", ")", "]", "}"),
        ),
        newline=rf"(?:{remark})?\n|{one_line}\**\n(?:[^*\x00\ufeff]|\*+[^*/\x00\ufeff])*\*+/",
        unended=remark,
        names=("NAME", "PACKAGE"),
        reserved=_GO_WORDS.split(),
        closed=("JUMP",),
        apart={"PLUS": "+", "MINUS": r"\-", "AND": "&^", "LESS": r"\-", "STAR": "="},
    )


_C_WORDS = (
    "auto break case char const continue default do double else enum extern float for goto if inline int long register "
    "restrict return short signed sizeof static struct switch typedef union unsigned void volatile while _Alignas "
    "_Alignof _Atomic _Bool _Complex _Generic _Imaginary _Noreturn _Static_assert _Thread_local"
)


def c(rules: Rules) -> Lexing:
    """C: white space anywhere, but directives begin a line."""
    remark = r"//(?:[^\\\r\n\x00]|\\+[^\\\r\n\x00])*"
    return Words(
        rules,
        {"any": rf"[ \t\r\n\f\v]|\\\r?\n|{remark}\r?\n|{_BLOCK_COMMENT}"},
        {"o": Place("any")},
        names=("NAME",),
        reserved=_C_WORDS.split(),
        open_words=("va_arg", "offsetof"),
        closed=("BASIC", "STORAGE", "QUALIFIER", "STRUCT", "STATIC_ASSERT", "JUMP"),
        apart={"PLUS": "+", "MINUS": r"\->", "AND": "&", "HEX_E": r"+\-.0-9A-Za-z_"},
        glued=("FIRST_DIRECTIVE", "FIRST_IF"),
        unended=remark,
    )


_SQL_WORDS = (
    "ABORT ADD ALL ALTER ALWAYS ANALYZE AND AS ASC ATTACH AUTOINCREMENT BEGIN BETWEEN BY CASCADE CASE CAST CHECK "
    "COLLATE COMMIT CONFLICT CONSTRAINT CREATE CROSS CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP DEFAULT DEFERRABLE "
    "DEFERRED DELETE DESC DETACH DISTINCT DO DROP EACH ELSE END ESCAPE EXCEPT EXCLUDE EXCLUSIVE EXISTS EXPLAIN FILTER "
    "FOLLOWING FOREIGN FROM FULL GENERATED GLOB GROUP HAVING IF IMMEDIATE IN INDEX INDEXED INITIALLY INNER INSERT "
    "INSTEAD INTERSECT INTO IS ISNULL JOIN LEFT LIKE LIMIT MATCH MATERIALIZED NATURAL NOT NOTHING NOTNULL NULL NULLS "
    "OFFSET ON OR ORDER OUTER OVER PARTITION PRAGMA PRECEDING PRIMARY RAISE RECURSIVE REFERENCES REGEXP REINDEX RENAME "
    "RESTRICT RETURNING RIGHT ROLLBACK SAVEPOINT SELECT SET TABLE TEMP TEMPORARY THEN TIES TO TRANSACTION TRIGGER "
    "UNBOUNDED UNION UNIQUE UPDATE USING VACUUM VALUES VIEW VIRTUAL WHEN WHERE WINDOW WITH WITHOUT"
)


def sql(rules: Rules) -> Lexing:
    """SQL: white space anywhere, words in any case. Some of SQLite's key words may be names there, and are here."""
    return Words(
        rules,
        {"any": rf"[ \t\r\n\f]|--[^\n\x00]*\n|{_BLOCK_COMMENT}"},
        {"o": Place("any")},
        names=("NAME", "ALIAS"),
        reserved=[f"(?ai:{word})" for word in _SQL_WORDS.split()],
        open_words=("REPLACE", "KEY", "COLUMN", "ACTION", "NO"),
        closed=(
            *("LITERAL", "VARIABLE", "AND_OR", "MATCH", "NULLITY", "COMBINE", "EACH"),
            *("DIRECTION", "END_OF", "JOINED", "TEMPORARY", "CONFLICT", "STORED"),
        ),
        unended=r"--[^\n\x00]*",
    )


def json(rules: Rules) -> Lexing:
    """JSON: white space anywhere."""
    return Words(rules, {"any": r"[ \t\r\n]"}, {"o": Place("any")})


LEXERS: dict[str, Callable[[Rules], Lexing]] = {"go": go, "sql": sql, "json": json, "c": c}
"""How a language without blocks is lexed; Python's lexing has an argument more."""


def lexer(language: str, indent: str) -> Callable[[Rules], Lexing]:
    """How a language is lexed.

    Args:
        language: Its name.
        indent: What a block of Python is indented by.
    """
    return partial(python, unit=indent) if language == "python" else LEXERS[language]
