"""Which family a configuration belongs to, and which descriptions do not hold together."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import transformers as tf

from lmguide.denoisers import FAMILIES, Family, family_of
from tests.denoisers.models import MODELS, model_of


# What is published: the configuration's model_type, architectures and auto_map, and the family with its mask token.
@pytest.mark.parametrize(
    ("config", "name", "mask"),
    [
        ({"model_type": "llada", "architectures": ["LLaDAModelLM"]}, "llada", 126336),
        ({"auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}}, "llada", 126336),
        ({"model_type": "llada", "_name_or_path": "GSAI-ML/iLLaDA-8B-Instruct"}, "illada", 5),
        ({"architectures": ["LLaDAMoEModelLM"]}, "llada_moe", 156895),
        ({"model_type": "llada2_moe", "_name_or_path": "inclusionAI/LLaDA2.0-mini"}, "llada2", 156895),
        ({"model_type": "llada2_moe", "_name_or_path": "inclusionAI/LLaDA2.1-mini"}, "llada2.1", 156895),
        ({"model_type": "Dream", "auto_map": {"AutoModel": "modeling_dream.DreamModel"}}, "dream", 151666),
        ({"model_type": "sdar"}, "sdar", 151669),
        ({"model_type": "other", "architectures": ["SDARMoeForCausalLM"]}, "sdar", 151669),
        ({"model_type": "Fast_dLLM_Qwen"}, "fast_dllm_v2", 151665),
        ({"model_type": "mdlm", "auto_map": {"AutoModelForMaskedLM": "modeling_mdlm.MDLM"}}, "mdlm", 50257),
        ({"model_type": "udlm"}, "udlm", None),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "masked_lm", None),
        ({"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"]}, "bidirectional", None),
        ({"model_type": "diffusion_gemma"}, "diffusion_gemma", None),
    ],
)
def test_a_configuration_is_recognised(config: dict[str, Any], name: str, mask: int | None) -> None:
    found = family_of(SimpleNamespace(**config))
    assert (found.name, found.mask_token_id) == (name, mask)


def test_a_model_in_memory_is_recognised_by_its_class() -> None:
    # Its configuration has no architectures before it is saved.
    model = model_of("modernbert")
    assert not model.config.architectures
    assert family_of(model).name == "masked_lm"


@pytest.mark.parametrize("name", ["llada", "dream", "sdar", "llada2", "fast_dllm_v2", "mdlm", "udlm"])
def test_the_small_models_are_recognised(name: str) -> None:
    assert family_of(model_of(name)).name == name


def test_an_autoregressive_model_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"family: expected a diffusion language model, got model_type 'llama'.*Give f"
    ):
        family_of(tf.LlamaConfig(architectures=["LlamaForCausalLM"]))


@pytest.mark.parametrize(
    ("model_type", "field", "length"),
    [("sdar", "block_size", 16), ("Fast_dLLM_Qwen", "bd_size", 8), ("llada2_moe", "nothing", 32)],
)
def test_the_configuration_says_how_long_a_block_is(model_type: str, field: str, length: int) -> None:
    assert family_of(SimpleNamespace(model_type=model_type, **{field: length})).block_length == length


def test_full_attention_takes_no_block_length_from_a_configuration() -> None:
    # GPT-like configurations call the context length block_size.
    assert family_of(SimpleNamespace(model_type="llada", block_size=1024)).block_length is None


def test_names_and_descriptions_agree() -> None:
    assert all(name == each.name for name, each in FAMILIES.items())
    types = [each for family in FAMILIES.values() for each in family.model_types]
    assert len(types) == len(set(types)), "a model_type belongs to one family"


def test_only_some_shift_and_seed() -> None:
    assert {name for name, each in FAMILIES.items() if each.shift} == {"dream", "fast_dllm_v2"}
    assert {name for name, each in FAMILIES.items() if each.seeds_block} == {"fast_dllm_v2"}
    assert {name for name, each in FAMILIES.items() if each.substitution} == {"mdlm"}
    assert {name for name, each in FAMILIES.items() if each.editable} == {"llada2.1", "diffusion_gemma"}


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"noise": "masks"}, ValueError, r"noise: expected one of 'mask', 'uniform', got 'masks'. Did you mean 'mask'"),
        ({"attention": "causal"}, ValueError, "attention: expected one of"),
        ({"padding": "left"}, ValueError, "padding: expected one of"),
        ({"runner": "x"}, ValueError, "runner: expected one of"),
        ({"attention": "block_causal"}, ValueError, "block_length: expected the columns of a block, got None"),
        ({"attention": "block_causal", "block_length": 0}, ValueError, "block_length: expected a whole number"),
        ({"block_length": 4}, ValueError, "block_length: expected None with full attention, got 4"),
        ({"noise": "uniform", "mask_token_id": 3}, ValueError, "mask_token_id: expected None with uniform noise"),
        ({"noise": "uniform", "substitution": True}, ValueError, "substitution: expected False with uniform noise"),
        ({"mask_token_id": -1}, ValueError, "mask_token_id: expected a whole number of at least 0"),
        ({"mask_token_id": True}, TypeError, "mask_token_id: expected a whole number"),
    ],
)
def test_what_does_not_hold_together_is_refused(fields: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Family("mine", **fields)


def test_a_family_is_changed_by_replacing() -> None:
    shifted = dataclasses.replace(FAMILIES["bidirectional"], shift=True)
    assert shifted.shift and not FAMILIES["bidirectional"].shift


def test_every_family_that_can_be_run_has_a_small_model() -> None:
    same_code = {"illada": "llada", "llada_moe": "llada", "llada2.1": "llada2"}
    names = {name for name, family in FAMILIES.items() if family.runner == "canvas"}
    assert {same_code.get(name, name) for name in names} <= set(MODELS)
