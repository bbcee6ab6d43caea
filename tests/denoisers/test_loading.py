"""Loading gives the logits of the model that was saved, bit for bit, or refuses; transformers is left as it was."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf
from transformers import AutoModelForMaskedLM

from lmguide.denoisers import FAMILIES, loading
from lmguide.denoisers.loading import load
from tests.denoisers.broken_models import MASK, frequencies
from tests.denoisers.checkpoints import IDS, logits, own_modules, poison, save, sound, transformers_state
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

# What each fault does to a plain load: the error, or None where the logits come out wrong and nobody says so.
FAULTS: dict[str, type[Exception] | None] = {
    "default_rope": KeyError,
    "tied_list": AttributeError,
    "old_tie_weights": TypeError,
    "no_post_init": AttributeError,
    "config_default": AttributeError,
    "lost_import": ImportError,
    "generation_config": AttributeError,
    "rotary_buffer": None,
    "rotary_kept": None,
    "rotary_tables": None,
    "rotary_cache": RuntimeError,
    "redrawn_weights": None,
    "attribute": RuntimeError,
}
TOGETHER = tuple(sorted(FAULTS.keys() - {"rotary_kept", "rotary_tables", "rotary_cache"}))
QUICK: dict[str, Any] = {"trust_remote_code": True, "mask_token_id": MASK, "tokenizer": False}


def model_of(folder: str | Path, **arguments: Any) -> Any:
    return load(folder, **(QUICK | arguments)).model


@pytest.fixture(autouse=True)
def _contained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    poison(monkeypatch)
    with own_modules(tmp_path / "modules", monkeypatch):
        before = transformers_state()
        yield
        assert transformers_state() == before


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fault_is_real(fault: str, tmp_path: Path) -> None:
    model = sound(tied=True)
    folder, error = save(model, tmp_path / "model", fault), FAULTS[fault]
    if error is None:
        found = logits(AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True))
        assert found.isfinite().all()
        assert (found - logits(model)).abs().max() > 1
    else:
        with pytest.raises(error):
            logits(AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("faults", [(), *((fault,) for fault in FAULTS), TOGETHER], ids="+".join)
def test_load_gives_the_logits_of_the_saved_model(faults: tuple[str, ...], tied: bool, tmp_path: Path) -> None:
    model = sound(tied=tied)
    loaded = model_of(save(model, tmp_path / "model", *faults))
    assert torch.equal(logits(loaded), logits(model))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    assert not loaded.training


@pytest.mark.parametrize("faults", [("rotary_buffer",), TOGETHER], ids="+".join)
def test_a_mended_model_can_be_saved_and_loaded_by_transformers(faults: tuple[str, ...], tmp_path: Path) -> None:
    model = sound(tied=True)
    loaded = model_of(save(model, tmp_path / "model", *faults))
    loaded.tie_weights()
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(model_of(tmp_path / "again")), logits(model))


def test_a_second_load_is_like_the_first(tmp_path: Path) -> None:
    folder = save(sound(), tmp_path / "model", *TOGETHER)
    first, second = model_of(folder), model_of(folder)
    assert type(first) is type(second)
    assert torch.equal(logits(first), logits(second))
    assert first.lm_head.weight.data_ptr() != second.lm_head.weight.data_ptr()


def test_load_works_after_plain_loading_has_failed(tmp_path: Path) -> None:
    model = sound()
    folder = save(model, tmp_path / "model", *TOGETHER)
    with pytest.raises(ImportError):
        AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(logits(model_of(folder)), logits(model))


def test_loads_in_several_threads(tmp_path: Path) -> None:
    models = [sound(rope_theta=theta) for theta in (50.0, 500.0, 5000.0)]
    folders = [save(model, tmp_path / f"model{k}", *TOGETHER) for k, model in enumerate(models)]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda k=k, folder=folder: found.update({k: load(folder, **QUICK)}))
        for k, folder in enumerate(folders)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [torch.equal(logits(found[k].model), logits(model)) for k, model in enumerate(models)] == [True] * 3


@pytest.mark.parametrize("where", ["import", "read", "repair"])
def test_an_interrupted_load_leaves_nothing_behind(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(save(sound(), tmp_path / "model", *TOGETHER))
    if where == "import":
        code = folder / "modeling_broken.py"
        code.write_text(code.read_text() + "\nraise KeyboardInterrupt\n")
    with monkeypatch.context() as patch:
        if where == "read":
            patch.setattr(tf.PreTrainedModel, "_load_pretrained_model", _interrupt)
        elif where == "repair":
            patch.setattr(tf.PreTrainedModel, "post_init", _interrupt_on_cpu)
        before = transformers_state()
        with pytest.raises(KeyboardInterrupt):
            load(folder, **QUICK)
        assert transformers_state() == before


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


_POST_INIT: Any = tf.PreTrainedModel.post_init


def _interrupt_on_cpu(self: Any) -> None:
    """The blueprint is the one that is not built on the meta device."""
    if torch.empty(1).is_meta:
        _POST_INIT(self)
    else:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("scaling", "factor"),
    # Dynamic scaling begins with texts longer than the model was trained on.
    [(None, 1), ({"type": "linear", "factor": 2.0}, 0.5), ({"rope_type": "dynamic", "factor": 2.0}, 1)],
)
def test_scaled_rotary_embeddings(scaling: dict[str, Any] | None, factor: float, tmp_path: Path) -> None:
    folder = save(sound(rope_theta=50.0), tmp_path / "model", "rotary_buffer", "default_rope", rope_scaling=scaling)
    rotary = model_of(folder).model.rotary_emb
    assert torch.allclose(rotary.inv_freq, factor * 50.0 ** -(torch.arange(4) / 4), rtol=1e-6)
    assert torch.equal(rotary.original_inv_freq, rotary.inv_freq)


@pytest.mark.parametrize("faults", [("rotary_buffer",), ("rotary_buffer", "default_dtype")], ids="+".join)
def test_frequencies_stay_in_float32(faults: tuple[str, ...], tmp_path: Path) -> None:
    loaded = model_of(save(sound(), tmp_path / "model", *faults), dtype=torch.bfloat16)
    inv_freq = loaded.model.rotary_emb.inv_freq
    assert inv_freq.dtype == torch.float32
    assert torch.equal(inv_freq, frequencies(loaded.config)[0])
    assert logits(loaded).dtype == torch.bfloat16


def test_tables_are_cast_like_the_weights(tmp_path: Path) -> None:
    loaded = model_of(save(sound(), tmp_path / "model", "rotary_tables"), dtype=torch.bfloat16)
    assert torch.equal(logits(loaded), logits(sound().to(torch.bfloat16)))


@pytest.mark.parametrize("where", [{"device_map": "cpu"}, {"device_map": {"": "cpu"}}, {"device": "cpu"}])
def test_loading_onto_a_device(where: dict[str, Any], tmp_path: Path) -> None:
    model = sound()
    loaded = model_of(save(model, tmp_path / "model", *TOGETHER), **where)
    assert torch.equal(logits(loaded), logits(model))


def test_layers_on_disk(tmp_path: Path) -> None:
    model = sound()
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers": "disk", "lm_head": "cpu"}
    folder = save(model, tmp_path / "model", *TOGETHER)
    loaded = model_of(folder, device_map=places, offload_folder=str(tmp_path / "disk"))
    assert loaded.model.layers[0].out.weight.is_meta
    assert torch.equal(logits(loaded), logits(model))


def test_what_repair_overlooks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(sound(), tmp_path / "model", "rotary_buffer")
    monkeypatch.setattr(loading, "repair", lambda *_: [])
    with refused("model", r"rotary_emb\.inv_freq"):
        load(folder, **QUICK)


def test_values_of_the_configuration_can_be_given(tmp_path: Path) -> None:
    folder = save(sound(rope_theta=77.0), tmp_path / "model", *TOGETHER)
    assert torch.equal(logits(model_of(folder, rope_theta=100.0)), logits(sound(rope_theta=100.0)))


def test_code_runs_only_if_allowed(tmp_path: Path) -> None:
    folder = save(sound(), tmp_path / "model")
    code = Path(folder) / "modeling_broken.py"
    code.write_text("raise RuntimeError('it ran')")
    with refused("trust_remote_code", r"modeling_broken\.BrokenForMaskedLM", "trust_remote_code=True"):
        load(folder)
    with pytest.raises(RuntimeError, match="it ran"):
        load(folder, **QUICK)


def test_code_that_has_run_is_still_not_run_unasked(tmp_path: Path) -> None:
    folder = save(sound(), tmp_path / "model")
    load(folder, **QUICK)
    with refused("trust_remote_code", "got False"):
        load(folder, mask_token_id=MASK, tokenizer=False)


@pytest.mark.parametrize("faults", [(), TOGETHER], ids="+".join)
def test_missing_weights_are_refused(faults: tuple[str, ...], tmp_path: Path) -> None:
    gone = {"model.layers.1.qkv.bias": None, "model.layers.0.out.weight": None}
    folder = save(sound(), tmp_path / "model", *faults, weights=dict(gone))
    with refused("name_or_path", *(name.replace(".", r"\.") for name in gone)):
        load(folder, **QUICK)


@pytest.mark.parametrize("faults", [("tied_list",), ("old_tie_weights",), ()], ids="+".join)
def test_no_head_without_tying_is_refused(faults: tuple[str, ...], tmp_path: Path) -> None:
    folder = save(sound(), tmp_path / "model", *faults, weights={"lm_head.weight": None})
    with refused("name_or_path", r"lm_head\.weight"):
        load(folder, **QUICK)


def test_weights_tied_to_a_missing_one_are_refused(tmp_path: Path) -> None:
    head = {"lm_head.weight": sound().lm_head.weight.detach(), "model.embed_tokens.weight": None}
    # The old code ties the head, which is there, to the embedding, which is not.
    folder = save(sound(tied=True), tmp_path / "model", "old_tie_weights", weights=head)
    with refused("name_or_path", r"lm_head\.weight, model\.embed_tokens\.weight"):
        load(folder, **QUICK)


def test_a_head_alone_serves_as_embedding_where_they_are_tied(tmp_path: Path) -> None:
    model = sound(tied=True)
    head = {"lm_head.weight": model.lm_head.weight.detach(), "model.embed_tokens.weight": None}
    folder = save(model, tmp_path / "model", "tied_list", weights=head)
    assert torch.equal(logits(model_of(folder)), logits(model))


def test_a_list_of_tied_keys_means_tied_where_the_configuration_is_silent(tmp_path: Path) -> None:
    model = sound(tied=True)
    folder = save(model, tmp_path / "model", "tied_list", tie_word_embeddings=None)
    assert torch.equal(logits(model_of(folder)), logits(model))


def test_two_weights_where_the_configuration_asks_for_one(tmp_path: Path) -> None:
    model = sound()
    folder = save(model, tmp_path / "model", tie_word_embeddings=True)
    with refused("tie_word_embeddings", "two different", "tie_word_embeddings=False"):
        load(folder, **QUICK)
    assert torch.equal(logits(model_of(folder, tie_word_embeddings=False)), logits(model))


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    folder = save(sound(), tmp_path / "model", weights={"lm_head.weight": torch.zeros(32, 8)})
    with refused("name_or_path", r"lm_head\.weight", "another"):
        load(folder, ignore_mismatched_sizes=True, **QUICK)


def test_buffers_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    folder = save(sound(), tmp_path / "model", "random_buffer")
    with refused("model", r"model\.mixing"):
        load(folder, **QUICK)


@pytest.mark.parametrize("faults", [(), ("redrawn_weights",)], ids="+".join)
def test_a_class_that_loads_in_its_own_way_is_refused(faults: tuple[str, ...], tmp_path: Path) -> None:
    folder = Path(save(sound(), tmp_path / "model", *faults))
    code = folder / "modeling_broken.py"
    own = "\n\ndef own(cls, *_, config, **__):\n    return cls(config).eval()\n\n\n"
    own += "BrokenForMaskedLM.from_pretrained = classmethod(own)\n"
    code.write_text(code.read_text() + own)
    with refused("name_or_path", "in its own way"):
        load(folder, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "argument", "error"),
    [
        ({"name_or_path": None}, "name_or_path", TypeError),
        ({"trust_remote_code": "yes"}, "trust_remote_code", TypeError),
        ({"torch_dtype": torch.float32}, "torch_dtype", TypeError),
        ({"config": object()}, "config", TypeError),
        ({"state_dict": {}}, "state_dict", TypeError),
        ({"output_loading_info": True}, "output_loading_info", TypeError),
        ({"offload_buffers": True}, "offload_buffers", TypeError),
        ({"device": "cpu", "device_map": "cpu"}, "device", ValueError),
        ({"family": "lada"}, "family", ValueError),
        ({"mask_token_id": 99}, "mask_token_id", ValueError),
        ({"tokenizer": True}, "tokenizer", ValueError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], argument: str, error: type[Exception], tmp_path: Path) -> None:
    folder = save(sound(), tmp_path / "model")
    with refused(argument, error=error):
        load(**({"name_or_path": folder} | QUICK | arguments))


def test_a_checkpoint_without_language_model_is_refused(tmp_path: Path) -> None:
    folder = Path(save(sound(), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {key: config["auto_map"]["AutoConfig"] for key in ("AutoConfig", "AutoModelForVision2Seq")}
    (folder / "config.json").write_text(json.dumps(config))
    with refused("name_or_path", "auto_map", "AutoModelForVision2Seq"):
        load(folder, **QUICK)
    tf.ViTConfig(hidden_size=8, architectures=["ViTModel"]).save_pretrained(tmp_path / "vit")
    with refused("name_or_path", "'vit'", "ViTModel"):
        load(tmp_path / "vit", family="bidirectional", tokenizer=False)


def test_families_that_cannot_be_served_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    tf.ViTConfig(hidden_size=8, architectures=["ViTModel"]).save_pretrained(tmp_path / "vit")
    with refused("family", "'vit'"):
        load(tmp_path / "vit", tokenizer=False)
    tf.AutoConfig.for_model("diffusion_gemma").save_pretrained(tmp_path / "gemma")
    with refused("family", "'diffusion_gemma'", "guide_gemma"):
        load(tmp_path / "gemma", tokenizer=False)


def _bert() -> tf.BertConfig:
    return tf.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_models(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = tf.BertForMaskedLM(_bert())
    llama = tf.LlamaForCausalLM(
        tf.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    )
    native: list[tuple[Any, str | None]] = [(bert, None), (llama, "bidirectional")]
    for model, family in native:
        model.eval().to(dtype).save_pretrained(tmp_path / model.__class__.__name__)
        denoiser = load(tmp_path / model.__class__.__name__, family=family, mask_token_id=MASK, tokenizer=False)
        assert type(denoiser.model) is type(model)
        assert denoiser.dtype == dtype
        assert denoiser.family is FAMILIES[family or "masked_lm"]
        for name, weight in model.state_dict().items():
            assert torch.equal(denoiser.model.state_dict()[name], weight)


def test_the_class_that_was_saved_is_preferred(tmp_path: Path) -> None:
    config = _bert()
    config.architectures = ["BertLMHeadModel"]
    assert loading._native_class(config) is tf.BertLMHeadModel
    config.architectures = ["BertForPreTraining"]
    assert loading._native_class(config) is tf.BertForMaskedLM
    config.architectures = None
    assert loading._native_class(config) is tf.BertForMaskedLM


def test_the_tokenizer_comes_along_and_pads_on_the_left(tmp_path: Path) -> None:
    folder = Path(save(sound(), tmp_path / "model"))
    tales = Path(loading.__file__).parents[1] / "models" / "tales"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tales / name).read_bytes())
    denoiser = load(folder, **(QUICK | {"tokenizer": True}))
    assert denoiser.tokenizer.padding_side == "left"
    other: Any = object()
    assert load(folder, **(QUICK | {"tokenizer": other})).tokenizer is other


def test_the_denoiser_runs(tmp_path: Path) -> None:
    model = sound()
    denoiser = load(save(model, tmp_path / "model", *TOGETHER), **QUICK)
    with torch.no_grad():
        assert torch.equal(denoiser(IDS, start=3, stop=5), logits(model)[:, 3:5])
