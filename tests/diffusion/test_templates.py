"""Templates stand as they are from the first step on, fields are as their constraints say, null tokens end them."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.constraints import JSON, Choice, ContextFree, Regex, Vocabulary
from lmguide.diffusion import Field, Span, Template
from lmguide.diffusion.template_layout import layout_of
from tests.denoisers.models import MASK, PAD, VOCAB, canvas_of, denoiser_of
from tests.diffusion.constrained import END, TEXT, spelled, tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0},
        "b": {
            "type": "object",
            "properties": {"c": {"enum": ["ab", "ba"]}, "d": {"type": "array", "items": {"type": "boolean"}}},
        },
        "e": {"type": "string", "maxLength": 3},
    },
    "required": ["a"],
}
LINE = Template(
    "a1: {{first}}, b: {{second}}-{{third}}.\n",
    {
        "first": Field(Regex("[0-9]{1,3}"), 4, "7"),
        "second": Field(Choice(("abc", "e")), 5),
        "third": Field(None, 3),
    },
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMGUIDE_CACHE", str(tmp_path))


def vocabulary(null: int = PAD) -> Vocabulary:
    return Vocabulary.of_tokenizer(tokenizer(), VOCAB, null)


def run(template: Any, rows: int = 3, model: str = "llada", **options: Any) -> lg.diffusion.DiffusionOutput:
    return lg.diffusion.generate(
        denoiser_of(model), canvas_of(rows, 5, 0), template=template, tokenizer=tokenizer(), **options
    )


def assert_line(values: dict[str, str]) -> None:
    assert re.fullmatch("[0-9]{1,3}", values["first"])
    assert values["second"] in ("abc", "e")


@pytest.mark.parametrize("steps", [1, 3, 12])
@pytest.mark.parametrize("options", [{}, {"guidance": lg.CFG(2.0)}, {"guidance": lg.AdaptiveCFG(2.0)}])
def test_the_template_stands_at_every_step(steps: int, options: dict[str, Any]) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    output = run(LINE, steps=steps, temperature=1.0, generator=generators, output_history=True, **options)
    layout = layout_of(LINE, vocabulary())
    assert output.history is not None
    assert output.filled is not None
    for canvas in output.history:
        for row in canvas[:, 5:].tolist():
            assert all(want in (-1, token) for want, token in zip(layout.tokens, row, strict=True))
    for row, filled in zip(output.sequences[:, 5:].tolist(), output.filled, strict=True):
        assert_line(filled.values)
        assert filled.text == LINE.filled(filled.values)
        for slot in layout.slots:
            inside = row[slot.start : slot.stop]
            text = list(itertools.takewhile(lambda token: token != PAD, inside))
            assert set(inside[len(text) :]) <= {PAD}
            assert spelled(text) == slot.before + filled.values[slot.name] + slot.behind
    pinned = torch.tensor(layout.tokens) >= 0
    assert (output.commit_step[:, pinned] == -1).all()
    assert (output.commit_step[:, ~pinned] >= 0).all()


@pytest.mark.parametrize("model", ["dream", "mdlm", "uniform", "udlm", "sdar"])
def test_models(model: str) -> None:
    output = run(LINE, model=model, temperature=1.0)
    assert output.filled is not None
    for filled in output.filled:
        assert_line(filled.values)


def test_tokens_on_borders_are_those_of_a_text_with_a_value() -> None:
    """`": ` and what follows it is cut as in a whole text; what a token has of the template stays as it is."""
    template = Template(
        '{"a": {{x}}, "b{{y}}"}', {"x": Field(Regex("[0-9]+"), 2, "1"), "y": Field(Regex("[ab]*"), 2, "a")}
    )
    layout = layout_of(template, vocabulary())
    whole = vocabulary().encode('{"a": 1, "ba"}')
    words = [TEXT[token - 4] for token in whole]
    assert words == ['{"', "a", '":', " ", "1,", " ", '"', "ba", '"}']
    x, y = layout.slots
    assert (x.before, x.behind, y.before, y.behind) == ("", ",", "b", "")
    assert [TEXT[token - 4] for token in layout.tokens if token >= 0] == ['{"', "a", '":', " ", " ", '"', '"}']
    output = run(template, temperature=1.0)
    assert output.filled is not None
    for filled in output.filled:
        assert re.fullmatch(r'\{"a": [0-9]+, "b[ab]*"\}', filled.text)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_schemas(temperature: float) -> None:
    template = Template.of_schema(SCHEMA, length={"a": 3, "b.c": 6, "b.d": 8, "e": 5})
    assert template.text == '{"a": {{a}}, "b": {"c": {{b.c}}, "d": {{b.d}}}, "e": {{e}}}'
    output = run(template, temperature=temperature)
    assert output.filled is not None
    for filled in output.filled:
        document = json.loads(filled.text)
        assert list(document) == ["a", "b", "e"]
        assert type(document["a"]) is int
        assert document["a"] >= 0
        assert document["b"]["c"] in ("ab", "ba")
        assert all(type(item) is bool for item in document["b"]["d"])
        assert len(document["e"]) <= 3
        assert json.loads(filled.values["b.d"]) == document["b"]["d"]


def test_parts_of_a_schema_see_its_definitions() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/few"}},
        "$defs": {"few": {"enum": [12, "b"]}},
    }
    output = run(Template.of_schema(schema, length=4))
    assert output.filled is not None
    assert all(json.loads(filled.text)["a"] in (12, "b") for filled in output.filled)


def test_a_field_under_a_grammar() -> None:
    template = Template(
        "a: {{a}}, b: {{b}}\n", {"a": Field(ContextFree(JSON()), 8, "1"), "b": Field(Regex("[0-9]"), 1, "1")}
    )
    output = run(template, temperature=1.0)
    assert output.filled is not None
    assert output.verification is not None
    for filled in output.filled:
        json.loads(filled.values["a"])
        assert re.fullmatch("[0-9]", filled.values["b"])


def test_the_length_at_which_the_model_is_surest() -> None:
    """Each length is tried by itself: all fields written at once, the mean log-probability of this one's tokens."""
    digits = Regex("[0-9]+")
    template = Template("a{{x}}b{{y}}\n", {"x": Field(digits, (1, 2, 4), "7"), "y": Field(digits, 2, "7")})
    a, b, line = (4 + TEXT.index(text) for text in "ab\n")
    scores = {}
    for length in (1, 2, 4):
        canvas = torch.tensor([[*row, a, *[MASK] * length, b, MASK, MASK, line] for row in canvas_of(3, 5, 0).tolist()])
        spans = [Span(row, 6, 6 + length, digits, (), ()) for row in range(3)]
        spans += [Span(row, 7 + length, 9 + length, digits, (PAD,), ()) for row in range(3)]
        options: dict[str, Any] = {"infill": True, "steps": 1, "eos_token_id": (), "tokenizer": tokenizer()}
        output = lg.diffusion.generate(denoiser_of("llada"), canvas, constraint=spans, **options)
        scores[length] = float(output.confidences[:, 6 : 6 + length].log().mean())
    best = max(scores, key=lambda length: scores[length])
    output = run(template)
    assert output.sequences.shape[1] == 5 + 3 + best + 2
    assert PAD not in output.sequences[:, 6 : 6 + best]
    assert len(set(scores.values())) == 3


