"""Bad arguments of a guided call: each refused with the argument's name, what was expected, what came, and a cure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import GenerationConfig

import lmguide as lg
from tests.families import VOCAB, made, padded, tiny, tokens, words
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmguide.huggingface.view import GuidedModel

PROMPT = torch.tensor([tokens(6, 1)])
PAIR = torch.tensor([tokens(6, 1), tokens(6, 2)])
MESSAGES = [{"role": "user", "content": "w4 w5"}]


def generate(
    guidance: Any = None, ids: Any = PROMPT, *, family: str = "llama", tokenizer: Any = None, **kw: Any
) -> Any:
    guided = lg.guide(tiny(family), guidance or lg.CFG(2.0), tokenizer=tokenizer)
    return guided.generate(ids, **{"max_new_tokens": 3, "do_sample": False} | kw)


# Each line: what must be refused, and the words its message must hold beside the argument that it begins with.
NEGATIVES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no ids": (
        "negative_prompt_ids",
        {"negative_prompt_ids": torch.empty(1, 0, dtype=torch.long)},
        "at least one token",
    ),
    "an empty row": (
        "negative_prompt_ids",
        {"negative_prompt_ids": torch.tensor([[4, 5]]), "negative_prompt_attention_mask": torch.zeros(1, 2).long()},
        "at least one token",
    ),
    "an empty list": ("negative_prompt", {"negative_prompt": []}, "at least one token"),
    "an empty list in a list": ("negative_prompt", {"negative_prompt": [[]]}, "at least one token"),
    "nothing but padding": (
        "negative_prompt_ids",
        {"negative_prompt_ids": torch.zeros(1, 3, dtype=torch.long)},
        "at least one token",
    ),
    "an id too large": ("negative_prompt_ids", {"negative_prompt_ids": torch.tensor([[4, VOCAB]])}, f"got {VOCAB}"),
    "an id below 0": ("negative_prompt_ids", {"negative_prompt_ids": torch.tensor([[4, -1]])}, "got -1"),
    "an id too large in a list": ("negative_prompt", {"negative_prompt": [4, VOCAB + 7]}, f"got {VOCAB + 7}"),
    "floats": ("negative_prompt_ids", {"negative_prompt_ids": torch.ones(1, 3)}, "float32"),
    "booleans": ("negative_prompt_ids", {"negative_prompt_ids": torch.ones(1, 3).bool()}, "bool"),
    "three axes": ("negative_prompt_ids", {"negative_prompt_ids": torch.ones(1, 1, 3).long()}, r"\[1, 1, 3\]"),
    "no axis": ("negative_prompt_ids", {"negative_prompt_ids": torch.tensor(4)}, r"\[\]"),
    "two rows for one prompt": ("negative_prompt_ids", {"negative_prompt_ids": PAIR}, "got 2"),
    "a mask of another shape": (
        "negative_prompt_ids",
        {"negative_prompt_ids": PROMPT, "negative_prompt_attention_mask": torch.ones(1, 5).long()},
        r"\[1, 5\]",
    ),
    "a mask that is a list": (
        "negative_prompt_ids",
        {"negative_prompt_ids": PROMPT, "negative_prompt_attention_mask": [1] * 6},
        "list",
    ),
    "a mask for a list of ids": (
        "negative_prompt_ids",
        {"negative_prompt_ids": [4, 5], "negative_prompt_attention_mask": torch.ones(1, 2).long()},
        "list",
    ),
    "a mask without ids": ("negative_prompt_attention_mask", {"negative_prompt_attention_mask": PROMPT}, "without"),
    "a mask beside a text": (
        "negative_prompt_attention_mask",
        {"negative_prompt": [4, 5], "negative_prompt_attention_mask": PROMPT},
        "ids",
    ),
    "both forms": ("negative_prompt", {"negative_prompt": [4], "negative_prompt_ids": PROMPT}, "both"),
    "ids on another device": ("negative_prompt_ids", {"negative_prompt_ids": PROMPT.to("meta")}, "meta"),
    "a text without a tokenizer": ("negative_prompt", {"negative_prompt": "w4"}, "tokenizer"),
    "messages without a tokenizer": ("negative_prompt", {"negative_prompt": MESSAGES}, "chat template"),
    "a number": ("negative_prompt", {"negative_prompt": 7}, "got 7"),
    "words among ids": ("negative_prompt", {"negative_prompt": [4, "w5"]}, "w5"),
}


@pytest.mark.parametrize("case", NEGATIVES)
def test_a_bad_negative_prompt(case: str) -> None:
    argument, arguments, said = NEGATIVES[case]
    with refused(argument, said):
        generate(**arguments)


@pytest.mark.parametrize(
    ("negative", "said"),
    [
        ("", "EmptyPrompt"),
        (["w4", ""], "EmptyPrompt"),
        (["w4", "w5", "w6"], "got 3"),
        (MESSAGES, "template"),
    ],
)
def test_a_bad_negative_text(negative: Any, said: str) -> None:
    with refused("negative_prompt", said):
        generate(ids=PAIR, tokenizer=words(), negative_prompt=negative)


def test_a_negative_prompt_that_no_method_takes() -> None:
    for arguments in ({"negative_prompt": [4]}, {"negative_prompt_ids": PROMPT}):
        with refused("negative_prompt", "none of the methods"):
            generate(lg.DExperts(tiny("llama", 1), tiny("llama", 2)), **arguments)


def test_a_negative_prompt_for_several_prompts_of_a_mixture() -> None:
    with refused("negative_prompt"):
        generate(lg.PromptMixture(((4, 5), (6, 7)), (-0.5, 0.5)), negative_prompt=[8, 9])


PROMPTS: dict[str, tuple[Any, str]] = {
    "no tokens": (torch.empty(1, 0, dtype=torch.long), "empty"),
    "an id too large": (torch.tensor([[4, VOCAB]]), f"got {VOCAB}"),
    "an id below 0": (torch.tensor([[-1, 4]]), "got -1"),
    "no batch": (torch.tensor([4, 5]), r"\[2\]"),
    "another device": (PROMPT.to("meta"), "meta"),
}


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("case", PROMPTS)
def test_a_bad_prompt(case: str, family: str) -> None:
    ids, said = PROMPTS[case]
    with refused("inputs", said):
        generate(ids=ids, family=family)
    with refused("input_ids", said):
        generate(ids=None, family=family, input_ids=ids)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, (1.0, math.nan), torch.tensor(math.inf)])
def test_a_scale_that_is_not_finite(scale: Any) -> None:
    with refused("guidance_scale", "nan|inf"):
        generate(ids=PAIR, guidance_scale=scale)


@pytest.mark.parametrize("scale", ["2", True, [True], None, {}])
def test_a_scale_that_is_no_number(scale: Any) -> None:
    with refused("guidance_scale", error=TypeError):
        lg.CFG(scale)


@pytest.mark.parametrize("scales", [(), (1.0, 2.0, 3.0)])
def test_the_wrong_number_of_scales(scales: tuple[float, ...]) -> None:
    with refused("guidance_scale", "got none" if not scales else "got 3"):
        generate(ids=PAIR, guidance_scale=scales)


def test_scales_that_fit_the_expanded_batch_but_not_the_prompts() -> None:
    """Three scales for two prompts must not be dealt out to six beams or returned sequences."""
    modes: list[dict[str, Any]] = [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True}]
    for more in modes:
        with refused("guidance_scale", "got 3"):
            generate(ids=PAIR, guidance_scale=(1.5, 2.0, 3.0), **more)


def test_fewer_scales_than_prompts() -> None:
    with refused("guidance_scale", "got 2"):
        generate(ids=torch.cat([PAIR, PAIR]), guidance_scale=(1.5, 2.0))


def test_a_scale_where_no_method_has_one() -> None:
    with refused("guidance_scale", "none of the methods"):
        generate(lg.DExperts(tiny("llama", 1), tiny("llama", 2)), guidance_scale=2.0)


def test_transformers_own_guidance_scale() -> None:
    config = GenerationConfig(guidance_scale=2.0, max_new_tokens=3)
    guided = lg.guide(tiny("llama"), lg.CFG(2.0))
    with refused("generation_config", "guidance_scale"):
        guided.generate(PROMPT, generation_config=config)
    with refused("generation_config", "guidance_scale"):
        guided.generate(PROMPT, config)
    model = made("llama")
    model.generation_config.guidance_scale = 2.0
    with refused("generation_config", "guidance_scale"):
        lg.guide(model, lg.CFG(2.0)).generate(PROMPT, max_new_tokens=3)


def test_negative_prompt_ids_given_by_position() -> None:
    """They are the ninth argument of transformers' generate: heeded or refused, never passed over."""
    guided = lg.guide(tiny("llama"), lg.CFG(2.0))
    arguments: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    expected = guided.generate(PROMPT, negative_prompt_ids=PAIR[1:], **arguments)
    try:
        found = guided.generate(PROMPT, None, None, None, None, None, None, None, PAIR[1:], **arguments)
    except (TypeError, ValueError) as error:
        assert "negative_prompt_ids" in str(error)
    else:
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_ways_to_run_past_the_view() -> None:
    guided = lg.guide(tiny("llama"), lg.CFG(2.0))
    with refused("custom_generate", "decoding"):
        guided.generate(PROMPT, custom_generate=lg.decoding(lg.CFG(2.0)))
    with refused("generate_batch"):
        guided.generate(PROMPT, cache_implementation="paged")
    with refused("generate_batch"):
        guided.generate_batch([[4, 5]])
    with refused("generate_batch"):
        guided.init_continuous_batching()


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("penalty_alpha", {"penalty_alpha": 0.6, "top_k": 4}),
        ("dola_layers", {"dola_layers": "high"}),
        ("num_beam_groups", {"num_beam_groups": 2, "num_beams": 4, "diversity_penalty": 0.5}),
        ("force_words_ids", {"force_words_ids": [[5]], "num_beams": 3}),
    ],
)
def test_modes_that_live_on_the_hub(option: str, arguments: dict[str, Any]) -> None:
    """Their loops run the model past the view. Transformers would only ask for `trust_remote_code`."""
    with refused(option):
        generate(trust_remote_code=True, **arguments)


