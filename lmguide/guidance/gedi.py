"""GeDi: a class-conditional language model as the judge of every next token, and the paper's filter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from lmguide.checks import check_number
from lmguide.descriptions.gedi import ClassPosterior
from lmguide.guidance.base import GUIDANCE
from lmguide.guidance.rewards import Reward, add_reward

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.contexts import Context
    from lmguide.rules import Scale

OMEGA = {"exact": 5.0, "normalized": 30.0}
"""Strengths where none is given: the paper's for its own form. The exact posterior sums what that averages over the
text, so it needs less; at 5 it moves as many words as the paper's form at 30 to 100 and keeps the grammar."""

UNIT = 2.0**60
"""Masses are counted in its inverse: sums stay below 2**63, and every float32 above 2**-37 is a whole number."""

RANK_BITS = 31
"""Of a float32 without its sign."""

DIGITS = (11, 10, 10)
"""How its bits are taken: three sums over the vocabulary, into few enough places that these cost nothing."""


def best_by_posterior(scores: Tensor, log_posterior: Tensor, filter_p: float, target_p: float | None = None) -> Tensor:
    """Tokens with the best posterior that hold `1 - filter_p` of the mass, and those of at least `target_p`.

    A token stays if those of a better posterior have no more than `rho = 1 - filter_p` of `softmax(scores)` together,
    or if its own posterior is at least `tau = target_p`: equation 7 of GeDi (2009.06367). So the best token that is
    possible at all always stays.

    Args:
        scores: Scores after re-weighting, `[..., V]`.
        log_posterior: Log-posteriors of the wanted class, `[..., V]`, float32, at most 0.
        filter_p: `1 - rho`, in [0, 1]; 0 keeps everything.
        target_p: `tau`, in [0, 1]; `None` keeps none for its own sake.

    Returns:
        Booleans `[..., V]`.

    Example:
        >>> probabilities = torch.tensor([0.1, 0.2, 0.7])
        >>> best_by_posterior(probabilities.log(), torch.tensor([0.9, 0.7, 0.1]).log(), 0.8)
        tensor([ True,  True, False])
    """
    mass = scores.softmax(-1)
    kept = mass[..., :1].isnan() | _at_most(1 - filter_p, mass, log_posterior)  # NaN must show, not be cut away
    if target_p is None:
        return kept
    return kept | (log_posterior >= (math.log(target_p) if target_p else -math.inf))


def _at_most(rho: float, mass: Tensor, log_posterior: Tensor) -> Tensor:
    """Tokens for which those of a better posterior have at most `rho` of the mass.

    Found without sorting, which would cost more than all other arithmetic of a step. The last token that stays is
    looked for digit by digit, as in a radix sort: as whole numbers the bits of `|log p|` have the order of their
    values, and the mass under each digit is one scattered sum. Masses are cut to multiples of 2**-60, so that sums are
    exact and no order of adding them changes which tokens stay.
    """
    if rho >= 1:
        return torch.ones_like(mass, dtype=torch.bool)
    shares = mass.mul(UNIT).long()
    rank = log_posterior.float().abs().view(torch.int32)
    digit, place = torch.empty_like(rank), torch.empty_like(shares)
    last = torch.zeros_like(rank[..., :1])
    left = RANK_BITS
    for bits in DIGITS:
        left -= bits
        # place 0 is for all that is better than the digits found so far, the last one for all that is worse
        torch.bitwise_right_shift(rank, left, out=digit)
        place.copy_(digit.sub_((last << bits) - 1).clamp_(0, (1 << bits) + 1))
        under = shares.new_zeros(*rank.shape[:-1], (1 << bits) + 2).scatter_add_(-1, place, shares)
        better = under.cumsum(-1).sub_(under)[..., 1:-1]
        last = (last << bits) + (better <= int(rho * UNIT)).sum(-1, keepdim=True, dtype=torch.int32) - 1
    return rank <= last


