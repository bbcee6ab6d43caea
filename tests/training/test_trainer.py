"""Every recipe: a resumed training run ends in the bits of an uninterrupted one, and what is saved loads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from lmguide.training.__main__ import RECIPES
from lmguide.training.trainer import CHECKPOINT, Run, Settings, seeded_model, train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lmguide.training.trainer import Recipe

KINDS = {
    "tales": AutoModelForCausalLM,
    "slots": AutoModelForMaskedLM,
    "sudoku": AutoModelForMaskedLM,
    "mood_gedi": AutoModelForCausalLM,
    "mood_classifier": AutoModelForSequenceClassification,
    "tales_length": AutoModel,
}
UNTRAINED_STEP = 10_000
"""A step whose documents no test trains on."""


@pytest.fixture(scope="module", params=list(RECIPES))
def recipe(request: pytest.FixtureRequest) -> Recipe[Any]:
    found: Recipe[Any] = RECIPES[request.param]
    return found


@pytest.fixture(scope="module")
def tiny(recipe: Recipe[Any]) -> Settings:
    settings: Settings = replace(recipe.settings, steps=6, batch_size=2, hidden_size=16, layers=1, seed=1)
    return settings


@pytest.fixture(scope="module")
def uninterrupted(recipe: Recipe[Any], tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train(recipe, tiny, folder, progress=False)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def after(steps: int) -> Callable[[], bool]:
    """Say stop when asked for the (steps + 1)-th time."""
    answers = iter([False] * steps + [True])
    return lambda: next(answers)


def test_stopped_and_resumed_ends_in_the_same_bits(
    recipe: Recipe[Any], tiny: Settings, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    assert not train(recipe, tiny, tmp_path, should_stop=after(2), progress=False)
    assert set(contents(tmp_path)) == {CHECKPOINT}
    assert not train(recipe, tiny, tmp_path, resume=True, should_stop=after(3), progress=False)
    assert train(recipe, tiny, tmp_path, resume=True, progress=False)
    assert contents(tmp_path) == uninterrupted


def test_killed_between_checkpoints_ends_in_the_same_bits(
    recipe: Recipe[Any], tiny: Settings, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    asked = 0

    def killed() -> bool:
        nonlocal asked
        asked += 1
        if asked == 6:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tiny, tmp_path, checkpoint_every=2, should_stop=killed, progress=False)
    assert train(recipe, tiny, tmp_path, resume=True, progress=False)
    assert contents(tmp_path) == uninterrupted


def test_the_seed_decides_the_weights(
    recipe: Recipe[Any], tiny: Settings, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    assert train(recipe, replace(tiny, seed=2), tmp_path, progress=False)
    assert contents(tmp_path)["model.safetensors"] != uninterrupted["model.safetensors"]


def test_what_is_saved_loads_and_names_no_machine(
    recipe: Recipe[Any], tiny: Settings, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    assert train(recipe, tiny, tmp_path, progress=False)
    model = KINDS[recipe.name].from_pretrained(tmp_path)
    assert model.dtype == torch.float16
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"
    # Another folder and another time, the same files: so neither is written down.
    assert contents(tmp_path) == uninterrupted
    assert all(str(tmp_path).encode() not in data and b"name_or_path" not in data for data in uninterrupted.values())
    made_by = f"`python -m lmguide.training --model {recipe.name} --out DIR --steps 6 --seed 1`"
    assert made_by in uninterrupted["README.md"].decode()


# Forty tiny steps teach nothing of sudoku; test_masked_diffusion.py trains that model whole.
@pytest.mark.parametrize("name", ["tales", "slots"])
def test_training_learns(name: str) -> None:
    recipe: Recipe[Any] = RECIPES[name]
    settings = replace(recipe.settings, steps=40, batch_size=2, hidden_size=16, layers=1, learning_rate=2e-2)
    run = Run(recipe, settings)

    def unseen() -> float:
        with torch.no_grad():
            return float(recipe.loss(settings, run.model, run.tokenizer, UNTRAINED_STEP))

    before = unseen()
    for _ in range(settings.steps):
        run.advance()
    assert unseen() < before - 1


def test_a_resume_that_would_give_other_weights_is_refused(recipe: Recipe[Any], tiny: Settings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a checkpoint to resume"):
        train(recipe, tiny, tmp_path, resume=True, progress=False)
    train(recipe, tiny, tmp_path, should_stop=after(1), progress=False)
    with pytest.raises(ValueError, match=r"got others \(batch_size 2 then, 3 now\)"):
        train(recipe, replace(tiny, batch_size=3), tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="expected no unfinished run"):
        train(recipe, tiny, tmp_path, progress=False)
    with pytest.raises(ValueError, match=rf"expected a checkpoint of the model 'other', got one of '{recipe.name}'"):
        train(replace(recipe, name="other"), tiny, tmp_path, resume=True, progress=False)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"null_share": 0.0}, {"null_share": 1.0}])
def test_senseless_settings_are_refused(tiny: Settings, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(tiny, **wrong)  # type: ignore[arg-type]


def test_a_model_is_seeded_without_touching_the_global_random_state(recipe: Recipe[Any], tiny: Settings) -> None:
    tokenizer = recipe.make_tokenizer(tiny)
    state = torch.random.get_rng_state()
    first, second = (seeded_model(recipe, tiny, tokenizer).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_snapshot_is_the_beginning_of_the_longer_run() -> None:
    recipe: Recipe[Any] = RECIPES["sudoku"]
    settings = replace(recipe.settings, batch_size=2, hidden_size=16, layers=1)
    runs = [Run(recipe, replace(settings, steps=steps, schedule_steps=9)) for steps in (3, 9)]
    for run in runs:
        for _ in range(3):
            run.advance()
    snapshot, longer = (run.model.state_dict() for run in runs)
    assert all(torch.equal(snapshot[name], longer[name]) for name in snapshot)
    assert runs[0].schedule.get_last_lr() == runs[1].schedule.get_last_lr()
