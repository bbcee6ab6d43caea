"""A call that goes on from a cache answers as the one without a cache, and leaves a cache of the conditional alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

import lmguide as lg
from tests.families import made, padded, tiny, tokens, words
from tests.huggingface.methods import METHODS, Setting
from tests.huggingface.reference import First
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

TURN = 5
PROMPTS = [tokens(9, 1), tokens(6, 2)]
NEGATIVES = [tokens(4, 3), tokens(12, 4)]
IDS, MASK = padded(PROMPTS)
ARGUMENTS: dict[str, Any] = {"max_new_tokens": TURN, "do_sample": False}
FAMILIES = ("llama", "gpt2", "mistral_sliding", "gemma3", "qwen3_next")
"""Families whose caches or positions differ; the others take the same path. Mamba is not continued by transformers."""


def view(family: str, method: str) -> Any:
    return lg.guide(tiny(family), METHODS[method][0](Setting(family, PROMPTS, NEGATIVES)), tokenizer=words())


def next_turn(ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The ids of a next turn, with three tokens of the user behind the last answer, and their mask."""
    ids = torch.cat([ids, torch.tensor([tokens(3, seed), tokens(3, seed + 1)])], 1)
    return ids, torch.cat([MASK, torch.ones(2, ids.shape[1] - MASK.shape[1], dtype=torch.long)], 1)


def reference(family: str, method: str, ids: Tensor) -> list[list[int]]:
    """The reference's answers to a turn: everything that came before is the prompt."""
    prompts = [[*prompt, *row[IDS.shape[1] :]] for prompt, row in zip(PROMPTS, ids.tolist(), strict=True)]
    setting = Setting(family, prompts, NEGATIVES)
    setting.__dict__["threshold"] = Setting(family, PROMPTS, NEGATIVES).threshold
    answers: list[list[int]] = First(tiny(family), setting.law(method)).generate(ids, **ARGUMENTS)[:, -TURN:].tolist()
    return answers


@pytest.mark.parametrize("only_new", [False, True], ids=["all ids", "new ids"])
@pytest.mark.parametrize("method", ["cfg", "selective", "suffix, selective"])
@pytest.mark.parametrize("family", FAMILIES)
def test_turns_from_the_cache_that_guided_calls_return(family: str, method: str, only_new: bool) -> None:
    guided = view(family, method)
    output = guided.generate(IDS, attention_mask=MASK, return_dict_in_generate=True, **ARGUMENTS)
    for turn in (7, 17):
        cache = output.past_key_values
        ids, mask = next_turn(output.sequences, turn)
        fresh = ids[:, cache.get_seq_length() :] if only_new else ids
        output = guided.generate(
            fresh, attention_mask=mask, past_key_values=cache, return_dict_in_generate=True, **ARGUMENTS
        )
        assert output.sequences[:, -TURN:].tolist() == reference(family, method, ids)
        output.sequences = torch.cat([ids, output.sequences[:, -TURN:]], 1)


def held(cache: Any) -> list[dict[str, Any]]:
    """What a cache holds, layer by layer: keys, values and states, and the lengths that say what they stand for."""
    length = cache.get_seq_length()
    layers = []
    for layer in cache.layers:
        state: dict[str, Any] = {"length": length}
        if getattr(layer, "keys", None) is not None:
            seen = slice(None) if isinstance(layer, DynamicLayer) else slice(length)
            state |= {"keys": layer.keys[:, :, seen], "values": layer.values[:, :, seen]}
        for name in ("conv_states", "recurrent_states"):
            state |= {f"{name} {key}": value for key, value in getattr(layer, name, {}).items()}
        layers.append(state)
    return layers


MAKERS: dict[str, Callable[[str], Any]] = {
    "dynamic": lambda family: DynamicCache(config=tiny(family).config),
    "dynamic, of full layers": lambda family: DynamicCache(),
    "static": lambda family: StaticCache(config=tiny(family).config, max_cache_len=32),
}


# Not served: Qwen3-Next on such caches, by transformers; suffixes on a static one, which is refused below.
KEPT = [
    (family, method, kind)
    for family in FAMILIES
    for method in ("cfg", "selective", "suffix, selective", "dola", "dexperts")
    for kind in MAKERS
    if (family, kind) not in {("qwen3_next", "static"), ("qwen3_next", "dynamic, of full layers")}
    and (method, kind) != ("suffix, selective", "static")
]


