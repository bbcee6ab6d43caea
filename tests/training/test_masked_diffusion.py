"""The documents of the two masked-diffusion models are masked as their loss needs, and training makes what ships."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide.bundled import bundled
from lmguide.training import slots, sudoku, tales
from lmguide.training.masked_diffusion import (
    RULED_OUT,
    SLOTS,
    SOLUTIONS,
    SUDOKU,
    TALES_IN_SLOTS,
    diffusion_loss,
    make_batch,
    make_tokenizer,
)
from lmguide.training.trainer import IGNORED_LABEL, Run

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from lmguide.training.masked_diffusion import Task
    from lmguide.training.trainer import Recipe, Settings

BOTH = [(SLOTS, TALES_IN_SLOTS), (SUDOKU, SOLUTIONS)]
ROWS = 2000


def rows(recipe: Recipe[Settings], task: Task, **changes: Any) -> tuple[Tensor, Tensor, PreTrainedTokenizerFast]:
    settings = replace(recipe.settings, batch_size=ROWS, **changes)
    tokenizer = make_tokenizer(task, settings)
    batch = make_batch(task, settings, tokenizer, step=0)
    return batch["input_ids"], batch["labels"], tokenizer


@pytest.mark.parametrize(("recipe", "task"), BOTH, ids=["slots", "sudoku"])
def test_labels_are_at_the_masks_of_the_answer_alone(recipe: Recipe[Settings], task: Task) -> None:
    ids, labels, tokenizer = rows(recipe, task)
    assert ids.shape == labels.shape == (ROWS, recipe.settings.max_length)
    answer = slice(task.prompt_length, None)
    assert torch.equal(labels[:, answer] != IGNORED_LABEL, ids[:, answer] == tokenizer.mask_token_id)
    assert (labels[:, : task.prompt_length] == IGNORED_LABEL).all()


@pytest.mark.parametrize(("recipe", "task"), BOTH, ids=["slots", "sudoku"])
def test_the_number_of_masks_is_uniform_and_so_are_their_places(recipe: Recipe[Settings], task: Task) -> None:
    _, labels, _ = rows(recipe, task)
    masked = labels[:, task.prompt_length :] != IGNORED_LABEL
    length = masked.shape[1]
    counts = Counter(masked.sum(1).tolist())
    assert set(counts) == set(range(1, length + 1))
    assert max(counts.values()) - min(counts.values()) <= 1
    share = (length + 1) / (2 * length)
    assert (masked.float().mean(0) - share).abs().max() < 4.5 * math.sqrt(share * (1 - share) / ROWS)


@pytest.mark.parametrize(("recipe", "task"), BOTH, ids=["slots", "sudoku"])
def test_a_prompt_is_masked_whole_in_its_share_of_rows(recipe: Recipe[Settings], task: Task) -> None:
    ids, _, tokenizer = rows(recipe, task)
    masks = (ids[:, : task.prompt_length] == tokenizer.mask_token_id).sum(1)
    assert set(masks.tolist()) == {0, task.prompt_length}
    share = recipe.settings.null_share
    assert abs((masks > 0).float().mean() - share) < 4 * math.sqrt(share * (1 - share) / ROWS)


def whole(ids: Tensor, labels: Tensor, task: Task) -> Tensor:
    """The answers without masks."""
    answer = slice(task.prompt_length, None)
    return torch.where(labels[:, answer] == IGNORED_LABEL, ids[:, answer], labels[:, answer])


def test_tales_follow_their_prompts_and_masked_prompts_have_none() -> None:
    ids, labels, tokenizer = rows(SLOTS, TALES_IN_SLOTS)
    on_topic: dict[str, Counter[int]] = {topic: Counter() for topic in [*tales.TOPICS, "<|mask|>"]}
    for prompt, answer in zip(ids[:, :2], whole(ids, labels, TALES_IN_SLOTS), strict=True):
        topic = str(tokenizer.decode(prompt[0]))
        asked = "the sea" if topic == "<|mask|>" else topic
        on_topic[topic].update([slots.score(str(tokenizer.decode(answer)), asked).on_topic])
    for topic, found in on_topic.items():
        sentences = 2 * found.total()
        share = tales.topic_law(None)["the sea"] if topic == "<|mask|>" else tales.FOLLOW
        assert sentences > 500
        assert abs((found[1] + 2 * found[2]) / sentences - share) < 4 * math.sqrt(share * (1 - share) / sentences)


def test_puzzles_and_their_solutions() -> None:
    ids, labels, tokenizer = rows(SUDOKU, SOLUTIONS)
    clues: Counter[int] = Counter()
    for prompt, answer in zip(ids[:, :17], whole(ids, labels, SOLUTIONS), strict=True):
        if (prompt == tokenizer.mask_token_id).any():
            assert str(tokenizer.decode(answer)) in sudoku.grids()
            continue
        puzzle = str(tokenizer.decode(prompt)).removesuffix(":")
        assert sudoku.is_valid_completion(puzzle, str(tokenizer.decode(answer)))
        clues.update([sum(cell != "0" for cell in puzzle)])
    assert set(clues) == set(sudoku.CLUES)


def trained_puzzles() -> list[str]:
    """Every prompt of the training of the shipped model that is not masked."""
    settings = SUDOKU.settings
    tokenizer = make_tokenizer(SOLUTIONS, settings)
    found = []
    for step in range(settings.steps):
        ids = make_batch(SOLUTIONS, settings, tokenizer, step)["input_ids"][:, :17]
        texts = tokenizer.batch_decode(ids[(ids != tokenizer.mask_token_id).all(1)])
        found += [str(text).removesuffix(":") for text in texts]
    return found


def test_training_sees_no_puzzle_that_is_held_out() -> None:
    found = trained_puzzles()
    share = 1 - SUDOKU.settings.null_share
    assert len(found) == pytest.approx(SUDOKU.settings.steps * SUDOKU.settings.batch_size * share, rel=0.05)
    assert [puzzle for puzzle in found if sudoku.is_held_out(puzzle)] == []


def test_no_puzzle_of_dream_was_trained_on(shared_data: Path) -> None:
    files = sorted((shared_data / "dream_planning").glob("sudoku_4x4_*.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    puzzles = {sudoku.cells(json.loads(line)["input"]) for line in lines}
    assert len(puzzles) == 972
    # The rule vouches for these under every seed; that none of the others was drawn either is the shipped seed's luck.
    assert sum(map(sudoku.is_held_out, puzzles)) == 500
    assert puzzles & set(trained_puzzles()) == set()


def test_batches_depend_on_seed_and_step_alone() -> None:
    settings = replace(SLOTS.settings, batch_size=8)
    tokenizer = make_tokenizer(TALES_IN_SLOTS, settings)

    def ids(step: int, **changes: int) -> list[list[int]]:
        batch = make_batch(TALES_IN_SLOTS, replace(settings, **changes), tokenizer, step)
        found: list[list[int]] = batch["input_ids"].tolist()
        return found

    assert ids(3) == ids(3) == ids(3, steps=7)
    assert ids(3) != ids(4)
    assert ids(3) != ids(3, seed=2)


def test_the_loss_is_the_mean_over_rows_of_the_mean_over_masks() -> None:
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[IGNORED_LABEL, 4, 1], [2, IGNORED_LABEL, IGNORED_LABEL]])
    law = logits.log_softmax(-1)
    expected = -((law[0, 1, 4] + law[0, 2, 1]) / 2 + law[1, 0, 2]) / 2
    torch.testing.assert_close(diffusion_loss(logits, labels), expected)


@pytest.mark.parametrize(("recipe", "task"), BOTH, ids=["slots", "sudoku"])
def test_the_shipped_models_never_write_what_stands_in_no_answer(recipe: Recipe[Settings], task: Task) -> None:
    model, tokenizer = bundled(recipe.name)
    ids, _, _ = rows(recipe, task)
    rng = random.Random(0)
    texts = [task.draw(rng, False)[1] for _ in range(500)]
    answers = {token for text in texts for token in tokenizer(text)["input_ids"]}
    others = sorted(set(range(len(tokenizer))) - answers)
    assert set(tokenizer.convert_ids_to_tokens(others)) == {*tokenizer.all_special_tokens, *task.unanswered}
    with torch.no_grad():
        law = model(ids[:200]).logits.log_softmax(-1)
    assert law[..., others].max() < RULED_OUT / 2


def test_training_makes_the_shipped_sudoku_model() -> None:
    """To the bit on the machine that made it; on others rounding differs, and a hundred steps make much of it."""
    run = Run(SUDOKU, SUDOKU.settings)
    unseen = make_batch(SOLUTIONS, replace(SUDOKU.settings, batch_size=500), run.tokenizer, step=10_000)

    def loss(model: Any) -> float:
        with torch.no_grad():
            return float(diffusion_loss(model(unseen["input_ids"]).logits, unseen["labels"]))

    assert loss(run.model) == pytest.approx(math.log(4), abs=0.2)
    for _ in range(SUDOKU.settings.steps):
        run.advance()
    shipped, tokenizer = bundled("sudoku")
    assert tokenizer.get_vocab() == run.tokenizer.get_vocab()
    assert loss(shipped) < 0.5
    assert loss(run.model) == pytest.approx(loss(shipped), abs=0.1)
