"""Each loss is what a plain loop over texts, classes and tokens gives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmguide.training.losses import class_log_likelihoods, gedi_loss, prefix_loss
from tests.families import made, tiny
from tests.huggingface.reference import next_token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tests.families import Model

CODES = ((11, 12), (13,), (14, 15, 16))
TEXTS = ((20, 21, 22, 23), (30,), (40, 41))
LABELS = (2, 0, 1)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Model:
    return tiny(request.param)


def padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask; the padding is a token like any other, so that reading it would show."""
    longest = max(map(len, texts)) + 1
    ids = torch.tensor([[*text, *[77] * (longest - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return ids, mask


def log_likelihood(model: Model, front: Sequence[int], text: Sequence[int], first: int = 0) -> float:
    """Of the tokens from the first scored one on."""
    return math.fsum(float(next_token(model, front, list(text[:j]))[text[j]]) for j in range(first, len(text)))


@pytest.mark.parametrize("bos", [None, 1])
def test_log_likelihoods_are_the_sums_over_the_tokens_of_each_text_alone(model: Model, bos: int | None) -> None:
    start = [] if bos is None else [bos]
    plain = [[log_likelihood(model, [*start, *code], text) for code in CODES] for text in TEXTS]
    found, counts = class_log_likelihoods(model, CODES, *padded(TEXTS), bos=bos)
    torch.testing.assert_close(found, torch.tensor(plain), atol=1e-5, rtol=1e-5)
    assert counts.tolist() == [4, 1, 2]


def test_a_condition_in_front_of_the_text_does_not_count(model: Model) -> None:
    topics = [2, 0, 1]  # tokens of each text
    ids, mask = padded(TEXTS)
    scored = torch.tensor([[int(j >= n) for j in range(ids.shape[1])] for n in topics])
    found, counts = class_log_likelihoods(model, CODES, ids, mask, bos=None, scored=scored)
    plain = [[log_likelihood(model, code, text, n) for code in CODES] for text, n in zip(TEXTS, topics, strict=True)]
    torch.testing.assert_close(found, torch.tensor(plain), atol=1e-5, rtol=1e-5)
    assert counts.tolist() == [2, 1, 1]


def test_one_forward_pass_runs_all_codes_or_the_wanted_ones_alone() -> None:
    model = made("llama")
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    ids, mask = padded(TEXTS)
    everything, _ = class_log_likelihoods(model, CODES, ids, mask, bos=1)
    single, counts = class_log_likelihoods(model, CODES, ids, mask, bos=1, only=torch.tensor(LABELS))
    assert rows == [len(CODES) * len(TEXTS), len(TEXTS)]
    wanted = torch.zeros_like(everything, dtype=torch.bool)
    wanted[torch.arange(len(TEXTS)), torch.tensor(LABELS)] = True
    torch.testing.assert_close(single[wanted], everything[wanted], atol=1e-5, rtol=1e-5)
    assert bool(single[~wanted].isnan().all())
    assert counts.tolist() == [4, 1, 2]


SCALE, BIAS = 1.7, (0.3, -0.2, 0.1)


def plain_gedi_loss(log_likelihoods: list[list[float]], gen_weight: float) -> float:
    total = 0.0
    for row, text, label in zip(log_likelihoods, TEXTS, LABELS, strict=True):
        means = [value / len(text) for value in row]
        z = [SCALE * mean + offset for mean, offset in zip(means, BIAS, strict=True)]
        classified = math.log(math.fsum(map(math.exp, z))) - z[label]
        total += gen_weight * -means[label] + (1 - gen_weight) * classified
    return total / len(TEXTS)


@pytest.mark.parametrize("gen_weight", [0.0, 0.8, 1.0])
def test_gedi_loss_is_the_weighted_sum_of_both_means_over_texts(gen_weight: float) -> None:
    log_likelihoods = [[-9.0, -8.5, -7.0], [-1.0, -1.5, -3.0], [-2.0, -6.0, -4.5]]
    found = gedi_loss(
        torch.tensor(log_likelihoods),
        torch.tensor([len(text) for text in TEXTS]),
        torch.tensor(LABELS),
        gen_weight=gen_weight,
        logit_scale=torch.tensor(SCALE),
        bias=torch.tensor(BIAS),
    )
    assert float(found) == pytest.approx(plain_gedi_loss(log_likelihoods, gen_weight), abs=1e-6)


def gedi_gradients(model: Any, gen_weight: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of the input embeddings, scale and bias."""
    scale, bias = torch.tensor(SCALE, requires_grad=True), torch.tensor(BIAS, requires_grad=True)
    labels = torch.tensor(LABELS)
    only = labels if gen_weight == 1 else None
    found, counts = class_log_likelihoods(model, CODES, *padded(TEXTS), bos=1, only=only)
    model.zero_grad()
    gedi_loss(found, counts, labels, gen_weight=gen_weight, logit_scale=scale, bias=bias).backward()
    gradient: Tensor = model.get_input_embeddings().weight.grad.clone()
    return gradient, scale.grad, bias.grad


def test_gradients_reach_the_model_and_where_classes_are_compared_scale_and_bias() -> None:
    model = made("llama")
    weights, scale, bias = gedi_gradients(model, 0.8)
    assert scale is not None
    assert bias is not None
    assert float(scale.abs()) > 0
    assert bool((bias.abs() > 0).all())
    assert float(bias.sum()) == pytest.approx(0, abs=1e-6)  # a constant added to every class changes nothing
    touched = weights.abs().sum(1) > 0
    assert bool(touched[list(CODES[0])].all())
    assert not bool(touched[77])  # the padding

    weights, scale, bias = gedi_gradients(model, 1.0)
    assert scale is None
    assert bias is None
    assert bool(weights.isfinite().all())
    assert float(weights.abs().sum()) > 0


def test_prefix_loss_is_the_mean_over_every_prefix() -> None:
    _, mask = padded(TEXTS)
    logits = torch.randn(*mask.shape, len(CODES), generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = []
    for row, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True)):
        for j in range(len(text)):
            z = logits[row, j].tolist()
            losses.append(math.log(math.fsum(map(math.exp, z))) - z[label])
    loss = prefix_loss(logits, torch.tensor(LABELS), mask)
    assert float(loss.detach()) == pytest.approx(math.fsum(losses) / len(losses), abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, mask.bool())
