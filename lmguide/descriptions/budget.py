"""How long a text will still be, as a predictor sees it for each next token, and the budget it is to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from lmguide.checks import check_number, check_whole
from lmguide.contexts import CONTEXTS, Context

if TYPE_CHECKING:
    from torch import Tensor

Budget: TypeAlias = int | tuple[int | None, ...] | None
"""Tokens of a span, one for all prompts or one per prompt; `None` is no budget."""

Marker: TypeAlias = str | tuple[int, ...]
"""What opens or ends a span: text, however its tokens are cut, or token ids."""


@dataclass(frozen=True)
class RunningText:
    """What a predictor of lengths may look at: N texts, each up to the token whose candidates are to be judged.

    Attributes:
        ids: Prompt and answer so far, `[N, L]`, left-padded.
        attention_mask: `[N, L]`, 1 on tokens.
        states: Hidden states at the last token, `[N, K, D]`, of the K layers that the predictor names in `layers`;
            `None` if it names none.
    """

    ids: Tensor
    attention_mask: Tensor
    states: Tensor | None = None


class LengthPredictor(Protocol):
    """Says how likely each candidate for the next token keeps a budget.

    The remaining tokens of a candidate are itself and all behind it, up to and with the end of the span. A predictor
    keeps no state. With an attribute `layers`, a tuple of indices into the guided model's hidden states (0 is the
    embedding output, -1 the last), it gets those states; with an attribute `reader`, a causal model of the same
    vocabulary or its name, those of that model.
    """

    def log_prob_within(self, text: RunningText, budget: Tensor) -> Tensor:
        """`log P(remaining tokens <= budget | text, v)` for every candidate `v`, `[N, V]`, from budgets `[N]`."""


class GammaLengthPredictor(Protocol):
    """Gives each candidate for the next token a law of how much remains; otherwise as `LengthPredictor`."""

    def gamma(self, text: RunningText) -> tuple[Tensor, Tensor]:
        """Shape and rate, each `[N, V]`, of a Gamma law over `log(remaining tokens + 1)`."""


@CONTEXTS.register("within_budget")
@dataclass(frozen=True)
class WithinBudget(Context):
    """`log P(the span keeps its budget | text, v)` for every next token `v`.

    A span is the whole answer, or what stands between two markers, and only its tokens in the answer count. With `n`
    of them written, `B = max(1, budget - n)` are left, the candidate and the span's end among them. From a Gamma law
    the probability is `P(shape, rate log(B + 1))`, the regularised lower incomplete gamma function. A token that ends
    the span has log-probability 0.

    Args:
        predictor: A `LengthPredictor`, a `GammaLengthPredictor`, or the name or path of a saved `LengthModel`. Only
            that can be serialised.
        budget: Tokens of the span, its end included, at least 1; one for all prompts or one per prompt. `None` is no
            budget.
        start: What opens a span, in the prompt or in the answer; `None` is the beginning of the answer.
        end: What ends it; `None` is the model's end-of-sequence token.
        every: Whether every token of the span is guided, or only its first and those behind a token with a newline.
        min_shape: The Gamma law of a candidate counts if its shape is above it; `None` asks nothing.
        min_rate: And if its rate is not below it, so that the predictor is sure enough; likewise.
        min_remaining: And if its mode leaves no fewer tokens, `exp((shape - 1) / rate) - 1`; likewise.
        rest: What a candidate gets whose law does not count: the `"mean"` probability of those that do, by the law of
            the model, or `"excluded"`, as in the published code. Where none counts, the row is not guided.
        plausibility: How likely a candidate must be beside the likeliest, in [0, 1], or it is excluded; 0 excludes
            none.

    Raises:
        ValueError: A number out of range, or an empty marker.
        TypeError: A predictor without either method, or a marker that is neither text nor token ids.

    Example:
        >>> WithinBudget("some/predictor", 500, end="</think>").every
        False
    """

    predictor: LengthPredictor | GammaLengthPredictor | str
    budget: int | tuple[int | None, ...] | None
    start: str | tuple[int, ...] | None = None
    end: str | tuple[int, ...] | None = None
    every: bool = False
    min_shape: float | None = 1.0
    min_rate: float | None = 10.0
    min_remaining: float | None = 0.9
    rest: Literal["mean", "excluded"] = "mean"
    plausibility: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not isinstance(self.predictor, str) and not (predicts(self.predictor) or predicts_gamma(self.predictor)):
            raise TypeError(
                "predictor: expected an object with a method log_prob_within or gamma, or a path, got "
                f"{type(self.predictor).__name__}. See lmguide.LengthPredictor for what they take and give."
            )
        if isinstance(self.budget, list | tuple):
            object.__setattr__(self, "budget", tuple(self.budget))
            if not self.budget:
                raise ValueError("budget: expected tokens or one number per prompt, got none. Give at least one.")
        for budget in self.budget if isinstance(self.budget, tuple) else (self.budget,):
            if budget is not None:
                check_whole("budget", budget, "Use None for no budget.", least=1)
        for argument in ("start", "end"):
            object.__setattr__(self, argument, _marker(argument, getattr(self, argument)))
        if self.start is not None and self.start == self.end:
            raise ValueError(f"end: expected another marker than start, got {self.end!r} for both. Change one of them.")
        for argument, published in (("min_shape", 1.0), ("min_rate", 10.0), ("min_remaining", 0.9)):
            if (value := getattr(self, argument)) is not None:
                check_number(argument, value, f"The published one is {published:g}, None asks nothing.", least=0)
        if self.rest not in {"mean", "excluded"}:
            raise ValueError(
                f"rest: expected 'mean' or 'excluded', got {self.rest!r}. The published one is 'excluded'."
            )
        check_number("plausibility", self.plausibility, "Use 0 to exclude no token.", least=0, most=1)


def predicts(predictor: object) -> bool:
    """Whether it has the method of a `LengthPredictor`."""
    return callable(getattr(predictor, "log_prob_within", None))


def predicts_gamma(predictor: object) -> bool:
    """Whether it has the method of a `GammaLengthPredictor`."""
    return callable(getattr(predictor, "gamma", None))


def _marker(argument: str, value: object) -> Marker | None:
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, list | tuple) and all(type(token) is int for token in value):
        if value and min(value) >= 0:
            return tuple(value)
    elif not isinstance(value, str):
        raise TypeError(f"{argument}: expected text, token ids or None, got {value!r}. Give one of these.")
    raise ValueError(
        f"{argument}: expected a text or at least one token id, none below 0, got {value!r}. "
        "Use None for the whole answer."
    )
