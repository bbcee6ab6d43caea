"""Automata over tokens accept what spells an accepted text, tokens of one class are interchangeable, files are kept."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lmguide.constraints import Choice, Literal, Regex
from lmguide.constraints.automaton import lift as lifts
from lmguide.constraints.automaton import store
from lmguide.constraints.automaton.ends import with_ends
from lmguide.constraints.automaton.language import byte_dfa
from lmguide.constraints.automaton.lift import TokenDfa, lift
from lmguide.constraints.automaton.store import cache_folder, token_dfa

if TYPE_CHECKING:
    from pathlib import Path

EURO = "\u20ac".encode()
TOKENS = [
    b"a",
    b"b",
    b"ab",
    b"ba",
    b"aab",
    b"",
    EURO[:1],
    EURO[1:],
    EURO,
    EURO[1:2],
    EURO[2:] + b"a",
    b"1",
    b"12",
    b"c",
]


@pytest.mark.parametrize("pattern", ["(ab)*", "a*b?", "(a\u20ac)+|b", "[^a]{0,2}", "[0-9]{2}a?", ".*b.*"])
def test_tokens_spell_texts(pattern: str) -> None:
    dfa = lift(byte_dfa(Regex(pattern)), TOKENS)
    rows = [row for length in range(4) for row in itertools.product(range(len(TOKENS)), repeat=length)]
    found = 0
    for row in rows:
        text = b"".join(TOKENS[token] for token in row)
        spelled = bool(re.fullmatch(pattern, text.decode("utf-8", "surrogateescape"))) and b"" not in [
            TOKENS[token] for token in row
        ]
        wrong = bool(re.search("[\udc80-\udcff]", text.decode("utf-8", "surrogateescape")))
        assert dfa.accepts(row) == (spelled and not wrong), row
        found += dfa.accepts(row)
    assert found


def test_classes_are_as_few_as_can_be() -> None:
    dfa = lift(byte_dfa(Regex("[ab]{0,3}")), TOKENS)
    assert dfa.classes[[0, 1]].tolist() == [1, 1]
    assert dfa.classes[[2, 3]].tolist() == [2, 2]
    assert dfa.classes[4] == 3
    assert dfa.table.shape == (5, 4)
    assert set(np.delete(dfa.classes, [0, 1, 2, 3, 4])) == {0}


def test_states_that_no_token_tells_apart_are_one() -> None:
    """Over whole words the letters between do not count."""
    dfa = lift(byte_dfa(Regex("(long|word)*")), [b"long", b"word", b"x"])
    assert dfa.table.shape == (2, 2)
    assert dfa.least == 0


def test_a_text_without_tokens() -> None:
    assert lift(byte_dfa(Regex("xyz")), TOKENS).empty
    with pytest.raises(ValueError, match="tokens of the vocabulary can spell"):
        token_dfa(Literal("xyz"), TOKENS)


def test_too_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifts, "MOST_ENTRIES", 50)
    with pytest.raises(ValueError, match="pairs of states and kinds of tokens"):
        lift(byte_dfa(Regex("(a|b)*a(a|b)(a|b)")), TOKENS)


@pytest.mark.parametrize("ends", [(5,), (5, 0), ()])
@pytest.mark.parametrize("padding", [(), (13,), (5, 3)])
@pytest.mark.parametrize("banned", [(), (2,), (5,)])
def test_rows_with_ends(ends: tuple[int, ...], padding: tuple[int, ...], banned: tuple[int, ...]) -> None:
    """Text, end, then ends and padding; an end is never text, and what is banned stands nowhere."""
    texts = lift(byte_dfa(Regex("(ab)*a?")), TOKENS)
    rows = with_ends(texts, ends, padding, banned)

    def wanted(row: tuple[int, ...]) -> bool:
        if set(row) & set(banned):
            return False
        place = next((place for place, token in enumerate(row) if token in ends), len(row))
        return texts.accepts(row[:place]) and set(row[place:]) <= {*ends, *padding}

    for row in (row for length in range(5) for row in itertools.product((0, 1, 2, 3, 5, 13), repeat=length)):
        assert rows.accepts(row) == wanted(row), row


def test_kept_on_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constraint = Choice(("ab", "aab"))
    first = token_dfa(constraint, TOKENS)
    (file,) = cache_folder().iterdir()
    assert file.is_relative_to(cache)
    monkeypatch.setattr(store, "lift", _never)
    assert token_dfa(constraint, TOKENS) is first  # in memory
    store._kept.clear()
    assert _same(token_dfa(constraint, TOKENS), first)  # from the file
    with pytest.raises(AssertionError, match="made anew"):
        token_dfa(constraint, TOKENS[:-1])
    with pytest.raises(AssertionError, match="made anew"):
        token_dfa(Literal("ab"), TOKENS)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "other"])
def test_broken_files_are_made_anew(cache: Path, damage: str) -> None:
    first = token_dfa(Regex("(ab)*"), TOKENS)
    (file,) = cache_folder().iterdir()
    data = file.read_bytes()
    noise = bytes(random.Random(0).choices(range(256), k=20))
    broken = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "noise": data[:200] + noise + data[220:],
        "other": b"PK\x03\x04",
    }
    file.write_bytes(broken[damage])
    store._kept.clear()
    assert _same(token_dfa(Regex("(ab)*"), TOKENS), first)
    assert file.read_bytes() == data


def test_no_damage_is_read_as_an_automaton(cache: Path) -> None:
    first = token_dfa(Regex("(ab)*"), TOKENS)
    (file,) = cache_folder().iterdir()
    data, draws = file.read_bytes(), random.Random(1)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(draws.choice((1, 1, 4))):
            broken[draws.randrange(len(data))] = draws.randrange(256)
        file.write_bytes(broken)
        found = store._read(file, len(TOKENS))
        assert found is None or _same(found, first)


def test_another_vocabulary_of_the_same_size(cache: Path) -> None:
    """Tokens swapped, and tokens cut elsewhere: the bytes in a row are the same."""
    vocabularies = ([b"a", b"ab", b"b"], [b"ab", b"a", b"b"], [b"aa", b"b", b"b"])
    found = [token_dfa(Regex("(ab|aa)*b?"), tokens) for tokens in vocabularies]
    for tokens, dfa in zip(vocabularies, found, strict=True):
        assert _same(dfa, lift(byte_dfa(Regex("(ab|aa)*b?")), tokens))
        store._kept.clear()
        assert _same(token_dfa(Regex("(ab|aa)*b?"), tokens), dfa)
    assert len(list(cache_folder().iterdir())) == 3


@pytest.mark.slow
def test_processes_that_write_at_once(cache: Path) -> None:
    """Each reads a whole automaton or none, whoever writes; no part of a file is left behind."""
    script = """
