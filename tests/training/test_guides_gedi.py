"""A trained GeDi: its loss is that of the paper on its texts, it learns, and `lg.GeDi` reads what was saved."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf

import lmguide as lg
from lmguide.sources.ids import pack
from lmguide.sources.rewards.base import Generation, bind_token_reward
from lmguide.training import tales
from lmguide.training.guides.gedi import GediTask
from tests.gedi import log_posterior
from tests.huggingface.reference import next_token
from tests.training.guides import gedi, rows, run, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from tests.training.guides import Files

MOODS = (" glad", " grim")
FAMILIES = ("llama", "gpt2")
TEXT = "The whale steered the kind boat"


def log_likelihood(model: Any, front: Sequence[int], text: Sequence[int]) -> float:
    return math.fsum(float(next_token(model, tuple(front), tuple(text[:j]))[text[j]]) for j in range(len(text)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_texts_behind_codes_and_its_loss_the_papers(family: str, files: Files) -> None:
    task = gedi(getattr(files, family), files.data, gen_weight=0.6)
    assert isinstance(task, GediTask)
    module = task.module.eval()
    with torch.no_grad():
        module.log_scale.fill_(0.4)
        module.bias.copy_(torch.tensor([0.3, -0.1]))
    tokenizer = tf.AutoTokenizer.from_pretrained(getattr(files, family))
    start = [tokenizer.bos_token_id] if family == "llama" else []
    codes = [tokenizer(code, add_special_tokens=False)["input_ids"] for code in MOODS]
    expected = 0.0
    for row in task.corpus.train.select([3, 0, 7]):
        text = [*tokenizer(tokenizer.decode(row["ids"][:-1]), add_special_tokens=False)["input_ids"], 1]
        assert text == row["ids"]
        means = [log_likelihood(module.model, [*start, *code], text) / len(text) for code in codes]
        z = [math.exp(0.4) * mean + offset for mean, offset in zip(means, (0.3, -0.1), strict=True)]
        discriminative = math.log(math.fsum(map(math.exp, z))) - z[row["label"]]
        expected += (0.6 * -means[row["label"]] + 0.4 * discriminative) / 3
    with torch.no_grad():
        loss = module(task.batch([(3, 0), (0, 0), (7, 0)], False))
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def posterior(folder: Path, base: str, code: str, ids: list[int], **more: Any) -> Tensor:
    """What `lg.GeDi` says of every token behind a text, with nothing but the folder and a code."""
    guided = tf.AutoModelForCausalLM.from_pretrained(base)
    (context,) = lg.GeDi(str(folder), code, **more).sources().values()
    tokenizer = tf.AutoTokenizer.from_pretrained(base)
    size = guided.config.vocab_size
    call = Generation(guided, tokenizer, pack([ids], "cpu"), 1, size, torch.device("cpu"), total=9)
    return bind_token_reward(context, call).log_rewards(torch.empty(1, 0, dtype=torch.long), torch.zeros(1, size))[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["exact", "normalized"])
def test_what_is_saved_is_read_with_its_codes_scale_and_bias(
    form: str, family: str, files: Files, tmp_path: Path
) -> None:
    base = getattr(files, family)
    out = tmp_path / "guide"
    result = run(lambda: gedi(base, files.data, epochs=0.3, gen_weight=0.2), out)
    assert result is not None
    saved = tf.AutoModelForCausalLM.from_pretrained(out)
    settings = saved.config.gedi
    assert settings["codes"] == list(MOODS)
    module = result.task.module
    assert settings["logit_scale"] == pytest.approx(float(module.log_scale.detach().exp()))
    assert settings["bias"] == module.bias.tolist()
    assert settings["logit_scale"] != 1
    assert all(settings["bias"])
    tokenizer = tf.AutoTokenizer.from_pretrained(out)
    ids = tokenizer(TEXT)["input_ids"]
    start, text = (ids[:1], ids[1:]) if family == "llama" else ([], ids)
    codes = [tokenizer(code, add_special_tokens=False)["input_ids"] for code in MOODS]
    more = {"mean_over": settings["logit_scale"], "added": settings["bias"]} if form == "normalized" else {}
    for wanted, code in enumerate(MOODS):
        plain = log_posterior(saved, text, codes, wanted, start=start, **more)
        torch.testing.assert_close(posterior(out, base, code, ids, form=form), plain.float(), atol=1e-5, rtol=1e-5)


def test_it_learns_the_texts_and_to_tell_their_classes(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", rows(400))
    settings: dict[str, Any] = {"batch_size": 16, "epochs": 3, "learning_rate": 3e-3}
    # the agent of a sentence gives its topic away
    result = run(lambda: gedi("bundled/tales", data, field="topic", **settings), tmp_path / "guide")
    assert result is not None
    assert [row["step"] for row in result.history] == [23, 45, 68]
    assert result.history[-1]["nll"] < result.history[0]["nll"]
    assert result.history[-1]["accuracy"] > 0.9


def test_a_language_model_alone_learns_no_scale_or_bias(files: Files, tmp_path: Path) -> None:
    result = run(lambda: gedi(files.llama, files.data, epochs=0.3, gen_weight=1.0), tmp_path / "guide")
    assert result is not None
    assert math.isfinite(result.history[-1]["accuracy"])
    saved = json.loads((tmp_path / "guide" / "config.json").read_text())["gedi"]
    assert saved == {"codes": list(MOODS), "logit_scale": 1.0, "bias": [0.0, 0.0]}


def test_codes_can_be_chosen(files: Files, tmp_path: Path) -> None:
    result = run(lambda: gedi(files.llama, files.data, {"grim": "Sad:"}, epochs=0.1), tmp_path / "guide")
    assert result is not None
    assert json.loads((tmp_path / "guide" / "config.json").read_text())["gedi"]["codes"] == [" glad", "Sad:"]


def test_a_topic_stands_before_its_own_texts_as_true_and_before_others_as_false(files: Files) -> None:
    task = gedi(files.llama, files.data, field="topic", topic=True)
    assert isinstance(task, GediTask)
    assert task.examples(False) == 2 * len(task.corpus.train)
    wrong = set()
    for epoch in range(20):
        batch = task.batch([(number, epoch) for number in range(8)], False)
        assert batch["labels"].tolist() == [0, 1] * 4
        for number in range(8):
            row = task.corpus.train[number // 2]
            ids = batch["input_ids"][number][batch["attention_mask"][number].bool()]
            scored = batch["scored"][number][: len(ids)].bool()
            assert ids[scored].tolist() == row["ids"]
            topic, own = task.tokenizer.decode(ids[~scored]), f" {task.corpus.labels[row['label']]}"
            assert (topic == own) == (number % 2 == 0)
            if number == 1:
                wrong.add(topic)
    first = task.corpus.labels[task.corpus.train[0]["label"]]
    assert wrong == {f" {topic}" for topic in tales.TOPICS if topic != first}


def test_a_guide_for_topics_is_read_with_any_topic(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "guide"
    assert run(lambda: gedi(files.llama, files.data, field="topic", topic=True, epochs=0.2), out) is not None
    saved = tf.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = tf.AutoTokenizer.from_pretrained(out)
    start, *text = tokenizer(TEXT)["input_ids"]
    fronts = [tokenizer(f"{code} the garden", add_special_tokens=False)["input_ids"] for code in ("true", "false")]
    plain = log_posterior(saved, text, fronts, 0, start=[start])
    found = posterior(out, files.llama, "true", [start, *text], topic=" the garden")
    torch.testing.assert_close(found, plain.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("codes", "settings", "expected"),
    [
        ({"gladd": " x"}, {}, r"codes: expected labels of the data \(glad, grim\), got 'gladd'"),
        ({"glad": ""}, {}, "codes: expected a text with tokens for the label 'glad', got '', which has none"),
        ({"glad": " grim"}, {}, r"codes: expected different tokens, got \[.*\] for both 'glad' and 'grim'"),
        ({}, {"max_length": 3}, "max_length: expected room for a text behind [0-9]+ tokens of code, got 3"),
        ({}, {"max_length": 65}, "max_length: expected at most the 64 positions of the base model, got 65. Use 64"),
        ({}, {"gen_weight": 1.1}, "gen_weight: expected a finite number at least 0 and at most 1, got 1.1"),
        ({}, {"learning_rate": 0.0}, "learning_rate: expected a finite number above 0"),
        ({}, {"batch_size": 0}, "batch_size: expected a whole number of at least 1"),
        ({}, {"scheduler": "polynomial"}, "scheduler: expected one of linear, cosine"),
    ],
)
def test_codes_and_settings_that_cannot_be_are_refused(
    codes: dict[str, str], settings: dict[str, Any], expected: str, files: Files
) -> None:
    with pytest.raises(ValueError, match=expected):
        gedi(files.llama, files.data, codes, **settings)


def bert(folder: Path, vocabulary: int) -> None:
    size: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    tf.BertForMaskedLM(tf.BertConfig(vocab_size=vocabulary, **size)).save_pretrained(folder)


def t5(folder: Path, vocabulary: int) -> None:
    size: dict[str, Any] = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=vocabulary, **size)).save_pretrained(folder)


def narrow(folder: Path, vocabulary: int) -> None:
    tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=vocabulary - 300)).save_pretrained(
        folder
    )


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (bert, "base: expected a causal language model, got BertLMHeadModel, whose scores depend on later tokens"),
        (t5, "base: expected a causal language model, a folder or a name on the hub, got .*T5Config"),
        (narrow, "base: expected a tokenizer for the model's 212 embeddings, got token [0-9]+ from it"),
        (None, "base: expected a causal language model, a folder or a name on the hub, got"),
    ],
)
def test_a_base_that_is_no_causal_language_model_is_refused(
    make: Callable[[Path, int], None] | None, expected: str, files: Files, tmp_path: Path
) -> None:
    tokenizer = tf.AutoTokenizer.from_pretrained(files.llama)
    tokenizer.save_pretrained(tmp_path)
    if make is not None:
        make(tmp_path, len(tokenizer))
    with pytest.raises(ValueError, match=expected):
        gedi(str(tmp_path), files.data)


def test_a_base_without_tokenizer_is_refused(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="base: no tokenizer of '.*' could be loaded"):
        gedi(str(tmp_path), files.data)
