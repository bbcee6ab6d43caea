"""Every way to say a negative prompt or a strength means the tokens or numbers it should mean."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from tests.families import PAD, made, padded, text, tiny, tokens, words
from tests.huggingface.methods import METHODS, Setting
from tests.huggingface.reference import First, cfg_law

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPTS = [tokens(9, 1), tokens(6, 2)]
NEGATIVES = [tokens(4, 3), tokens(12, 4)]
IDS, MASK = padded(PROMPTS)
NEGATIVE_IDS, NEGATIVE_MASK = padded(NEGATIVES)
ARGUMENTS: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 6, "do_sample": False}
TEMPLATE = (
    "{% for m in messages %}<bos> {{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}"
)
"""Roles are words that the tokenizer does not know, so each becomes token 2."""


def chatty() -> Any:
    tokenizer = copy.deepcopy(words())
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def expected(
    negatives: Sequence[Sequence[int]], scales: Sequence[float] = (3.0, 3.0), family: str = "llama"
) -> list[list[int]]:
    """The reference's tokens for these negatives, one for each prompt or one for all."""
    each = negatives if len(negatives) == len(PROMPTS) else list(negatives) * len(PROMPTS)
    law = cfg_law(tiny(family), PROMPTS, each, scales)
    found: list[list[int]] = First(tiny(family), law).generate(IDS, **ARGUMENTS).tolist()
    return found


def guided(negative: Any = None, tokenizer: Any = None, **call: Any) -> list[list[int]]:
    view: Any = lg.guide(tiny("llama"), lg.CFG(3.0, negative), tokenizer=tokenizer)
    found: list[list[int]] = view.generate(IDS, **ARGUMENTS | call).tolist()
    return found


ONE, MANY = NEGATIVES[:1], NEGATIVES
FORMS: dict[str, tuple[Any, Any, list[list[int]]]] = {
    "ids": (NEGATIVES[0], None, ONE),
    "a tuple of ids": (tuple(NEGATIVES[0]), None, ONE),
    "one id": ([7], None, [[7]]),
    "ids for each prompt": (NEGATIVES, None, MANY),
    "a list of one row": (ONE, None, ONE),
    "text": (text(NEGATIVES[0]), words, ONE),
    "texts": ([text(row) for row in NEGATIVES], words, MANY),
    "messages": (
        [{"role": "system", "content": "w4"}, {"role": "user", "content": "w5 w6"}],
        chatty,
        [[1, 2, 4, 1, 2, 5, 6, 9]],
    ),
    "messages for each prompt": (
        [[{"role": "user", "content": "w4"}], [{"role": "user", "content": "w5 w6"}]],
        chatty,
        [[1, 2, 4, 9], [1, 2, 5, 6, 9]],
    ),
    "the default": (None, None, [row[-1:] for row in PROMPTS]),
    "the default with a tokenizer": (None, words, [row[-1:] for row in PROMPTS]),
    "the default of a chat model": (None, chatty, [[1, 2, 9]]),
    "the last token": (lg.LastToken(), chatty, [row[-1:] for row in PROMPTS]),
    "no prompt": (lg.EmptyPrompt(), None, [[1]]),
    "a context": (lg.NegativePrompt(NEGATIVES[0]), None, ONE),
    "without a passage": (lg.WithoutContext(text(PROMPTS[0][2:4])), words, []),
}


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form][2]])
def test_a_negative_prompt_of_the_method_and_of_the_call(form: str) -> None:
    """The same tokens, whether the method holds it or the call brings it in the place of the method's own."""
    negative, tokenizer, meant = FORMS[form]
    make = tokenizer() if tokenizer else None
    answer = expected(meant)
    assert guided(negative, make) == answer
    if not isinstance(negative, lg.LastToken | lg.EmptyPrompt | lg.NegativePrompt | type(None)):
        assert guided(tokens(5, 9), make, negative_prompt=negative) == answer


