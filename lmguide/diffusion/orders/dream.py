"""The four remasking algorithms of Dream, with its noise schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from lmguide.checks import check_number
from lmguide.diffusion.orders.base import ORDERS, Decisions, Moment, Order, check_step, highest

if TYPE_CHECKING:
    from torch import Tensor


@ORDERS.register("dream")
@dataclass(frozen=True)
class DreamOrder(Order):
    """Dream's schedule and algorithms (arXiv 2508.15487), on the law after temperature, top-p and top-k.

    The time of step `k` of `K` is `t_k = 1 - (1 - eps) k / K`; a step from `t` to `s` transfers the share
    `p = 1 - s / t` of the positions that are left, the last step all of them.

    - `origin`: each open position by itself with probability `p`.
    - `maskgit_plus`: `int(left p)` positions with the largest probability of the drawn token.
    - `topk_margin`: the same by `p_(1) - p_(2)`.
    - `entropy`: the same by `-H`.

    Counts are those of each row by itself; Dream's own code takes the mean over the batch, so that the answer of a row
    depends on the others.

    Args:
        alg: The algorithm. Dream's default is `origin`; it recommends `entropy` with temperature 0.2 and top-p 0.95.
        eps: Time at which the schedule ends, in (0, 1).
        alg_temp: Above 0, positions are not the best ones but drawn without replacement with weights
            `softmax(confidence / alg_temp)`; None or 0 is off. Not with `origin`, which ranks nothing.

    Raises:
        TypeError: `eps` or `alg_temp` is no number.
        ValueError: An unknown `alg`, `eps` outside (0, 1), a negative `alg_temp`, or one with `origin`.

    Example:
        >>> order = DreamOrder("entropy")
        >>> left = torch.tensor([8])
        >>> [order.quota(torch.tensor([8]), left, step, 4).item() for step in (0, 1, 3)]
        [1, 2, 8]
    """

    filtered: ClassVar[bool] = True

    alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy"] = "origin"
    eps: float = 1e-3
    alg_temp: float | None = None

    def __post_init__(self) -> None:
        """Check the algorithm and its numbers."""
        if self.alg not in {"origin", "maskgit_plus", "topk_margin", "entropy"}:
            raise ValueError(
                f"alg: expected 'origin', 'maskgit_plus', 'topk_margin' or 'entropy', got {self.alg!r}. "
                "Use one of the four."
            )
        check_number("eps", self.eps, "Dream uses 0.001.", above=0, below=1)
        if self.alg_temp is not None:
            check_number("alg_temp", self.alg_temp, "Use None to take the best positions.", least=0)
            if self.alg_temp and self.alg == "origin":
                raise ValueError(
                    f"alg_temp: expected None with alg 'origin', got {self.alg_temp}. Choose another alg to rank by."
                )

    @property
    def reads(self) -> frozenset[str]:
        """What the algorithm ranks by, where that is not the probability of the drawn token."""
        names = {"topk_margin": "second", "entropy": "entropy"}
        return frozenset({names[self.alg]} if self.alg in names else ())

    def quota(self, initial: Tensor, left: Tensor, step: int, steps: int) -> Tensor:
        """`int(left p)`, at the last step `left`; for `origin` what it commits on average, rounded down."""
        return left if step == steps - 1 else (left * self._share(step, steps)).to(torch.int64)

    def select(self, decisions: Decisions, moment: Moment) -> Tensor:
        """The positions to commit, `[B, W]` bool."""
        if self.alg == "origin":
            if moment.steps_left == 1:
                return moment.open
            return moment.open & (moment.uniform("order") < self._share(moment.step, moment.steps))
        score = self._confidence(decisions)
        if self.alg_temp:
            # Gumbel numbers on log-weights give a draw without replacement (Plackett-Luce), as torch.multinomial does.
            noise = moment.uniform("order")
            score = score / self.alg_temp - (-torch.log1p(-noise)).log()
        return highest(score, moment.open, moment.quota)

    def _confidence(self, decisions: Decisions) -> Tensor:
        if self.alg == "entropy":
            return -decisions.entropy
        if self.alg == "topk_margin":
            return decisions.top.exp() - decisions.second.exp()
        return decisions.log_prob.exp()

    def _share(self, step: int, steps: int) -> Tensor:
        """`1 - s / t`, in float32 and from `linspace` as in Dream's code: `int` may fall to either side of a number."""
        check_step(step, steps)
        times = torch.linspace(1, self.eps, steps + 1)
        return 1 - times[step + 1] / times[step]
