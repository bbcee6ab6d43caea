"""Rules: how the log-probabilities of several sources become one score per token.

Pure functions of log-probs ``[..., V]``; no model, no state, no gate. Scores are not normalised: see ``normalize``.

Every rule keeps the same promises. It computes in float32 (float64 stays). Its first source decides the candidate set:
where that source masks a token the result is masked; a token that any other source masks has no defined ratio and keeps
the first source's own score. So no pattern of ``-inf`` makes NaN or ``+inf``. A strength may be a float or a tensor
with one entry per row, and at its off value the first source comes back bit for bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from lmguide.measures import js_divergence, kl_divergence, promote

if TYPE_CHECKING:
    from collections.abc import Sequence

Scale: TypeAlias = float | Tensor
"""A strength: one number, or a tensor that broadcasts to the leading shape of the first source."""

_MASKED = -1e9
"""Scores at or below this are masks: ``-inf``, or a number in its place such as ``finfo.min``, whose difference or
square would overflow. No log-prob of a model comes near it."""


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
    c, u = _sources(cond, uncond)
    return torch.where(_masked(c, u), c, _lerp(u, c, _strength("guidance_scale", guidance_scale, c)))


def cfg_rescale(guided: Tensor, cond: Tensor, rescale: Scale) -> Tensor:
    """Guidance rescale: bring the spread of guided scores back towards that of the conditional ones.

    ``score = g + φ (σ_c / σ_g - 1) (g - mean(g))``, means and standard deviations over the candidate set, where both
    sources are unmasked. Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891),
    section 3.4, whose mean is implicitly zero. Here a token masked in ``guided`` stays masked: a rule has cut it.

    Args:
        guided: scores ``g`` ``[..., V]`` out of another rule.
        cond: log-probs ``c`` under the prompt, broadcast to ``guided``.
        rescale: φ in [0, 1]; 0 returns ``guided`` bit for bit on the candidate set, 1 matches the spread of ``cond``.

    Returns:
        Scores ``[..., V]``, masked where either source is.

    Raises:
        TypeError: a source is not floating point.
        ValueError: shapes do not fit, or a float ``rescale`` is outside [0, 1].

    Example:
        >>> cfg_rescale(torch.tensor([-6.0, -2.0]), torch.tensor([-3.0, -1.0]), 1.0)
        tensor([-5., -3.])
    """
    g, c = _sources(guided, cond)
    if not isinstance(rescale, Tensor) and not 0.0 <= rescale <= 1.0:
        raise ValueError(f"expected rescale in [0, 1], got {rescale}. Use 0 to leave the guided scores as they are.")
    off = _masked(g, c)
    guided_part, cond_part = _centred(g, off), _centred(c, off)
    # Divide before multiplying: the quotient is bounded by sqrt(V) even where the spread is tiny, the ratio is not.
    matched = _norm(cond_part) * (guided_part / _norm(guided_part).clamp_min(_tiny(g)))
    score = g + _strength("rescale", rescale, g) * (matched - guided_part)
    return torch.where(off, torch.where(_masked(g), g, -math.inf), score)


def apg(
    cond: Tensor,
    uncond: Tensor,
    guidance_scale: Scale,
    eta: float = 0.0,
    norm_threshold: float | None = None,
) -> Tensor:
    """Adaptive projected guidance: ``score = c + (γ - 1) (Δ⊥ + η Δ∥)`` with ``Δ = c - u``.

    ``Δ∥`` is the part of ``Δ`` along ``c`` (it only sharpens the law, as a lower temperature does), ``Δ⊥`` the rest (it
    reorders tokens). Both vectors are centred on the candidate set first, since a log-prob is defined up to a
    constant and norms are not. Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales"
    (arXiv 2410.02416), Algorithm 1, without its momentum: neighbouring tokens of a text are different variables.

    Args:
        cond: log-probs ``c`` ``[..., V]`` under the prompt.
        uncond: log-probs ``u`` under the contrast context, broadcast to ``cond``.
        guidance_scale: γ; 1 returns ``cond`` bit for bit.
        eta: weight of the parallel part; 1 without a norm threshold is ``cfg`` up to a constant per row.
        norm_threshold: largest allowed norm of ``Δ`` (scores, nats); longer ones are shortened to it. None: no limit.

    Returns:
        Scores ``[..., V]``.

    Raises:
        TypeError: a source is not floating point.
        ValueError: shapes do not fit, or a number is not finite, or ``norm_threshold`` is not above 0.

    Example:
        Where the difference only sharpens the conditional law, nothing is left to do.

        >>> cond = torch.tensor([0.1, 0.9]).log()
        >>> apg(cond, torch.tensor([0.3, 0.7]).log(), 3.0).softmax(-1)
        tensor([0.1000, 0.9000])
    """
    c, u = _sources(cond, uncond)
    _finite("eta", eta)
    if norm_threshold is not None and not 0.0 < norm_threshold < math.inf:
        raise ValueError(f"expected norm_threshold above 0, got {norm_threshold}. Use None for no limit.")
    off = _masked(c, u)
    delta, along = _centred(c - u, off), _centred(c, off)
    if norm_threshold is not None:
        delta = delta * (norm_threshold / _norm(delta).clamp_min(_tiny(c))).clamp_max(1.0)
    share = _dot(delta, along) / _dot(along, along).clamp_min(_tiny(c))
    update = delta - (1.0 - eta) * share * along
    return torch.where(off, c, c + (_strength("guidance_scale", guidance_scale, c) - 1.0) * update)


def tangential(cond: Tensor, uncond: Tensor, guidance_scale: Scale) -> Tensor:
    """Tangential classifier-free guidance: ``score = c + (γ - 1) (c - u')``.

    ``u'`` is the projection of ``u`` on the leading right singular vector of the two rows ``[c; u]``, both centred on
    the candidate set. The singular vector comes from the 2 x 2 Gram matrix, so nothing of size V is decomposed. Kwon
    et al., "TCFG: Tangential Damping Classifier-free Guidance" (arXiv 2503.18137). Untested on language models by its
    authors.

    Args:
        cond: log-probs ``c`` ``[..., V]`` under the prompt.
        uncond: log-probs ``u`` under the contrast context, broadcast to ``cond``.
        guidance_scale: γ; 1 returns ``cond`` bit for bit.

    Returns:
        Scores ``[..., V]``.

    Raises:
        TypeError: a source is not floating point.
        ValueError: shapes do not fit, or a float strength is not finite.

    Example:
        On two tokens every centred row lies on one line, the projection changes nothing, and this is ``cfg``.

        >>> tangential(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.8, 0.2]).log(), 2.0).softmax(-1)
        tensor([0.2000, 0.8000])
    """
    c, u = _sources(cond, uncond)
    off = _masked(c, u)
    x, y = _centred(c, off), _centred(u, off)
    xx, xy, yy = _dot(x, x), _dot(x, y), _dot(y, y)
    # Leading eigenvector (cos θ, sin θ) and eigenvalue of [[xx, xy], [xy, yy]]; atan2 also covers equal eigenvalues.
    angle = torch.atan2(2 * xy, xx - yy) / 2
    a, b = angle.cos(), angle.sin()
    largest = (xx + yy + torch.hypot(xx - yy, 2 * xy)) / 2
    projected = (a * xy + b * yy) / largest.clamp_min(_tiny(c)) * (a * x + b * y)
    return torch.where(off, c, c + (_strength("guidance_scale", guidance_scale, c) - 1.0) * (x - projected))


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
    c, u = _sources(cond, uncond)
    if not 0.0 <= damping < math.inf:
        raise ValueError(f"expected damping of 0 or more, got {damping}. Use 0 for plain guidance.")
    # A finite stand-in for an infinite divergence, so that damping 0 gives 0 and not NaN.
    divergence = kl_divergence(c, u).clamp_max(torch.finfo(c.dtype).max).unsqueeze(-1)
    strength = 1.0 + (_strength("guidance_scale", guidance_scale, c) - 1.0) * torch.exp(-damping * divergence)
    return torch.where(_masked(c, u), c, _lerp(u, c, strength))


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
    e, a = _sources(expert, amateur)
    if form not in {"reasoning", "original"}:
        raise ValueError(f"expected form 'reasoning' or 'original', got {form!r}. Use one of the two.")
    if not 0.0 < amateur_temperature < math.inf:
        raise ValueError(f"expected amateur_temperature above 0, got {amateur_temperature}. Use 1 for no change.")
    if amateur_temperature != 1.0:
        a = normalize(a / amateur_temperature)
    strength = _strength("beta", beta, e)
    score = e + strength * (e - a) if form == "reasoning" else e - strength * a
    return torch.where(_masked(e, a), e, score).masked_fill(~plausible(e, plausibility), -math.inf)


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
    b, e, a = _sources(base, expert, antiexpert)
    return torch.where(_masked(b, e, a), b, b + _strength("alpha", alpha, b) * (e - a))


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
    c, *rest = _sources(cond, *others)
    score = c
    for k, (source, weight) in enumerate(zip(rest, weights, strict=True)):
        score = score + _strength(f"weights[{k}]", weight, c) * (source - c)
    return torch.where(_masked(c, *rest), c, score)


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
    c, u, s = _sources(cond, uncond, sub)
    guided = _lerp(u, c, _strength("guidance_scale", guidance_scale, c))
    return torch.where(_masked(c, u, s), c, guided - _strength("omega", omega, c) * (s - c))


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
    score = torch.where(_masked(f, e), f, f - _strength("strength", strength, f) * e)
    return score.masked_fill(~plausible(f, plausibility), -math.inf)


def plausible(logp: Tensor, alpha: float) -> Tensor:
    """Tokens with at least α times the probability of the likeliest one: ``logp >= log α + max logp``.

    The plausibility constraint of Li et al. (arXiv 2210.15097); the same test as min-p.

    Args:
        logp: log-probs ``[..., V]``.
        alpha: α in [0, 1]; 0 keeps every token that is not ``-inf``.

    Returns:
        Booleans ``[..., V]``; the likeliest token is always kept.

    Raises:
        ValueError: ``alpha`` is outside [0, 1].

    Example:
        >>> plausible(torch.tensor([0.7, 0.2, 0.1]).log(), 0.2)
        tensor([ True,  True, False])
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"expected plausibility in [0, 1], got {alpha}. Use 0 to keep every token.")
    (logp,) = promote(logp)
    floor = (math.log(alpha) if alpha > 0 else -math.inf) + logp.amax(-1, keepdim=True)
    # Written so that NaN counts as plausible: a broken source must show in the result, not be cut away.
    return ~(logp < floor) & (logp != -math.inf)


