"""A trained classifier of prefixes: its loss counts every prefix, it learns, and `lg.Fudge` and `lg.CAIF` read it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf

import lmguide as lg
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation, bind_token_reward
from tests.training.guides import prefix, rows, run, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.training.guides import Files

FAMILIES = ("llama", "gpt2")
TEXT = "The whale steered the kind boat"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_mean_over_each_prefix_read_alone(family: str, files: Files) -> None:
    task = prefix(getattr(files, family), files.data)
    classifier = task.module.eval().classifier
    tokenizer = tf.AutoTokenizer.from_pretrained(getattr(files, family))
    losses = []
    for row in task.corpus.train.select([3, 0, 7]):
        ids = tokenizer(tokenizer.decode(row["ids"]))["input_ids"]
        assert (ids[0] == tokenizer.bos_token_id) == (family == "llama")
        for length in range(1, len(ids) + 1):
            with torch.no_grad():
                logits = classifier(input_ids=torch.tensor([ids[:length]])).logits[0]
            losses.append(-float(logits.log_softmax(-1)[row["label"]]))
    batch = task.batch([(3, 0), (0, 0), (7, 0)], False)
    with torch.no_grad():
        assert float(task.module(batch)) == pytest.approx(math.fsum(losses) / len(losses), abs=1e-5)
    assert task.weight(batch) == len(losses)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reading", ["ids", "text"])
def test_what_is_saved_is_read_with_its_labels(reading: str, family: str, files: Files, tmp_path: Path) -> None:
    base = getattr(files, family)
    out = tmp_path / "guide"
    assert run(lambda: prefix(base, files.data, epochs=0.3), out) is not None
    saved = tf.AutoModelForSequenceClassification.from_pretrained(out)
    assert saved.config.id2label == {0: "glad", 1: "grim"}
    guided, tokenizer = tf.AutoModelForCausalLM.from_pretrained(base), tf.AutoTokenizer.from_pretrained(base)
    ids = tokenizer(TEXT)["input_ids"]
    size = guided.config.vocab_size
    method = (
        lg.Fudge(str(out), "grim", top_k=5) if reading == "ids" else lg.CAIF(str(out), "grim", top_k=5, reading="text")
    )
    (context,) = method.sources().values()
    call = Generation(guided, tokenizer, pack([ids], "cpu"), 1, size, torch.device("cpu"), total=9)
    scores = torch.zeros(1, size)
    candidates = tokenizer(" sailor boat fox gladly sadly", add_special_tokens=False)["input_ids"][-5:]
    scores[0, candidates] = 9.0
    found = bind_token_reward(context, call).log_rewards(torch.empty(1, 0, dtype=torch.long), scores)[0]
    for candidate in candidates:
        with torch.no_grad():
            plain = saved(input_ids=torch.tensor([[*ids, candidate]])).logits[0].log_softmax(-1)[1]
        assert float(found[candidate]) == pytest.approx(float(plain), abs=1e-5)


def test_it_learns(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", rows(400))
    settings: dict[str, Any] = {"batch_size": 16, "epochs": 3, "learning_rate": 3e-3}
    result = run(lambda: prefix("bundled/tales", data, **settings), tmp_path / "guide")
    assert result is not None
    first, last = result.history[0], result.history[-1]
    assert last["nll"] < first["nll"]
    assert last["accuracy"] > last["accuracy_of_prefixes"] > 0.6


def test_a_tokenizer_that_knows_no_padding_gets_one_without_a_new_token(files: Files, tmp_path: Path) -> None:
    before = tf.AutoTokenizer.from_pretrained(files.gpt2)
    assert before.pad_token_id is None
    assert run(lambda: prefix(files.gpt2, files.data, epochs=0.1), tmp_path / "guide") is not None
    after = tf.AutoTokenizer.from_pretrained(tmp_path / "guide")
    saved = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "guide")
    assert after.get_vocab() == before.get_vocab()
    assert after.pad_token_id == saved.config.pad_token_id == before.eos_token_id
    texts = ["The whale", TEXT]
    with torch.no_grad():
        both = saved(**after(texts, padding=True, return_tensors="pt")).logits
        alone = [saved(**after(text, return_tensors="pt")).logits[0] for text in texts]
    torch.testing.assert_close(both, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_the_seed_draws_the_new_weights(files: Files) -> None:
    first, again, other = (
        prefix(files.llama, files.data, seed=seed).module.classifier.score.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_base_that_reads_both_ways_is_refused(files: Files, tmp_path: Path) -> None:
    tokenizer = tf.AutoTokenizer.from_pretrained(files.llama)
    tokenizer.save_pretrained(tmp_path)
    size: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    tf.BertModel(tf.BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="base: expected a causal model whose classifier can judge every prefix, got Bert"
    ):
        prefix(str(tmp_path), files.data)
