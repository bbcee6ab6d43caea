"""Buffers are found out and given back: on models of transformers nothing is changed, on spoilt ones everything is."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
import transformers as tf
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lmguide.denoisers import blueprints, remote_code
from lmguide.denoisers.blueprints import blueprint
from lmguide.denoisers.loading import load
from lmguide.denoisers.repairs import check_rotary, repair
from tests.denoisers.checkpoints import logits, own_modules, poison, save, sound
from tests.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path

_SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
_YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 100.0, "original_max_position_embeddings": 32}
_LOCAL = {"rope_type": "default", "rope_theta": 100.0}
NATIVE: dict[str, tuple[type, type, dict[str, Any]]] = {
    "bert": (tf.BertConfig, tf.BertForMaskedLM, {}),
    "modernbert": (tf.ModernBertConfig, tf.ModernBertForMaskedLM, {"pad_token_id": 0, "cls_token_id": 1}),
    "llama": (tf.LlamaConfig, tf.LlamaForCausalLM, {}),
    "llama, dynamic": (tf.LlamaConfig, tf.LlamaForCausalLM, {"rope_parameters": _DYNAMIC}),
    "llama, yarn": (tf.LlamaConfig, tf.LlamaForCausalLM, {"rope_parameters": _YARN}),
    "qwen3": (tf.Qwen3Config, tf.Qwen3ForCausalLM, {"head_dim": 8}),
    "gemma3": (tf.Gemma3TextConfig, tf.Gemma3ForCausalLM, {"head_dim": 8}),
    "gpt2": (tf.GPT2Config, tf.GPT2LMHeadModel, {}),
}


def native(name: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    config, model, arguments = NATIVE[name]
    torch.manual_seed(0)
    made: Any = model(config(**_SMALL, **arguments))
    return made.eval().to(dtype) if dtype == torch.float32 else _cast(made, dtype)


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """The weights alone, as `from_pretrained` casts."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def rotary(model: Any) -> Any:
    return model.model.rotary_emb


@pytest.mark.parametrize("name", NATIVE)
def test_models_of_transformers_are_sound(name: str, tmp_path: Path) -> None:
    check_rotary(native(name))
    assert repair(native(name)) == []
    for dtype in (torch.float32, torch.bfloat16):
        native(name).save_pretrained(tmp_path)
        loaded = NATIVE[name][1].from_pretrained(tmp_path, dtype=dtype)  # type: ignore[attr-defined]
        check_rotary(loaded)
        assert repair(loaded) == []


@pytest.mark.parametrize("name", [name for name in NATIVE if name not in ("bert", "gpt2")])
def test_every_spoilt_buffer_is_given_back(name: str) -> None:
    model, wanted = native(name), dict(native(name).named_buffers())
    names = [key for key, buffer in model.named_buffers() if buffer.is_floating_point()]
    assert names
    for key in names:
        model.get_buffer(key).fill_(0.5)
        if "rotary" in key:
            with refused("model", r"0\.5"):
                check_rotary(model)
        places = model.get_buffer(key).data_ptr()
        done = repair(model)
        assert [each.partition(":")[0] for each in done] == [key]
        assert torch.equal(model.get_buffer(key), wanted[key])
        assert model.get_buffer(key).data_ptr() == places
    check_rotary(model)


def test_frequencies_are_put_back_into_float32() -> None:
    model = native().to(torch.bfloat16)
    assert rotary(model).inv_freq.dtype == torch.bfloat16
    with refused("model", r"model\.rotary_emb\.inv_freq was torch\.bfloat16"):
        check_rotary(model)
    assert len(repair(model)) == 2
    assert torch.equal(rotary(model).inv_freq, rotary(native()).inv_freq)
    assert model.dtype == torch.bfloat16
    check_rotary(model)


def test_nan_is_found() -> None:
    model = native()
    rotary(model).inv_freq[1] = torch.nan
    with refused("model", "nan"):
        check_rotary(model)


