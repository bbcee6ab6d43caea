"""Questions to a model: batched, padded and cached, they are answered as one by one from scratch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.descriptions.topics import TopicExamples
from lmguide.sources.ids import pack
from lmguide.sources.rewards import questions
from lmguide.sources.rewards.base import Generation
from lmguide.sources.rewards.english import read_list
from lmguide.sources.rewards.questions import Questions
from tests.families import VOCAB, made, text, tiny, tokens, words
from tests.huggingface.reference import next_token
from tests.refusals import refused
from tests.sources.rewards.topics import answer, ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.families import Model

ASKED = tuple(text(tokens(length, length)) for length in (7, 3, 5, 1, 4))
FAMILIES = ("llama", "gpt2", "mamba", "qwen3_next", "t5", "bart")


def call(model: Model, tokenizer: Any = None, rows: int = 2) -> Generation:
    """A call of so many equal prompts."""
    return Generation(
        model=model,
        tokenizer=tokenizer or words(),
        prompts=pack([[5, 6, 7]] * rows, "cpu"),
        batch=rows,
        vocab_size=VOCAB,
        device=torch.device("cpu"),
        total=10,
    )


def asking(model: Model, **more: Any) -> Questions:
    """Questions to the guided model itself."""
    return Questions(TopicExamples("w9", **more), call(model))


def shown(row: Sequence[int]) -> str:
    """A text without special tokens."""
    return text([token for token in row if token > 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_greedy_and_do_not_go_round_in_circles(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "AT_ONCE", 3)
    model = tiny(family)
    asked = asking(model)
    found = asked.answers(ASKED, 12, lambda answer: False)
    assert found == [shown(answer(model, question, 12)) for question in ASKED]
    assert asked.forwards == 2 * 12 if family != "mamba" else asked.forwards >= 2 * 12
    assert asked.nfe == asked.forwards // 2 * 3  # of two rows: three questions fill two passes, two fill one


@pytest.mark.parametrize("family", FAMILIES)
def test_laws_and_probabilities_of_answers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "AT_ONCE", 3)
    model = tiny(family)
    expected = torch.stack([next_token(model, ids(question), []) for question in ASKED])
    torch.testing.assert_close(asking(model).laws(ASKED), expected, atol=1e-4, rtol=0)
    answers = ("w20", "w30 w31 w32", "w40 w41", "w21", "w40 w42")

    def log_prob(question: str, begins: str) -> float:
        path = ids(begins)
        return sum(float(next_token(model, ids(question), path[:n])[token]) for n, token in enumerate(path))

    asked = asking(model)
    found = asked.log_probs(ASKED, answers)
    assert asked.forwards == 2 * 3, "answers that differ in their last token share a pass"
    for row, question in enumerate(ASKED):
        assert found[row].tolist() == pytest.approx([log_prob(question, each) for each in answers], abs=1e-4)


def test_an_answer_stops_at_its_end_and_all_of_them_where_nothing_more_is_wanted() -> None:
    model = made("llama")
    whole = [answer(model, question, 12) for question in ASKED]
    model.generation_config.eos_token_id = [whole[0][4], whole[1][6]]
    ends = set(model.generation_config.eos_token_id)
    asked = asking(model)
    stops = [next((n for n, token in enumerate(row) if token in ends), 12) for row in whole]
    assert asked.answers(ASKED, 12, lambda answer: False) == [
        shown(row[:stop]) for row, stop in zip(whole, stops, strict=True)
    ]
    assert min(stops) < 12
    enough = asking(model)
    enough.answers(ASKED, 12, lambda answer: answer != "")
    assert enough.forwards < 5


def test_a_chats_question_goes_through_the_template() -> None:
    model, tokenizer = lg.bundled("tales")
    tokenizer.chat_template = (
        "{{ messages[0].role }} says: {{ messages[0].content }}: {% if add_generation_prompt %}A {% endif %}"
    )
    asked = Questions(TopicExamples("sea", chat=True), call(model, tokenizer))
    plain = Questions(TopicExamples("sea"), call(model, tokenizer))
    prompt = tokenizer("user says: the sea: A ", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(asked.laws(["the sea"])[0], next_token(model, prompt, []), atol=1e-4, rtol=0)
    assert not torch.allclose(asked.laws(["the sea"]), plain.laws(["the sea"]), atol=1e-2)
    with refused("query", "chat template"):
        Questions(TopicExamples("sea", chat=True), call(tiny("llama"))).laws(["w5"])


@pytest.mark.parametrize(
    ("said", "items"),
    [
        (" cat, dog, and the lion", ("cat", "dog", "lion")),
        (" Cats; dogs / wolves. They bark, often.\nMore", ("Cats", "dogs", "wolves")),
        ("\n- a cat\n- polar bears (white)\n* Dogs \u2013 loyal\n\nI hope", ("cat", "polar bears", "Dogs")),
        ("Sure! Some are:\n\n1. **Golden Retriever**: kind\n2) Poodle", ("Golden Retriever", "Poodle")),
        (" I, it, the, some", ()),
        (" cat, a very long sentence that is no item of any list, cat", ("cat",)),
        ("", ()),
        ("\n\n", ()),
        ('"New York", Oslo or "Tokyo"', ("New York", "Oslo", "Tokyo")),
    ],
)
def test_lists_are_read_as_people_write_them(said: str, items: tuple[str, ...]) -> None:
    assert read_list(said) == items


def test_what_cannot_be_asked_is_refused() -> None:
    model = tiny("llama")
    with refused("tokenizer", "guided|asked", "None"):
        Questions(TopicExamples("w9"), Generation(**vars(call(model)) | {"tokenizer": None}))
    with refused("tokenizer", "the method"):
        Questions(TopicExamples("w9", model=tiny("llama", 1)), call(model))
    with refused("model", "drop out"):
        Questions(TopicExamples("w9", model=made("llama").train(), tokenizer=words()), call(model))
    with refused("model", "int", error=TypeError):
        Questions(TopicExamples("w9", model=3), call(model))  # type: ignore[arg-type]
    with refused("query", "exceed"):
        Questions(TopicExamples("w9", model=tiny("gpt2"), tokenizer=words()), call(model)).answers(
            [text(tokens(100, 1))], 60, lambda answer: False
        )
    assert math.isclose(float(asking(model).laws(["w5"]).exp().sum()), 1, abs_tol=1e-5)
