"""Which tokens are guided, on sequences written by hand."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
import torch
import transformers as tf

from lmguide.descriptions.budget import WithinBudget
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation
from lmguide.sources.rewards.budget_spans import Spans
from tests.budgets import ByText
from tests.families import made
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = ["<pad>", "<eos>", "<think>", "</think>", "a", "b", "\n", "b\n\n", "</", "think", ">", ">\n", "\nc", "[UNK]"]
EOS = 1


@cache
def tokenizer() -> Any:
    """Each name is a token; the first two are special, the next two are not but added, as in some reasoning models."""
    model = tokenizers.models.BPE(
        {name: index for index, name in enumerate(NAMES)} | {"x": len(NAMES)}, [], unk_token="[UNK]"
    )
    core = tokenizers.Tokenizer(model)
    core.add_tokens(list(NAMES[2:-1]))
    core.decoder = tokenizers.decoders.Fuse()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="[UNK]",
        clean_up_tokenization_spaces=False,
    )


def ids(text: str) -> list[int]:
    """Names divided by spaces, with "_" for a newline."""
    return [NAMES.index(name.replace("_", "\n")) for name in text.split()]


def spans(prompts: Sequence[str], eos: Any = EOS, **context: Any) -> Spans:
    model = made("llama")
    model.generation_config.eos_token_id = eos
    generation = Generation(
        model=model,
        tokenizer=tokenizer(),
        prompts=pack([ids(prompt) for prompt in prompts], "cpu"),
        batch=len(prompts),
        vocab_size=model.config.vocab_size,
        device=torch.device("cpu"),
        total=None,
    )
    return Spans(WithinBudget(ByText(), 9, **context), generation)


def followed(found: Spans, answers: Sequence[str]) -> list[list[int | None]]:
    """For each row and length of its answer, the tokens that its span has where the next one is guided."""
    rows = torch.tensor([ids(answer) for answer in answers])
    steps = [found.guided(rows[:, :length]) for length in range(rows.shape[1] + 1)]
    return [[len(step[row]) if row in step else None for step in steps] for row in range(len(answers))]


NO = None


def test_the_whole_answer_at_its_first_token_and_behind_newlines_until_its_end() -> None:
    found = spans(["a", "a _", "b"])
    assert followed(found, ["a _ b a b__", "a b a b a", "_ _ <eos> _ <pad>"]) == [
        [0, NO, 2, NO, NO, 5],
        [0, NO, NO, NO, NO, NO],
        [0, 1, 2, NO, NO, NO],
    ]


def test_every_token_of_the_answer_until_its_end() -> None:
    found = spans(["a", "a"], every=True)
    assert followed(found, ["a _ b a", "a <eos> _ <pad>"]) == [[0, 1, 2, 3, 4], [0, 1, NO, NO, NO]]
    assert followed(spans(["a"], eos=[4, 5], every=True), ["_ b a"]) == [[0, 1, NO, NO]]
    assert followed(spans(["a"], eos=None, every=True), ["_ <eos> a"]) == [[0, 1, 2, 3]]


MARKED: dict[str, Any] = {"start": "<think>", "end": "</think>"}


def test_rows_enter_and_leave_their_thoughts_at_different_times() -> None:
    found = spans(["a", "a <think>", "a <think> _", "<think> a </think> b"], **MARKED)
    answers = [
        "a _ <think> a b__ </think> _",
        "a _ </think> _ <think> _ a",
        "b b__ a <eos> _ a a",
        "_ a <think> _ _ a </think>",
    ]
    assert followed(found, answers) == [
        [NO, NO, NO, 0, NO, 2, NO, NO],
        [0, NO, 2, NO, NO, 0, 1, NO],
        [0, NO, 2, NO, NO, NO, NO, NO],
        [NO, NO, NO, 0, 1, 2, NO, NO],
    ]


def test_every_token_of_a_thought() -> None:
    found = spans(["a", "<think> b"], **MARKED, every=True)
    assert followed(found, ["<think> a </think> b", "a a </think> <think>"]) == [[NO, 0, 1, NO, NO], [0, 1, 2, NO, 0]]


def test_the_answer_up_to_a_marker() -> None:
    found = spans(["</think> a", "a"], end="</think>")
    assert followed(found, ["_ </think> _", "a _ <eos>"]) == [[0, 1, NO, NO], [0, NO, 2, NO]]


@pytest.mark.parametrize("end", ["</think>", (8, 9, 10)])
def test_markers_of_several_tokens(end: Any) -> None:
    found = spans(["a"], start=(4, 5), end=end, every=True)
    assert followed(found, ["a b a </ think > a b"]) == [[NO, NO, 0, 1, 2, 3, NO, NO, 0]]
    assert found.ending(ids("a b </ think")) == (ids("</think> > >_") if end == "</think>" else ids(">"))
    assert found.ending(ids("a b </")) == (ids("</think>") if end == "</think>" else [])


def test_a_text_is_found_however_it_is_spelled() -> None:
    found = spans(["a"], end="</think>", every=True)
    assert followed(found, ["a </ think >_ a"]) == [[0, 1, 2, 3, NO, NO]]
    assert followed(found, ["a </ think b a"]) == [[0, 1, 2, 3, 4, 5]]
    whole = NAMES.index("</think>")
    assert found.ending(ids("a")) == [whole]
    assert found.ending(ids("a </ think")) == sorted([whole, *ids("> >_")])
    assert spans(["a"], end="</think>").ending(ids("a </")) == [whole]


def test_tokens_that_end_the_whole_answer() -> None:
    assert spans(["a"]).ending(ids("a")) == [EOS]
    assert spans(["a"], eos=[4, 5]).ending([]) == [4, 5]
    assert spans(["a"], eos=None).ending([]) == []


def test_a_special_token_is_known_by_its_name() -> None:
    found = spans(["a"], end="<eos>", eos=None, every=True)
    assert followed(found, ["a <eos> a"]) == [[0, 1, NO, NO]]
    assert found.ending([]) == [EOS]


def test_what_is_refused() -> None:
    with refused("start", "'z'", "tokenizer"):
        spans(["a"], start="z")
    with refused("end", "below 120", "got 120"):
        spans(["a"], end=(120,))
    cases: dict[str, dict[str, Any]] = {"every": {}, "end": {"end": "</think>", "every": True}}
    for argument, more in cases.items():
        with refused(argument, "got None", "tokenizer="):
            Spans(
                WithinBudget(ByText(), 9, **more),
                Generation(made("llama"), None, pack([[4]], "cpu"), 1, 120, torch.device("cpu"), None),
            )
    untold = Generation(made("llama"), None, pack([[4]], "cpu"), 1, 120, torch.device("cpu"), None)
    assert Spans(WithinBudget(ByText(), 9, every=True, end=(5,)), untold).guided(torch.zeros(1, 0).long()) == {0: []}
