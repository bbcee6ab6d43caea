"""Sampling that learns: the mass found to be invalid is kept by prefix and left out of later draws."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lmguide.constraints.states import ConstraintState
    from lmguide.search.allowed import Judge


@dataclass
class Prefix:
    """What is known about the texts that begin with a prefix.

    Attributes:
        allowed: Probability of the tokens that the constraint allows next; `None` until the prefix was seen.
        kept: Share of the prefix' probability that is not known to be invalid.
        next: Longer prefixes that were written, with the probability of their last token.
    """

    allowed: float | None = None
    kept: float = 1.0
    next: dict[int, tuple[float, Prefix]] = field(default_factory=dict)

    def update(self) -> None:
        """Work out `kept` from the next prefixes."""
        if self.allowed is not None:
            lost = sum(probability * (1 - prefix.kept) for probability, prefix in self.next.values())
            self.kept = min(1.0, max(0.0, self.allowed - lost))


@dataclass
class Draw:
    """One draw: the mass the constraint allowed there, the token and its probability, and whether it may stand."""

    allowed: float
    token: int
    probability: float
    stands: bool


@dataclass
class Text:
    """One text being written: where it stands in what is known, all draws, and whether it still stands."""

    prefix: Prefix
    tokens: list[int] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    stands: bool = True


class Adaptive:
    """Draws one round of texts with what was learnt in the rounds before; `learn` then takes in this one.

    With `reject`, a token that the constraint does not allow ends the text, and the whole text is thrown away. What is
    left is an exact sample (CARS, 2510.01902): the proposal is the model's law on all texts not known to be invalid.
    Without, the mask is applied to every prefix (ASAp, 2405.21047): each text is valid, and their law comes nearer to
    the right one from round to round.

    Args:
        root: What is known of the empty text; kept from round to round.
        state: The constraint's state of each row, or `None`.
        judge: The predicate, or `None`.
        rows: Texts in this round.
        reject: Which of the two.
        generator: Of the draws.
    """

    def __init__(
        self,
        root: Prefix,
        state: ConstraintState | None,
        judge: Judge | None,
        rows: int,
        reject: bool,
        generator: torch.Generator | None,
    ) -> None:
        self.state = state
        self.judge = judge
        self.reject = reject
        self.generator = generator
        self.root = root
        self.texts = [Text(root) for _ in range(rows)]

    def __call__(self, generated: Tensor, scores: Tensor, finished: Tensor) -> tuple[Tensor, None, Tensor]:
        """A step; see `lmguide.huggingface.particles.Draw`."""
        probabilities = scores.double().softmax(-1)
        masked = probabilities
        if self.state is not None:
            masked = self.state.at(generated)(probabilities.log()).exp()
        tokens = torch.zeros(len(self.texts), dtype=torch.long)
        ended = torch.zeros(len(self.texts), dtype=torch.bool)
        for row in (~finished).nonzero()[:, 0].tolist():
            tokens[row] = self._drawn(self.texts[row], probabilities[row], masked[row])
            ended[row] = not self.texts[row].stands
        return tokens.to(scores.device), None, ended.to(scores.device)

    def _drawn(self, text: Text, probabilities: Tensor, masked: Tensor) -> int:
        """The next token of a text; the text falls where none is left or the one drawn may not stand."""
        prefix, allowed = text.prefix, float(masked.sum())
        hidden = self.reject and prefix.allowed is None  # what is new is learnt by drawing, or the law would be bent
        weights = (probabilities if hidden else masked).clone()
        for token, (_, later) in prefix.next.items():
            weights[token] *= later.kept
        while float(weights.sum()) > 0:
            token = int(torch.multinomial(weights, 1, generator=self.generator))
            probability = float(masked[token])
            stands = probability > 0 and (self.judge is None or self.judge.allows((*text.tokens, token)))
            text.draws.append(Draw(allowed, token, probability, stands))
            if stands:
                text.tokens.append(token)
                text.prefix = prefix.next[token][1] if token in prefix.next else Prefix()
                return token
            if self.reject:
                text.stands = False
                return token
            weights[token] = 0.0
        text.stands = False
        return 0

    def learn(self, valid: list[bool]) -> None:
        """Take in the round: `valid` says for each text whether it may be kept."""
        for text, good in zip(self.texts, valid, strict=True):
            passed = [self.root]
            for draw in text.draws:
                prefix = passed[-1]
                prefix.allowed = draw.allowed
                if draw.stands:
                    passed.append(prefix.next.setdefault(draw.token, (draw.probability, Prefix()))[1])
                elif draw.probability:
                    prefix.next[draw.token] = (draw.probability, Prefix(allowed=0.0, kept=0.0))
            if not good and text.stands:
                passed[-1].allowed = passed[-1].kept = 0.0
            for prefix in reversed(passed):
                prefix.update()
