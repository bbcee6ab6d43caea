"""Constraints compose: what a composition takes is what its parts say."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING

import pytest

import lmguide as lg
from lmguide.constraints import (
    CONSTRAINTS,
    JSON,
    Choice,
    Constraint,
    FreeText,
    Grammar,
    JSONSchema,
    Literal,
    Regex,
    Sequence,
    Triggered,
    Union,
    Vocabulary,
    compile,
    lower,
    optional,
    parse_constraint,
    repeat,
)
from tests.constraints.walks import allowed, byte_vocabulary, takes, tales, walk

if TYPE_CHECKING:
    from collections.abc import Callable

BOOLEAN = JSONSchema({"type": "boolean"})
NESTED = Grammar('start: "<" start ">" | B\nB: "b"')


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: bool(re.fullmatch(pattern, text, re.DOTALL))


def _nested(text: str) -> bool:
    """Whether a text is one of `NESTED`."""
    found = re.fullmatch("(<*)b(>*)", text)
    return found is not None and len(found[1]) == len(found[2])


EXACT: dict[str, tuple[Constraint, Callable[[str], bool]]] = {
    "parts take back what later ones need": (Regex("a+") + Regex("ab"), _matches("a+ab")),
    "strings are literals": ("x" + Regex("[ab]") + "y", _matches("x[ab]y")),
    "union of a prefix": (Literal("a") | "ab" | Regex("abb+"), _matches("a|ab+")),
    "repetition": (repeat(Literal("a") | "b", 1, 3), _matches("[ab]{1,3}")),
    "no repetition": (repeat("a", 0, 0), _matches("")),
    "endless repetition": (repeat(Choice(["a", "bx"]), 2), _matches("(a|bx){2,}")),
    "nothing": (Literal(""), _matches("")),
    "an empty sequence": (Sequence(()), _matches("")),
    "optional": (optional("a") + "b", _matches("a?b")),
    "a schema between": ("a" + BOOLEAN + "b", _matches("a(true|false)b")),
    "a schema or text": (BOOLEAN | Regex("t[rx]*"), _matches("true|false|t[rx]*")),
    "two schemas": (BOOLEAN | JSONSchema({"const": "a"}), _matches('true|false|"a"')),
    "schemas in a row": (repeat(BOOLEAN + ";", 1, 2), _matches("((true|false);){1,2}")),
    "a grammar's own names": (
        NESTED + "b" + Grammar('B: "x"\nstart: B'),
        lambda text: text.endswith("bx") and _nested(text[:-2]),
    ),
    "a grammar or text": (NESTED | "<<x", lambda text: _nested(text) or text == "<<x"),
    "free text to a trigger": (FreeText("ab") + "x", _matches("((?!ab).)*abx")),
    "free text that goes on": ("a" + FreeText(), _matches("a.*")),
    "free text from the front": (FreeText() + "b", _matches(".*b")),
    "triggered once": (Triggered("a", Choice(["b", "xx"])), _matches("[^a]*(a(b|xx))?")),
    "triggered again": (Triggered("a", Choice(["b", "xx"]), repeat=True), _matches("([^a]*a(b|xx))*[^a]*")),
}
ALPHABET = ["a", "b", "x", "y", "<", ">", ";", "\n", "true", "false", '"a"', "ab", "<b>"]


@pytest.mark.parametrize("name", EXACT)
def test_a_composition_takes_what_its_parts_say(name: str) -> None:
    constraint, expected = EXACT[name]
    draw = random.Random(1)
    texts = {"".join(draw.choice(ALPHABET) for _ in range(draw.randrange(5))) for _ in range(400)}
    taken = {text for text in texts if takes(constraint, text)}
    assert taken == {text for text in texts if expected(text)}


@pytest.mark.parametrize("name", list(EXACT)[:15])
def test_what_is_drawn_fits(name: str) -> None:
    constraint, expected = EXACT[name]
    for seed in range(5):
        assert expected(walk(constraint, tales(), seed, most=2000))


STRANGE = ['"', "\\", '"\\"', "\n\r\t\x00\x7f", "\u00e9\U0001f600", "%json {}", "<|eos|>", "<[1]>", "/a/i", "// text",
           "# 1", "start: x", "}", "@a", "\\x41", "a\u2028b", "%lark {", "~", "%%"]  # fmt: skip


@pytest.mark.parametrize("text", STRANGE)
def test_literal_text_is_only_text(text: str) -> None:
    for constraint in (
        Literal(text),
        Choice([text, "other"]),
        text + BOOLEAN,
        FreeText(text),
        Triggered(text, Literal(text)),
    ):
        assert Constraint.from_json(constraint.to_json()) == constraint
    for backend in ("llguidance", "xgrammar"):
        assert takes(Literal(text), text, backend)
        assert not takes(Literal(text), text + "!", backend)
    assert takes(text + BOOLEAN, text + "true")
    assert takes(FreeText(text) + "z", f"any {text}z")
    assert takes(Triggered(text, Literal("[" + text)), f"some {text}[{text}")


EVERY_KIND: list[Constraint] = [
    Literal("a"), Regex("[a-z]+"), Choice(["a", "b"]), JSON("compact"), JSONSchema({"b": 1, "a": {"const": None}}),
    NESTED, FreeText("x", max_tokens=4), Triggered("x", BOOLEAN, repeat=True), "a" + BOOLEAN, BOOLEAN | "a",
    repeat("ab", 2, 5),
]  # fmt: skip


@pytest.mark.parametrize("constraint", EVERY_KIND, ids=lambda constraint: constraint.name)
def test_descriptions_come_back(constraint: Constraint) -> None:
    data = json.loads(json.dumps(constraint.to_dict()))
    assert CONSTRAINTS.get(data["name"]) is type(constraint)
    assert Constraint.from_dict(data) == constraint
    assert hash(Constraint.from_json(constraint.to_json())) == hash(constraint)
    assert parse_constraint(constraint.to_json()) == constraint


def test_the_compact_form() -> None:
    assert parse_constraint('regex:pattern="[0-9]+"') == Regex("[0-9]+")
    assert parse_constraint('json_schema:schema={"type": "null"},whitespace=compact') == JSONSchema(
        {"type": "null"}, "compact"
    )
    assert parse_constraint('union:parts=[{"name": "literal", "text": "a"}]') == Union((Literal("a"),))
    assert lg.parse_constraint("free_text:until=x").to_dict() == {"name": "free_text", "until": "x", "max_tokens": None}


def test_compositions_are_flat_and_equal() -> None:
    letters = (Literal("a"), Literal("b"), Literal("c"))
    assert ("a" + Literal("b")) + "c" == "a" + (Literal("b") + "c") == Sequence(letters)
    assert (Literal("a") | "b") | "c" == Union(letters)
    assert len({Literal("a") | "b", Union(letters[:2])}) == 1


def test_regular_parts_become_one_terminal() -> None:
    lowered = lower("a" + Regex("b+") + repeat(Choice(["c", "d"]), 1, 2))
    assert lowered.lark == "start: /ab+(?:(?:c|d)){1,2}/\n"
    assert lower(BOOLEAN).tree is None
    assert lower(NESTED).lark == NESTED.text


def _with_specials() -> Vocabulary:
    names = {"<|call|>": 256, "</think>": 257, "<|end|>": 258}
    return Vocabulary([*(bytes([byte]) for byte in range(256)), b"", b"", b""], (258,), specials=names)


def test_triggers_that_are_special_tokens() -> None:
    vocabulary = _with_specials()
    matcher = compile(FreeText("</think>") + "x", vocabulary).start()
    assert all(map(matcher.accept, b"hm</think>x"))  # the text of its name is text
    assert 257 in allowed(matcher, vocabulary)
    assert 256 not in allowed(matcher, vocabulary)
    assert matcher.accept(257)
    assert allowed(matcher, vocabulary) == [ord("x")]
    calls = compile(Triggered("<|call|>", Literal("f()"), repeat=True), vocabulary).start()
    for _ in range(2):
        assert calls.accept(ord("a"))
        assert calls.accepting()
        assert calls.accept(256)
        assert not calls.accepting()
        assert not calls.accept(ord("a"))
        assert all(map(calls.accept, b"f()"))
    assert calls.accept(258)


def test_a_budget_of_tokens() -> None:
    vocabulary = _with_specials()
    for trigger, closing in (("</t>", list(b"</t>")), ("</think>", [257])):
        matcher = compile("ab" + FreeText(trigger, max_tokens=3) + "x", vocabulary).start()
        assert all(map(matcher.accept, b"ab\xf0\x9f\x98"))
        assert matcher.forced() == []  # a character has begun
        assert matcher.accept(0x80)
        left = matcher.copy()
        assert left.forced() == closing
        assert not left.accept(ord("y"))
        for token in closing:
            assert allowed(left, vocabulary) == [token]
            assert left.accept(token)
        assert allowed(left, vocabulary) == [ord("x")]
        early = compile("ab" + FreeText(trigger, max_tokens=9) + "x", vocabulary).start()
        assert all(map(early.accept, [*b"aby", *closing, *b"x"]))
        assert early.finished()


def test_a_budget_without_trigger_ends_the_text() -> None:
    vocabulary = byte_vocabulary()
    matcher = compile(FreeText(max_tokens=2), vocabulary).start()
    assert len(allowed(matcher, vocabulary)) > 100
    assert matcher.validate(list(b"abc")) == 2
    assert all(map(matcher.accept, b"ab"))
    assert allowed(matcher, vocabulary) == list(vocabulary.eos)
    assert matcher.finished()


REFUSED: dict[str, tuple[Callable[[], Constraint], str]] = {
    "nothing can follow": (lambda: Regex("(?s).*") + BOOLEAN, "a part that ends before JSONSchema"),
    "nothing can follow free text": (lambda: FreeText() + NESTED, "a part that ends before Grammar"),
    "what begins a document is taken": (
        lambda: Regex("t+") + JSONSchema({"const": True}),
        "terminals take the longest",
    ),
    "alternatives that ignore": (lambda: "a" | Grammar('%ignore " "\nstart: "b" "c"'), "alternatives without %ignore"),
    "a budget within": (
        lambda: repeat(FreeText("x", max_tokens=3)),
        "max_tokens: expected on free text at the beginning",
    ),
    "no alternative": (lambda: Union(()), "parts: expected at least one"),
    "no option": (lambda: Choice([]), "options: expected at least one"),
    "an option twice": (lambda: Choice(["a", "a"]), "got 'a' twice"),
    "most below least": (lambda: repeat("a", 3, 2), "most: expected at least 3"),
    "less than none": (lambda: repeat("a", -1), "least: expected a whole number of at least 0"),
    "an empty trigger": (lambda: FreeText(""), "until: expected a text that triggers"),
    "half a character": (lambda: Literal("\ud83d"), "the lone surrogate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        compile(make(), byte_vocabulary())


@pytest.mark.parametrize("value", [3, None, b"a", ["a"]])
def test_what_is_no_constraint(value: object) -> None:
    with pytest.raises(TypeError, match=r"expected"):
        Sequence((value,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected"):
        Literal(value)  # type: ignore[arg-type]
