"""Rules that measure lengths and angles, on vectors centred on the candidate set.

A log-prob is defined up to a constant per row; norms and projections change with that constant unless it is fixed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmguide.rules.candidates import Scale, broadcast, centred, check_finite, dot, masked, norm, per_row, tiny


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
    c, u = broadcast(cond, uncond)
    check_finite("eta", eta)
    if norm_threshold is not None and not 0.0 < norm_threshold < math.inf:
        raise ValueError(f"expected norm_threshold above 0, got {norm_threshold}. Use None for no limit.")
    off = masked(c, u)
    delta, along = centred(c - u, off), centred(c, off)
    if norm_threshold is not None:
        delta = delta * (norm_threshold / norm(delta).clamp_min(tiny(c))).clamp_max(1.0)
    share = dot(delta, along) / dot(along, along).clamp_min(tiny(c))
    update = delta - (1.0 - eta) * share * along
    return torch.where(off, c, c + (per_row("guidance_scale", guidance_scale, c) - 1.0) * update)


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
    c, u = broadcast(cond, uncond)
    off = masked(c, u)
    x, y = centred(c, off), centred(u, off)
    xx, xy, yy = dot(x, x), dot(x, y), dot(y, y)
    # Leading eigenvector (cos θ, sin θ) and eigenvalue of [[xx, xy], [xy, yy]]; atan2 also covers equal eigenvalues.
    angle = torch.atan2(2 * xy, xx - yy) / 2
    a, b = angle.cos(), angle.sin()
    largest = (xx + yy + torch.hypot(xx - yy, 2 * xy)) / 2
    projected = (a * xy + b * yy) / largest.clamp_min(tiny(c)) * (a * x + b * y)
    return torch.where(off, c, c + (per_row("guidance_scale", guidance_scale, c) - 1.0) * (x - projected))


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
    g, c = broadcast(guided, cond)
    if not isinstance(rescale, Tensor) and not 0.0 <= rescale <= 1.0:
        raise ValueError(f"expected rescale in [0, 1], got {rescale}. Use 0 to leave the guided scores as they are.")
    off = masked(g, c)
    guided_part, cond_part = centred(g, off), centred(c, off)
    # Divide before multiplying: the quotient is bounded by sqrt(V) even where the spread is tiny, the ratio is not.
    matched = norm(cond_part) * (guided_part / norm(guided_part).clamp_min(tiny(g)))
    score = g + per_row("rescale", rescale, g) * (matched - guided_part)
    return torch.where(off, torch.where(masked(g), g, -math.inf), score)