@GUIDANCE.register("gedi")
@dataclass(frozen=True)
class GeDi(Reward):
    """Generative discriminator: `c + omega log P(code | text, v)` by a language model trained with control codes.

    One forward pass of the guide over all codes judges every next token. Krause et al., 2009.06367. The posterior is
    that of `ClassPosterior`: exact by Bayes' rule, or normalised by length as in the paper. The paper's settings are
    `form="normalized", omega=30, filter_p=0.8, target_p=0.8`, and against toxicity `class_bias=2` with `target_p`
    moved to `sigmoid(logit(0.8) + 2)`.

    Args:
        guide: As in `ClassPosterior`.
        code: The wanted class; as in `ClassPosterior`.
        codes: As in `ClassPosterior`.
        omega: Strength, one for all or one per prompt, at least 0; 0 is off, 1 Bayes' rule. `None` is 5 for the exact
            form and the paper's 30 for the normalised one.
        form: As in `ClassPosterior`.
        logit_scale: As in `ClassPosterior`.
        bias: As in `ClassPosterior`.
        class_bias: As in `ClassPosterior`.
        class_prior: As in `ClassPosterior`.
        topic: As in `ClassPosterior`.
        filter_p: After re-weighting, tokens of the best posterior that hold `1 - filter_p` of the mass stay, in [0, 1];
            `None` is no filter. The paper's is 0.8.
        target_p: Posterior from which on a token stays whatever its rank, in [0, 1]; `None` is none. The paper's is
            0.8.
        map_vocabulary: As in `ClassPosterior`.
        tokenizer: As in `ClassPosterior`.

    Raises:
        ValueError: As in `ClassPosterior`; a strength below 0 or out of range, `target_p` without `filter_p`, a gate or
            schedule that compares two laws.

    Example:
        >>> GeDi("some/guide", " glad", (" glad", " grim")).omega
        5.0
    """

    strength_field: ClassVar[str] = "omega"
    cuts: ClassVar[bool] = True

    guide: PreTrainedModel | str
    code: str | tuple[int, ...]
    codes: tuple[str | tuple[int, ...], ...] | None = None
    omega: float | tuple[float, ...] | None = None
    form: Literal["exact", "normalized"] = "exact"
    logit_scale: float | None = None
    bias: tuple[float, ...] | None = None
    class_bias: float = 0.0
    class_prior: tuple[float, ...] | None = None
    topic: str | tuple[int, ...] | None = None
    filter_p: float | None = None
    target_p: float | None = None
    map_vocabulary: bool = False
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the values."""
        posterior = self._posterior()
        for name in ("code", "codes", "bias", "class_prior", "topic"):
            object.__setattr__(self, name, getattr(posterior, name))
        if self.omega is None:
            object.__setattr__(self, "omega", OMEGA[self.form])
        super().__post_init__()
        for omega in self.omega if isinstance(self.omega, tuple) else (self.omega,):
            check_number("omega", omega, "Use 0 to switch it off, and another code to avoid this one.", least=0)
        if self.filter_p is not None:
            check_number("filter_p", self.filter_p, "The paper's is 0.8; None is no filter.", least=0, most=1)
        if self.target_p is not None:
            check_number("target_p", self.target_p, "The paper's is 0.8.", least=0, most=1)
            if self.filter_p is None:
                raise ValueError(
                    "target_p: it says what the filter keeps, and there is none, got filter_p=None. "
                    "Give filter_p too; the paper's is 0.8."
                )

    def _posterior(self) -> ClassPosterior:
        return ClassPosterior(
            self.guide,
            self.code,
            self.codes,
            self.form,
            self.logit_scale,
            self.bias,
            self.class_bias,
            self.class_prior,
            self.topic,
            self.tokenizer,
            self.map_vocabulary,
        )

    def sources(self) -> Mapping[str, Context]:
        """The posterior, as `reward`."""
        return {"reward": self._posterior()}

    def combine(self, cond: Tensor, sources: Mapping[str, Tensor], strength: Scale) -> Tensor:
        """`add_reward`, then the filter on rows where the strength is not 0."""
        posterior = sources["reward"]
        scores = add_reward(cond, posterior, strength)
        if self.filter_p is None or (not isinstance(strength, torch.Tensor) and strength == 0):
            return scores
        kept = best_by_posterior(scores, posterior, self.filter_p, self.target_p)
        if isinstance(strength, torch.Tensor):
            kept |= (strength == 0)[..., None]
        return torch.where(kept, scores, -torch.inf)
