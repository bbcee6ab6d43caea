"""A resumed training run ends in the bits of an uninterrupted one, and the batches hold what the law needs."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmguide.training import tales
from lmguide.training.language_model import (
    CHECKPOINT,
    IGNORED_LABEL,
    Settings,
    make_batch,
    make_model,
    make_tokenizer,
    train,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

TINY = Settings(steps=6, batch_size=2, hidden_size=16, layers=1, seed=1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(TINY)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train(TINY, folder, progress=False)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def after(steps: int) -> Callable[[], bool]:
    """Say stop when asked for the (steps + 1)-th time."""
    answers = iter([False] * steps + [True])
    return lambda: next(answers)


def test_stopped_and_resumed_ends_in_the_same_bits(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    assert not train(TINY, tmp_path, should_stop=after(2), progress=False)
    assert set(contents(tmp_path)) == {CHECKPOINT}
    assert not train(TINY, tmp_path, resume=True, should_stop=after(3), progress=False)
    assert train(TINY, tmp_path, resume=True, progress=False)
    assert contents(tmp_path) == uninterrupted


def test_killed_between_checkpoints_ends_in_the_same_bits(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    asked = 0

    def killed() -> bool:
        nonlocal asked
        asked += 1
        if asked == 6:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path, checkpoint_every=2, should_stop=killed, progress=False)
    assert train(TINY, tmp_path, resume=True, progress=False)
    assert contents(tmp_path) == uninterrupted


def test_the_seed_decides_the_weights(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    assert train(replace(TINY, seed=2), tmp_path, progress=False)
    assert contents(tmp_path)["model.safetensors"] != uninterrupted["model.safetensors"]


def test_training_learns(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    settings = replace(TINY, steps=40, learning_rate=2e-2)
    assert train(settings, tmp_path, progress=False)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    unseen = make_batch(settings, tokenizer, step=1000)
    with torch.no_grad():
        before = make_model(settings, tokenizer).eval()(**unseen).loss
        assert trained(**unseen).loss < before - 1


def test_what_is_saved_loads_and_names_no_machine(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    assert train(TINY, tmp_path, progress=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float16
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"
    # Another folder and another time, the same files: so neither is written down.
    assert contents(tmp_path) == uninterrupted
    assert all(str(tmp_path).encode() not in data and b"name_or_path" not in data for data in uninterrupted.values())


def test_a_resume_that_would_give_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a checkpoint to resume"):
        train(TINY, tmp_path, resume=True, progress=False)
    train(TINY, tmp_path, should_stop=after(1), progress=False)
    with pytest.raises(ValueError, match=r"got others \(batch_size 2 then, 3 now\)"):
        train(replace(TINY, batch_size=3), tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="expected no unfinished run"):
        train(TINY, tmp_path, progress=False)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"null_share": 0.0}, {"null_share": 1.0}])
def test_senseless_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(TINY, **wrong)  # type: ignore[arg-type]


def test_a_model_is_seeded_without_touching_the_global_random_state(tokenizer: PreTrainedTokenizerFast) -> None:
    state = torch.random.get_rng_state()
    first, second = (make_model(TINY, tokenizer).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_agent_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    agents = [agent for topic in tales.TOPICS.values() for agent in topic.agents]
    assert [agent for agent in agents if len(tokenizer.tokenize(f" {agent}")) > 1] == []


def test_prompt_and_tale_are_tokenised_as_their_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    for topic in tales.TOPICS:
        prompt, tale = tales.prompt(topic), " " + tales.tale(rng, topic)
        parts = tokenizer(prompt)["input_ids"] + tokenizer(tale, add_special_tokens=False)["input_ids"]
        assert parts == tokenizer(prompt + tale)["input_ids"]


def test_a_batch_learns_the_tale_and_its_end_but_not_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = make_batch(replace(TINY, batch_size=50), tokenizer, step=0)
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        learnt = labels != IGNORED_LABEL
        assert torch.equal(labels[learnt], ids[learnt])
        tale = str(tokenizer.decode(ids[learnt]))
        assert tale.endswith(".<|eos|>")
        assert tales.score(tale, "the sea").grammatical == tales.SENTENCES
        unlearnt = tokenizer.decode(ids[~learnt], skip_special_tokens=True)
        assert unlearnt in {*tales.NULL_PROMPTS, *map(tales.prompt, tales.TOPICS)}


def test_every_null_context_is_trained_in_its_share(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = make_batch(replace(TINY, batch_size=3000, null_share=0.5), tokenizer, step=0)
    contexts = [
        tokenizer.decode(ids[: int((labels != IGNORED_LABEL).int().argmax())])
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
    ]
    expected = {"<|bos|>": 1 / 6, "<|bos|>A tale:": 1 / 6, "<|bos|>:": 1 / 12, ":": 1 / 12}
    expected |= {f"<|bos|>{tales.prompt(topic)}": 1 / 8 for topic in tales.TOPICS}
    assert set(contexts) == set(expected)
    for context, share in expected.items():
        assert abs(contexts.count(context) / 3000 - share) < 4 * (share * (1 - share) / 3000) ** 0.5


def test_batches_depend_on_seed_and_step_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    def ids(settings: Settings, step: int) -> list[list[int]]:
        rows: list[list[int]] = make_batch(settings, tokenizer, step)["input_ids"].tolist()
        return rows

    assert ids(TINY, 3) == ids(TINY, 3)
    assert ids(TINY, 3) != ids(TINY, 4)
    assert ids(TINY, 3) != ids(replace(TINY, seed=2), 3)
