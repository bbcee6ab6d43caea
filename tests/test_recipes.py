"""Every recipe of docs/recipes.md runs as it stands, with small models in the place of those on the hub."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
import torch
import transformers as tf

import lmguide as lg
from lmguide.cli.parser import build_parser
from scripts.check_docs import fenced_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
BLOCKS = list(fenced_blocks(PAGE.read_text(encoding="utf-8")))
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [line for block in BLOCKS if block.language == "sh" for line in block.code.replace("\\\n", "").splitlines()]

HUB_NAME = re.compile(r'"([\w.-]+/[\w.-]+)"')
NEW_TOKENS = "max_new_tokens=40"


@cache
def own() -> Any:
    return lg.bundled("tales")[1]


def theirs() -> Any:
    """As T5's: the same words at other ids, with another mark of a word's beginning, and two codes."""
    spelled = [token.replace("\u0120", "\u2581") for token in reversed(list(own().get_vocab()))]
    vocabulary = {
        token: index for index, token in enumerate(["</s>", "<unk>", "\u2581normal", "\u2581toxic", *spelled])
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def language_model(folder: Path, tokenizer: Any, gedi: Any = None) -> Any:
    torch.manual_seed(len(str(folder.name)))
    size: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
    model = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=len(tokenizer), **size, eos_token_id=2, bos_token_id=2))
    model.config.gedi = gedi
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def classifier(*labels: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        size |= {"num_attention_heads": 2, "max_position_embeddings": 256, "id2label": dict(enumerate(labels))}
        config = tf.BertConfig(vocab_size=len(own()), pad_token_id=own().pad_token_id, **size)
        tf.BertForSequenceClassification(config).save_pretrained(folder)
        own().save_pretrained(folder)

    return write


HUB: dict[str, Callable[[Path], Any]] = {
    "openai-community/gpt2-large": lambda folder: language_model(folder, own()),
    "s-nlp/gpt2-base-gedi-detoxification": lambda folder: language_model(folder, theirs()),
    "google-t5/t5-base": lambda folder: theirs().save_pretrained(folder),
    "s-nlp/roberta_toxicity_classifier": classifier("neutral", "toxic"),
    "unitary/toxic-bert": classifier("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"),
    "heegyu/gpt2-non-toxic": lambda folder: language_model(folder, own()),
    "heegyu/gpt2-toxic": lambda folder: language_model(folder, own()),
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": classifier("NEGATIVE", "POSITIVE"),
    "cardiffnlp/twitter-roberta-base-sentiment-latest": classifier("negative", "neutral", "positive"),
}
TRAINED = {"detoxifier": [" clean", " dirty"], "topics": ["true", "false"]}
"""Folders that the commands of the page write, and their codes."""

ARCHIVES = {"gedi_detoxifier": 1.5, "gedi_sentiment": 2.5, "gedi_topic": None}
"""Folders of the authors' archives, and their `logit_scale`."""


def archive(folder: Path, logit_scale: float | None) -> None:
    """As version 2.8 of transformers wrote it."""
    model = language_model(folder, own())
    (folder / "model.safetensors").unlink()
    weights: dict[str, Any] = dict(model.state_dict())
    if logit_scale is not None:
        weights["logit_scale"] = torch.full((1, 1), logit_scale)
        weights["bias"] = torch.tensor([[0.25, -0.25]])
    torch.save(weights, folder / "pytorch_model.bin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes")
    for name, make in HUB.items():
        make(root / name)
    for name, codes in TRAINED.items():
        language_model(root / name, own(), {"codes": codes, "logit_scale": 1.5, "bias": [0.1, -0.1]})
    for name, logit_scale in ARCHIVES.items():
        archive(root / name, logit_scale)
    return root


def test_every_name_of_the_hub_has_a_small_model() -> None:
    assert {name for block in PYTHON for name in HUB_NAME.findall(block.code)} == set(HUB)
    assert PYTHON[0].code.count(NEW_TOKENS) == 1


@pytest.fixture(scope="module")
def recipes(folder: Path) -> dict[str, Any]:
    """What the blocks define, one after the other, in a folder where the names of the hub are folders."""
    names: dict[str, Any] = {"__name__": "recipes"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in PYTHON:
            code = "\n" * block.line + block.code.replace(NEW_TOKENS, "max_new_tokens=3")
            exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_recipes_run(recipes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(recipes["about"], lg.GeDi), "the last of them"
    plain = recipes["model"].generate(**recipes["inputs"], max_new_tokens=3)
    recipes["write"](recipes["detoxifier"])
    assert capsys.readouterr().out != "\n".join(own().batch_decode(plain, skip_special_tokens=True)) + "\n"


def test_settings_are_the_papers(recipes: dict[str, Any]) -> None:
    method = recipes["detoxifier"]
    odds = method.target_p / (1 - method.target_p)
    assert odds == pytest.approx(4 * torch.tensor(2.0).exp().item(), rel=1e-4), "tau 0.8, moved by the bias"
    assert (method.form, method.omega, method.filter_p, method.class_bias) == ("normalized", 30.0, 0.8, 2.0)
    assert method.target_p == pytest.approx(0.967, abs=5e-4)
    assert (recipes["away"].alpha, recipes["away"].top_k, recipes["away"].gate) == (-5.0, 100, lg.Entropy(2.0))


def test_an_archive_keeps_its_numbers(recipes: dict[str, Any]) -> None:
    gedi = recipes["guide"].config.gedi
    assert (gedi["logit_scale"], gedi["bias"]) == (1.5, [0.25, -0.25])
    assert gedi["codes"] == [own()(code, add_special_tokens=False)["input_ids"][:1] for code in ("dirty", "clean")]
    assert recipes["news"].config.gedi["logit_scale"] is None


def test_the_repetition_penalty_is_that_of_the_authors(recipes: dict[str, Any]) -> None:
    scores = torch.tensor([[0.3, 0.5, 0.15, 0.05]]).log()
    found = recipes["FromTen"](1.2, prompt_ignore_length=2)(torch.tensor([[2, 3, 0, 1]]), scores)
    shifted = scores - scores.max() + 10
    torch.testing.assert_close(found, shifted / torch.tensor([1.2, 1.2, 1.0, 1.0]))


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("lmguide ")])
def test_commands_are_understood(line: str) -> None:
    arguments = build_parser().parse_args(shlex.split(line)[1:])
    assert (arguments.command, arguments.guide) == ("train", "gedi")
    assert arguments.out in TRAINED
    if not arguments.topic:
        assert [code for _, code in arguments.codes] == TRAINED[arguments.out]