def normalize(scores: Tensor) -> Tensor:
    """Log-softmax over the vocabulary that leaves a row of ``-inf`` as it is.

    Args:
        scores: scores ``[..., V]``.

    Returns:
        Log-probs ``[..., V]``; a row without any candidate stays ``-inf``, where a plain log-softmax gives NaN.

    Example:
        >>> normalize(torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf]]))
        tensor([[-0.6931, -0.6931],
                [   -inf,    -inf]])
    """
    (scores,) = promote(scores)
    empty = scores.amax(-1, keepdim=True) == -math.inf
    return scores.log_softmax(-1).masked_fill(empty, -math.inf)


def _sources(first: Tensor, *others: Tensor) -> list[Tensor]:
    """Promote the sources and check that the others broadcast to the first, so that the result has its shape."""
    promoted = promote(first, *others)
    for other in others:
        if not _fits(other.shape, first.shape):
            raise ValueError(
                f"expected every source to broadcast to the first, {list(first.shape)}, got {list(other.shape)}. "
                "Give each source the rows of the first one."
            )
    return promoted


def _fits(shape: torch.Size, target: torch.Size) -> bool:
    """Whether ``shape`` broadcasts to ``target`` without making it larger."""
    paired = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in {1, full} for size, full in paired)


def _strength(name: str, value: Scale, like: Tensor) -> Scale:
    """Check a strength and make it multiply ``[..., V]``."""
    if not isinstance(value, Tensor):
        _finite(name, value)
        return value
    if not _fits(value.shape, like.shape[:-1]):
        raise ValueError(
            f"expected {name} to broadcast to {list(like.shape[:-1])}, got {list(value.shape)}. Give one entry per row."
        )
    return value.to(like).unsqueeze(-1)


def _finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"expected a finite {name}, got {value}. Use a finite number.")


def _masked(*sources: Tensor) -> Tensor:
    """Tokens masked by any source; NaN is not a mask, so that it shows in the result."""
    masked = sources[0] <= _MASKED
    for source in sources[1:]:
        masked = masked | (source <= _MASKED)
    return masked


def _lerp(start: Tensor, end: Tensor, weight: Scale) -> Tensor:
    """``start + weight (end - start)``; torch's own form of it is exact at both ends."""
    return torch.lerp(start, end, weight)


def _centred(values: Tensor, off: Tensor) -> Tensor:
    """``values`` minus their mean over the tokens that are not ``off``; 0 where they are."""
    kept = values.masked_fill(off, 0.0)
    count = (~off).sum(-1, keepdim=True).clamp_min(1)
    return (kept - kept.sum(-1, keepdim=True) / count).masked_fill(off, 0.0)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _norm(x: Tensor) -> Tensor:
    return _dot(x, x).sqrt()


def _tiny(like: Tensor) -> float:
    """Smallest normal number: a divisor that leaves 0 / 0 at 0."""
    return torch.finfo(like.dtype).tiny
