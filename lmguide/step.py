"""One guided decoding step, the same for every engine.

Rules where gates are open, then rewards, at scheduled strength, then the constraint, renormalised once. It knows
log-probabilities, not models: whoever calls it says how to get a method's other sources, and is asked only if needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmguide import rules
from lmguide.measures import kl_divergence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmguide.guidance import Guidance
    from lmguide.rules import Scale
    from lmguide.schedules import Progress


@dataclass(frozen=True)
class Guided:
    """The result of a step.

    Attributes:
        scores: Log-probabilities `[B, V]`, normalised unless asked not to be.
        open: Rows `[B]` on which some method applied.
    """

    scores: Tensor
    open: Tensor


def guided_step(
    cond: Tensor,
    methods: Sequence[Guidance],
    strengths: Sequence[Scale],
    fetch: Callable[[int], Mapping[str, Tensor]],
    progress: Progress,
    live: Tensor | None = None,
    rewards: Callable[[int, Tensor], Mapping[str, Tensor]] | None = None,
    constrain: Callable[[Tensor], Tensor] | None = None,
    normalize: bool = True,
    settled: bool = False,
) -> Guided:
    """Combine the sources of one decoding step.

    With methods `m` open on a row, `score = c + sum_m (rule_m(c, sources_m) - c)`; with one method that is its rule's
    result, bit for bit. Rewards then add to that, one after the other. Closed rows keep what they had. The constraint
    comes last, and the scores are renormalised once. Methods that cut (`Guidance.cuts`) choose among the tokens that
    the constraint allows, or nothing might be left of both; gates look at the law without it.

    Args:
        cond: Conditional log-probabilities `[B, V]`, float32.
        methods: The methods; rewards are added after all rules.
        strengths: The strength of each, a number or `[B]`, before its schedule.
        fetch: Gives the log-probabilities `[B, V]` of the other sources of method number `i` by name. Called at most
            once for each method, and not at all where the gate is closed on every live row or the schedule has the
            method off.
        progress: The step and how many there will be.
        live: Rows `[B]` still being decoded; finished ones open no gate. `None` is all.
        rewards: Gives the log-rewards `[B, V]` of method number `i` by name, from the scores `[B, V]` it is to be added
            to; needed when there are methods with `is_reward`.
        constrain: Gives scores `[B, V]` back with minus infinity where a token is not allowed; `None` allows all.
        normalize: Whether to renormalise; without it the scores are those that rules and rewards gave.
        settled: Whether gates that the conditional alone opens are known to be open on every row; they are not asked.

    Returns:
        The scores and the rows on which some method applied.
    """
    applied = torch.zeros(cond.shape[:-1], dtype=torch.bool, device=cond.device)
    guided: list[Tensor] = []
    combined: Tensor | None = None
    # rules first, whatever the order in which methods were given; sorting is stable
    for index in sorted(range(len(methods)), key=lambda i: methods[i].is_reward):
        method, strength = methods[index], strengths[index]
        gate, schedule = method.when(), method.schedule
        weight: float | Tensor = 1.0
        if schedule is not None and not schedule.needs_divergence and (weight := schedule.weight(progress)) == 0:
            continue
        opened = None
        if gate is not None and not gate.needs_uncond and not settled:
            opened = gate.open(cond, progress) if live is None else gate.open(cond, progress) & live
            count = int(opened.count_nonzero())
            if count == 0:
                continue
            opened = None if count == opened.numel() else opened  # open everywhere is as good as no gate
        if method.is_reward:
            assert rewards is not None
            combined = _sum(cond, guided) if combined is None else combined
            combined = constrain(combined) if constrain is not None and method.cuts else combined
            sources = rewards(index, combined)
        else:
            sources = fetch(index)
        first = next(iter(sources.values()))
        if gate is not None and gate.needs_uncond:
            opened = gate.open(cond, progress, first)
            opened = opened if live is None else opened & live
        if schedule is not None and schedule.needs_divergence:
            weight = schedule.weight_from(kl_divergence(cond, first))
        before = cond if combined is None else combined
        if constrain is not None and method.cuts and not method.is_reward:
            before = constrain(before)
        scores = method.combine(before, sources, scheduled(strength, method.off, weight))
        if opened is not None:
            scores = torch.where(opened[..., None], scores, before)
        applied |= True if opened is None else opened
        if method.is_reward:
            combined = scores
        else:
            guided.append(scores)
    combined = _sum(cond, guided) if combined is None else combined
    combined = combined if constrain is None else constrain(combined)
    return Guided(rules.normalize(combined) if normalize else combined, applied)


def scheduled(strength: Scale, off: float, weight: Scale) -> Scale:
    """The strength at a moment: `off + (strength - off) * weight`; weight 1 gives `strength` bit for bit."""
    if isinstance(weight, float) and weight == 1:
        return strength
    return off + (strength - off) * weight


def _sum(cond: Tensor, guided: Sequence[Tensor]) -> Tensor:
    """`c + sum (g - c)`, minus infinity where any term is."""
    if not guided:
        return cond
    if len(guided) == 1:
        return guided[0]
    total = cond
    excluded = torch.isneginf(cond)
    for scores in guided:
        excluded = excluded | torch.isneginf(scores)
        total = total + (scores - cond)
    return total.masked_fill(excluded, -torch.inf)
