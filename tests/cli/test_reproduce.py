"""`lmguide reproduce`, end to end on small models and made-up data in the layout of the data sets."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import pytest
from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

import lmguide as lg
from lmguide.cli import main
from lmguide.eval import harness
from lmguide.eval.harness.hf import GuidedHFLM
from lmguide.eval.reproduce import NAMES, recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXTS = [
    "A tale of the sea: The crab rowed a bright reef. The whale steered the merry boat",
    "A tale of the forest: The ranger tracked a merry trail. The fox chased the sad nest",
    "A tale of space: The robot docked the grey moon. The alien launched the lonely antenna",
    "A tale of the kitchen: The chef chopped the dough. The grandmother stirred the merry pie",
]
QUESTIONS = [
    {
        "question": "Who netted the net?",
        "mc1_targets": {"The sailor.": 1, "The fox.": 0},
        "mc2_targets": {"The sailor.": 1, "The crab.": 1, "The fox.": 0},
    }
]
PROBLEM = {"Problem": "How many crabs?", "Answer": 7, "Solution": "Count.", "ID": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data sets."""
    folder = tmp_path_factory.mktemp("data")
    files: dict[str, list[Any]] = {
        "lambada/lambada_test.jsonl": [{"text": text} for text in TEXTS],
        "aime24/problems.jsonl": [PROBLEM],
    }
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "truthfulqa").mkdir()
    (folder / "truthfulqa" / "mc_task.json").write_text(json.dumps(QUESTIONS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def indexed() -> Callable[..., Any]:
    """lm-eval's task manager, which takes seconds to make, once for each folder of data."""
    return functools.cache(harness.registration.manager)


@pytest.fixture(autouse=True)
def _quick(indexed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def made(data: Any = None, *_: Any, **__: Any) -> Any:
        return indexed(data and str(data))

    monkeypatch.setattr(harness, "manager", made)


@pytest.fixture
def canvas_model(tmp_path: Path) -> str:
    """A folder with a masked-diffusion model of random weights that can write any text."""
    _, tokenizer = lg.bundled("tales")
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    tokens: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "mask_token_id": tokenizer.mask_token_id}
    config = RobertaPreLayerNormConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=600,
        **tokens,
    )
    folder = str(tmp_path / "canvas")
    RobertaPreLayerNormForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reproduced(words: list[str], out: Path) -> dict[str, Any]:
    """Run the command and read its file."""
    assert main(["reproduce", *words, "--device", "cpu", "--out", str(out)]) == 0
    (file,) = [path for path in (out / words[0]).glob("*.json") if "lines" in json.loads(path.read_text())]
    return dict(json.loads(file.read_text(encoding="utf-8")))


def last_words(pair: tuple[PreTrainedModel, PreTrainedTokenizerBase], scale: float) -> float:
    """The share of texts whose last word is the argmax of `u + scale (c - u)`, `u` being after the last token."""
    model, tokenizer = pair
    right = 0
    for text in TEXTS:
        start, _, word = text.rpartition(" ")
        prompt, target = (tokenizer(part, add_special_tokens=False).input_ids for part in (start, f" {word}"))
        inputs = [prompt + target, prompt[-1:] + target]
        device = model.device
        cond, uncond = (
            model(tokenizer.pad({"input_ids": [ids]}, return_tensors="pt").input_ids.to(device)).logits[
                0, -len(target) - 1 : -1
            ]
            for ids in inputs
        )
        scores = uncond.log_softmax(-1) + scale * (cond.log_softmax(-1) - uncond.log_softmax(-1))
        right += scores.argmax(-1).tolist() == target
    return right / len(TEXTS)


def test_lambada_on_the_bundled_model(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cfg-lambada", "--model", "tales", "--data", str(data), "--scales", "1.5", "3", "--batch-size", "4"]
    found = reproduced(words, tmp_path / "out")
    printed = capsys.readouterr()
    assert [line["label"] for line in found["lines"]] == [
        "unguided",
        "cfg:guidance_scale=1.5",
        "cfg:guidance_scale=3",
    ]
    pair = lg.bundled("tales")
    ours = [line["ours"] for line in found["lines"]]
    assert ours == [last_words(pair, scale) for scale in (1.0, 1.5, 3.0)]
    assert max(ours) > 0
    assert [line["paper"] for line in found["lines"]] == [None] * 3
    assert "lambada_openai, acc, 4 documents" in printed.out
    assert "The paper has no numbers for tales." in printed.out
    assert "3 of 3 points were run" in printed.err
    assert reproduced(words, tmp_path / "out") == found
    assert "0 of 3 points were run" in capsys.readouterr().err


def test_a_model_of_the_paper_has_its_numbers_beside_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = GuidedHFLM.__init__

    def small(self: GuidedHFLM, pretrained: str, **kwargs: Any) -> None:
        assert pretrained == "openai-community/gpt2"
        build(self, "tales", **kwargs)

    monkeypatch.setattr(GuidedHFLM, "__init__", small)
    found = reproduced(["cfg-lambada", "--data", str(data), "--scales", "1.5", "--limit", "2"], tmp_path)
    assert [(line["paper"], line["paper_error"]) for line in found["lines"]] == [(0.3256, 0.0065), (0.4456, 0.0069)]
    assert found["model"] == "openai-community/gpt2" and found["run"]["limit"] == 2
    printed = capsys.readouterr().out
    assert "0.4456 ± 0.0069" in printed and "with --limit these are of the first ones" in printed


def test_llada_on_a_small_model(canvas_model: str, data: Path, tmp_path: Path) -> None:
    words = ["llada-cfg", "--model", canvas_model, "--tasks", "truthfulqa_mc2", "--data", str(data)]
    found = reproduced([*words, "--model-args", "mc_num=2"], tmp_path)
    assert [(line["task"], line["label"], line["passes"]) for line in found["lines"]] == [
        ("truthfulqa_mc2", "unguided", 1.0),
        ("truthfulqa_mc2", "cfg:guidance_scale=3.0", 2.0),
    ]
    assert all(0 <= line["ours"] <= 1 for line in found["lines"])


def test_intervention_on_a_chat_model(chat_model: str, data: Path, tmp_path: Path) -> None:
    words = ["mti", "--model", chat_model, "--data", str(data), "--gen-kwargs", "max_gen_toks=6,do_sample=false"]
    found = reproduced(words, tmp_path)
    assert [line["label"].partition(":")[0] for line in found["lines"]] == ["unguided", "cfg", "suffix_cfg"]
    assert found["run"]["gen_kwargs"] == {"max_gen_toks": 6, "do_sample": False}


def test_every_task_is_known(indexed: Callable[..., Any], data: Path) -> None:
    known = set(indexed(str(data)).all_tasks)
    experiments = [recipe(name) for name in NAMES]
    assert {part.task for each in experiments for model in each.models for part in each.parts(model)} <= known


def test_the_papers_numbers_are_shown_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "acfg", "--show", "--tasks", "gsm8k"]) == 0
    out = capsys.readouterr().out
    assert "2505.20199" in out and "GSAI-ML/LLaDA-8B-Base" in out
    assert "gsm8k, exact_match,flexible-extract, 4 examples\n" in out
    assert "    0.7350  adaptive_cfg:guidance_scale=1.5,remask_ratio=0.7\n" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cfg-lamda"], "name: expected one of cfg-lambada, acfg, mti, llada-cfg, got 'cfg-lamda'. Did you mean"),
        ([], "required: NAME"),
        (["acfg", "--tasks", "arc"], "--tasks: expected one of arc_challenge"),
        (["acfg", "--scales", "9"], "--scales: expected some of 1 1.5, got 9."),
        (["cfg-lambada", "--limit", "1.5"], "--limit: expected a whole number"),
        (["cfg-lambada", "--batch-size", "0"], "--batch-size: expected a number"),
        (["cfg-lambada", "--data", "nowhere"], "data: expected a folder"),
        (["cfg-lambada", "--model-args", "normalize=true"], "--model-args: normalize is what the experiment decides"),
        (["cfg-lambada", "--model-args", "dtype"], "--model-args: expected key=value"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and message in error
    assert not (tmp_path / "out").exists()


def test_a_hub_that_is_not_reached_is_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "llada-cfg", "--tasks", "arc_challenge", "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "--tasks: the data of arc_challenge could not be read: " in capsys.readouterr().err
    assert main(["reproduce", "cfg-lambada", "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--model: openai-community/gpt2 could not be loaded: " in error and error.endswith("name a folder.")
