"""Correctors: committed positions that are opened again, or whose token is replaced.

Frozen descriptions, as orders are; they know no model and no canvas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lmguide.checks import check_number, check_whole
from lmguide.diffusion.descriptions import described
from lmguide.diffusion.orders.base import Decisions, Moment, check_step
from lmguide.serialization import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping


class Corrector:
    """What becomes of committed positions at a step; this one leaves them alone.

    Subclasses are frozen dataclasses registered in `CORRECTORS`, and override what they do: `remask` or `edit`.
    """

    name: ClassVar[str]
    looks_at_committed: ClassVar[bool] = False
    """Whether it wants decisions at committed positions too."""
    needs_editable: ClassVar[bool] = False
    """Whether it is for models alone that were trained to have their committed tokens change."""

    @property
    def reads(self) -> frozenset[str]:
        """What it needs beside the probability of the drawn token, as `Order.reads`."""
        return frozenset()

    @property
    def post_steps(self) -> int:
        """Further steps on a window without open positions; the first that changes nothing ends them early."""
        return 0

    def quota(self, scheduled: Tensor, initial: Tensor, step: int, steps: int) -> Tensor:
        """Tokens to commit at a step, beside those that make up for positions opened again.

        Args:
            scheduled: `[B]` int64, the order's own number.
            initial: `[B]` int64, undecided positions of the window at its start.
            step: The step of this window, from 0.
            steps: Steps of this window.

        Returns:
            `[B]` int64; the order's own number where the corrector has no schedule.
        """
        return scheduled

    def remask(
        self, decisions: Decisions, moment: Moment, committed: Tensor, confidence: Tensor, commit_step: Tensor
    ) -> Tensor:
        """The committed positions to open again.

        For the schedule to hold, a step that opens `r` positions of a row again commits `r` more: `quota + r`, chosen
        among the positions that were open before.

        Args:
            decisions: The candidates of this step.
            moment: The step.
            committed: `[B, W]` bool, the answer's committed positions. Given tokens are not among them.
            confidence: `[B, W]`, probability of each committed token when it was committed.
            commit_step: `[B, W]` int64, the step at which that was.

        Returns:
            `[B, W]` bool, a subset of `committed`.
        """
        return torch.zeros_like(committed)

    def edit(self, decisions: Decisions, moment: Moment, committed: Tensor, current: Tensor) -> Tensor:
        """The committed positions whose token is replaced by that of `decisions`.

        Args:
            decisions: The candidates, at committed positions too.
            moment: The step.
            committed: `[B, W]` bool, as for `remask`.
            current: `[B, W]` int64, the tokens that stand there.

        Returns:
            `[B, W]` bool, a subset of `committed`; false where the token would stay the same.
        """
        return torch.zeros_like(committed)


CORRECTORS: Registry[Corrector] = Registry("corrector")


class ReMDM(Corrector):
    """Remasking of ReMDM (arXiv 2503.00307): a committed position is opened again with probability `σ`.

    The posterior of a committed position is `(1 - σ) x + σ mask`. It keeps the marginals of the diffusion as long as
    `σ <= min(1, (1 - α_s) / α_t)`, where `α` is the share of committed positions, here linear over the steps of the
    window: `α_t = step / steps`, `α_s = (step + 1) / steps`. At the last step nothing is opened. The four schedules
    differ in `σ`.
    """

    def remask(
        self, decisions: Decisions, moment: Moment, committed: Tensor, confidence: Tensor, commit_step: Tensor
    ) -> Tensor:
        """The committed positions to open again, `[B, W]` bool: each by itself with probability `σ`."""
        if moment.steps_left == 1:
            return torch.zeros_like(committed)
        sigma = self.sigma(moment, committed, confidence)
        return committed & (moment.uniform("remask") < sigma)

    def sigma(self, moment: Moment, committed: Tensor, confidence: Tensor) -> Tensor | float:
        """The probability of each position, `[B, W]` or one number for all."""
        raise NotImplementedError


@CORRECTORS.register("remdm_cap")
@dataclass(frozen=True)
class ReMDMCap(ReMDM):
    """ReMDM with `σ = min(eta, σ_max)`.

    Args:
        eta: In [0, 1]. The paper's runs on OpenWebText use 0.008 with many steps, 0.04 with few.

    Raises:
        TypeError: `eta` is no number.
        ValueError: `eta` is outside [0, 1].

    Example:
        >>> as_corrector("remdm_cap:eta=0.04")
        ReMDMCap(eta=0.04)
    """

    eta: float = 0.008

    def __post_init__(self) -> None:
        """Check eta."""
        _check_eta(self.eta)

    def sigma(self, moment: Moment, committed: Tensor, confidence: Tensor) -> float:
        """`min(eta, σ_max)`."""
        return min(self.eta, sigma_max(moment.step, moment.steps))


@CORRECTORS.register("remdm_rescale")
@dataclass(frozen=True)
class ReMDMRescale(ReMDM):
    """ReMDM with `σ = eta σ_max`.

    Args:
        eta: In [0, 1]. The paper's runs on OpenWebText use 0.015.

    Raises:
        TypeError: `eta` is no number.
        ValueError: `eta` is outside [0, 1].
    """

    eta: float = 0.015

    def __post_init__(self) -> None:
        """Check eta."""
        _check_eta(self.eta)

    def sigma(self, moment: Moment, committed: Tensor, confidence: Tensor) -> float:
        """`eta σ_max`."""
        return self.eta * sigma_max(moment.step, moment.steps)


@CORRECTORS.register("remdm_conf")
@dataclass(frozen=True)
class ReMDMConf(ReMDM):
    """ReMDM with `σ_i = σ_max softmax_i(-confidence)` over the row's committed positions.

    The confidence is the probability of the token when it was committed. On average at most one position per row and
    step is opened again, sooner where the confidence was low.
    """

    def sigma(self, moment: Moment, committed: Tensor, confidence: Tensor) -> Tensor:
        """`σ_max softmax(-confidence)`, `[B, W]`; 0 where nothing is committed."""
        share = (-confidence).masked_fill(~committed, -torch.inf).softmax(-1)
        return share.masked_fill(~committed, 0.0) * sigma_max(moment.step, moment.steps)


@CORRECTORS.register("remdm_loop")
@dataclass(frozen=True)
class ReMDMLoop(ReMDM):
    """ReMDM in a loop: fill to the share `alpha_on`, exchange positions at that share for a while, fill the rest.

    Time `t = 1 - step / steps` runs from 1 to 0. Above `t_on` the share rises linearly to `alpha_on`; from `t_on` down
    to `t_off` it stays, and `σ = eta`; below `t_off` it rises linearly to 1. `quota` follows this share in the place of
    the order's own schedule.

    Args:
        eta: In [0, 1], at most `(1 - alpha_on) / alpha_on`, since no more can be filled again than is open.
        t_on: Time at which the exchange begins, in (0, 1).
        t_off: Time at which it ends, above 0 and below `t_on`.
        alpha_on: Share of committed positions meanwhile, in (0, 1).

    The defaults are those of the paper's runs on OpenWebText.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is out of its range.

    Example:
        >>> loop, window = ReMDMLoop(t_on=0.5, t_off=0.25, alpha_on=0.8), torch.tensor([10])
        >>> [loop.quota(window, window, step, 8).item() for step in range(8)]
        [2, 2, 2, 2, 0, 0, 1, 1]
    """

    eta: float = 0.02
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self) -> None:
        """Check the numbers and what binds them."""
        _check_eta(self.eta)
        check_number("t_on", self.t_on, "Time runs from 1 to 0.", above=0, below=1)
        check_number("t_off", self.t_off, "Time runs from 1 to 0, so it ends below t_on.", above=0, below=self.t_on)
        check_number("alpha_on", self.alpha_on, "Give the share that is committed meanwhile.", above=0, below=1)
        if self.eta > (most := (1 - self.alpha_on) / self.alpha_on):
            raise ValueError(
                f"eta: expected at most (1 - alpha_on) / alpha_on = {most:g}, got {self.eta}. Lower eta or alpha_on."
            )

    def quota(self, scheduled: Tensor, initial: Tensor, step: int, steps: int) -> Tensor:
        """What takes the window from its share at this step to that at the next, `[B]` int64."""
        check_step(step, steps)
        now, then = (self._filled(initial, 1 - (step + more) / steps) for more in (0, 1))
        return then - now

    def sigma(self, moment: Moment, committed: Tensor, confidence: Tensor) -> float:
        """`eta` in the loop, else 0."""
        time = 1 - moment.step / moment.steps
        return self.eta if self.t_off < time <= self.t_on else 0.0

    def _filled(self, initial: Tensor, time: float) -> Tensor:
        """How many of the positions are committed at a time."""
        if time > self.t_on:
            share = (1 - time) * self.alpha_on / (1 - self.t_on)
        elif time > self.t_off:
            share = self.alpha_on
        else:
            share = 1 - time * (1 - self.alpha_on) / self.t_off
        # Rounded down, but not where a whole number comes out a little too small.
        return (initial.float() * share + 1e-3).floor().to(torch.int64)


@CORRECTORS.register("token_editing")
@dataclass(frozen=True)
class TokenEditing(Corrector):
    """Token editing (T2T) of LLaDA2.1 (arXiv 2602.08676): replace a committed token by a surer one.

    A committed position takes the drawn token where it differs from the one that stands there and has a probability
    above `edit_threshold`. Only for models that were trained for it. Thresholds of committing and of editing are
    compared with the same guided law.

    Args:
        edit_threshold: Probability in [0, 1]; LLaDA2.1's quality setting is 0.5. 1 never edits.
        post_steps: Steps after the last position of a window is committed in which editing goes on, until one changes
            nothing. LLaDA2.1 uses 16.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is out of its range.
    """

    looks_at_committed: ClassVar[bool] = True
    needs_editable: ClassVar[bool] = True

    edit_threshold: float = 0.5
    post_steps: int = 16

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_number("edit_threshold", self.edit_threshold, "Give a probability, 0.5 for example.", least=0, most=1)
        check_whole("post_steps", self.post_steps, "Use 0 to end a window when it is full.", least=0)

    def edit(self, decisions: Decisions, moment: Moment, committed: Tensor, current: Tensor) -> Tensor:
        """The committed positions whose token is replaced, `[B, W]` bool."""
        return committed & (decisions.tokens != current) & (decisions.log_prob.exp() > self.edit_threshold)


def sigma_max(step: int, steps: int) -> float:
    """The largest probability of remasking at a step: `min(1, (1 - α_s) / α_t)`, and 1 where nothing is committed.

    Args:
        step: The step of the window, from 0.
        steps: Steps of the window.

    Raises:
        TypeError: Not whole numbers.
        ValueError: `step` does not lie in `[0, steps)`.

    Example:
        >>> [round(sigma_max(step, 4), 3) for step in range(4)]
        [1.0, 1.0, 0.5, 0.0]
    """
    check_step(step, steps)
    return 1.0 if step == 0 else min(1.0, (steps - step - 1) / step)


def as_corrector(corrector: Corrector | str | Mapping[str, Any]) -> Corrector:
    """A corrector from itself, a string such as `remdm_cap:eta=0.04`, a JSON object, or a dictionary.

    Raises:
        TypeError: None of these.
        ValueError: A broken string, or an unknown name, key or value, with the nearest known one.

    Example:
        >>> as_corrector({"name": "token_editing", "edit_threshold": 0.9})
        TokenEditing(edit_threshold=0.9, post_steps=16)
    """
    return described(corrector, Corrector, CORRECTORS, "corrector", "remdm_cap:eta=0.04")


def _check_eta(eta: float) -> None:
    check_number("eta", eta, "Give a probability, 0.02 for example.", least=0, most=1)
