"""Both answers are those of `generate`, a token of each at a time, with what a trace tells of the guided one."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.playground import Answers, Settings, Token, answers
from lmguide.playground.show import columns, heat
from lmguide.playground.turns import THREAD
from lmguide.report import Part

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]

PROMPT = "A tale of the sea:"
SETTINGS: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": "A tale:", "guidance_scale": 3.0, "seed": 3}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tales() -> Pair:
    """The bundled model and its tokenizer."""
    return lg.bundled("tales")


def ids(tokens: tuple[Token, ...]) -> list[int]:
    """The ids of an answer."""
    return [token.id for token in tokens]


def generated(pair: Pair, model: Any, settings: Settings, text: str = PROMPT, **options: Any) -> list[int]:
    """What `generate` gives by itself."""
    inputs = pair[1](text, return_tensors="pt")
    torch.manual_seed(settings.seed)
    how = {"do_sample": True, "top_k": 0, "temperature": settings.temperature} if settings.temperature else {}
    output = model.generate(**inputs, max_new_tokens=settings.max_new_tokens, **({"do_sample": False} | how), **options)
    return list(output[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", ["cfg", "selective_cfg", "tpg"])
def test_answers_are_those_of_generate(tales: Pair, method: str, temperature: float) -> None:
    negative = {} if method != "tpg" else {"negative_prompt": ""}
    settings = Settings(**SETTINGS | negative, method=method, temperature=temperature, max_new_tokens=20)
    *_, last = answers(*tales, settings)
    view = lg.guide(tales[0], settings.guidance(), tokenizer=tales[1])
    assert ids(last.unguided) == generated(tales, tales[0], settings)
    assert ids(last.guided) == generated(tales, view, settings)
    assert last.stats == view.stats


def test_tokens_are_told_what_a_trace_tells(tales: Pair) -> None:
    settings = Settings(**SETTINGS, method="selective_cfg", entropy_threshold=1.0, max_new_tokens=30)
    *_, last = answers(*tales, settings)
    torch.manual_seed(settings.seed)
    view = lg.guide(tales[0], settings.guidance(), tokenizer=tales[1])
    inputs = tales[1](PROMPT, return_tensors="pt")
    (records,) = lg.trace(view, **inputs, max_new_tokens=30, do_sample=True, top_k=0).rows
    assert ids(last.guided) == [record.token for record in records]
    told = [(token.divergence, token.entropy, token.open) for token in last.guided]
    assert told == [(record.divergence, record.entropy, record.open) for record in records]
    assert {token.open for token in last.guided} == {True, False}
    assert any(token.divergence > 0.1 for token in last.guided)
    likeliest = [token.after[1] for token in last.guided if token.after is not None]
    assert likeliest == pytest.approx([record.after[0][1] for record in records])


def test_both_grow_token_by_token(tales: Pair) -> None:
    *steps, last = answers(*tales, Settings(**SETTINGS, max_new_tokens=6))
    assert [(len(step.unguided), len(step.guided)) for step in steps] == [(n, n) for n in range(1, 7)]
    assert all(step.stats is None for step in steps)
    for one, next_ in zip(steps, [*steps[1:], last], strict=True):
        assert next_.unguided[: len(one.unguided)] == one.unguided
        assert next_.guided[: len(one.guided)] == one.guided
    expected = tales[1].decode(ids(last.guided), skip_special_tokens=True)
    assert last.texts[1] == expected


def test_an_answer_that_ends_first_waits_for_the_other(tales: Pair) -> None:
    settings = Settings(**SETTINGS, constraint_kind="regex", constraint=r"The [a-z]{4}\.", max_new_tokens=40)
    *_, last = answers(*tales, settings)
    assert re.fullmatch(r"The [a-z]{4}\.", last.texts[1])
    assert len(last.unguided) == 40 > len(last.guided)
    assert ids(last.unguided) == generated(tales, tales[0], settings)
    assert last.guided[0].divergence > 1  # " The" was the likeliest
    assert last.guided[0].after is not None and last.guided[0].after[0] == "The"


def test_what_is_off_moves_nothing(tales: Pair) -> None:
    *_, last = answers(*tales, Settings(**SETTINGS | {"guidance_scale": 1.0}, max_new_tokens=20))
    assert last.unguided == last.guided
    assert last.stats is not None and last.stats.steps == 0
    assert "Guidance is off" in columns(last, writing=False)[2]


def test_stopping_leaves_nothing_behind(tales: Pair) -> None:
    before = threading.active_count()
    stream = answers(*tales, Settings(**SETTINGS))
    next(stream)
    assert threading.active_count() == before + 2
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(10)
    assert threading.active_count() == before


def test_chats_go_through_the_template() -> None:
    model, tokenizer = lg.bundled("tales")
    tokenizer.chat_template = TEMPLATE
    settings = Settings("A tale of the sea:", negative_prompt="A sad ", chat=True, temperature=0.0, max_new_tokens=8)
    *_, last = answers(model, tokenizer, settings)
    view = lg.guide(model, lg.CFG(1.5, "A sad A tale of the sea:"), tokenizer=tokenizer)
    inputs = tokenizer("A tale of the sea:", return_tensors="pt", add_special_tokens=False)
    negative = tokenizer("A sad A tale of the sea:", return_tensors="pt", add_special_tokens=False)["input_ids"]
    output = view.generate(**inputs, negative_prompt_ids=negative, max_new_tokens=8, do_sample=False)
    assert isinstance(output, torch.Tensor)
    assert ids(last.guided) == output[0, inputs["input_ids"].shape[1] :].tolist()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat: the model's tokenizer has no chat template"):
        next(answers(model, tokenizer, settings))


def test_the_page_escapes_text_and_is_hotter_where_more_was_moved() -> None:
    parts = (Part("<b>&"), Part("↵", sign=True))
    told = Answers((Token(1, parts),), (Token(1, parts, 0.5, 1.0, True, ("<a>", 0.2), ("'\"", 0.8)),))
    unguided, guided, _ = columns(told, writing=True)
    assert "&lt;b&gt;&amp;<i>↵</i>" in unguided and "&lt;b&gt;&amp;<i>↵</i>" in guided
    assert "<a>" not in guided and 'likeliest after: &#39;&#34; 80.0 %"' in guided
    assert "--h: 0.627" in guided and "lmg-caret" in guided
    assert "lmg-caret" not in columns(told, writing=False)[1]
    heats = [heat(each) for each in (0.0, 0.01, 0.1, 1.0, 10.0)]
    assert heats == sorted(heats) and heats[0] == 0.0 and heats[-1] < 1.0
    assert heat(-1e-9) == 0.0
