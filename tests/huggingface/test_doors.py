"""The other ways in: `custom_generate`, PEFT models, and the models that are refused at the door."""

from __future__ import annotations

import functools
from typing import Any, cast

import pytest
import torch
import transformers as tf

import lmguide as lg
from tests.families import ENCODER_DECODERS, FAMILIES, VOCAB, made, padded, text, tiny, tokens, words
from tests.huggingface.methods import METHODS, Setting
from tests.huggingface.reference import First, next_token
from tests.refusals import refused

SETTING = Setting("llama", [tokens(9, 1), tokens(6, 2)], [tokens(4, 3), tokens(12, 4)])
IDS, MASK = padded(SETTING.prompts)
ARGUMENTS: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 8, "do_sample": False}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3},
    "returned sequences": {"num_return_sequences": 2, "do_sample": True},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "penalty": {"repetition_penalty": 1.4},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["cfg", "selective", "suffix, selective", "dola", "two methods"])
def test_custom_generate_gives_what_a_view_gives(method: str, mode: str) -> None:
    model = tiny("llama")
    door = lg.decoding(METHODS[method][0](SETTING), tokenizer=words())
    torch.manual_seed(0)
    found = model.generate(IDS, custom_generate=door, **ARGUMENTS | MODES[mode])
    torch.manual_seed(0)
    expected = First(model, SETTING.law(method)).generate(
        IDS, **ARGUMENTS | {key: value for key, value in MODES[mode].items() if key != "cache_implementation"}
    )
    assert torch.as_tensor(found).tolist() == expected.tolist()
    assert (door.stats.steps, door.stats.fired > 0) == (8, True)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_custom_generate_of_an_encoder_decoder(family: str) -> None:
    model, setting = tiny(family), Setting(family, SETTING.prompts, SETTING.negatives)
    ids, mask = padded(setting.prompts, right=True)
    arguments = ARGUMENTS | {"attention_mask": mask}
    found = model.generate(ids, custom_generate=lg.decoding(METHODS["cfg"][0](setting)), **arguments)
    assert torch.as_tensor(found).tolist() == First(model, setting.law("cfg")).generate(ids, **arguments).tolist()


def test_custom_generate_takes_a_negative_prompt() -> None:
    model, setting = tiny("llama"), Setting("llama", SETTING.prompts, [tokens(5, 8)])
    door = lg.decoding(lg.CFG(3.0), tokenizer=words())
    found = model.generate(IDS, custom_generate=door, negative_prompt=text(setting.negatives[0]), **ARGUMENTS)
    assert torch.as_tensor(found).tolist() == First(model, setting.law("cfg")).generate(IDS, **ARGUMENTS).tolist()


def test_custom_generate_refuses_a_second_guidance_and_assistants() -> None:
    model = tiny("llama")
    with refused("guidance_scale", "second"):
        model.generate(IDS, custom_generate=lg.decoding(lg.CFG(3.0)), guidance_scale=2.0, **ARGUMENTS)


def test_custom_generate_that_is_off_is_the_model() -> None:
    model = tiny("llama")
    found = model.generate(IDS, custom_generate=lg.decoding(lg.CFG(1.0)), **ARGUMENTS)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(model.generate(IDS, **ARGUMENTS)))


def adapted() -> tuple[Any, Any]:
    """A LoRA model around a tiny Llama, its adapter not zero; and a plain model with the same weights merged."""
    import peft

    def build() -> Any:
        config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(made("llama"), config)
        generator = torch.Generator().manual_seed(0)
        for name, weight in wrapped.named_parameters():
            if "lora" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * 0.3
        return wrapped.eval()

    return build(), build().merge_and_unload()


@pytest.mark.parametrize("mode", ["greedy", "beams", "static cache"])
@pytest.mark.parametrize("method", ["cfg", "selective", "suffix"])
def test_a_lora_model(method: str, mode: str) -> None:
    wrapped, merged = adapted()
    assert wrapped.generate(IDS, **ARGUMENTS).tolist() == merged.generate(IDS, **ARGUMENTS).tolist()
    assert (
        merged.generate(IDS, **ARGUMENTS).tolist() != torch.as_tensor(tiny("llama").generate(IDS, **ARGUMENTS)).tolist()
    )
    guided: Any = lg.guide(wrapped, METHODS[method][0](SETTING))
    arguments = ARGUMENTS | {key: value for key, value in MODES[mode].items() if key == "num_beams"}
    assert (
        guided.generate(IDS, **ARGUMENTS | MODES[mode]).tolist()
        == First(merged, SETTING.law(method, merged)).generate(IDS, **arguments).tolist()
    )


