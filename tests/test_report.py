"""The page of `lmguide inspect`: complete, escaped, self-contained, and true to the trace."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
import torch

import lmguide
from lmguide.report import render, visible
from lmguide.trace import StepRecord, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOID = {"meta", "br"}
TRICKY = '<b>&amp;</b> "it\'s"\n\tcafé 漢🦊  <script>alert(1)</script>\r\n\u202eend'


class Page(HTMLParser):
    """A page as the nesting of its tags, with the texts of its tokens; fails where a tag is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if self.is_token():
            self.tokens.append("")
        if tag not in VOID:
            self.open.append(self.tags[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if any(tag == "a" and str(attrs.get("class")).startswith("tok") for tag, attrs in self.open):
            self.tokens[-1] += data

    def is_token(self) -> bool:
        tag, attrs = self.tags[-1]
        return tag == "a" and str(attrs.get("class")).startswith("tok")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer."""
    return lmguide.bundled("tales")[1]


def a_trace(tokenizer: PreTrainedTokenizerBase, answer: list[int], *, opened: bool = True) -> Trace:
    """A trace in which guidance made the token after the chosen one the likeliest."""
    prompt = tokenizer("A tale:")["input_ids"]
    records = tuple(
        StepRecord(
            token=token,
            entropy=0.5 + place,
            divergence=0.25,
            open=opened,
            before=((token, 0.75), (token + 1, 0.0004)),
            after=((token + 1, 0.6), (token, 0.4)) if opened else ((token, 0.75), (token + 1, 0.0004)),
        )
        for place, token in enumerate(answer)
    )
    return Trace(torch.tensor([[*prompt, *answer]]), len(prompt), (records,))


def test_the_tokens_spell_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "The sailor rowed the grey boat by the shore."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    page = Page(render(a_trace(tokenizer, ids), tokenizer))
    assert page.tokens == [tokenizer.decode([token]) for token in ids]
    assert "".join(page.tokens) == text


def test_text_is_escaped_and_what_leaves_no_trace_is_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(TRICKY, add_special_tokens=False)["input_ids"]
    html = render(a_trace(tokenizer, ids), tokenizer, title=TRICKY, model=TRICKY, prompt=TRICKY, negative_prompt=TRICKY)
    page = Page(html)
    assert {tag for tag, _ in page.tags} & {"script", "b"} == {"b"}  # the summary's numbers are bold
    assert "<script>" not in html
    assert "\u202e" not in "".join(page.tokens)
    spelled = re.sub("⟨[^U][^⟩]*⟩", "", "".join(page.tokens))  # without the tokens that are part of a letter
    assert spelled == '<b>&amp;</b>␣"it\'s"↵\n⇥café␣漢🦊␣␣<script>alert(1)</script>␍↵\n⟨U+202E⟩end'


def test_a_letter_of_several_tokens_stands_where_it_is_complete(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2
    assert Page(render(a_trace(tokenizer, ids), tokenizer)).tokens == ["⟨Ã⟩", "é"]


@pytest.mark.parametrize("opened", [True, False])
def test_each_token_has_a_card_with_its_numbers(tokenizer: PreTrainedTokenizerBase, opened: bool) -> None:
    html = render(a_trace(tokenizer, [300, 310], opened=opened), tokenizer)
    cards = html.split('class="card"')[1:]
    assert len(cards) == 2
    for place, (card, token) in enumerate(zip(cards, (300, 310), strict=True)):
        assert f"id {token} · entropy {place + 0.5:.2f} nats" in card
        shares = re.findall(r'--p: ([\d.]+)%">([^ ]+) %', card)
        before = [("75.00", "75.0"), ("0.04", "&lt;0.1")]
        assert shares == (before + [("60.00", "60.0"), ("40.00", "40.0")] if opened else before)
        assert card.count('class="chosen"') == (2 if opened else 1)
        assert ("moved by 0.25 nats" in card) is opened
        assert ("guidance did not apply" in card) is not opened
    assert f"guidance applied to <b>{2 * opened}</b>" in html
    assert f"likeliest on <b>{2 * opened}</b>" in html
    assert html.count('class="tok open turned" href=') == 2 * opened


def test_the_strip_has_a_bar_for_each_token_as_high_as_its_entropy(tokenizer: PreTrainedTokenizerBase) -> None:
    html = render(a_trace(tokenizer, [300, 301, 302, 303]), tokenizer)
    strip = html.partition('<div class="strip"')[2].partition("</div>")[0]
    assert re.findall(r'href="#t(\d)".*?--h: ([\d.]+)', strip) == [
        (str(place + 1), f"{(place + 0.5) / 3.5:.4f}") for place in range(4)
    ]


def test_a_sure_answer_has_no_height(tokenizer: PreTrainedTokenizerBase) -> None:
    sure = StepRecord(300, 0.0, 0.0, True, ((300, 1.0),), ((300, 1.0),))
    html = render(Trace(torch.tensor([[0, 300]]), 1, ((sure,),)), tokenizer)
    assert "--h: 0.0000" in html
    assert "top: 0.00 nats" in html


def test_tells_only_what_it_is_told(tokenizer: PreTrainedTokenizerBase) -> None:
    traced = a_trace(tokenizer, [300])
    bare = render(traced, tokenizer)
    assert "<dt>" not in bare
    methods = [lmguide.CFG(2.0, negative_prompt="<none>"), lmguide.TPG(1.5)]
    told = render(traced, tokenizer, title="T", model="M", guidance=methods, prompt="P", negative_prompt="N", seed=0)
    terms = re.findall("<dt>(.*?)</dt>", told)
    assert terms == ["Model", "Guidance", "Guidance", "Prompt", "Negative prompt", "Seed"]
    assert "&#34;negative_prompt&#34;: &#34;&lt;none&gt;&#34;" in told
    assert "<title>T</title>" in told


def test_needs_nothing_from_anywhere(tokenizer: PreTrainedTokenizerBase) -> None:
    html = render(a_trace(tokenizer, [300, 301]), tokenizer)
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "video"})
    assert not re.search(r"https?:|url\(|@import|src=", html)
    assert {str(attrs["href"])[0] for tag, attrs in page.tags if tag == "a"} == {"#"}
    targets = {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs}
    assert {attrs["href"] for tag, attrs in page.tags if tag == "a"} - targets == {"#none"}
    assert "default-src 'none'" in html


@pytest.mark.parametrize("row", [-1, 1])
def test_refuses_a_row_that_there_is_not(tokenizer: PreTrainedTokenizerBase, row: int) -> None:
    with pytest.raises(ValueError, match="row: expected one of the 1 answers"):
        render(a_trace(tokenizer, [300]), tokenizer, row=row)


@pytest.mark.parametrize(
    ("text", "spaces", "expected"),
    [
        (" a b", True, "␣a␣b"),
        (" a b", False, " a b"),
        ("  ", False, "␣␣"),
        ("\n", True, "↵"),
        ("\n", False, "↵\n"),
        ("\u00a0\x00", False, "⟨U+00A0⟩⟨U+0000⟩"),
        ("", False, ""),
    ],
)
def test_visible(text: str, spaces: bool, expected: str) -> None:
    assert "".join(part.text for part in visible(text, spaces)) == expected
