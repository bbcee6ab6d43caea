"""The grammar meets the columns exactly if some row of tokens, of all there are, is a text of the grammar."""

from __future__ import annotations

import itertools
import random
import re
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lmguide.constraints.automaton.json_values import pattern
from lmguide.constraints.context_free.chart import Column
from lmguide.constraints.context_free.grammar import Grammar
from lmguide.constraints.context_free.productions import Productions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TOKENS = [b"a", b"b", b"ab", b"ba", b"", b"(", b")", b"((", b"))a", b"a)", b",", b"),"]

GRAMMARS: dict[str, tuple[dict[str, list[tuple[str, ...]]], dict[str, str]]] = {
    "nested": ({"s": [("A", "s", "B"), ("A", "B")]}, {"A": "a", "B": "b"}),
    "nested or nothing": ({"s": [("A", "s", "B"), ()]}, {"A": "a", "B": "b"}),
    "palindromes": (
        {"s": [("A", "s", "A"), ("B", "s", "B"), ("A",), ("B",), ()]},
        {"A": "a", "B": "b"},
    ),
    "brackets": ({"s": [("s", "s"), ("L", "s", "R"), ("L", "R")]}, {"L": r"\(", "R": r"\)"}),
    "lists": (
        {"s": [("L", "R"), ("L", "items", "R"), ("W",)], "items": [("s",), ("items", "C", "s")]},
        {"L": r"\(", "R": r"\)", "C": ",", "W": "[ab]{1,2}"},
    ),
    "a terminal that may be empty": ({"s": [("L", "W", "R")]}, {"L": r"\(", "R": r"\)", "W": "(ab)*"}),
    "chains of one": ({"s": [("t",), ("A", "s")], "t": [("u",)], "u": [("t",), ("B",)]}, {"A": "a", "B": "b"}),
    "never": ({"s": [("A", "s")]}, {"A": "a"}),
}


def reference(bodies: Mapping[str, Sequence[tuple[str, ...]]], terminals: Mapping[str, str], most: int) -> set[str]:
    """All texts of a grammar up to a length, by writing its rules out until nothing new comes."""
    letters = "ab(),"
    words = {
        name: {
            text
            for length in range(most + 1)
            for text in map("".join, itertools.product(letters, repeat=length))
            if re.fullmatch(form, text)
        }
        for name, form in terminals.items()
    }
    texts: dict[str, set[str]] = {**words, **{name: set() for name in bodies}}
    changed = True
    while changed:
        changed = False
        for name, rows in bodies.items():
            for row in rows:
                found = {""}
                for part in row:
                    found = {left + right for left in found for right in texts[part] if len(left + right) <= most}
                changed |= not found <= texts[name]
                texts[name] |= found
    return texts["s"]


@cache
def compiled(name: str) -> tuple[Grammar, set[str]]:
    bodies, terminals = GRAMMARS[name]
    usable = np.array([bool(text) for text in TOKENS])
    usable[TOKENS.index(b"ba")] = False  # may stand, but is never written
    productions = Productions("s", bodies, {key: pattern(form) for key, form in terminals.items()})
    return Grammar(productions, TOKENS, usable), reference(bodies, terminals, 7)


def rows(columns: Sequence[Column], end: int, written: Sequence[int]) -> list[tuple[int, ...]]:
    pools = [tuple(dict.fromkeys((*each.tokens, *(written if each.anything else ())))) for each in columns[:end]]
    return [row for row in itertools.product(*pools) if all(TOKENS[token] for token in row)]


def text_of(row: Sequence[int]) -> str:
    return b"".join(TOKENS[token] for token in row).decode()


@pytest.mark.parametrize("name", GRAMMARS)
def test_emptiness(name: str) -> None:
    """With all tokens named in open columns that is exact; what is found is a row that fits, and a text."""
    grammar, texts = compiled(name)
    written = [token for token, text in enumerate(TOKENS) if text and text != b"ba"]
    draw = random.Random(name)
    met = 0
    for _ in range(120):
        length = draw.randint(1, 4)
        columns = [
            Column(True, tuple(written))
            if draw.random() < 0.6
            else Column(False, tuple(draw.choices(range(12), k=draw.choice((1, 1, 2)))))
            for _ in range(length)
        ]
        ends = draw.sample(range(length + 1), draw.randint(1, length))
        wanted = {end for end in ends for row in rows(columns, end, written) if text_of(row) in texts}
        wanted |= {0} & set(ends) if "" in texts else set()
        found = grammar.completed(columns, ends)
        assert (found is not None) == bool(wanted), (columns, ends, found)
        if found is not None:
            met += 1
            assert len(found) in wanted
            assert text_of(found) in texts
            assert all(token in each.tokens for token, each in zip(found, columns, strict=False))
    assert met > (5 if texts else -1)


@pytest.mark.parametrize("name", GRAMMARS)
def test_tokens_within_terminals_alone(name: str) -> None:
    """Open columns that name no tokens hold those that lie within one terminal: what is found is right, and is found
    wherever single bytes would do."""
    grammar, texts = compiled(name)
    draw = random.Random(name)
    single = [token for token, text in enumerate(TOKENS) if len(text) == 1]
    for _ in range(80):
        length = draw.randint(1, 5)
        columns = [Column(True) if draw.random() < 0.7 else Column(False, (draw.randrange(12),)) for _ in range(length)]
        found = grammar.completed(columns, [length])
        if found is None:
            assert not any(text_of(row) in texts for row in rows(columns, length, single)), columns
        else:
            assert text_of(found) in texts
            assert all(not each.tokens or token in each.tokens for token, each in zip(found, columns, strict=True))
            assert all(each.tokens or TOKENS[token] != b"ba" for token, each in zip(found, columns, strict=True))


@pytest.mark.parametrize("name", GRAMMARS)
def test_what_is_kept_from_other_columns_changes_nothing(name: str) -> None:
    """One chart for columns that change here and there answers as a new chart for each."""
    grammar, _ = compiled(name)
    draw, chart = random.Random(name), grammar.chart()
    columns = [Column(True)] * 5
    for _ in range(60):
        if draw.random() < 0.1:
            columns = [Column(True, tuple(range(12)))] * draw.randint(0, 6)
        else:
            for at in draw.sample(range(len(columns)), min(2, len(columns))):
                columns[at] = draw.choice((Column(True), Column(False, tuple(draw.choices(range(12), k=2)))))
        ends = draw.sample(range(len(columns) + 1), draw.choice((1, len(columns) + 1)))
        assert chart.completed(list(columns), ends) == grammar.completed(columns, ends)
