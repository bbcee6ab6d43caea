"""Rules that are linear in the log-probs: weighted sums of sources, with or without a plausibility cut."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from lmguide.measures import js_divergence, kl_divergence, promote
from lmguide.rules.candidates import Scale, broadcast, normalize, per_row, plausible, unless_masked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def cfg(cond: Tensor, uncond: Tensor, guidance_scale: Scale) -> Tensor:
    """Classifier-free guidance: ``score = u + γ (c - u)``.

    Sanchez et al., "Stay on topic with Classifier-Free Guidance" (arXiv 2306.17806), equation 7. Context-aware decoding
    (arXiv 2305.14739) is ``γ = 1 + α``.

    Args:
        cond: log-probs ``c`` ``[..., V]`` under the prompt.
        uncond: log-probs ``u`` under the contrast context, broadcast to ``cond``.
        guidance_scale: γ; 1 returns ``cond`` and 0 returns ``uncond`` bit for bit, above 1 extrapolates.

    Returns:
        Scores ``[..., V]``.

    Raises:
        TypeError: a source is not floating point.
        ValueError: shapes do not fit, or a float strength is not finite.

    Example:
        >>> cfg(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.8, 0.2]).log(), 2.0).softmax(-1)
        tensor([0.2000, 0.8000])
    """
    c, u = broadcast(cond, uncond)
    # torch's way to write u + γ (c - u) is exact at both ends.
    return unless_masked(torch.lerp(u, c, per_row("guidance_scale", guidance_scale, c)), c, u)


def divergence_damped(cond: Tensor, uncond: Tensor, guidance_scale: Scale, damping: float) -> Tensor:
    """Guidance that weakens where its sources disagree: ``cfg`` at ``1 + (γ - 1) exp(-damping KL(c || u))``.

    The idea of RAAG (arXiv 2508.03442), which uses ``‖c - u‖ / ‖u‖`` in place of the divergence; norms of log-probs
    depend on an arbitrary constant, a divergence does not.

    Args:
        cond: log-probs ``c`` ``[..., V]`` under the prompt.
        uncond: log-probs ``u`` under the contrast context, broadcast to ``cond``.
        guidance_scale: γ where the sources agree; 1 returns ``cond`` bit for bit.
        damping: per nat, at least 0; 0 is ``cfg``. A row whose divergence is infinite is left unguided when above 0.

    Returns:
        Scores ``[..., V]``.

    Raises:
        TypeError: a source is not floating point.
        ValueError: shapes do not fit, a float strength is not finite, or ``damping`` is negative or not finite.

    Example:
        >>> cond, uncond = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.8, 0.2]).log()
        >>> divergence_damped(cond, uncond, 2.0, damping=100.0).softmax(-1)
        tensor([0.5000, 0.5000])
    """
    c, u = broadcast(cond, uncond)
    if not 0.0 <= damping < math.inf:
        raise ValueError(f"expected damping of 0 or more, got {damping}. Use 0 for plain guidance.")
    # A finite stand-in for an infinite divergence, so that damping 0 gives 0 and not NaN.
    divergence = kl_divergence(c, u).clamp_max(torch.finfo(c.dtype).max).unsqueeze(-1)
    strength = 1.0 + (per_row("guidance_scale", guidance_scale, c) - 1.0) * torch.exp(-damping * divergence)
    return unless_masked(torch.lerp(u, c, strength), c, u)


def contrastive(
    expert: Tensor,
    amateur: Tensor,
    beta: Scale = 0.5,
    plausibility: float = 0.1,
    form: Literal["reasoning", "original"] = "reasoning",
    amateur_temperature: float = 1.0,
) -> Tensor:
    """Contrastive decoding on the tokens the expert finds plausible.

    ``form="reasoning"``: ``(1 + β) e - β a`` (O'Brien & Lewis, arXiv 2309.09117), which is ``cfg`` at ``γ = 1 + β``.
    ``form="original"``: ``e - β a`` (Li et al., arXiv 2210.15097, with β = 1); its weights do not sum to one, so it
    also changes the temperature. Other tokens get ``-inf``.

    Args:
        expert: log-probs ``e`` ``[..., V]`` of the strong source.
        amateur: log-probs ``a`` of the weak source, broadcast to ``expert``.
        beta: β; at 0 the expert comes back, but for the cut.
        plausibility: α in [0, 1]: keep tokens with ``e >= log α + max e``; 0 keeps all.
        form: which weights.
        amateur_temperature: divides the amateur's log-probs, which are then normalised again; above 0.

    Returns:
        Scores ``[..., V]``.

    Raises:
        TypeError: a source is not floating point.
        ValueError: shapes do not fit, or a number or ``form`` is outside its range.

    Example:
        The third token is the amateur's biggest mistake, but the expert finds it implausible.

        >>> expert, amateur = torch.tensor([0.58, 0.4, 0.02]).log(), torch.tensor([0.79, 0.2, 0.01]).log()
        >>> contrastive(expert, amateur, beta=1.0, form="original").argmax().item()
        1
    """
    e, a = broadcast(expert, amateur)
    if form not in {"reasoning", "original"}:
        raise ValueError(f"expected form 'reasoning' or 'original', got {form!r}. Use one of the two.")
    if not 0.0 < amateur_temperature < math.inf:
        raise ValueError(f"expected amateur_temperature above 0, got {amateur_temperature}. Use 1 for no change.")
    if amateur_temperature != 1.0:
        a = normalize(a / amateur_temperature)
    strength = per_row("beta", beta, e)
    score = e + strength * (e - a) if form == "reasoning" else e - strength * a
    return unless_masked(score, e, a).masked_fill(~plausible(e, plausibility), -math.inf)


def dexperts(base: Tensor, expert: Tensor, antiexpert: Tensor, alpha: Scale) -> Tensor:
    """Steering by a pair of experts: ``score = b + α (e - a)``.

    Liu et al., "DExperts" (arXiv 2105.03023). Proxy tuning (Liu et al., arXiv 2401.08565) is ``α = 1`` with a
    small tuned and a small untuned model as the pair. No tokens are cut; DExperts' top-p belongs to the sampler.

    Args:
        base: log-probs ``b`` ``[..., V]`` of the model being steered.
        expert: log-probs ``e`` of the wanted behaviour, broadcast to ``base``.
        antiexpert: log-probs ``a`` of the unwanted behaviour, broadcast to ``base``.
        alpha: α; 0 returns ``base`` bit for bit.

    Returns:
        Scores ``[..., V]``.

    Raises:
        TypeError: a source is not floating point.
        ValueError: shapes do not fit, or a float strength is not finite.

    Example:
        >>> base, expert, antiexpert = (torch.tensor(p).log() for p in ([0.5, 0.5], [0.6, 0.4], [0.3, 0.7]))
        >>> dexperts(base, expert, antiexpert, 1.0).softmax(-1)
        tensor([0.7778, 0.2222])
    """
    b, e, a = broadcast(base, expert, antiexpert)
    return unless_masked(b + per_row("alpha", alpha, b) * (e - a), b, e, a)


def weighted(cond: Tensor, others: Sequence[Tensor], weights: Sequence[Scale]) -> Tensor:
    """Any number of sources: ``score = c + Σ_k w_k (s_k - c)``.

    The weights sum to one, the conditional taking the rest. ``cfg`` is one other source of weight ``1 - γ``; PREADD
    (arXiv 2307.03214) is the prefixed prompt with weight α.

    Args:
        cond: log-probs ``c`` ``[..., V]`` under the prompt.
        others: log-probs ``s_k``, each broadcast to ``cond``.
        weights: ``w_k``, one per source; positive attracts, negative repels, all 0 returns ``cond`` bit for bit.

    Returns:
        Scores ``[..., V]``.

    Raises:
        TypeError: a source is not floating point.
        ValueError: shapes do not fit, the two lists differ in length, or a float weight is not finite.

    Example:
        >>> cond, wanted, unwanted = (torch.tensor(p).log() for p in ([0.5, 0.5], [0.9, 0.1], [0.1, 0.9]))
        >>> weighted(cond, [wanted, unwanted], [0.5, -0.5]).softmax(-1)
        tensor([0.9000, 0.1000])
    """
    if len(others) != len(weights):
        raise ValueError(
            f"expected one weight for each other source, got {len(others)} sources and {len(weights)} weights. "
            "Leave out the conditional: its weight is one minus the sum of the others."
        )
    c, *rest = broadcast(cond, *others)
    score = c
    for k, (source, weight) in enumerate(zip(rest, weights, strict=True)):
        score = score + per_row(f"weights[{k}]", weight, c) * (source - c)
    return unless_masked(score, c, *rest)


def s2(cond: Tensor, uncond: Tensor, sub: Tensor, guidance_scale: Scale, omega: Scale) -> Tensor:
    """S²-guidance: ``score = u + γ (c - u) - ω (sub - c)``.

    Pushes away from a weakened copy of the model as well as from the contrast context. Chen et al., "S²-Guidance:
    Stochastic Self Guidance" (arXiv 2508.12880).

    Args:
        cond: log-probs ``c`` ``[..., V]`` under the prompt.
        uncond: log-probs ``u`` under the contrast context, broadcast to ``cond``.
        sub: log-probs under the prompt of the same model with some blocks dropped, broadcast to ``cond``.
        guidance_scale: γ; 1 together with ω = 0 returns ``cond`` bit for bit.
        omega: ω; 0 is ``cfg``.

    Returns:
        Scores ``[..., V]``.

    Raises:
        TypeError: a source is not floating point.
        ValueError: shapes do not fit, or a float strength is not finite.

    Example:
        >>> cond, sub = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.2, 0.8]).log()
        >>> s2(cond, cond, sub, guidance_scale=1.5, omega=1.0).softmax(-1)
        tensor([0.8000, 0.2000])
    """
    c, u, s = broadcast(cond, uncond, sub)
    guided = torch.lerp(u, c, per_row("guidance_scale", guidance_scale, c))
    return unless_masked(guided - per_row("omega", omega, c) * (s - c), c, u, s)


def dola(final: Tensor, early: Tensor, strength: Scale = 1.0, plausibility: float = 0.1) -> Tensor:
    """Contrast of the last layer with an early one: ``score = f - strength · e_M`` on the plausible tokens.

    ``M`` is, for each row, the candidate layer whose law is farthest from the final one by the Jensen-Shannon
    divergence (``measures.js_divergence``). Chuang et al., "DoLa" (arXiv 2309.03883).

    Args:
        final: log-probs ``f`` ``[..., V]`` of the last layer.
        early: log-probs ``[..., K, V]`` of K candidate layers, read through the same output head.
        strength: weight of the early layer; at 0 ``final`` comes back, but for the cut.
        plausibility: α in [0, 1]: keep tokens with ``f >= log α + max f``; 0 keeps all. Others get ``-inf``.

    Returns:
        Scores ``[..., V]``.

    Raises:
        TypeError: a source is not floating point.
        ValueError: shapes do not fit, there is no candidate layer, or a number is outside its range.

    Example:
        >>> final = torch.tensor([0.5, 0.5]).log()
        >>> early = torch.tensor([[0.4, 0.6], [0.9, 0.1]]).log()
        >>> dola(final, early).softmax(-1)
        tensor([0.1000, 0.9000])
    """
    f, e = promote(final, early)
    if e.dim() != f.dim() + 1 or e.shape[:-2] != f.shape[:-1] or e.shape[-2] == 0:
        raise ValueError(
            f"expected early layers [..., K, V] with K >= 1 for a final layer {list(f.shape)}, got {list(e.shape)}. "
            "Stack the candidate layers along dimension -2."
        )
    layer = js_divergence(f.unsqueeze(-2), e).argmax(-1)
    e = e.gather(-2, layer[..., None, None].expand(*layer.shape, 1, e.shape[-1])).squeeze(-2)
    score = unless_masked(f - per_row("strength", strength, f) * e, f, e)
    return score.masked_fill(~plausible(f, plausibility), -math.inf)