def test_a_lora_model_with_its_adapter_off() -> None:
    wrapped, _ = adapted()
    guided: Any = lg.guide(wrapped, METHODS["cfg"][0](SETTING))
    with wrapped.disable_adapter():
        found = guided.generate(IDS, **ARGUMENTS)
    assert found.tolist() == First(tiny("llama"), SETTING.law("cfg")).generate(IDS, **ARGUMENTS).tolist()


def test_the_base_model_as_the_weak_one_of_its_own_adaptation() -> None:
    """Domain guidance: the model before fine-tuning is the other source."""
    wrapped, merged = adapted()
    guided: Any = lg.guide(wrapped, lg.AutoGuidance(tiny("llama"), 2.0))

    def law(row: int, answer: list[int]) -> Any:
        strong, weak = (next_token(model, SETTING.prompts[row], answer) for model in (merged, tiny("llama")))
        return weak + 2.0 * (strong - weak)

    assert guided.generate(IDS, **ARGUMENTS).tolist() == First(merged, law).generate(IDS, **ARGUMENTS).tolist()


# Models that are refused, each by a word its message must hold.
class OwnGenerate(tf.LlamaForCausalLM):
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the view called it")


class DiffusionModel(OwnGenerate):
    pass


def recast(cls: type) -> Any:
    model = made("llama")
    model.__class__ = cls
    return model


def test_a_model_with_a_generate_of_its_own() -> None:
    with refused("model", "OwnGenerate", "processor"):
        lg.guide(recast(OwnGenerate), lg.CFG(2.0))
    with refused("model", "DiffusionModel", "lmguide.diffusion"):
        lg.guide(recast(DiffusionModel), lg.CFG(2.0))


@pytest.mark.parametrize("seam", ["generate", "_sample", "_prefill", "prepare_inputs_for_generation"])
def test_a_seam_that_was_patched_on_the_model_itself(seam: str) -> None:
    """The view would carry the patch along and run past itself: guided all the same, or refused, never unguided."""
    model: Any = made("llama")
    own = getattr(model, seam)
    setattr(model, seam, functools.wraps(own)(lambda *args, **kwargs: own(*args, **kwargs)))
    try:
        guided: Any = lg.guide(model, METHODS["cfg"][0](SETTING))
    except ValueError as error:
        assert seam in str(error)
    else:
        expected = First(tiny("llama"), SETTING.law("cfg")).generate(IDS, **ARGUMENTS)
        assert guided.generate(IDS, **ARGUMENTS).tolist() == expected.tolist()


def test_a_forward_that_was_patched_on_the_model_itself() -> None:
    """As accelerate does it."""
    model: Any = made("llama")
    own, calls = model.forward, []

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    model.forward = forward
    guided: Any = lg.guide(model, METHODS["cfg"][0](SETTING))
    expected = First(tiny("llama"), SETTING.law("cfg")).generate(IDS, **ARGUMENTS)
    assert guided.generate(IDS, **ARGUMENTS).tolist() == expected.tolist()
    assert len(calls) == guided.stats.forwards


def test_a_view() -> None:
    with refused("model", "already guided"):
        lg.guide(cast("Any", lg.guide(tiny("llama"), lg.CFG(2.0))), lg.CFG(2.0))


@pytest.mark.parametrize("given", [None, "gpt2", torch.nn.Linear(2, 2), tf.LlamaModel(tiny("llama").config)])
def test_what_is_no_model_with_generate(given: Any) -> None:
    with refused("model", type(given).__name__, error=TypeError):
        lg.guide(given, lg.CFG(2.0))


def test_a_model_with_multimodal_rotary_positions() -> None:
    config = tf.Qwen2VLConfig(
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1},
    )
    with refused("model", "M-RoPE"):
        lg.guide(tf.Qwen2VLForConditionalGeneration(config), lg.CFG(2.0))


def test_a_model_tuned_by_prompts() -> None:
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    wrapped: Any = peft.get_peft_model(made("llama"), config)
    with refused("model", "prompt learning"):
        lg.guide(wrapped, lg.CFG(2.0))


@pytest.mark.parametrize("given", [None, "cfg", 1.5, lg.CFG, {"name": "cfg"}, iter([lg.CFG(2.0)])])
def test_what_is_no_guidance(given: Any) -> None:
    with refused("guidance", "expected", error=TypeError):
        lg.guide(tiny("llama"), given)


def test_no_guidance_or_something_else_among_it() -> None:
    with refused("guidance", "empty"):
        lg.guide(tiny("llama"), [])
    with refused("guidance", "str", error=TypeError):
        lg.guide(tiny("llama"), [lg.CFG(2.0), "cfg"])  # type: ignore[list-item]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_view_is_of_the_models_class(family: str) -> None:
    guided: Any = lg.guide(tiny(family), lg.CFG(2.0))
    assert isinstance(guided, type(tiny(family)))
    assert guided.config is tiny(family).config
    assert guided.device == tiny(family).device
    assert list(guided.parameters())[0] is list(tiny(family).parameters())[0]