@pytest.mark.parametrize(("family", "method", "kind"), KEPT)
def test_a_cache_of_the_user_holds_what_the_conditional_alone_would_leave(family: str, method: str, kind: str) -> None:
    setting = Setting(family, PROMPTS, NEGATIVES)
    mine, plain = MAKERS[kind](family), MAKERS[kind](family)
    found = view(family, method).generate(IDS, attention_mask=MASK, past_key_values=mine, **ARGUMENTS)
    model = First(tiny(family), setting.law(method))
    expected = model.generate(IDS, attention_mask=MASK, past_key_values=plain, **ARGUMENTS)
    assert found.tolist() == expected.tolist()
    for own, other in zip(held(mine), held(plain), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_return_the_cache_of_the_conditional(family: str) -> None:
    arguments = ARGUMENTS | {"num_beams": 3, "return_dict_in_generate": True, "attention_mask": MASK}
    setting = Setting(family, PROMPTS, NEGATIVES)
    mine = view(family, "cfg").generate(IDS, **arguments)
    plain = First(tiny(family), setting.law("cfg")).generate(IDS, **arguments)
    assert mine.sequences.tolist() == plain.sequences.tolist()
    for own, other in zip(held(mine.past_key_values), held(plain.past_key_values), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompt_lookup_returns_the_cache_of_the_conditional(family: str) -> None:
    prompt = PROMPTS[0] * 2
    setting = Setting(family, [prompt], NEGATIVES[:1])
    arguments = ARGUMENTS | {"return_dict_in_generate": True}
    guided = lg.guide(tiny(family), METHODS["cfg"][0](setting))
    mine: Any = guided.generate(torch.tensor([prompt]), prompt_lookup_num_tokens=3, **arguments)
    plain = First(tiny(family), setting.law("cfg")).generate(
        torch.tensor([prompt]), prompt_lookup_num_tokens=3, **arguments
    )
    assert mine.sequences.tolist() == plain.sequences.tolist()
    for own, other in zip(held(mine.past_key_values), held(plain.past_key_values), strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def test_a_prefix_cached_by_the_model_itself() -> None:
    """Prompt caching: the model has run the beginning of the prompts, the guided call gets the whole of them."""
    model, setting = tiny("llama"), Setting("llama", [tokens(9, 1)], NEGATIVES[:1])
    ids = torch.tensor(setting.prompts)
    for method in ("cfg", "selective", "tpg", "dexperts"):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :6], past_key_values=cache)
        guided: Any = lg.guide(model, METHODS[method][0](setting))
        found = guided.generate(ids, past_key_values=cache, **ARGUMENTS)
        assert found.tolist() == First(model, setting.law(method)).generate(ids, **ARGUMENTS).tolist(), method


def test_a_source_that_needs_the_whole_prompt() -> None:
    """Given only the new ids, a source made from the prompt would be made from its end."""
    guided = view("llama", "cfg")
    first = guided.generate(IDS, attention_mask=MASK, return_dict_in_generate=True, **ARGUMENTS)
    ids, mask = next_turn(first.sequences, 7)
    for method in ("dexperts", "tpg", "icg", "s2", "cad", "preadd"):
        arguments = {"attention_mask": mask, "past_key_values": first.past_key_values}
        with refused("past_key_values", "whole prompt"):
            view("llama", method).generate(ids[:, first.past_key_values.get_seq_length() :], **arguments, **ARGUMENTS)


def test_a_suffix_on_a_static_cache_of_the_user() -> None:
    with refused("past_key_values", "suffix", "static"):
        view("llama", "suffix").generate(IDS, past_key_values=MAKERS["static"]("llama"), **ARGUMENTS)


@pytest.mark.parametrize("method", ["cfg", "selective", "suffix", "dola", "cfg, no prompt"])
@pytest.mark.parametrize("with_ids", [False, True])
def test_embeddings_in_the_place_of_ids(method: str, with_ids: bool) -> None:
    setting = Setting("llama", PROMPTS, NEGATIVES)
    expected = First(tiny("llama"), setting.law(method)).generate(IDS, attention_mask=MASK, **ARGUMENTS)
    embeddings = tiny("llama").get_input_embeddings()(IDS)
    ids = [IDS] if with_ids else []
    found = view("llama", method).generate(*ids, inputs_embeds=embeddings, attention_mask=MASK, **ARGUMENTS)
    assert found[:, -TURN:].tolist() == expected[:, -TURN:].tolist()
    assert found.shape[1] == TURN + IDS.shape[1] * with_ids


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_from_a_decoder_prompt_and_from_encoder_outputs(family: str) -> None:
    """The answer goes on from tokens of the decoder, which every source shares."""
    model, setting = tiny(family), Setting(family, PROMPTS, NEGATIVES)
    ids, mask = padded(PROMPTS, right=True)
    begin = torch.tensor([[model.generation_config.decoder_start_token_id, 33, 44]] * 2)
    guided: Any = lg.guide(model, METHODS["cfg"][0](setting))
    arguments = ARGUMENTS | {"attention_mask": mask, "decoder_input_ids": begin}
    expected = First(model, setting.law("cfg")).generate(ids, **arguments)
    assert guided.generate(ids, **arguments).tolist() == expected.tolist()
    encoded = model.get_encoder()(ids, attention_mask=mask)
    assert guided.generate(encoder_outputs=encoded, **arguments).tolist() == expected.tolist()


def test_a_model_that_keeps_no_cache_by_its_configuration() -> None:
    model = made("llama", use_cache=False)
    model.generation_config.use_cache = False
    setting = Setting("llama", PROMPTS, NEGATIVES)
    guided: Any = lg.guide(model, METHODS["cfg"][0](setting))
    expected = First(tiny("llama"), setting.law("cfg")).generate(IDS, attention_mask=MASK, **ARGUMENTS)
    assert guided.generate(IDS, attention_mask=MASK, **ARGUMENTS).tolist() == expected.tolist()


def test_a_recurrent_cache_goes_on_with_the_new_ids() -> None:
    """It does not know how many tokens it has seen; the mask does."""
    model: Any = tiny("mamba2")
    guided: Any = lg.guide(model, lg.CFG(1.7))
    cache = DynamicCache(config=model.config)
    first = guided.generate(IDS, attention_mask=MASK, cache_params=cache, **ARGUMENTS)
    ids, mask = next_turn(first, 7)
    found = guided.generate(ids[:, first.shape[1] - 1 :], attention_mask=mask, cache_params=cache, **ARGUMENTS)
    whole = guided.generate(ids, attention_mask=mask, **ARGUMENTS)
    assert found[:, -TURN:].tolist() == whole[:, -TURN:].tolist()