def test_drafts_from_the_guided_model_itself() -> None:
    with refused("assistant_early_exit"):
        generate(assistant_early_exit=2)


CONTEXTS: dict[str, tuple[str, Callable[[], Any], str]] = {
    "EmptyPrompt without a BOS token": (
        "EmptyPrompt",
        lambda: without_bos().generate(PROMPT, max_new_tokens=2),
        "BOS|beg",
    ),
    "a passage that is not in the prompt": (
        "passage",
        lambda: generate(lg.CAD(1.5, "w100 w101"), tokenizer=words()),
        "w100 w101",
    ),
    "a passage without a tokenizer": ("passage", lambda: generate(lg.CAD(1.5, "w4")), "tokenizer"),
    "a passage that is the whole prompt": (
        "negative_prompt",
        lambda: generate(lg.CAD(1.5, "w4 w5"), torch.tensor([[4, 5]]), tokenizer=words()),
        "at least one token",
    ),
    "a prefix without a tokenizer": ("prefix", lambda: generate(lg.PREADD(2.0)), "tokenizer"),
    "texts for ICG without a tokenizer": ("prompts", lambda: generate(lg.ICG(2.0, ("w4",))), "tokenizer"),
    "a suffix without a tokenizer": ("suffix", lambda: generate(lg.SuffixCFG(2.0)), "tokenizer"),
    "a suffix outside the vocabulary": ("suffix", lambda: generate(lg.SuffixCFG(2.0, (VOCAB,))), f"got {VOCAB}"),
    "a suffix without a token": (
        "suffix",
        lambda: generate(lg.SuffixCFG(2.0, " "), tokenizer=words()),
        "at least one token",
    ),
    "a layer there is not": ("layers", lambda: generate(lg.DoLa((1, 4))), "got 4"),
    "a layer below 0": ("layers", lambda: generate(lg.DoLa((-1,))), "got -1"),
    "blocks of T5": ("S2-Guidance", lambda: generate(lg.S2Guidance(2.0), family="t5"), "T5"),
    "blocks of a model of one": ("fraction", lambda: shallow().generate(PROMPT, max_new_tokens=2), "1 block"),
    "embeddings without ids": (
        "inputs_embeds",
        lambda: generate(ids=None, inputs_embeds=torch.zeros(1, 4, 32)),
        "negative_prompt_ids",
    ),
}


