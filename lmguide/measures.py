"""How spread out one next-token law is, and how far apart two of them are.

Pure functions of log-probabilities ``[..., V] -> [...]`` in nats; they know nothing of rules, gates or models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG2_E = 1 / math.log(2.0)


def promote(*sources: Tensor) -> list[Tensor]:
    """Bring sources to one working dtype: at least float32, float64 where any of them is.

    Args:
        *sources: floating-point tensors ``[..., V]`` over one vocabulary.

    Returns:
        The sources in the common dtype; a tensor that has it already is returned as it is.

    Raises:
        TypeError: a source is not floating point.
        ValueError: a source has no vocabulary dimension, or the sources differ in its size.

    Example:
        >>> [x.dtype for x in promote(torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16))]
        [torch.float32, torch.float32]
    """
    dtype = torch.float32
    for source in sources:
        if not source.is_floating_point():
            raise TypeError(f"expected floating-point log-probs, got {source.dtype}. Apply log_softmax to the logits.")
        if source.dim() == 0 or source.shape[-1] != sources[0].shape[-1]:
            shapes = ", ".join(str(list(each.shape)) for each in sources)
            raise ValueError(
                f"expected sources [..., V] with one vocabulary size V, got shapes {shapes}. "
                "Use sources over the same tokenizer, or cut the padded end of the larger vocabulary."
            )
        dtype = torch.promote_types(dtype, source.dtype)
    return [source.to(dtype) for source in sources]


def entropy(scores: Tensor) -> Tensor:
    """Entropy ``H(p) = -Σ_v p(v) log p(v)`` of ``p = softmax(scores)`` in nats, with ``0 log 0 = 0``.

    Args:
        scores: log-probs ``[..., V]``, or logits; ``-inf`` where a token cannot follow.

    Returns:
        ``[...]`` in ``[0, log V]``; 0 for a row that is ``-inf`` everywhere.

    Example:
        >>> entropy(torch.tensor([0.5, 0.5, 0.0]).log())
        tensor(0.6931)
    """
    (scores,) = promote(scores)
    lowest = torch.finfo(scores.dtype).min
    # In bits, since `exp2` takes a CPU half the time of `exp`: x_v = (s_v - max s) log2 e, Z = Σ 2^x_v, and
    # H = log2 Z - Σ 2^x_v x_v / Z. 0 times the lowest finite number is 0; filling a mask would be two passes more.
    bits = (scores - scores.amax(-1, keepdim=True).clamp_min(lowest)).mul_(_LOG2_E).clamp_min_(lowest)
    weights = bits.exp2()
    total = weights.sum(-1).clamp_min(1.0)  # less only if nothing can follow
    return torch.addcdiv(total.log2(), bits.mul_(weights).sum(-1), total, value=-1.0) * math.log(2.0)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence ``KL(p || q) = Σ_v p(v) (log p(v) - log q(v))`` in nats.

    Args:
        p: log-probs ``[..., V]``.
        q: log-probs ``[..., V]``; the leading dimensions of the two broadcast.

    Returns:
        ``[...]``, at least 0 (rounding below 0 is cut off); ``+inf`` where ``p`` allows a token that ``q`` excludes.

    Example:
        >>> kl_divergence(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.25, 0.75]).log())
        tensor(1.3863)
    """
    p, q = promote(p, q)
    probability = p.exp()
    # Where the probability is 0 the other factor may be infinite or undefined, and their product would be NaN.
    return (probability * (p - q)).masked_fill(probability == 0, 0.0).sum(-1).clamp_min(0.0)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence ``½ KL(p || m) + ½ KL(q || m)`` with ``m = ½ (p + q)``, in nats.

    This is Lin's (1991) divergence. The code published with DoLa computes ``½ KL(m || p) + ½ KL(m || q)``, which has no
    upper bound.

    Args:
        p: log-probs ``[..., V]``.
        q: log-probs ``[..., V]``; the leading dimensions of the two broadcast.

    Returns:
        ``[...]`` in ``[0, log 2]``: 0 for equal laws, ``log 2`` for laws that share no token.

    Example:
        >>> js_divergence(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log())
        tensor(0.6931)
    """
    p, q = promote(p, q)
    middle = torch.logaddexp(p, q) - math.log(2.0)
    return ((kl_divergence(p, middle) + kl_divergence(q, middle)) / 2).clamp_max(math.log(2.0))


def max_probability(logp: Tensor) -> Tensor:
    """Probability of the likeliest token, ``max_v p(v)``.

    Args:
        logp: log-probs ``[..., V]``.

    Returns:
        ``[...]`` in ``[1 / V, 1]``; 0 for a row that is ``-inf`` everywhere.

    Example:
        >>> max_probability(torch.tensor([0.25, 0.75]).log())
        tensor(0.7500)
    """
    (logp,) = promote(logp)
    return logp.amax(-1).exp()
