"""Automata over bytes accept what Python's `re` accepts, and compose as sets of texts do."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from lmguide.constraints import JSON, Choice, Constraint, FreeText, Grammar, Literal, Regex, Triggered, optional, repeat
from lmguide.constraints.automaton import dfa as dfas
from lmguide.constraints.automaton.language import byte_dfa

PATTERNS = [
    "",
    "a|ab",  # a longer text behind a shorter alternative
    "(a|ab)(c|bcd)?",
    "[0-9]|[1-9][0-9]+",
    "(x*)*y",
    "(a{2,3}|b)*c?",
    "a{0}b",
    "(?i)straße|σ",
    r"\d{1,2}[^\n]\s?",
    r"(?a)\w+",
    ".{0,3}",
    "(?s).?é",
    "[\U00010000-\U0010ffff]|[\ud7f0-\ue010]",
    "[^a]b|\u20ac+",
]
SIGNS = "abcxyzσςSs 019\nß\u00e9\u20ac\U0001f600\ud7fb\ue000ST"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_those_of_re(pattern: str) -> None:
    dfa = byte_dfa(Regex(pattern))
    draws = random.Random(0)
    near = [character for character in dict.fromkeys(pattern + "ab1") if character not in "\\[]{}()?*+|^.-"]
    texts = ["".join(draws.choices(pool, k=draws.randint(0, 5))) for pool in (SIGNS, near) for _ in range(400)]
    assert any(re.fullmatch(pattern, text) for text in texts)
    for text in texts:
        assert dfa.accepts(text.encode()) == bool(re.fullmatch(pattern, text)), text


def test_every_character_of_unicode() -> None:
    """Each class of Python's `re`, character by character, and no half of one."""
    for pattern in (r"\w", r"\D", ".", "[\u0400-\U000103ff]"):
        dfa, wanted = byte_dfa(Regex(pattern)), re.compile(pattern)
        for code in itertools.chain(range(0, 0x900), range(0x900, 0x110000, 97), (0xFFFF, 0x10000, 0x10FFFF)):
            if 0xD800 <= code < 0xE000:
                continue
            spelled = chr(code).encode()
            assert dfa.accepts(spelled) == bool(wanted.fullmatch(chr(code))), hex(code)
            assert not any(dfa.accepts(spelled[:cut]) for cut in range(len(spelled)))


def test_bytes_that_are_no_text_are_refused() -> None:
    dfa = byte_dfa(Regex(r"[\s\S]*"))
    for wrong in (b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\x80", b"\x80", b"\xff", b"a\xc3"):
        assert not dfa.accepts(wrong)


@pytest.mark.parametrize(
    ("composed", "pattern"),
    [
        (Literal("a.") + Choice(("b", "bc")) + "d", r"a\.(b|bc)d"),
        (Regex("a*") | "b" | Literal(""), "a*|b"),
        (repeat(Choice(("ab", "a")), 1, 3), "(ab|a){1,3}"),
        (repeat("ab") + optional("c"), "(ab)*c?"),
        (repeat("a", 2) + repeat("b", 0, 0), "a{2,}"),
    ],
)
def test_composition(composed: Constraint, pattern: str) -> None:
    """Equal languages have one automaton, however they are written."""
    assert byte_dfa(composed).digest() == byte_dfa(Regex(pattern)).digest()


def test_equal_languages_have_equal_automata() -> None:
    assert byte_dfa(Regex("(a|b)*a(a|b)")).digest() == byte_dfa(Regex("[ba]*(aa|ab|baa)")).digest()
    assert byte_dfa(Regex("(a|b)*")).digest() != byte_dfa(Regex("(a|b)+")).digest()


def test_there_is_no_smaller_automaton() -> None:
    """Myhill-Nerode: a state for every class of prefixes that the same suffixes complete."""
    dfa, alphabet = byte_dfa(Regex("(a|b)*a(a|b)(a|b)")), "ab"
    words = ["".join(word) for length in range(6) for word in itertools.product(alphabet, repeat=length)]
    classes = {tuple(dfa.accepts((prefix + suffix).encode()) for suffix in words) for prefix in words[:31]}
    assert len(classes) == 8
    assert len(dfa.table) == 8 + 1  # and the dead state


def test_free_text_ends_at_the_first_trigger() -> None:
    dfa = byte_dfa(FreeText("aab") + "!")
    assert [dfa.accepts(text) for text in (b"aab!", b"xaaab!", b"aabxaab!", b"aaab", b"aab", b"aab!!")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_trigger_binds_wherever_it_stands() -> None:
    once = byte_dfa(Triggered("<<", Choice(("1", "2"))))
    often = byte_dfa(Triggered("<<", Choice(("1", "2")), repeat=True))
    for text, by_once, by_often in [
        (b"free", True, True),
        (b"a<<1", True, True),
        (b"a<<3", False, False),
        (b"a<<1b", False, True),
        (b"a<<1b<<2", False, True),
        (b"a<<1b<<", False, False),
        (b"<", True, True),
    ]:
        assert (once.accepts(text), often.accepts(text)) == (by_once, by_often), text


def test_any_json_is_nested_to_a_depth() -> None:
    dfa = byte_dfa(JSON())
    assert all(dfa.accepts(text) for text in (b"1", b'"a\\n\xc3\xbc"', b'{"a": [1, {"b": null}]}', b"[[[1.5]]]"))
    assert not any(dfa.accepts(text) for text in (b"", b"01", b'"\n"', b"[1,]", b"[[[[1]]]]", b"nul"))


@pytest.mark.parametrize("pattern", ["(.{1,50}x){3}", r"\w{0,5000}", "(a{1,1000}){1,1000}"])
def test_what_grows_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="smaller bounds of repetitions"):
        byte_dfa(Regex(pattern))


def test_what_is_not_regular_is_refused() -> None:
    for constraint, name in ((Grammar('start: "a"'), "Grammar"), (FreeText(max_tokens=3), "max_tokens")):
        with pytest.raises(ValueError, match=f"got {name}"):
            byte_dfa("x" + constraint)


def test_a_product_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dfas, "MOST_STATES", 20)
    with pytest.raises(ValueError, match="20 states"):
        byte_dfa(Regex("a{30}"))