def without_bos() -> GuidedModel:
    model = made("llama", bos_token_id=None)
    model.generation_config.bos_token_id = None
    return lg.guide(model, lg.CFG(2.0, lg.EmptyPrompt()))


def shallow() -> GuidedModel:
    return lg.guide(made("llama", num_hidden_layers=1), lg.S2Guidance(2.0))


@pytest.mark.parametrize("case", CONTEXTS)
def test_a_context_that_cannot_be_made(case: str) -> None:
    argument, call, said = CONTEXTS[case]
    with refused(argument, said):
        call()


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_negative_prompt_too_long_for_the_positions_of_the_model(family: str) -> None:
    """These models have 128 learned positions; a crash in their embedding names no argument."""
    with refused("negative_prompt_ids", "128"):
        generate(family=family, negative_prompt_ids=torch.tensor([tokens(127, 1)]), max_new_tokens=4)


def test_an_answer_of_a_refused_call_leaves_the_view_usable() -> None:
    guided = lg.guide(tiny("llama"), lg.CFG(2.0))
    arguments: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    before = guided.generate(PROMPT, **arguments)
    with refused("negative_prompt_ids"):
        guided.generate(PROMPT, negative_prompt_ids=torch.tensor([[VOCAB]]), **arguments)
    assert torch.equal(torch.as_tensor(guided.generate(PROMPT, **arguments)), torch.as_tensor(before))


def test_a_prompt_attention_mask_that_masks_a_whole_row() -> None:
    ids, mask = padded([tokens(4, 1), tokens(4, 2)])
    mask[1] = 0
    with refused("attention_mask"):
        generate(ids=ids, attention_mask=mask)
