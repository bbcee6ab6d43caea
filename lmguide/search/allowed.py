"""Which tokens may follow in the rows of a search: a constraint's mask, and a predicate asked token by token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmguide.constraints.states import ConstraintState


@dataclass
class Judge:
    """A predicate of texts, with what it has said.

    Args:
        predicate: A text so far, and whether it ends here, to whether it may still become valid.
        decode: Token ids to text.
        ends: End-of-sequence tokens.
        specials: Special tokens; all but the ends are no text, and may not be written.
    """

    predicate: Callable[[str, bool], bool]
    decode: Callable[[Sequence[int]], str]
    ends: frozenset[int]
    specials: frozenset[int]
    calls: int = 0
    known: dict[tuple[int, ...], bool] = field(default_factory=dict)

    def allows(self, tokens: tuple[int, ...]) -> bool:
        """Whether these tokens may stand."""
        if tokens not in self.known:
            ended = tokens[-1] in self.ends
            if not ended and tokens[-1] in self.specials:
                return False
            self.calls += 1
            said = self.predicate(self.decode(tokens[:-1] if ended else tokens), ended)
            if not isinstance(said, bool):
                raise TypeError(f"predicate: expected True or False, got {said!r}. Return one of them.")
            self.known[tokens] = said
        return self.known[tokens]


@dataclass
class Allowed:
    """The law of a step on the tokens that may follow.

    Attributes:
        log_probs: `[B, V]`, minus infinity where the constraint does not allow a token; not normalised.
        log_mass: Log-probability of all allowed tokens together `[B]`, float64; an unbiased estimate's logarithm where
            a predicate was asked.
        tokens: One token for each row, drawn from `log_probs` and allowed by the predicate `[B]`.
    """

    log_probs: Tensor
    log_mass: Tensor
    tokens: Tensor


def draw_allowed(
    state: ConstraintState | None,
    judge: Judge | None,
    generated: Tensor,
    scores: Tensor,
    finished: Tensor,
    generator: torch.Generator | None,
) -> Allowed:
    """A token for every row from the law of `scores`, given that the constraint and the predicate allow it.

    With a constraint alone the mass is exact. A predicate is asked about few tokens: adaptive weighted rejection
    sampling (Lipkin et al., 2504.05410). Rejected tokens are left out of further draws, so the first that is allowed
    comes from the right law; and with `R` the mass rejected until then and `n` further draws, with replacement, until
    two are allowed, `(1 - R) / (n - 1)` is an unbiased estimate of the allowed mass.
    """
    log_probs = scores.log_softmax(-1)
    masked = log_probs if state is None else state.at(generated)(log_probs)
    mass = masked.double().exp().sum(-1)
    possible = (mass > 0) & ~finished
    weights = torch.where(possible[:, None], masked.exp(), torch.ones_like(masked))
    tokens = torch.multinomial(weights, 1, generator=generator)[:, 0]
    if judge is not None:
        for row in possible.nonzero()[:, 0].tolist():
            token, share = _asked(judge, tuple(generated[row].tolist()), weights[row], int(tokens[row]), generator)
            mass[row] = mass[row] * share
            tokens[row] = token
    return Allowed(masked, mass.log().where(possible, mass.new_tensor(-torch.inf)), tokens)


def _asked(
    judge: Judge, prefix: tuple[int, ...], weights: Tensor, first: int, generator: torch.Generator | None
) -> tuple[int, float]:
    """A token that the predicate allows, and the estimated share of those it allows."""
    left = weights.double().clone()
    total = float(left.sum())
    token = first
    while not judge.allows((*prefix, token)):
        left[token] = 0.0
        if float(left.sum()) <= 0.0:
            return token, 0.0
        token = int(torch.multinomial(left, 1, generator=generator))
    rest = float(left.sum()) / total
    draws = accepted = 0
    while accepted < 2:
        draws += 1
        again = int(torch.multinomial(left, 1, generator=generator))
        accepted += judge.allows((*prefix, again))
    return token, rest / (draws - 1)
