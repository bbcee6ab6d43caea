"""Tokens are written only where a grammar's text can still be completed (Mündler et al., arXiv 2508.10111).

An order picks positions and tokens as if there were no grammar. Each of them, the surest first, is looked at together
with what stands. A token that is refused is replaced by the likeliest one, or the next of the draw, that is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lmguide.diffusion.sampling import draw

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from lmguide.denoisers.guide import Law
    from lmguide.diffusion.decisions import Sampler
    from lmguide.diffusion.grammar_texts import GrammarText
    from lmguide.diffusion.orders import Decisions
    from lmguide.diffusion.windows import Window
    from lmguide.sources.canvas import Canvas

TRIES = 64
"""Tokens that are tried at a position, those after the first several at a time; then the completion has the word."""
ROUNDS = 4
"""How often an order may choose again at a step because tokens were refused."""
LIKELY = 4
"""Tokens of open columns in which terminals may end, where a completion is not found without."""


CUT = 1e4
"""How far tokens that top-k or top-p cut stand behind the others: they are tried last."""


@dataclass
class Verification:
    """How often a grammar had the word.

    Attributes:
        checks: Completions that were looked for.
        refused: Tokens that an order picked and that were refused.
        settled: Positions at which none of the likeliest tokens was allowed, and the completion's was written.
    """

    checks: int = 0
    refused: int = 0
    settled: int = 0


@dataclass(frozen=True, eq=False)
class Verifier:
    """The texts of a canvas that are under grammars.

    Attributes:
        texts: Where they are, and how each may be completed.
        sampler: How tokens are drawn.
        counts: What was done so far.
    """

    texts: Sequence[GrammarText]
    sampler: Sampler
    counts: Verification

    def chosen(
        self,
        law: Law,
        canvas: Canvas,
        decisions: Decisions,
        window: Window,
        step: int,
        choose: Callable[[Decisions], Tensor],
    ) -> tuple[Decisions, Tensor]:
        """What an order chooses, its tokens allowed together with each other and with what stands.

        Args:
            law: The guided laws of the step.
            canvas: The canvases.
            decisions: Tokens of the open positions of a window, each by itself.
            window: Which columns those are.
            step: Number of the step, for the noise.
            choose: The order: which positions `[B, W]` are committed.

        Returns:
            The decisions with other tokens where some were refused, and what is committed.
        """
        picked = choose(decisions)
        for _ in range(ROUNDS):
            decisions, refused = self._verified(law, canvas, decisions, picked, window, step)
            if not refused:
                return decisions, picked
            again = choose(decisions)
            if bool((again == picked).all()):
                return decisions, picked
            picked = again
        return self._verified(law, canvas, decisions, picked, window, step)[0], picked

    def _verified(
        self, law: Law, canvas: Canvas, decisions: Decisions, picked: Tensor, window: Window, step: int
    ) -> tuple[Decisions, bool]:
        """The decisions with other tokens where picked ones are refused, and whether any was."""
        new: list[tuple[int, int, int, float]] = []
        for text in self.texts:
            row, start = text.span.row, max(text.span.start, window.start)
            stop = min(text.span.stop, window.stop)
            if start >= stop or not bool(picked[row, start - window.start : stop - window.start].any()):
                continue
            columns = (picked[row, start - window.start : stop - window.start].nonzero()[:, 0] + start).tolist()
            sure = decisions.log_prob[row].tolist()
            tokens = decisions.tokens[row].tolist()
            at = _Moment(self, text, law, canvas, window, step)
            if at.together({column: tokens[column - window.start] for column in columns}):
                continue
            for column in sorted(columns, key=lambda column: -sure[column - window.start]):
                place = column - window.start
                if (other := at.other(column, tokens[place], sure[place])) is not None:
                    new.append((row, place, *other))
        if not new:
            return decisions, False
        rows, places, others, values = zip(*new, strict=True)
        where, device = (list(rows), list(places)), decisions.tokens.device
        found = replace(
            decisions,
            tokens=decisions.tokens.clone(),
            log_prob=decisions.log_prob.clone(),
            top=decisions.top.clone(),
        )
        log_prob = torch.tensor(values, dtype=found.log_prob.dtype, device=device)
        found.tokens[where] = torch.tensor(others, device=device)
        found.log_prob[where] = log_prob
        found.top[where] = torch.minimum(found.top[where], log_prob)
        return found, True


class _Moment:
    """One text at one step: what stands, and what has been accepted beside it."""

    def __init__(self, verifier: Verifier, text: GrammarText, law: Law, canvas: Canvas, window: Window, step: int):
        self._sampler, self._counts = verifier.sampler, verifier.counts
        self._text, self._law, self._step = text, law, step
        self._standing = text.standing(canvas)
        self._inside = range(max(window.start, text.span.start), min(window.stop, text.span.stop))
        self._likely: dict[int, list[int]] | None = None

    def together(self, picked: Mapping[int, int]) -> bool:
        """Whether tokens may stand in some columns, all of them together."""
        text, first = self._text, self._text.span.start
        if all(text.completion[column - first] == token for column, token in picked.items()):
            return True
        standing = list(self._standing)
        for column, token in picked.items():
            standing[column - first] = token
        return len(picked) > 1 and self._accepts(standing, {})

    def other(self, column: int, token: int, log_prob: float) -> tuple[int, float] | None:
        """Another token and its log-probability, where one is refused; `None` where it is not. It then stands."""
        text, place = self._text, column - self._text.span.start
        if text.completion[place] == token or self._accepts(self._standing, {place: (token,)}):
            self._standing[place] = token
            return None
        self._counts.refused += 1
        scores, tokens = self._ranked(column)
        tokens = [each for each in tokens if each != token]
        first, size = 0, 1
        while first < len(tokens) and not self._accepts(self._standing, {place: tokens[first : first + size]}):
            first, size = first + size, 2 * size
        if first < len(tokens):
            last = min(first + size, len(tokens))
            while last - first > 1:  # the first of these that is allowed
                middle = (first + last) // 2
                if self._accepts(self._standing, {place: tokens[first:middle]}):
                    last = middle
                else:
                    first = middle
        else:
            self._counts.settled += 1
        found = text.completion[place]
        self._standing[place] = found
        refused = float(scores[[token, *tokens[:first]]].exp().sum())
        return found, min(0.0, float(scores[found]) - math.log(max(1e-9, 1 - refused)))

    def _accepts(self, standing: Sequence[int | None], choices: Mapping[int, Sequence[int]]) -> bool:
        """Whether what stands and one of the choices go together; the completion is then one with both."""
        self._counts.checks += 1
        completion = self._text.completed(standing, choices, self._likely_tokens)
        if completion is not None:
            self._text.completion = completion
        return completion is not None

    def _ranked(self, column: int) -> tuple[Tensor, list[int]]:
        """The law of a position, `[V]`, and its likeliest tokens, or the first ones of a draw, in order."""
        sampler, device = self._sampler, self._law.guide.canvas.ids.device
        rows, columns = (torch.tensor([each], device=device) for each in (self._text.span.row, column))
        scores = self._law.at(rows, columns)[0].clone()
        scores[:, sampler.suppressed] = -torch.inf
        if sampler.mask_token_id is not None:
            scores[:, sampler.mask_token_id] = -torch.inf
        ranked = scores
        if sampler.filters:
            gumbel = None
            if sampler.temperature > 0:
                gumbel = sampler.noise.gumbel(rows, columns, self._step, scores.shape[-1])
            after = draw(scores, sampler.temperature, sampler.top_p, sampler.top_k, gumbel)[1]
            ranked = torch.where(after == -torch.inf, scores - CUT, after if gumbel is None else after + gumbel)
        best = ranked.topk(min(TRIES, ranked.shape[1]), 1)
        return scores[0], best.indices[0][best.values[0] > -torch.inf].tolist()

    def _likely_tokens(self) -> dict[int, list[int]]:
        """For open columns the likeliest tokens, and that of the completion."""
        if self._likely is None:
            span = self._text.span
            self._likely = {}
            wanted = [column for column in self._inside if self._standing[column - span.start] is None]
            places = torch.tensor(
                [[span.row, column] for column in wanted], dtype=torch.long, device=self._law.guide.canvas.ids.device
            ).view(-1, 2)
            for part in self._law.chunks(places):
                tops = self._law.at(*part.unbind(1))[0].topk(LIKELY, 1).indices
                for column, tokens in zip(part[:, 1].tolist(), tops.tolist(), strict=True):
                    at = column - span.start
                    self._likely[at] = [*tokens, self._text.completion[at]]
        return self._likely
