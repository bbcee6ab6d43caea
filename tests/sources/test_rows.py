"""The rows of contexts, and ids that a user gave, checked and left-padded."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.sources.ids import Rows, checked, pack
from lmguide.sources.rows import RowBuilder
from tests.families import PAD, VOCAB, made, text, tiny, tokens, words
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Sequence

CPU = torch.device("cpu")


def check(ids: Any, mask: Any = None, **options: Any) -> Rows:
    settings: dict[str, Any] = {"argument": "ids", "batch": 2, "vocab_size": VOCAB, "device": CPU, "pad_token_id": PAD}
    return checked(ids, mask, **settings | options)


def test_rows_are_padded_on_the_left_and_told_apart_again() -> None:
    rows = pack([[4, 5, 6], [7]], "cpu")
    assert rows.ids.tolist() == [[4, 5, 6], [0, 0, 7]]
    assert rows.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert rows.tokens() == [[4, 5, 6], [7]]
    assert rows.repeat(2).tokens() == [[4, 5, 6], [4, 5, 6], [7], [7]]
    assert rows.repeat(1) is rows


GIVEN: dict[str, tuple[Any, Any, list[list[int]]]] = {
    "a vector": (torch.tensor([4, 5]), None, [[4, 5]]),
    "a matrix": (torch.tensor([[4, 5], [6, 7]]), None, [[4, 5], [6, 7]]),
    "int32": (torch.tensor([[4, 5]], dtype=torch.int32), None, [[4, 5]]),
    "padding inferred": (torch.tensor([[0, 0, 5], [4, 5, 6]]), None, [[5], [4, 5, 6]]),
    "padding inside is meant": (torch.tensor([[0, 5, 0]]), None, [[5, 0]]),
    "a mask, left": (torch.tensor([[9, 9, 5]]), torch.tensor([[0, 0, 1]]), [[5]]),
    "a mask, right": (torch.tensor([[5, 9, 9], [4, 5, 6]]), torch.tensor([[1, 0, 0], [1, 1, 1]]), [[5], [4, 5, 6]]),
    "a mask, inside": (torch.tensor([[4, 9, 5]]), torch.tensor([[1, 0, 1]]), [[4, 5]]),
    "a mask that keeps padding": (torch.tensor([[0, 0, 5]]), torch.tensor([[1, 1, 1]]), [[0, 0, 5]]),
    "a mask without a batch": (torch.tensor([9, 5]), torch.tensor([0, 1]), [[5]]),
    "a mask of a vector with one": (torch.tensor([9, 5]), torch.tensor([[0, 1]]), [[5]]),
    "a list": ([4, 5], None, [[4, 5]]),
    "ragged lists": ([[4, 5, 6], (7,)], None, [[4, 5, 6], [7]]),
    "padding in lists is meant": ([[0, 0, 5]], None, [[0, 0, 5]]),
}


@pytest.mark.parametrize("case", GIVEN)
def test_ids_in_any_form(case: str) -> None:
    ids, mask, meant = GIVEN[case]
    rows = check(ids, mask)
    assert rows.tokens() == meant
    assert rows.ids.dtype == rows.mask.dtype == torch.int64
    assert rows.mask[:, -1].all()


def test_padding_is_not_guessed_without_a_padding_token() -> None:
    assert check(torch.tensor([[0, 0, 5]]), pad_token_id=None).tokens() == [[0, 0, 5]]


def test_how_many_rows_there_may_be() -> None:
    for count in (1, 2):
        assert len(check([[4]] * count).tokens()) == count
    for count in (3, 4):
        with refused("ids", rf"got {count}"):
            check([[4]] * count)
    assert len(check([[4]] * 2, batch=6, expanded=True).tokens()) == 2
    with refused("ids", "got 4"):
        check([[4]] * 4, batch=6, expanded=True)


BAD: dict[str, tuple[Any, Any]] = {
    "floats": (torch.ones(1, 2), None),
    "three axes": (torch.ones(1, 1, 2).long(), None),
    "a scalar": (torch.tensor(4), None),
    "meta": (torch.ones(1, 2, device="meta").long(), None),
    "an empty tensor": (torch.empty(1, 0).long(), None),
    "only padding": (torch.zeros(1, 3).long(), None),
    "an empty list": ([], None),
    "an empty row": ([[4], []], None),
    "masked away": (torch.tensor([[4, 5]]), torch.tensor([[0, 0]])),
    "too large": ([4, VOCAB], None),
    "below 0": ([-1], None),
    "another mask": (torch.tensor([[4, 5]]), torch.tensor([[1, 1, 1]])),
    "a mask for a list": ([4, 5], torch.tensor([[1, 1]])),
    "booleans": ([True, False], None),
    "texts": (["a"], None),
    "a mixture": ([4, [5]], None),
    "a number": (4.5, None),
    "None among rows": ([[4], None], None),
}


@pytest.mark.parametrize("case", BAD)
def test_ids_that_are_refused(case: str) -> None:
    with refused("ids"):
        check(*BAD[case])


PROMPTS = [[1, 20, 21, 22, 30], [23, 24, 25]]


def builder(prompts: Sequence[Sequence[int]] | None = PROMPTS, tokenizer: Any = None, **options: Any) -> RowBuilder:
    rows = None if prompts is None else pack(prompts, "cpu")
    batch = len(prompts) if prompts is not None else 2
    return RowBuilder(rows, batch, options.pop("model", tiny("llama")), tokenizer or words(), CPU, **options)


CONTEXTS: dict[str, tuple[Any, list[list[int]]]] = {
    "a text": (lg.NegativePrompt("w4 w5"), [[4, 5]]),
    "the default": (lg.NegativePrompt(), [[30], [25]]),
    "the last token": (lg.LastToken(), [[30], [25]]),
    "no prompt": (lg.EmptyPrompt(), [[1]]),
    "without a passage": (lg.WithoutContext("w21"), []),
    "a prefix": (lg.PromptPrefix("w8 w9"), [[1, 8, 9, 20, 21, 22, 30], [8, 9, 23, 24, 25]]),
}


@pytest.mark.parametrize("case", [case for case in CONTEXTS if CONTEXTS[case][1]])
def test_contexts_as_rows(case: str) -> None:
    """A prefix goes behind the beginning-of-sequence token, if the prompt starts with it."""
    context, meant = CONTEXTS[case]
    assert builder()(context).tokens() == meant


def test_a_passage_is_cut_out_once() -> None:
    prompts = [[4, 5, 6, 4, 5, 6, 7], [8, 4, 5, 6]]
    assert builder(prompts)(lg.WithoutContext("w4 w5 w6")).tokens() == [[4, 5, 6, 7], [8]]
    with refused("passage", "w5 w4"):
        builder(prompts)(lg.WithoutContext("w5 w4"))


def test_a_shuffled_prompt_keeps_its_tokens_its_end_and_its_special_tokens() -> None:
    prompts = [[1, *tokens(12, 3), PAD, *tokens(12, 4)], tokens(9, 5)]
    state = torch.random.get_rng_state()
    rows = builder(prompts)(lg.ShuffledPrompt()).tokens()
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not touched"
    for row, prompt in zip(rows, prompts, strict=True):
        assert sorted(row) == sorted(prompt)
        assert row != prompt
        assert row[-1] == prompt[-1]
        assert [(place, token) for place, token in enumerate(row) if token < 2] == [
            (place, token) for place, token in enumerate(prompt) if token < 2
        ]
    assert builder(prompts)(lg.ShuffledPrompt()).tokens() == rows
    assert builder(prompts)(lg.ShuffledPrompt(seed=1)).tokens() != rows
    assert builder([[4]])(lg.ShuffledPrompt()).tokens() == [[4]]


def test_a_random_prompt_is_as_long_and_has_no_special_token() -> None:
    prompts = [tokens(200, 1), tokens(50, 2)]
    state = torch.random.get_rng_state()
    rows = builder(prompts)(lg.RandomPrompt()).tokens()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [len(row) for row in rows] == [200, 50]
    assert min(min(row) for row in rows) >= 2
    assert len(set(rows[0])) > 60
    assert builder(prompts)(lg.RandomPrompt()).tokens() == rows
    assert builder(prompts)(lg.RandomPrompt(seed=1)).tokens() != rows


def test_random_texts_are_drawn_for_each_prompt() -> None:
    texts = tuple(text([token]) for token in range(10, 40))
    rows = builder([[4]] * 20)(lg.RandomPrompt(texts)).tokens()
    assert len(rows) == 20
    assert all(10 <= token < 40 for (token,) in rows)
    assert len({token for (token,) in rows}) > 5


def test_the_beginning_of_sequence_token_is_found_where_it_is() -> None:
    nobody = copy.deepcopy(words())
    nobody.bos_token = None
    assert builder(tokenizer=nobody)(lg.EmptyPrompt()).tokens() == [[1]], "the generation configuration has it"
    model = made("llama", bos_token_id=None)
    model.generation_config.bos_token_id = None
    assert builder(model=model)(lg.EmptyPrompt()).tokens() == [[1]], "the tokenizer has it"
    with refused("EmptyPrompt", "LastToken"):
        builder(model=model, tokenizer=nobody)(lg.EmptyPrompt())


def test_messages_go_through_the_template_as_the_tokenizer_would() -> None:
    chatty = copy.deepcopy(words())
    chatty.chat_template = (
        "{{ bos_token }} {% for m in messages %}w7 {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}w9{% endif %}"
    )
    messages = [{"role": "user", "content": "w4"}, {"role": "assistant", "content": "w5"}]
    rows = builder(tokenizer=chatty).negative(messages)
    own = chatty.apply_chat_template(messages, add_generation_prompt=True)
    assert rows.tokens() == [list(own["input_ids"] if hasattr(own, "keys") else own)] == [[1, 7, 4, 7, 5, 9]]
    assert builder(tokenizer=chatty).negative([messages, messages[:1]]).tokens() == [[1, 7, 4, 7, 5, 9], [1, 7, 4, 9]]
    assert builder(tokenizer=chatty).negative(None).tokens() == [[1, 7, 9]]


def test_a_suffix_is_one_row_without_special_tokens() -> None:
    assert builder().suffix(lg.Suffix("w4 w5")).tokens() == [[4, 5]]
    assert builder().suffix(lg.Suffix((4, 5))).tokens() == [[4, 5]]


def test_what_needs_the_prompt_says_so() -> None:
    for context in (lg.LastToken(), lg.NegativePrompt(), lg.ShuffledPrompt(), lg.RandomPrompt(), lg.PromptPrefix("w4")):
        with refused("inputs_embeds", type(context).__name__ if not isinstance(context, lg.NegativePrompt) else "ids"):
            builder(None)(context)
    for whole in (lg.ShuffledPrompt(), lg.RandomPrompt(), lg.PromptPrefix("w4"), lg.WithoutContext("w21")):
        with refused("past_key_values", "whole prompt"):
            builder(partial=True)(whole)
    assert builder(partial=True)(lg.LastToken()).tokens() == [[30], [25]]


def test_a_context_without_rows() -> None:
    for context in (lg.Suffix(), lg.EarlyLayers(), lg.DroppedBlocks()):
        with refused("context", type(context).__name__, error=TypeError):
            builder()(context)