def test_rounding_of_another_device_passes_the_check() -> None:
    model = native()
    rotary(model).inv_freq.mul_(1 + 1e-6)
    check_rotary(model)
    rotary(model).inv_freq.mul_(1 + 1e-3)
    with refused("model", "rotary_emb"):
        check_rotary(model)


def test_frequencies_that_grew_with_the_text_pass_the_check() -> None:
    model = native("llama, dynamic")
    before = rotary(model).inv_freq.clone()
    with torch.no_grad():
        model(torch.ones(1, 80, dtype=torch.int64))
    assert not torch.equal(rotary(model).inv_freq, before)
    check_rotary(model)
    assert repair(model) == []
    rotary(model).inv_freq.fill_(7.0)
    with refused("model", "falling"):
        check_rotary(model)


def test_tables_that_grew_with_the_text_pass_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with own_modules(tmp_path / "modules", monkeypatch):
        model = load(
            save(sound(), tmp_path / "model", "rotary_cache"), trust_remote_code=True, mask_token_id=31, tokenizer=False
        ).model
        with torch.no_grad():
            model(torch.ones(1, 80, dtype=torch.int64))
        tables = rotary(model).kept
        assert tables["rope_pos_sin"].shape[0] == 80
        check_rotary(model)
        tables["rope_pos_sin"][40] = 0.0
        with refused("model", r"rotary_emb\.kept\[rope_pos_sin\]"):
            check_rotary(model)
        assert len(repair(model)) == 1


