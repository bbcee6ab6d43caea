"""Grammars with counters in llguidance's parametric rules: the texts stay the same, and they compose."""

from __future__ import annotations

import random
import re

import pytest

import lmguide as lg
from lmguide.constraints import Grammar, Matcher, Vocabulary, compile
from lmguide.constraints.ccfg.engine import CCFGCompiled
from lmguide.constraints.ccfg.numerals import numerals
from lmguide.constraints.llguidance_engine import LLGuidanceCompiled
from tests.constraints.walks import allowed, byte_vocabulary, generated, takes, tales, walk

FITTING = {
    "a count": 'start: n "\\n" a[n; " "]\n0 <= n <= 2\n-1 <= a <= 2',
    "counts within counts": 'start: t "\\n" (n ":" a[n; ","] ";")[t]\n1 <= t <= 2\n0 <= n <= 2\n0 <= a <= 1',
    "one number counts twice": 'start: n " " a[n; ","] ":" b[n-1; ","]\n1 <= n <= 2\n0 <= a, b <= 1',
    "up to a count": 'start: n " " (a ",")[1..n] ";"\n1 <= n <= 2\n0 <= a <= 1',
    "letters": 'start: n ":" /[ab]/[n] " " /[ab]/[0..n]\n0 <= n <= 2',
    "constant counts": 'start: (a ",")[1..3] "b" ("c" | "a")[2]\n0 <= a <= 1',
    "alternatives": 'start: n ":" (m "," /[pq]/[m] | "a")[n; ";"]\n1 <= n <= 2\n0 <= m <= 1',
    "no counts": 'start: "a" a ("b" | "c" /[pq]/)\n8 <= a <= 12',
    "none or more": 'start: n ":" (n2 ",")[0..n] "b"\n0 <= n <= 2\n10 <= n2 <= 11',
    "characters up to a count": 'start: (n /[.#]/[1..n] ",")[2]\n1 <= n <= 2',
}
UNFIT = {
    "start: n m\n1 <= n < m <= 3": "'m' has a relation to other numbers",
    'start: n " " p[n; " "]\n1 <= n, p <= 3\ndistinct(p)': "'p' has a relation to other numbers",
    'start: n " " m (/[a]/[m] ";")[n]\n1 <= n, m <= 3': "'m' counts in every pass of a repetition",
    'start: n " " a[2*n; " "]\n1 <= n, a <= 3': "a count is more than a number that is read, and a constant",
    'start: n " " a[n; " "]\n1 <= n <= 10^4\n1 <= a <= 3': "'n', which counts, has more than 2000 values",
    'start: n " " a[n; " "]\n1 <= n <= 1500\n1 <= a <= 3': "its repetitions have up to 1500 passes, more than 1000",
    'start: n "0"\n1 <= n <= 3': "a number is followed by what may be a digit",
    'start: "ab" | "ac"': "two alternatives begin alike",
    'start: "(" start ")" | ""': "a rule calls itself",
    'start: /[a-z]/[1..3] "x"': "characters are followed by one of them",
    'start: ("a" "b")[1..3] "a"': "a repetition is followed by what it may go on with",
}


@pytest.mark.parametrize("name", FITTING)
def test_parametric_rules_have_the_same_texts(name: str) -> None:
    specification = lg.CCFG(FITTING[name])
    signs = [b"%d" % digit for digit in range(10)] + [sign.encode() for sign in " \n-:,;abcpq.#"]
    several = [b"1 ", b"10", b"2\n", b" 1", b"\n0", b"12", b"0,", b"1:", b":a", b"a,", b"-1", b"aa"]
    vocabulary = Vocabulary([*signs, *several, b""], eos=(len(signs) + len(several),))
    compiled = compile(specification, vocabulary)
    assert isinstance(compiled, LLGuidanceCompiled)
    texts = generated(CCFGCompiled(specification.recogniser, vocabulary).start(), vocabulary)
    assert generated(compiled.start(), vocabulary) == texts
    assert len(texts) > 3


@pytest.mark.parametrize("text", UNFIT)
def test_others_are_read_by_themselves(text: str) -> None:
    specification = lg.CCFG(text)
    assert specification.lowered.startswith(UNFIT[text]) if isinstance(specification.lowered, str) else False
    assert specification.grammar() is specification
    assert isinstance(compile(specification, tales()), CCFGCompiled)


def test_they_compose() -> None:
    lines = lg.CCFG('start: n "\\n" (a " " /[xy]/[2] "\\n")[n]\n1 <= n <= 3\n1 <= a <= 10^9')
    assert isinstance(lines.grammar(), Grammar)
    answer = lg.FreeText(until="INPUT:\n") + lines + lg.Choice(["done", "over"])
    assert takes(answer, "I think so. INPUT:\n2\n7 xy\n1000000000 yy\ndone")
    assert not takes(answer, "I think so. INPUT:\n2\n7 xy\ndone")
    assert not takes(answer, "I think so. INPUT:\n1\n0 xy\ndone")
    for seed in range(5):
        text = walk("<" + lines + ">", tales(), seed, most=2000)
        assert lines.check(text[1:-1])


def test_numbers_between_two_others() -> None:
    draw = random.Random(0)
    for _ in range(150):
        low = draw.randint(-1300, 1300)
        high = low + draw.choice([0, 1, 5, 50, 700, 1500])
        pattern = re.compile(numerals(low, high))
        assert [value for value in range(-1500, 3000) if pattern.fullmatch(str(value))] == list(range(low, high + 1))
        assert not any(pattern.fullmatch(text) for text in ("-0", "00", "01", "007", "-", "+1", "-01", ""))


def test_a_long_repetition() -> None:
    specification = lg.CCFG('start: n "\\n" a[n; " "] "\\n"\n1 <= n <= 1000\n-10^6 <= a <= 10^6')
    text = specification.sample(2)
    assert takes(specification, text)
    assert not takes(specification, text[:-1] + " 1\n")
    assert byte_vocabulary().eos[0] in allowed(_after(specification, text), byte_vocabulary())


def _after(specification: lg.CCFG, text: str) -> Matcher:
    matcher = compile(specification, byte_vocabulary()).start()
    assert all(map(matcher.accept, text.encode()))
    return matcher