# `negative_prompt_ids` and its mask, and the rows they mean.
LONE = torch.tensor(NEGATIVES[0])
TENSORS: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    "left-padded": ({"ids": NEGATIVE_IDS, "attention_mask": NEGATIVE_MASK}, MANY),
    "left-padded, no mask": ({"ids": NEGATIVE_IDS}, MANY),
    "right-padded": (dict(zip(("ids", "attention_mask"), padded(NEGATIVES, right=True), strict=True)), MANY),
    "padded inside": (
        {"ids": torch.tensor([[4, 99, 5, 99, 6]] * 2), "attention_mask": torch.tensor([[1, 0, 1, 0, 1]] * 2)},
        [[4, 5, 6]],
    ),
    "one row": ({"ids": LONE[None]}, ONE),
    "no batch": ({"ids": LONE}, ONE),
    "no batch, a mask": ({"ids": torch.tensor([9, 4, 5]), "attention_mask": torch.tensor([0, 1, 1])}, [[4, 5]]),
    "int32": ({"ids": NEGATIVE_IDS.int(), "attention_mask": NEGATIVE_MASK}, MANY),
    "a mask of booleans": ({"ids": NEGATIVE_IDS, "attention_mask": NEGATIVE_MASK.bool()}, MANY),
    "a mask of floats": ({"ids": NEGATIVE_IDS, "attention_mask": NEGATIVE_MASK.float()}, MANY),
    "lists": ({"ids": NEGATIVES}, MANY),
    "padding that is masked in": (
        {"ids": torch.tensor([[PAD, PAD, 5]]), "attention_mask": torch.ones(1, 3).long()},
        [[PAD, PAD, 5]],
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_negative_prompt_ids(case: str) -> None:
    given, meant = TENSORS[case]
    call = {f"negative_prompt_{name}": value for name, value in given.items()}
    assert guided(**call) == expected(meant)


def test_leading_padding_is_not_guessed_where_it_ends_texts_too() -> None:
    """If the padding token is the end-of-sequence token, a leading one may be meant, as transformers judges prompts."""
    model = made("llama")
    model.generation_config.eos_token_id = PAD
    view: Any = lg.guide(model, lg.CFG(3.0))
    negative = torch.tensor([[PAD, PAD, 5]])
    arguments = ARGUMENTS | {"suppress_tokens": [PAD]}
    whole = view.generate(
        IDS, negative_prompt_ids=negative, negative_prompt_attention_mask=negative * 0 + 1, **arguments
    )
    assert view.generate(IDS, negative_prompt_ids=negative, **arguments).tolist() == whole.tolist()
    masked = view.generate(
        IDS, negative_prompt_ids=negative, negative_prompt_attention_mask=negative.bool(), **arguments
    )
    assert masked.tolist() != whole.tolist()


def test_a_padded_row_is_the_row_alone() -> None:
    """What a batch pads, in prompts and negatives, is never seen: GPT-2's absolute positions would tell."""
    for family in ("gpt2", "opt", "llama"):
        view: Any = lg.guide(tiny(family), lg.CFG(3.0))
        call: dict[str, Any] = {
            "negative_prompt_ids": NEGATIVE_IDS,
            "negative_prompt_attention_mask": NEGATIVE_MASK,
        }
        together = view.generate(IDS, **ARGUMENTS | call)[:, IDS.shape[1] :]
        for row, (prompt, negative) in enumerate(zip(PROMPTS, NEGATIVES, strict=True)):
            call = {"negative_prompt_ids": torch.tensor([negative]), "attention_mask": None}
            alone = view.generate(torch.tensor([prompt]), **ARGUMENTS | call)[:, len(prompt) :]
            assert alone[0].tolist() == together[row].tolist(), family


SCALES: dict[str, tuple[Any, tuple[float, float]]] = {
    "one": (2.0, (2.0, 2.0)),
    "a whole number": (2, (2.0, 2.0)),
    "one for each prompt": ((2.0, -0.5), (2.0, -0.5)),
    "a list": ([2.0, 4.0], (2.0, 4.0)),
    "a tensor": (torch.tensor([2.0, 4.0]), (2.0, 4.0)),
    "a tensor of one": (torch.tensor(2.0), (2.0, 2.0)),
    "off in one row": ((1.0, 4.0), (1.0, 4.0)),
    "the negative alone": (0.0, (0.0, 0.0)),
    "off here, away there": ((0.0, 1.0), (0.0, 1.0)),
}


@pytest.mark.parametrize("case", SCALES)
@pytest.mark.parametrize("at_call", [False, True])
def test_strengths_one_for_all_or_one_for_each_prompt(case: str, at_call: bool) -> None:
    given, meant = SCALES[case]
    method = lg.CFG(1.0 if at_call else given if not isinstance(given, torch.Tensor) else 9.0, tuple(map(tuple, MANY)))
    view: Any = lg.guide(tiny("llama"), method)
    call = {"guidance_scale": given} if at_call or isinstance(given, torch.Tensor) else {}
    assert view.generate(IDS, **ARGUMENTS | call).tolist() == expected(MANY, meant)


@pytest.mark.parametrize(
    "mode", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}, {"use_cache": False}]
)
def test_strengths_follow_their_prompts_when_rows_are_many(mode: dict[str, Any]) -> None:
    scales = (1.0, 4.0)
    view: Any = lg.guide(tiny("llama"), lg.CFG(scales, tuple(map(tuple, MANY))))
    torch.manual_seed(0)
    found = view.generate(IDS, **ARGUMENTS | mode)
    torch.manual_seed(0)
    law = cfg_law(tiny("llama"), PROMPTS, MANY, scales)
    assert found.tolist() == First(tiny("llama"), law).generate(IDS, **ARGUMENTS | mode).tolist()


def test_a_row_at_scale_1_is_the_model_bit_for_bit() -> None:
    """The other row's guidance must not move a single bit of the row whose scale is 1, once both are normalised."""
    view: Any = lg.guide(tiny("llama"), lg.CFG((1.0, 4.0), tuple(map(tuple, MANY))))
    more = {"return_dict_in_generate": True, "output_logits": True}
    mine, plain = view.generate(IDS, **ARGUMENTS | more), tiny("llama").generate(IDS, **ARGUMENTS | more)
    assert mine.sequences[0].tolist() == plain.sequences[0].tolist()
    assert mine.sequences[1].tolist() != plain.sequences[1].tolist()
    for guided_logits, logits in zip(mine.logits, plain.logits, strict=True):
        torch.testing.assert_close(guided_logits[0], logits[0].log_softmax(-1), atol=1e-5, rtol=0)


def test_one_context_of_two_methods_is_run_once() -> None:
    setting = Setting("llama", PROMPTS, NEGATIVES)
    twice: Any = lg.guide(tiny("llama"), [METHODS["cfg"][0](setting), lg.APG(2.0, setting.negative)])  # type: ignore[list-item]
    twice.generate(IDS, **ARGUMENTS)
    assert twice.stats.nfe == 2 * twice.stats.steps
