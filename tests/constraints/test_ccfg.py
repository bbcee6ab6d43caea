"""Grammars with counters: every text that a plain loop lists, and no other, is read, drawn and allowed."""

from __future__ import annotations

import random
from itertools import combinations, combinations_with_replacement, permutations, product
from typing import TYPE_CHECKING

import pytest
import torch

import lmguide as lg
from lmguide.constraints import Constraint, Vocabulary, compile
from lmguide.constraints.ccfg.engine import CCFGCompiled
from tests.constraints.walks import allowed, byte_vocabulary, generated, tales, walk

if TYPE_CHECKING:
    from collections.abc import Callable


def _joined(values: tuple[int, ...], separator: str = " ") -> str:
    return separator.join(map(str, values))


# A specification, and a loop that lists its texts.
LISTED: dict[str, tuple[str, Callable[[], set[str]]]] = {
    "a count": (
        'start: n "\\n" a[n; " "]\n0 <= n <= 2\n-1 <= a <= 2',
        lambda: {f"{n}\n{_joined(a)}" for n in range(3) for a in product(range(-1, 3), repeat=n)},
    ),
    "relations": (
        'start: a " " b " " c\n0 <= a < b <= 11\nb != c\n3 <= c <= 12',
        lambda: {
            f"{a} {b} {c}" for a in range(12) for b in range(a + 1, 12) for c in range(3, 13) if b != c
        },
    ),
    "a sum of two": (
        'start: a " " b " " c\nc <= 5\n0 <= a, b\na + b <= c',
        lambda: {f"{a} {b} {c}" for c in range(6) for a in range(6) for b in range(6) if a + b <= c},
    ),
    "a product, and numbers that touch": (
        'start: n m "\\n"\n1 <= n, m\nn*m <= 12',
        lambda: {f"{n}{m}\n" for n in range(1, 13) for m in range(1, 13) if n * m <= 12},
    ),
    "counts within counts, and their sum": (
        'start: t (n ":" a[n; ","] ";")[t]\n1 <= t <= 2\n1 <= n <= 2\nsum(n) <= 3\n0 <= a <= n',
        lambda: {
            f"{t}" + "".join(f"{n}:{_joined(a, ',')};" for n, a in zip(ns, values, strict=True))
            for t in (1, 2)
            for ns in product((1, 2), repeat=t)
            if sum(ns) <= 3
            for values in product(*[list(product(range(n + 1), repeat=n)) for n in ns])
        },
    ),
    "permutations": (
        'start: n " " p[n; " "]\n1 <= n <= 4\n1 <= p <= n\ndistinct(p)',
        lambda: {f"{n} {_joined(p)}" for n in range(1, 5) for p in permutations(range(1, n + 1))},
    ),
    "increasing": (
        'start: n " " p[n; " "]\n1 <= n <= 3\n8 <= p <= n + 9\nincreasing(p)',
        lambda: {f"{n} {_joined(p)}" for n in range(1, 4) for p in combinations(range(8, n + 10), n)},
    ),
    "nondecreasing": (
        'start: n " " p[n; " "]\n1 <= n <= 3\n8 <= p <= n + 8\nnondecreasing(p)',
        lambda: {
            f"{n} {_joined(p)}" for n in range(1, 4) for p in combinations_with_replacement(range(8, n + 9), n)
        },
    ),
    "a given sum": (
        'start: n " " p[n; " "]\n1 <= n <= 3\n0 <= p <= 4\nsum(p) == n + 1',
        lambda: {f"{n} {_joined(p)}" for n in range(1, 4) for p in product(range(5), repeat=n) if sum(p) == n + 1},
    ),
    "alternatives": (
        'start: x (" a" y | " b" | " c" /[pq]/[0..x])\n1 <= x <= 2\nx <= y <= 3',
        lambda: {f"{x} a{y}" for x in (1, 2) for y in range(x, 4)}
        | {f"{x} b" for x in (1, 2)}
        | {f"{x} c{''.join(word)}" for x in (1, 2) for k in range(x + 1) for word in product("pq", repeat=k)},
    ),
    "a count in a range": (
        'start: n " " m " " /[ab]/[n-m..n]\n1 <= m <= n <= 3',
        lambda: {
            f"{n} {m} {''.join(word)}"
            for n in range(1, 4)
            for m in range(1, n + 1)
            for k in range(n - m, n + 1)
            for word in product("ab", repeat=k)
        },
    ),
    "a grid": (
        'start: r " " c "\\n" (x[c; " "])[r; "\\n"]\n1 <= r, c <= 2\n0 <= x <= 1',
        lambda: {
            f"{r} {c}\n" + "\n".join(_joined(cells[row * c : row * c + c]) for row in range(r))
            for r in (1, 2)
            for c in (1, 2)
            for cells in product((0, 1), repeat=r * c)
        },
    ),
    "twice the other": ('start: a " " b\n2*a == b\n1 <= b <= 20', lambda: {f"{a} {2 * a}" for a in range(1, 11)}),
    "half the other": (
        'start: b " " a\n2*a <= b\n0 <= a\n0 <= b <= 7',
        lambda: {f"{b} {a}" for b in range(8) for a in range(b // 2 + 1)},
    ),
    "letters behind letters": (
        'start: n " " /[ab]/[n] ("ab" | "b")\n1 <= n <= 2',
        lambda: {
            f"{n} {''.join(word)}{end}" for n in (1, 2) for word in product("ab", repeat=n) for end in ("ab", "b")
        },
    ),
    "edges": (
        'start: n " " m (" " u "-" v)[m]\n2 <= n <= 3\n0 <= m <= n*(n-1)//2 - 1\n1 <= u, v <= n\nu != v',
        lambda: {
            f"{n} {m}" + "".join(f" {u}-{v}" for u, v in pairs)
            for n in (2, 3)
            for m in range(n * (n - 1) // 2)
            for pairs in product([(u, v) for u in range(1, n + 1) for v in range(1, n + 1) if u != v], repeat=m)
        },
    ),
    "a rule of its own": (
        'start: k " " pair[k]\npair: "()"\n  | "[" x "]"\n1 <= k <= 2\n0 <= x < k',
        lambda: {
            f"{k} {''.join(word)}"
            for k in (1, 2)
            for word in product(["()", *(f"[{x}]" for x in range(k))], repeat=k)
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTED)
def test_the_texts_are_those_listed(name: str) -> None:
    text, listed = LISTED[name]
    found = set()
    waiting = [(lg.CCFG(text).recogniser.start(), b"")]
    while waiting:
        state, begun = waiting.pop()
        assert state.moves or state.accepting, f"dead end behind {begun!r}"
        if state.accepting:
            found.add(begun.decode())
        waiting += [(after, begun + bytes((byte,))) for byte, after in state.moves.items()]
    assert found == listed()


@pytest.mark.parametrize("name", LISTED)
def test_masks_lead_to_the_texts_listed(name: str) -> None:
    text, listed = LISTED[name]
    signs = [b"%d" % digit for digit in range(10)] + [sign.encode() for sign in " \n-:,;abcpq()[]"]
    several = [b"1 ", b"10", b"2\n", b" 1", b"\n0", b"12", b"0 0", b"1:", b"()", b" a", b"-1", b"aa", b"bab", b"ab"]
    vocabulary = Vocabulary([*signs, *several, b""], eos=(len(signs) + len(several),))
    specification = lg.CCFG(text)
    assert generated(compile(specification, vocabulary).start(), vocabulary) == listed()
    assert generated(CCFGCompiled(specification.recogniser, vocabulary).start(), vocabulary) == listed()


@pytest.mark.parametrize("name", LISTED)
def test_samples_are_valid_and_reach_every_text(name: str) -> None:
    text, listed = LISTED[name]
    specification, expected = lg.CCFG(text), listed()
    generator = random.Random(1)
    drawn = {specification.sample(generator) for _ in range(1500)}
    assert drawn <= expected
    assert len(drawn) > min(len(expected), 300) * 0.6
    assert specification.sample(7) == specification.sample(7)


@pytest.mark.parametrize("name", LISTED)
def test_the_checker_tells_texts_from_changed_ones(name: str) -> None:
    text, listed = LISTED[name]
    specification, expected = lg.CCFG(text), listed()
    draw = random.Random(3)
    texts = sorted(expected)
    for each in draw.sample(texts, min(len(texts), 60)):
        assert specification.check(each)
        at = draw.randrange(len(each) + 1)
        changed = each[:at] + draw.choice("0123 \n-x\u00e9") + each[at + draw.randrange(2) :]
        verdict = specification.check(changed)
        assert bool(verdict) == (changed in expected)
        if not verdict:
            # Up to there a valid text agrees, and no further.
            assert verdict.position is not None
            assert any(valid.startswith(changed[: verdict.position]) for valid in expected)
            assert verdict.position == len(changed) or not any(
                valid.startswith(changed[: verdict.position + 1]) for valid in expected
            )


TESTS = """
    # t test cases; the sum of n is bounded
    start: t "\\n" test[t]
    test: n " " q "\\n" a[n; " "] "\\n" (query "\\n")[q]
    query: "1 " i " " x
         | "2 " l " " r
    1 <= t <= 3
    1 <= n, q <= 4
    sum(n) <= 8
    -10^9 <= a, x <= 10^9
    1 <= i <= n
    1 <= l <= r <= n
"""


def test_a_whole_input() -> None:
    specification = lg.CCFG(TESTS)
    text = "1\n3 2\n5 -1000000000 0\n1 3 7\n2 1 1\n"
    assert specification.check(text) == lg.Verdict(True)
    verdict = specification.check(text.replace("1 3 7", "1 4 7"))
    assert (verdict.position, verdict.line, verdict.column) == (24, 4, 3)
    assert verdict.reason == "expected i from 1 to 3, got '4'"
    assert specification.check(text[:-1]).reason == "expected '\\n', got the end of the text"
    assert specification.check(text + "x").reason == "expected the end of the text, got 'x'"
    for seed in range(100):
        assert specification.check(specification.sample(seed))
    for vocabulary in (tales(), byte_vocabulary()):
        for seed in range(10):
            assert specification.check(walk(specification, vocabulary, seed, most=2000))


def test_rules_that_call_themselves() -> None:
    tree = lg.CCFG('start: n " " tree[n; ","]\ntree: "x" | "(" tree /[-+]/ tree ")"\n1 <= n <= 2')
    assert tree.check("2 (x+(x-x)),x")
    assert tree.check("2 (x+(x-x)").reason == "expected ')', got the end of the text"
    assert tree.check("2 (x*x),x").reason == "expected one of '+-', got '*'"
    assert not tree.check("1 (x+x))")
    for seed in range(50):
        assert tree.check(tree.sample(seed))


def test_what_a_model_writes_is_valid() -> None:
    """A model that knows nothing of such texts, guided and constrained, with the way to an end in few tokens."""
    model, tokenizer = lg.bundled("tales")
    specification = lg.CCFG('start: n " " a[n; " "] "\\n"\n1 <= n <= 5\n1 <= a <= n\ndistinct(a)')
    guided = lg.guide(model, [lg.CFG(1.5), specification], tokenizer)
    inputs = tokenizer(["The ", "Once upon"], return_tensors="pt", padding=True, padding_side="left")
    torch.manual_seed(0)
    ids = guided.generate(**inputs, max_new_tokens=40, do_sample=True, negative_prompt="A", close=True)
    for row in ids[:, inputs["input_ids"].shape[1] :]:
        assert specification.check(str(tokenizer.decode(row, skip_special_tokens=True)))


def test_state_of_a_matcher() -> None:
    recogniser = lg.CCFG('start: "value: " n ";"\n10 <= n <= 12').recogniser
    matcher = CCFGCompiled(recogniser, byte_vocabulary()).start()
    assert bytes(matcher.forced()) == b"value: "  # the digit behind it is open: a token might hold both
    assert matcher.validate(list(b"value: 13")) == 8
    assert not matcher.accept(ord("x"))
    assert not matcher.accept(256)
    for byte in b"value: 12;":
        assert matcher.accept(byte)
        assert matcher.copy().accept(ord("z")) is False
    assert matcher.accepting()
    assert matcher.finished()
    assert allowed(matcher, byte_vocabulary()) == [256, 257]
    assert matcher.accept(256)
    assert not matcher.accept(ord("x"))


def test_the_description_comes_back() -> None:
    specification = lg.CCFG(TESTS)
    assert Constraint.from_json(specification.to_json()) == specification
    assert lg.parse_constraint('ccfg:specification="start: n\\n1 <= n <= 2"') == lg.CCFG("start: n\n1 <= n <= 2")


REFUSED = {
    "start: n": "expected bounds for 'n', got none on one side",
    "start: n\nn <= 3": "expected bounds for 'n', got none on one side",
    "1 <= n <= 3": "expected at least one rule, got none",
    'start: "a': r"got something else at line 1, column 8",
    "start: n\n1 <= n <= ": "line 2",
    'start: "\\q"': r"expected a string as in JSON, got .* \(line 1\)",
    "start: /[^a]/": "expected a set of ASCII characters",
    "start: a a\n1 <= a <= 2": r"expected 'a' to be read in one place, got another one \(line 1\)",
    "start: x[n] n\n1 <= n, x <= 2": r"expected a count that is known, got 'n', which is not read before \(line 1\)",
    'start: "a"\nother: "b"': "expected a use of the rule 'other', got none",
    'start: "a"\nstart: "b"': r"expected one rule for 'start', got another one \(line 2\)",
    'start: start "a" | "a"': "begins with itself",
    'start: "a" start': "always needs more",
    'start: "(" start n ")" | ""\n1 <= n <= 2': "expected no numbers in a rule that calls itself, got 'n'",
    'start: (""| "a")[3]': "expected a part with some text to repeat",
    "start: n\n3 <= n <= 2": "expected a value for 'n', got none from 3 to 2",
    "start: n\n1 <= n, m <= 2": r"expected numbers that are read, got 'm' in a relation \(line 2\)",
    'start: n "a"[n-2]\n1 <= n <= 5': None,
    'start: n ("a" | m "a"[m-n])\n1 <= n, m <= 5': None,
    'start: n ("a" | x)\n1 <= n <= 9\nn < x <= 5': r"expected a value for 'x' .* Add '4 - n >= 0'",
    'start: n k (x)[k]\n0 <= n, k <= 9\nn < x <= 5': r"expected a value for 'x' .* Add '4 - n >= 0'",
    'start: b " " a\n2*a == b\n1 <= b <= 20': "expected a value for 'a'",
    "start: u v n\n1 <= u, v <= n\nu != v\n1 <= n <= 9": None,
    "start: n u v\n1 <= u, v <= n\nu != v\n1 <= n <= 9": "expected more values for 'v' than the 1 that != takes away",
    "start: n p[n]\n1 <= p <= 5\n1 <= n <= 6\ndistinct(p)": "expected as many values for 'p' as there are",
    "start: n m p[n]\nm <= p <= 5\n1 <= n, m <= 2\nincreasing(p)": None,
    "start: n p[n]\n1 <= p <= 5\n1 <= n <= 6\nsum(p) <= 5": "expected a sum of 'p' that can be met",
    "start: n\n1 <= n <= 6\ndistinct(n)": "expected a number that is read in every pass of a repetition, got 'n'",
    "start: n p[n]\n1 <= p, n <= 5\nodd(p)": "expected one of distinct, increasing, nondecreasing, got 'odd'",
    "start: n m\n1 <= n, m <= 5\nn*n <= m": r"expected a value for 'm' between n \* n and 5",
    "start: n m\n1 <= n, m <= 5\nm*m <= n": r"expected a relation that can be solved for 'm', got 'm\*m <= n'",
    "start: n m\n0 <= n, m <= 5\nm <= 5 // n": "expected a positive number behind //, got n",
    "start: n (a)[n] (b)[n]\n1 <= n, a, b <= 5\na <= b": "of which one is read when all others are known",
    "start: n /[a]/[3..2]\n1 <= n <= 2": "expected counts from 0 on, the lesser first",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_bad_specifications_are_refused_with_the_reason(text: str) -> None:
    """Or, where there is no reason, read."""
    words = REFUSED[text]
    if words is None:
        specification = lg.CCFG(text)
        assert all(specification.check(specification.sample(seed)) for seed in range(50))
        return
    with pytest.raises(ValueError, match=r"(?s)^specification: expected .*, got .*\. [A-Z].*\.$") as caught:
        lg.CCFG(text)
    assert caught.match(words)


def test_line_breaks_and_comments() -> None:
    """Whether Python reads the escapes of the string, or the specification does."""
    read_by_python = lg.CCFG('start: n "\n" m\n1 <= n, m <= 2')
    read_here = lg.CCFG(r"""
        # one number or two

        start: n "\n" m   # in two lines
            | "x"
            | k
        1 <= n, m, k <= 2
    """)
    for text, of_two, of_more in (("1\n2", True, True), ("2", False, True), ("x", False, True), ("1\n", False, False)):
        assert (bool(read_by_python.check(text)), bool(read_here.check(text))) == (of_two, of_more)


def test_other_refusals() -> None:
    specification = lg.CCFG("start: n\n1 <= n <= 2")
    with pytest.raises(TypeError, match="^specification: expected a string, got int"):
        lg.CCFG(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^text: expected a string"):
        specification.check(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^constraint: .* got a CCFG that does not fit .*: 'm' has a relation to"):
        compile("x" + lg.CCFG("start: n m\n1 <= n <= m <= 2"), byte_vocabulary())
    with pytest.raises(ValueError, match="^backend: expected .* for xgrammar, got CCFG"):
        compile(specification, byte_vocabulary(), "xgrammar")
    with pytest.raises(ValueError, match="^constraint: expected one that some tokens of the vocabulary spell"):
        compile(specification, Vocabulary([b"a", b"b", b""], eos=(2,)))
    ambiguous = lg.CCFG('start: s\ns: "a" s | "a" s "b" | "a"')
    with pytest.raises(lg.ConstraintError, match="in more than 10000 ways"):
        ambiguous.check("a" * 40)
