"""The paper's way in little: lines of a thought, guided where one begins, up to a text that ends it.

The corpus is made so that words tell length: glad tales have one to four lines, grim ones four to eight.
"""

from __future__ import annotations

import random
from statistics import mean
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import lmguide as lg
from lmguide.training import tales
from lmguide.training.length import TALES_LENGTH, length_loss
from lmguide.training.trainer import IGNORED_LABEL, seeded_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmguide import LengthModel

END = "</tale>"
LINES = {"glad": (1, 4), "grim": (4, 8)}
COUNT = 128
BATCH = 16

pytestmark = pytest.mark.slow


def document(rng: random.Random) -> tuple[str, str]:
    """A prompt, and lines with their end."""
    topic, mood = rng.choice(list(tales.TOPICS)), rng.choice(list(LINES))
    lines = [f" {tales.sentence(rng, topic, mood)}\n" for _ in range(rng.randint(*LINES[mood]))]
    return tales.prompt(topic), "".join(lines) + END


def batch(tokenizer: Any, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Documents and the labels of their lines, the end of the text included."""
    rows = []
    for _ in range(BATCH):
        prompt, answer = document(rng)
        rows.append((tokenizer(prompt)["input_ids"], tokenizer(answer, add_special_tokens=False)["input_ids"]))
    ids = [torch.tensor([*prompt, *answer, tokenizer.eos_token_id]) for prompt, answer in rows]
    labels = [torch.tensor([IGNORED_LABEL] * len(p) + [*a, tokenizer.eos_token_id]) for p, a in rows]
    return (
        pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
    )


def trained(weights: Any, rate: float, steps: int, loss: Callable[[int], Tensor]) -> None:
    """Let a loss go down."""
    optimizer = torch.optim.AdamW(weights, rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    weights = list(weights)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()


@pytest.fixture(scope="module")
def writer() -> tuple[Any, Any, LengthModel]:
    """The tales model after some steps on lines, its tokenizer, and a predictor of what remains up to the marker."""
    model: Any
    model, tokenizer = lg.bundled("tales")
    predictor: Any = seeded_model(TALES_LENGTH, TALES_LENGTH.settings, tokenizer)  # type: ignore[arg-type]
    documents = random.Random(0)

    def language(_: int) -> Tensor:
        ids, labels = batch(tokenizer, documents)
        loss: Tensor = model(ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        return loss

    def lengths(_: int) -> Tensor:
        ids, labels = batch(tokenizer, documents)
        labels = labels.masked_fill(labels == tokenizer.eos_token_id, IGNORED_LABEL)
        return length_loss(predictor, ids, labels, (ids != tokenizer.pad_token_id).long())

    trained(list(model.parameters()), 3e-3, 160, language)
    trained(list(predictor.parameters()), 6e-3, 320, lengths)
    return model.eval(), tokenizer, predictor.eval()


def written(writer: tuple[Any, Any, LengthModel], seed: int, **budget: Any) -> tuple[list[int], float, float]:
    """Tokens up to the marker, the share of tales that have it, and of sentences that are grammatical."""
    model, tokenizer, predictor = writer
    if budget:
        model = lg.guide(model, lg.BudgetGuidance(predictor, end=END, **budget), tokenizer=tokenizer)
    topics = list(tales.TOPICS) * (COUNT // len(tales.TOPICS))
    inputs = tokenizer(list(map(tales.prompt, topics)), return_tensors="pt", padding=True)
    torch.manual_seed(seed)
    found = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=200)[:, inputs.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(found, skip_special_tokens=True)
    lengths = [int((row != tokenizer.pad_token_id).sum()) - 1 for row in found]
    bodies = [text.partition(END)[0].replace("\n", " ") for text in texts]
    total = sum((tales.score(body, topic) for body, topic in zip(bodies, topics, strict=True)), tales.TaleScore())
    return lengths, mean(END in text for text in texts), total.grammatical / total.sentences


def test_thoughts_keep_their_budget_when_they_are_guided_where_lines_begin(
    writer: tuple[Any, Any, LengthModel],
) -> None:
    lengths, ended, grammatical = written(writer, 5)
    assert mean(lengths) > 55
    assert min(ended, grammatical) > 0.85
    means = []
    for budget in (90, 60, 40):
        found, found_ended, found_grammatical = written(writer, 6, budget=budget)
        kept = [length for length in lengths if length <= budget]
        assert mean(length <= budget for length in found) > 0.9 > len(kept) / len(lengths)
        assert mean(found) == pytest.approx(mean(kept), abs=8), "nearly those that keep it by themselves"
        assert found_ended > ended - 0.06
        assert found_grammatical > grammatical - 0.05
        means.append(mean(found))
    assert mean(lengths) > means[0] > means[1] > means[2]


def test_thoughts_guided_at_every_token_keep_their_grammar(writer: tuple[Any, Any, LengthModel]) -> None:
    kept = written(writer, 7, budget=60, every=True)
    assert kept[2] > 0.9
    assert mean(length <= 60 for length in kept[0]) > 0.85
