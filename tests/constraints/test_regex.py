"""Patterns mean to an engine what they mean to `re.fullmatch`."""

from __future__ import annotations

import random
import re

import pytest

from lmguide.constraints import Regex
from lmguide.constraints.regex import Chars, Ranges, literal, render, translate
from tests.constraints.walks import BACKENDS, takes, tales, walk

EVERY_CHARACTER = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
CLASSES = [
    r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", ".", "(?s).", r"(?a)\w", r"(?a)\D", r"[^\W\d_]", r"[^a-f\s]", r"[\w.-]",
    "(?i)k",
    "(?i)s", "(?i)\u017f", "(?i)[a-z]", "(?i)[^a-z]", "(?ai)[a-z]", "(?i)\u00df", "(?i)\u0130", "(?i)[\u0370-\u03ff]",
    r"(?i)\w", "[\ud7ff-\ue000]", "\\x41", "\\u00e9", "\\U0001f600", "\\n", "[\\]\\-^]", "[]a]", "[^]a]", "\\0", "\\07",
]  # fmt: skip


@pytest.mark.parametrize("pattern", CLASSES)
def test_every_character_of_a_class(pattern: str) -> None:
    tree = translate(pattern)
    assert isinstance(tree, Chars)
    flags, characters = re.findall(r"^(\(\?\w+\))?(.*)$", pattern)[0]
    assert _members(tree.ranges) == "".join(re.findall(f"{flags}(?:{characters})+", EVERY_CHARACTER))


PATTERNS = {
    "": ["", "a"],
    "abc": ["abc", "ab", "abcd", ""],
    "a|b|": ["", "a", "b", "ab"],
    r"\d{2,4}-\w+\s": ["12-a ", "12-\u00e9\u0661\n", "1-a ", "\u0661\u0662-b\t", "12345-a "],
    "^a.*$": ["a", "ab", "a\nb", "a\n", "ba"],
    "(?s)a.*b": ["ab", "a\nb", "a\n\nb\n"],
    "(?x) a  b # comment (?=\n c": ["abc", "a b c", "ab"],
    "(?i)stra\u00dfe|K": ["STRA\u1e9eE", "strasse", "\u212a", "k", "STRAssE"],
    "(?i:a)b": ["Ab", "ab", "AB"],
    "(?i)a(?-i:b)": ["Ab", "aB", "AB", "ab"],
    "a{0}b{2}c{1,}d{,2}": ["bbc", "bbccdd", "abbc", "bbddd", "bbcddd"],
    "(?P<name>a+?)b*?": ["ab", "aaa", "b", "aabb"],
    "(ab|a)(bc|c)?": ["abbc", "abc", "ac", "ab", "a", "abb"],
    "(^a|b)(c$|d)?": ["a", "ac", "bd", "bc", "abc"],
    r"\Aa\Z": ["a", "a\n"],
    r"[\]\-\\/\"]+": ['-\\/"]', "a", ""],
    "(a*)*b?": ["", "aaa", "aab", "ba"],
    "(|a){3}": ["", "aa", "aaa", "aaaa"],
    "\U0001f600{2}": ["\U0001f600\U0001f600", "\U0001f600"],
    "[\x00-\x1f]": ["\x00", "\n", " "],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_that_match(pattern: str, backend: str) -> None:
    for text in PATTERNS[pattern]:
        assert takes(Regex(pattern), text, backend) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_patterns_on_random_texts(backend: str) -> None:
    draw = random.Random(7)
    matched = 0
    for _ in range(60):
        pattern = _pattern(draw, 3)
        constraint = Regex(pattern)
        for _ in range(12):
            text = "".join(draw.choice("ab0\n \u00e9\u0661_A") for _ in range(draw.randrange(5)))
            expected = bool(re.fullmatch(pattern, text))
            matched += expected
            assert takes(constraint, text, backend) == expected, (pattern, text)
    assert matched > 100


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", [r"\d{2,4}-\w{3}\s\w{1,4}", "(?i)[a-f]{2,5}|.{3}", r"[^\W\d]{1,3}(, \S{1,2}){0,2}"])
def test_random_walks_match(pattern: str, backend: str) -> None:
    for seed in range(15):
        text = walk(Regex(pattern), tales(), seed, backend)
        assert re.fullmatch(pattern, text), text


REFUSED = {
    "a(?=b)": "a lookahead at position 1",
    "a(?!b)": "a negative lookahead at position 1",
    "(?<=a)b": "a lookbehind at position 0",
    "(?<!a)b": "a negative lookbehind at position 0",
    r"(a)x\1": r"the backreference \1 at position 4",
    "(?P<n>a)(?P=n)": "a backreference at position 8",
    r"x\bz": r"the word boundary \b at position 1",
    r"x\Bz": r"the word boundary \B at position 1",
    "(a)?(?(1)b|c)": "a condition at position 4",
    "a^b": "'^' only at the beginning, got it within 'a^b' (position 1)",
    "(a$)+b": "'$' only at the end, got it within '(a$)+b' (position 2)",
    "(?:^a)*b": "'^' only at the beginning",
    "a(": "broken at position 1",
    "[b-a]": "broken at position 1",
    "a{3,2}": "broken at position",
    "*a": "broken at position 0",
    r"[^\s\S]": "which none does",
    r"a[^\d\D]|b[^\w\W]": "which none does",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_refused_with_the_position(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^pattern: expected") as caught:
        Regex(pattern)
    assert REFUSED[pattern] in str(caught.value)


@pytest.mark.parametrize("pattern", ["(?>a)b", "a++b", "a{2}+b"])
def test_possessive_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"possessive|atomic|broken at position"):  # Python 3.10 knows neither
        Regex(pattern)


@pytest.mark.parametrize("pattern", [r"\\b", "[(?=]", "a(?#(?=b)", "[*+]+", "x{}+", r"\(?=a", "(?x)a # \\b\nb"])
def test_what_only_looks_refused(pattern: str) -> None:
    translate(pattern)


def test_an_alternative_that_nothing_matches_is_left_out() -> None:
    assert translate(r"ab|a[^\s\S]") == translate("ab")
    assert takes(Regex(r"(?:[^\s\S])*a"), "a")


def test_rendered_text_is_plain() -> None:
    text = render(literal("".join(map(chr, range(128))) + "\u00e9\U0001f600"))
    assert re.fullmatch(r"[A-Za-z0-9\\{}]+", text)


def _members(ranges: Ranges) -> str:
    """Every character of a set, in order."""
    places = ((low - (low > 0xDFFF) * 0x800, high - (high > 0xDFFF) * 0x800) for low, high in ranges)
    return "".join(EVERY_CHARACTER[low : high + 1] for low, high in places)


def _pattern(draw: random.Random, depth: int) -> str:
    """A pattern of a few signs, which may match the empty text."""
    if depth == 0 or draw.random() < 0.3:
        return draw.choice(
            ["a", "b", "0", r"\d", r"\w", r"\s", ".", "[ab]", "[^a]", r"[^\W_]", "\u00e9", r"\S", "(?i:a)", "(?s:.)"]
        )
    kind = draw.randrange(4)
    if kind == 0:
        return _pattern(draw, depth - 1) + _pattern(draw, depth - 1)
    if kind == 1:
        return f"(?:{_pattern(draw, depth - 1)}|{_pattern(draw, depth - 1)})"
    if kind == 2:
        return f"(?:{_pattern(draw, depth - 1)}){draw.choice(['*', '+', '?', '{2}', '{1,2}', '*?', '{0,3}?'])}"
    return f"({_pattern(draw, depth - 1)}|)"