import time
from lmguide.constraints import Regex
from lmguide.constraints.automaton import store
until = time.monotonic() + 60
store._read = lambda file, size: None
while not (store.cache_folder() / "done").exists() and time.monotonic() < until:
    store._kept.clear()
    store.token_dfa(Regex("a{1,99}"), [b"a", b"b"])
"""
    constraint, tokens = Regex("a{1,99}"), [b"a", b"b"]
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as other:
        first = token_dfa(constraint, tokens)
        (file,) = cache_folder().iterdir()
        before, writes = file.stat().st_ino, 0
        while writes < 20 and other.poll() is None:
            store._kept.clear()
            if file.stat().st_ino != before:  # the other process has written since
                writes += 1
                store._write(file, first)
                before = file.stat().st_ino
            assert _same(token_dfa(constraint, tokens), first)
        (cache_folder() / "done").touch()
        _, errors = other.communicate(timeout=60)
    assert (other.returncode, writes) == (0, 20), errors
    assert {each.name for each in cache_folder().iterdir()} == {file.name, "done"}


def test_nowhere_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LMGUIDE_CACHE", str(tmp_path / "file"))
    assert token_dfa(Regex("(ab)*"), TOKENS).accepts([2, 2])


def test_old_files_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MOST_FILES", 3)
    for count in range(5):
        token_dfa(Regex(f"a{{{count}}}b"), TOKENS)
    assert len(list(cache_folder().iterdir())) == 3


def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LMGUIDE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder().as_posix() == "/somewhere/lmguide/automata"


def _never(*args: object) -> TokenDfa:
    raise AssertionError("made anew")


def _same(left: TokenDfa, right: TokenDfa) -> bool:
    names = ("classes", "table", "accept", "start")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in names)
