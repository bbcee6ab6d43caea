"""What papers report is carried as they report it, and can be run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import lmguide as lg
from lmguide.eval.harness.registration import MODELS
from lmguide.eval.harness.settings import Setting
from lmguide.eval.reproduce import NAMES, recipe

if TYPE_CHECKING:
    from pathlib import Path

GPT2 = "openai-community/gpt2"
LLADA = "GSAI-ML/LLaDA-8B-Base"
PAPER_NAMES = {
    "openai-community/gpt2": "GPT2-small",
    "openai-community/gpt2-medium": "GPT2-medium",
    "openai-community/gpt2-large": "GPT2-large",
    "openai-community/gpt2-xl": "GPT2-xl",
    "EleutherAI/pythia-160m": "Pythia-160M",
    "EleutherAI/pythia-410m": "Pythia-410M",
    "EleutherAI/pythia-1b": "Pythia-1B",
    "EleutherAI/pythia-1.4b": "Pythia-1.4B",
    "EleutherAI/pythia-2.8b": "Pythia-2.8B",
    "EleutherAI/pythia-6.9b": "Pythia-6.9B",
    "EleutherAI/pythia-12b": "Pythia-12B",
    "huggyllama/llama-7b": "LLaMA-7B",
    "huggyllama/llama-13b": "LLaMA-13B",
    "huggyllama/llama-30b": "LLaMA-30B",
    "huggyllama/llama-65b": "LLaMA-65B",
}


def test_figures_of_classifier_free_guidance_are_those_published(shared_data: Path) -> None:
    file = shared_data / "cfg_paper_numbers" / "cfg_paper_raw.json"
    published = json.loads(file.read_text(encoding="utf-8"))
    experiment = recipe("cfg-lambada")
    assert {PAPER_NAMES[model] for model in experiment.models} == set(published)
    for model, parts in experiment.models.items():
        (part,) = parts
        found = {}
        for row in part.rows:
            scale = "1" if row.guidance is None else row.guidance.partition("=")[2]
            found[scale] = (row.value, row.error)
        expected = {
            scale: (round(tasks["lambada_openai"]["acc"], 4), round(tasks["lambada_openai"]["acc_stderr"], 4))
            for scale, tasks in published[PAPER_NAMES[model]].items()
        }
        assert found == expected


@pytest.mark.parametrize(
    ("name", "model", "task", "values"),
    [
        ("llada-cfg", LLADA, "arc_challenge", [0.459, 0.479]),
        ("llada-cfg", LLADA, "winogrande", [0.748]),
        ("acfg", LLADA, "gpqa_main_n_shot", [0.261, 0.294, 0.333]),
        ("acfg", LLADA, "gsm8k", [0.707, 0.708, 0.735]),
        ("mti", "Qwen/Qwen3-8B", "aime24", [0.7375, 0.7334, 0.7834]),
        ("mti", "Qwen/Qwen3-32B", "aime24", [0.7958, 0.7292, 0.8458]),
    ],
)
def test_figures_of_tables_are_those_printed(name: str, model: str, task: str, values: list[float]) -> None:
    (part,) = recipe(name).parts(model, [task])
    assert [row.value for row in part.rows] == values


@pytest.mark.parametrize(
    ("name", "task", "settings"),
    [
        ("cfg-lambada", "lambada_openai", [Setting((lg.CFG(1.5),), normalize=False, source=lg.LastToken())]),
        ("llada-cfg", "truthfulqa_mc2", [Setting((lg.CFG(3.0),))]),
        ("acfg", "piqa", [Setting((lg.CFG(1.5),)), Setting((lg.AdaptiveCFG(1.5, remask_ratio=0.7),))]),
        ("mti", "aime24", [Setting((lg.CFG(1.5),)), Setting((lg.SuffixCFG(1.5, entropy_threshold=1.5),))]),
    ],
)
def test_settings_are_the_papers(name: str, task: str, settings: list[Setting]) -> None:
    experiment = recipe(name)
    scales = [1.5] if name == "cfg-lambada" else []
    (part,) = experiment.parts(experiment.default, [task], scales)
    assert [experiment.setting(row) for row in part.rows] == [Setting(), *settings]


def test_everything_can_be_run() -> None:
    for name in NAMES:
        experiment = recipe(name)
        assert experiment.harness in MODELS
        assert experiment.default in experiment.models
        for model in experiment.models:
            for part in experiment.parts(model):
                assert part.rows[0].guidance is None  # the plain model comes first
                assert all(row.value is not None and 0 < row.value < 1 for row in part.rows)
                labels = [experiment.setting(row).digest for row in part.rows]
                assert len(set(labels)) == len(labels)


def test_another_model_runs_the_same_with_nothing_to_compare() -> None:
    experiment = recipe("acfg")
    ours, theirs = experiment.parts("mine"), experiment.parts(LLADA)
    assert [part.task for part in ours] == [part.task for part in theirs]
    assert [[row.guidance for row in part.rows] for part in ours] == [
        [row.guidance for row in part.rows] for part in theirs
    ]
    assert {row.value for part in ours for row in part.rows} == {None}


def test_what_an_experiment_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="name: expected one of cfg-lambada.* Did you mean acfg"):
        recipe("a-cfg")
    with pytest.raises(ValueError, match="--tasks: expected one of lambada_openai, got 'lambada'. Did you mean"):
        recipe("cfg-lambada").parts(GPT2, ["lambada"])
    with pytest.raises(ValueError, match="--tasks: .* lmguide eval runs any other"):
        recipe("cfg-lambada").parts(GPT2, ["xyz"])
    with pytest.raises(ValueError, match="--scales: expected some of 1 1.25 1.5 1.75 2 3 4 5 6 7, got 1.1. Choose"):
        recipe("cfg-lambada").parts(GPT2, scales=[1.5, 1.1])


def test_a_part_of_an_experiment_can_be_chosen() -> None:
    (part,) = recipe("cfg-lambada").parts(GPT2, scales=[1, 3])
    assert [row.label for row in part.rows] == ["unguided", "cfg:guidance_scale=3"]
    (part,) = recipe("cfg-lambada").parts(GPT2, scales=[1])
    assert [row.label for row in part.rows] == ["unguided"]
    parts = recipe("acfg").parts(LLADA, ["gsm8k", "piqa"])
    assert [part.task for part in parts] == ["piqa", "gsm8k"]  # in the order of the paper