@pytest.mark.parametrize("fault", ["rotary_buffer", "rotary_tables"])
def test_repair_mends_what_plain_loading_spoils(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    with own_modules(tmp_path / "modules", monkeypatch):
        folder = save(sound(), tmp_path / "model", fault)
        model = tf.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
        with refused("model", "rotary_emb", "lmguide.diffusion.load"):
            check_rotary(model)
        assert len(repair(model)) == 2
        assert repair(model) == []
        check_rotary(model)
        assert torch.equal(logits(model), logits(sound()))


class Odd(tf.LlamaForCausalLM):
    """A model that its configuration alone does not make."""

    def __init__(self, config: tf.LlamaConfig, more: int) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        if more:
            self.register_buffer("more", torch.ones(more), persistent=False)


def _odd(more: int) -> Any:
    model: Any = Odd(tf.LlamaConfig(**_SMALL), more)
    return model.eval()


def test_frequencies_follow_from_the_module_where_the_model_cannot_be_built() -> None:
    model = _odd(0)
    assert repair(model) == []
    rotary(model).inv_freq.fill_(0.5)
    assert len(repair(model)) == 1
    assert torch.equal(rotary(model).inv_freq, rotary(native()).inv_freq)


def test_a_buffer_that_nothing_gives_is_refused_and_nothing_changed() -> None:
    model = _odd(3)
    rotary(model).inv_freq.fill_(0.5)
    with refused("model", r"more cannot be computed again", "Odd", "missing 1 required positional argument: 'more'"):
        repair(model)
    assert rotary(model).inv_freq.tolist() == [0.5] * 4


def test_persistent_frequencies_are_recomputed_only_if_they_were_cast() -> None:
    model = native()
    rotary(model).register_buffer("inv_freq", rotary(model).inv_freq)
    own = rotary(model).inv_freq * 2
    rotary(model).inv_freq = own.clone()
    assert repair(model) == []
    rotary(model).inv_freq = own.to(torch.bfloat16)
    assert repair(model) == []
    rotary(model).inv_freq = rotary(native()).inv_freq.to(torch.bfloat16)
    assert len(repair(model)) == 1
    assert torch.equal(rotary(model).inv_freq, rotary(native()).inv_freq)


def test_a_model_inside_another_module_is_repaired() -> None:
    model = peft.get_peft_model(native(), peft.LoraConfig(target_modules=["q_proj"], r=2))
    inner = model.get_base_model()
    rotary(inner).inv_freq.fill_(0.5)
    assert [each.partition(":")[0] for each in repair(model)] == ["base_model.model.model.rotary_emb.inv_freq"]
    assert torch.equal(rotary(inner).inv_freq, rotary(native()).inv_freq)


def test_offloaded_buffers_are_refused() -> None:
    model = native()
    hook: Any = type("Hook", (), {"offload_buffers": True})()
    rotary(model)._hf_hook = hook
    with refused("model", r"model\.rotary_emb are offloaded"):
        repair(model)


@pytest.mark.parametrize("check", [repair, check_rotary])
def test_no_module(check: Any) -> None:
    with refused("model", "str", error=TypeError):
        check("llama")


def test_a_blueprint_has_no_weights_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = native(), blueprints._built
    built: list[nn.Module] = []

    def kept(*arguments: Any) -> nn.Module:
        built.append(made(*arguments))
        return built[-1]

    monkeypatch.setattr(blueprints, "_built", kept)
    state, register = torch.get_rng_state(), nn.Module.register_parameter
    values = blueprint(model, torch.bfloat16)
    assert all(parameter.is_meta for each in built for parameter in each.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert nn.Module.register_parameter is register
    assert {*values} == {"model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"}


def test_another_thread_keeps_its_weights_meanwhile() -> None:
    made: list[nn.Module] = []
    with blueprints._weightless():
        thread = threading.Thread(target=lambda: made.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        made.append(nn.Linear(2, 2))
    assert [each.get_parameter("weight").is_meta for each in made] == [False, True]


@pytest.mark.parametrize(
    ("config", "base", "dim"),
    [
        ({"rope_theta": 50.0}, 50.0, 8),
        ({"rope_theta": 50.0, "head_dim": 12}, 50.0, 12),
        ({"rope_theta": 50.0, "head_dim": 12, "partial_rotary_factor": 0.5}, 50.0, 6),
        ({"rope_parameters": {"rope_theta": 70.0}}, 70.0, 8),
        (None, 30.0, 4),
    ],
)
def test_default_rope(config: dict[str, Any] | None, base: float, dim: int) -> None:
    if config is None:
        found, factor = remote_code.default_rope(None, None, base=base, dim=dim, rope_type="default", factor=1.0)
    else:
        given = type("Config", (), {"hidden_size": 16, "num_attention_heads": 2, **config})()
        found, factor = remote_code.default_rope(given, torch.device("cpu"), seq_len=5)
    assert factor == 1.0
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([base ** (-2 * i / dim) for i in range(dim // 2)], rel=1e-6)


def test_types_of_rope_that_others_add_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "mine", sum)
    assert remote_code._ROPE["mine"] is sum
    assert remote_code._ROPE.get("default") is remote_code.default_rope
    assert "default" not in ROPE_INIT_FUNCTIONS


def test_theta_of_attribute_and_entry_become_one() -> None:
    config = tf.PreTrainedConfig()
    config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    config.rope_theta = 100.0
    remote_code.mend_config(config)
    assert config.rope_parameters["rope_theta"] == 100.0
    del config.rope_theta
    config.rope_parameters["rope_theta"] = 70.0
    remote_code.mend_config(config)
    assert config.rope_theta == 70.0
    assert config.use_cache is False


def test_lost_names_are_there_inside_the_block_alone() -> None:
    import transformers.utils.import_utils as place

    with pytest.raises(KeyboardInterrupt), remote_code.lost_names():
        assert place.is_torch_fx_available() is False  # type: ignore[attr-defined]
        from transformers.utils import LossKwargs  # type: ignore[attr-defined]

        assert LossKwargs is tf.utils.generic.TransformersKwargs
        with remote_code.lost_names():
            pass
        assert hasattr(place, "is_torch_fx_available")
        raise KeyboardInterrupt
    assert not hasattr(place, "is_torch_fx_available")
