"""Measures against references in numpy, the closed forms, and every pattern of excluded tokens."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from lmguide import measures

if TYPE_CHECKING:
    import numpy as np

NINF = -math.inf


def random_logp(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def reference_kl(p: np.ndarray, q: np.ndarray) -> float:
    """Sum over the tokens that p allows, of probabilities."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            total += math.inf if b == 0 else a * math.log(a / b)
    return total


def every_pattern(size: int, sources: int) -> list[Tensor]:
    """Laws [2 ** (size * sources), size], one row for each way to exclude tokens from each source."""
    patterns = torch.tensor(list(itertools.product([False, True], repeat=size * sources))).unflatten(1, (sources, size))
    raw = [random_logp(size, seed=k).expand(len(patterns), size) for k in range(sources)]
    masked = [each.masked_fill(patterns[:, k], NINF) for k, each in enumerate(raw)]
    return [each - each.logsumexp(-1, keepdim=True).clamp_min(-1e9) for each in masked]


def test_entropy_of_a_uniform_law_is_the_log_of_its_size() -> None:
    law = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
    torch.testing.assert_close(measures.entropy(law), torch.tensor([math.log(4), math.log(2), 0.0]))


def test_entropy_can_be_differentiated() -> None:
    scores = random_logp(3, 7, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(measures.entropy, (scores,))


def test_agreement_with_the_reference() -> None:
    p, q = random_logp(50, 7, seed=1), random_logp(50, 7, seed=2)
    for row in range(50):
        a, b = p[row].exp().numpy(), q[row].exp().numpy()
        middle = (a + b) / 2
        assert measures.entropy(p)[row].item() == pytest.approx(-sum(x * math.log(x) for x in a), rel=1e-12)
        assert measures.kl_divergence(p, q)[row].item() == pytest.approx(reference_kl(a, b), rel=1e-12)
        assert measures.js_divergence(p, q)[row].item() == pytest.approx(
            (reference_kl(a, middle) + reference_kl(b, middle)) / 2, rel=1e-12
        )
        assert measures.max_probability(p)[row].item() == pytest.approx(a.max(), rel=1e-12)


def test_divergence_has_the_first_law_as_its_weight() -> None:
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert measures.kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert measures.kl_divergence(q, p).item() == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))


def test_divergence_with_excluded_tokens() -> None:
    wide, narrow = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    assert measures.kl_divergence(wide, narrow).item() == math.inf
    assert measures.kl_divergence(narrow, wide).item() == pytest.approx(math.log(2))
    assert measures.kl_divergence(narrow, narrow).item() == 0.0


def test_jensen_shannon_is_symmetric_bounded_and_not_the_one_of_the_published_dola_code() -> None:
    p, q = random_logp(200, 9, seed=3, spread=8.0), random_logp(200, 9, seed=4, spread=8.0)
    divergence = measures.js_divergence(p, q)
    torch.testing.assert_close(divergence, measures.js_divergence(q, p))
    assert divergence.max() <= math.log(2)
    assert divergence.min() >= 0
    middle = torch.logaddexp(p, q) - math.log(2)
    published = (measures.kl_divergence(middle, p) + measures.kl_divergence(middle, q)) / 2
    assert (published - divergence).abs().max() > 0.1
    disjoint = torch.eye(2).log()
    assert measures.js_divergence(disjoint[0], disjoint[1]).item() == pytest.approx(math.log(2))


def test_rounding_does_not_leave_the_range() -> None:
    logits = 5 * torch.randn(2000, 50, generator=torch.Generator().manual_seed(0))
    almost_equal = logits.log_softmax(-1), (logits + 3.0).log_softmax(-1)
    assert (measures.kl_divergence(*almost_equal) >= 0).all()
    halves = logits.new_full((2000, 50), NINF), logits.new_full((2000, 50), NINF)
    halves[0][:, ::2], halves[1][:, 1::2] = logits[:, ::2].log_softmax(-1), logits[:, 1::2].log_softmax(-1)
    assert (measures.js_divergence(*halves) <= math.log(2)).all()


def test_no_pattern_of_excluded_tokens_gives_nan() -> None:
    p, q = every_pattern(size=3, sources=2)
    for value in (measures.entropy(p), measures.js_divergence(p, q), measures.max_probability(p)):
        assert value.isfinite().all()
        assert (value >= 0).all()
    divergence = measures.kl_divergence(p, q)
    excluded = ((p > NINF) & (q == NINF)).any(-1)
    torch.testing.assert_close(divergence.isinf(), excluded)
    assert (divergence >= 0).all()


def test_a_token_of_underflowing_probability_that_the_other_law_excludes() -> None:
    p = torch.tensor([0.0, -200.0])
    assert measures.kl_divergence(p, torch.tensor([0.0, NINF])).item() == 0.0


@pytest.mark.parametrize("measure", [measures.kl_divergence, measures.js_divergence])
def test_leading_dimensions_broadcast(measure: object) -> None:
    assert callable(measure)
    p, q = random_logp(5, 1, 4, seed=5), random_logp(3, 4, seed=6)
    table = measure(p, q)
    assert table.shape == (5, 3)
    for i, j in itertools.product(range(5), range(3)):
        torch.testing.assert_close(table[i, j], measure(p[i, 0], q[j]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_computes_in_float32_or_better(dtype: torch.dtype) -> None:
    p, q = random_logp(4, 300, seed=7).to(dtype), random_logp(4, 300, seed=8).to(dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for measure in (measures.entropy, measures.max_probability):
        assert measure(p).dtype == expected
        assert torch.equal(measure(p), measure(p.to(expected)))
    for pair in (measures.kl_divergence, measures.js_divergence):
        assert pair(p, q).dtype == expected
        assert torch.equal(pair(p, q), pair(p.to(expected), q.to(expected)))


def test_nan_is_not_swallowed() -> None:
    broken, fine = torch.tensor([math.nan, -1.0]), torch.tensor([-1.0, -1.0])
    assert measures.entropy(broken).isnan()
    assert measures.max_probability(broken).isnan()
    assert measures.kl_divergence(broken, fine).isnan()
    assert measures.kl_divergence(fine, broken).isnan()


def test_promote_refuses_what_is_no_law() -> None:
    with pytest.raises(TypeError, match=r"expected floating-point log-probs, got torch.int64\. Apply log_softmax"):
        measures.entropy(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"one vocabulary size V, got shapes \[2, 5\], \[2, 7\]"):
        measures.kl_divergence(torch.zeros(2, 5), torch.zeros(2, 7))
    with pytest.raises(ValueError, match="one vocabulary size"):
        measures.kl_divergence(torch.zeros(2, 5), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="one vocabulary size"):
        measures.entropy(torch.tensor(0.0))


def test_promote_returns_tensors_of_the_working_dtype_as_they_are() -> None:
    source = torch.zeros(3)
    assert measures.promote(source)[0] is source
