"""The loss of predictors of lengths is that of its formula, and the shipped one says what is true of fresh tales."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import lmguide as lg
from lmguide.sources.rewards.budget_law import log_gamma_cdf
from lmguide.sources.rewards.budget_model import LengthConfig, LengthModel
from lmguide.training.language_model import TALES, make_batch
from lmguide.training.length import TALES_LENGTH, length_loss
from lmguide.training.trainer import IGNORED_LABEL, Run
from tests.families import VOCAB, made, padded, tiny, tokens
from tests.refusals import refused


def predictor(own: bool) -> LengthModel:
    torch.manual_seed(3)
    reader = tiny("llama", 2).config.to_diff_dict() if own else None
    return LengthModel(LengthConfig(vocab_size=VOCAB, hidden_size=32, layers=[1, -1], reader=reader))


@pytest.mark.parametrize("own", [True, False])
def test_the_loss_is_its_formula_token_by_token(own: bool) -> None:
    found, model = predictor(own), made("gpt2", 1)
    rows, prompts = [tokens(9, 1), tokens(6, 2), tokens(4, 3)], [3, 1, 2]
    ids, mask = padded(rows, right=True)
    labels = ids.masked_fill(mask == 0, IGNORED_LABEL)
    for number, prompt in enumerate(prompts):
        labels[number, :prompt] = IGNORED_LABEL
    loss = length_loss(found, ids, labels, mask, model)
    terms = []
    for row, prompt in zip(rows, prompts, strict=True):
        for place in range(prompt, len(row) - 1):  # not the end itself
            reader: Any = found.reader or model
            hidden = reader(torch.tensor([row[:place]]), output_hidden_states=True).hidden_states
            shape, rate = found(torch.stack([hidden[1][0, -1], hidden[-1][0, -1]]))
            shape, rate, y = shape[row[place]], rate[row[place]], math.log(len(row) - place + 1)
            terms.append(shape * rate.log() - torch.lgamma(shape) + (shape - 1) * math.log(y) - rate * y)
    torch.testing.assert_close(loss, -torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)
    loss.backward()
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weight.grad is not None for name, weight in found.named_parameters() if "lm_head" not in name)


def test_a_head_without_a_reader_needs_the_model() -> None:
    ids = torch.tensor([tokens(4, 1)])
    with refused("model", "got None"):
        length_loss(predictor(own=False), ids, ids, torch.ones_like(ids))


def test_the_best_law_of_a_length_that_is_always_the_same_is_narrow_around_it() -> None:
    found, ids = predictor(own=True), torch.tensor([[1, *tokens(7, 4)]] * 2)
    optimizer = torch.optim.Adam(found.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=100)  # without, it ends anywhere
    for _ in range(100):
        optimizer.zero_grad()
        length_loss(found, ids, ids, torch.ones_like(ids)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        assert found.reader is not None
        hidden = found.reader(ids[:, :3], output_hidden_states=True).hidden_states
        shape, rate = found(torch.stack([hidden[1][0, -1], hidden[-1][0, -1]]), ids[0, 3])
    assert float(shape / rate) == pytest.approx(math.log(6), abs=0.02)  # five tokens from there on
    assert float(shape.sqrt() / rate) < 0.15


def test_a_run_of_the_recipe_learns() -> None:
    run = Run(TALES_LENGTH, replace(TALES_LENGTH.settings, steps=30, batch_size=8))
    losses = [run.advance() for _ in range(30)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_the_shipped_predictor_is_calibrated_on_fresh_tales() -> None:
    """Of all that it gives a chance `p` to end within a budget, a share `p` does."""
    loaded: Any = lg.bundled("tales_length")
    shipped, tokenizer = loaded
    batch = make_batch(replace(TALES.settings, seed=99, batch_size=200), tokenizer, 0)
    ids, labels = batch["input_ids"], batch["labels"]
    mask = (ids != tokenizer.pad_token_id).long()
    with torch.no_grad():
        assert float(length_loss(shipped, ids, labels, mask)) < -0.7
        states = shipped.reader(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        inside = labels[:, 1:] != IGNORED_LABEL
        remaining = inside.flip(1).cumsum(1).flip(1)
        inside &= remaining > 1
        shape, rate = shipped(states[:, :-1][inside][:, None], labels[:, 1:][inside])
    remaining = remaining[inside]
    for budget in (3, 5, 15, 30, 50, 56):
        between = torch.tensor(math.log(budget + 1.5))  # a length of exactly the budget is within it, and not half
        chance = log_gamma_cdf(between, shape, rate).exp()
        kept = (remaining <= budget).double()
        assert float(chance.mean()) == pytest.approx(float(kept.mean()), abs=0.03)
        unsure = (chance > 0.2) & (chance < 0.8)
        assert float(chance[unsure].mean()) == pytest.approx(float(kept[unsure].mean()), abs=0.12)
    assert float((rate >= 10).double().mean()) > 0.8, "what the published condition asks for"
