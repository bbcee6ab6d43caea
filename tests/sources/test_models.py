"""Other models as sources, and weaker read-outs of the model itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
import torch
import transformers as tf

import lmguide as lg
from lmguide.sources import models
from lmguide.sources.layers import candidate_layers, early_logits, without_blocks
from lmguide.sources.models import fitted, resolve
from tests.families import FAMILIES, PAD, VOCAB, made, tiny, tokens, words
from tests.huggingface.reference import First, next_token, thinned
from tests.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path


def other_words(change: dict[str, str] | None = None, size: int = VOCAB) -> Any:
    """`words` with some tokens of other names, or of another size."""
    vocabulary = {"<pad>": PAD, "<bos>": 1} | {f"w{index}": index for index in range(2, size)}
    renamed = {(change or {}).get(token, token): index for token, index in vocabulary.items()}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(renamed, unk_token="w2"))
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>")


def test_a_model_of_the_same_vocabulary() -> None:
    assert resolve(lg.OtherModel(tiny("gpt2")), tiny("llama"), None) is tiny("gpt2")
    context = lg.OtherModel(tiny("gpt2"), other_words())
    assert resolve(context, tiny("llama"), words()) is tiny("gpt2")


def test_the_first_token_that_differs_is_named() -> None:
    context = lg.OtherModel(tiny("gpt2"), other_words({"w7": "seven", "w9": "nine"}))
    with refused("model", "token 7", "'w7'", "'seven'"):
        resolve(context, tiny("llama"), words())
    context = lg.OtherModel(tiny("gpt2"), other_words(size=VOCAB - 10))
    with refused("model", f"token {VOCAB - 10}", "None"):
        resolve(context, tiny("llama"), words())


def test_without_tokenizers_the_sizes_are_compared() -> None:
    padded = made("llama", vocab_size=VOCAB + 8)
    for mine, theirs in ((None, None), (words(), None), (None, words())):
        with refused("model", str(VOCAB), str(VOCAB + 8), "both tokenizers"):
            resolve(lg.OtherModel(padded, theirs), tiny("llama"), mine)
    context = lg.OtherModel(padded, words())
    assert resolve(context, tiny("llama"), words()) is padded, "padded embeddings, the same tokens"


def test_embeddings_padded_differently_are_brought_to_one_size() -> None:
    logits = torch.randn(2, 10)
    assert fitted(logits, 10) is logits
    assert torch.equal(fitted(logits, 7), logits[:, :7])
    wider = fitted(logits, 12)
    assert torch.equal(wider[:, :10], logits)
    assert torch.isneginf(wider[:, 10:]).all()


@pytest.mark.parametrize("extra", [8, -8])
def test_models_that_pad_their_embeddings_differently(extra: int) -> None:
    """The tokens that only one of them has are never written; the others follow the law."""
    model, other = tiny("llama"), made("llama", 1, vocab_size=VOCAB + extra)
    size, prompt = min(VOCAB, VOCAB + extra), [token % 100 + 2 for token in tokens(6, 1)]
    tokenizer = other_words(size=size)
    method = lg.AutoGuidance(other, 2.0, tokenizer=tokenizer)
    guided: Any = lg.guide(model, method, tokenizer=tokenizer)

    def law(row: int, answer: list[int]) -> torch.Tensor:
        strong, weak = next_token(model, prompt, answer)[:size], next_token(other, prompt, answer)[:size]
        return torch.nn.functional.pad(weak + 2.0 * (strong - weak), (0, VOCAB - size), value=-torch.inf)

    arguments: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": list(range(size, VOCAB))}
    found = guided.generate(torch.tensor([prompt]), **arguments)
    assert found.tolist() == First(model, law).generate(torch.tensor([prompt]), **arguments).tolist()


def test_other_kinds_and_devices_are_refused() -> None:
    with refused("model", "encoder-decoder"):
        resolve(lg.OtherModel(tiny("t5")), tiny("llama"), None)
    with refused("model", "encoder-decoder"):
        resolve(lg.OtherModel(tiny("llama")), tiny("t5"), None)
    with refused("model", "meta", "cpu"):
        resolve(lg.OtherModel(made("llama").to("meta")), tiny("llama"), None)
    wrong: tuple[Any, ...] = (torch.nn.Linear(2, 2), tf.LlamaModel(tiny("llama").config), 7)
    for given in wrong:
        with refused("model", type(given).__name__, error=TypeError):
            resolve(lg.OtherModel(given), tiny("llama"), None)


def test_a_model_by_its_path_is_loaded_once(tmp_path: Path) -> None:
    models._load.cache_clear()
    tiny("llama", 1).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    context = lg.OtherModel(str(tmp_path))
    first = resolve(context, tiny("llama"), words())
    assert resolve(context, tiny("llama"), words()) is first
    assert not first.training
    prompt = tokens(6, 1)
    torch.testing.assert_close(next_token(first, prompt, []), next_token(tiny("llama", 1), prompt, []))
    with refused("model", "token 7"):
        resolve(context, tiny("llama"), other_words({"w7": "seven"}))
    models._load.cache_clear()


def test_a_path_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - transformers' own sentence about names and paths
        resolve(lg.OtherModel(str(tmp_path / "nothing")), tiny("llama"), None)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "t5"])
def test_skipped_blocks_do_nothing_and_the_model_stays_whole(family: str) -> None:
    """Equal to a deep copy whose chosen blocks hand their input on; weights are shared, the model is not touched."""
    model, prompt = tiny(family), tokens(6, 1)
    before = next_token(model, prompt, [4])
    context = lg.DroppedBlocks(0.5, seed=1)
    weak: Any = without_blocks(model, context)
    assert not torch.allclose(next_token(weak, prompt, [4]), before)
    torch.testing.assert_close(next_token(weak, prompt, [4]), next_token(thinned(model, context), prompt, [4]))
    next_token.__globals__["_outputs"].cache_clear()
    assert torch.equal(next_token(model, prompt, [4]), before)
    theirs = {weight.data_ptr() for weight in weak.parameters()}
    assert theirs < {weight.data_ptr() for weight in model.parameters()}
    assert type(weak) is type(model)


def test_how_many_blocks_are_skipped_and_which() -> None:
    model = made("gemma3", num_hidden_layers=8, layer_types=["sliding_attention", "full_attention"] * 4)
    kept = []
    for fraction, count in ((0.01, 1), (0.25, 2), (0.5, 4), (0.99, 6)):
        for seed in range(3):
            weak: Any = without_blocks(model, lg.DroppedBlocks(fraction, seed))
            same = [a is b for a, b in zip(weak.model.layers, model.model.layers, strict=True)]
            assert same.count(False) == count
            assert same[0], "the first sliding block tells the cache's length"
            assert same[1], "and so does the first full one"
            kept.append(tuple(same))
    assert len(set(kept)) > 6, "the seed chooses"


def test_which_layers_are_read() -> None:
    """Every second layer of a half; the embedding output of tied embeddings only repeats the last token."""

    def layers(which: Any, **config: Any) -> tuple[int, ...]:
        return candidate_layers(lg.EarlyLayers(which), made("llama", **config))

    assert layers("low", num_hidden_layers=8) == (0, 2)
    assert layers("low", num_hidden_layers=8, tie_word_embeddings=True) == (2,)
    assert layers("high", num_hidden_layers=8) == (4, 6)
    assert layers((0, 3), num_hidden_layers=8) == (0, 3)
    assert layers("low", num_hidden_layers=42) == tuple(range(0, 20, 2))
    assert layers("high", num_hidden_layers=42) == tuple(range(22, 42, 2))
    for bad in ((8,), (1, 9), (-1,)):
        with refused("layers", str(bad[-1])):
            layers(bad, num_hidden_layers=8)
    with refused("layers", "low"):
        layers("low", num_hidden_layers=4, tie_word_embeddings=True)


def test_early_logits_go_through_the_head() -> None:
    model: Any = tiny("llama")
    states = [torch.randn(2, 3, 32) for _ in range(5)]
    with torch.no_grad():
        found = early_logits(model, states, (1, 3))
        assert found.shape == (2, 3, 2, VOCAB)
        torch.testing.assert_close(found[:, :, 0], model.lm_head(states[1]))
        torch.testing.assert_close(found[:, :, 1], model.lm_head(states[3]))