def test_lengths_that_a_field_cannot_have_are_left_out() -> None:
    template = Template("a{{x}}\n", {"x": Field(Regex("c|cdcd"), (2, 3, 1), "c")})
    output = run(template)
    assert output.filled is not None
    assert output.sequences.shape[1] == 5 + 3
    assert {filled.values["x"] for filled in output.filled} == {"c"}
    with pytest.raises(ValueError, match="constraint: "):
        run(Template("a{{x}}\n", {"x": Field(Regex("c|cdcd"), (2, 3), "c")}))


def test_the_null_token() -> None:
    """Any token may be it; it is then written behind values alone."""
    template = Template("a{{x}}\n", {"x": Field(Regex("[a-e]{1,3}"), 5, "c")}, null="</s>")
    output = run(template, temperature=1.0)
    assert output.filled is not None
    assert PAD not in output.sequences[:, 5:]
    for row, filled in zip(output.sequences[:, 6:-1].tolist(), output.filled, strict=True):
        text = list(itertools.takewhile(lambda token: token != END, row))
        assert spelled(text) == filled.values["x"]
        assert row[len(text) :] == [END] * (5 - len(text))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no field",), "text: expected a field such as"),
        (("{{a}} {{a}}",), "'a' twice"),
        (("{{a}}{{b}}",), "text between two fields"),
        (("{{a}}", {"b": Field()}), "fields: expected fields of the text, a, got 'b'"),
    ],
)
def test_templates_that_cannot_be(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Template(*arguments)


def test_fields_that_cannot_be() -> None:
    for options, words in (({"length": 0}, "length"), ({"length": ()}, "length"), ({"example": ""}, "example")):
        with pytest.raises(ValueError, match=words):
            Field(**options)
    with pytest.raises(TypeError, match="constraint"):
        Field(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fields: expected a dictionary of Field"):
        Template("{{a}}", {"a": Regex("1")})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string"}, "an object with properties alone"),
        ({"type": "object"}, "an object with properties alone"),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "an object with properties alone"),
        ({"type": "object", "properties": {"a b": {"type": "null"}}}, "got 'a b'"),
    ],
)
def test_schemas_without_a_template(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Template.of_schema(schema)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"constraint": "regex:pattern=1"}, "constraint: expected none beside a template"),
        ({"max_new_tokens": 8}, "max_new_tokens: expected none beside a template"),
        ({"infill": True}, "infill: expected none beside a template"),
        ({"eos_token_id": 2}, "eos_token_id: expected none beside a template"),
        ({"template": Template("x{{a}}\n")}, "vocabulary can spell"),
        ({"template": Template("a{{a}}\n", null="<nothing>")}, "null: expected a token of the vocabulary"),
        ({"template": Template("a{{a}}\n", null="<mask>")}, "null: expected a token of the vocabulary"),
        ({"template": Template("a{{a}}\n", {"a": Field(Regex("[0-9]{9}"), 2, "1")})}, "needs 5 tokens at least"),
        (
            {"template": Template("{{a}}ru{{b}}\n", {"a": Field(example="t"), "b": Field(example="e")})},
            "text between fields",
        ),
    ],
)
def test_bad_input(options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, before any forward pass."""

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward pass")

    denoiser = denoiser_of("llada")
    monkeypatch.setattr(type(denoiser), "__call__", never)
    with pytest.raises(ValueError, match=words):
        run(**({"template": Template("a{{a}}\n")} | options))


def test_what_is_no_template() -> None:
    with pytest.raises(TypeError, match="template: expected a Template, got str"):
        run("a{{a}}")


def test_a_template_needs_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="template: expected a tokenizer"):
        lg.diffusion.generate(denoiser_of("llada"), canvas_of(1, 5, 0), template=Template("a{{a}}\n"))
