"""Where on a canvas a text has to be as a constraint says, and what must hold for it to be possible at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmguide.constraints.automaton.chain import FREE, Chain
from lmguide.constraints.automaton.class_scores import ByClass
from lmguide.constraints.automaton.ends import with_ends
from lmguide.constraints.automaton.rows import Rows
from lmguide.constraints.automaton.store import token_dfa
from lmguide.constraints.base import Constraint, as_constraint

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

    from lmguide.sources.canvas import Canvas


@dataclass(frozen=True)
class Span:
    """Columns of a row that hold one text, and which texts those may be.

    The text ends at its first end token, and padding stands behind that, or it goes on to the last column. Spans of a
    row do not overlap; what lies between them is free.

    Args:
        row: Row of the canvas, from 0.
        start: First column.
        stop: First column behind.
        constraint: Which texts.
        ends: Tokens that end the text; `None` is those of the call.
        padding: Tokens that may stand behind an end, beside the ends; `None` is that of the call.

    Example:
        >>> from lmguide.constraints import Regex
        >>> Span(0, 3, 7, Regex("[0-9]+")).stop
        7
    """

    row: int
    start: int
    stop: int
    constraint: Constraint
    ends: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None


class SpanGroup:
    """Spans under one automaton, as the rows of one batch.

    Args:
        spans: N of them.
        chain: Their automaton.
    """

    def __init__(self, spans: Sequence[Span], chain: Chain) -> None:
        device = chain.table.device
        self.spans, self.chain = spans, chain
        self.by_class = ByClass(chain.classes, chain.width)
        self.row, self.start, self.stop = (
            torch.tensor([getattr(span, name) for span in spans], device=device) for name in ("row", "start", "stop")
        )
        self._place = min(span.start for span in spans)
        self._state = torch.full_like(self.row, chain.dfa.start)

    def inside(self, first: int, last: int) -> Tensor:
        """Which of some columns belong to the spans, `[N, W]`."""
        columns = torch.arange(first, last, device=self.row.device)
        return (columns >= self.start[:, None]) & (columns < self.stop[:, None])

    def classes(self, canvas: Canvas, first: int, last: int, spans: Tensor) -> Tensor:
        """The classes of what stands in some columns of some spans, `[W, n]`; `FREE` where nothing does, or outside."""
        rows = self.row[spans]
        stands = ~canvas.undecided[rows, first:last] & self.inside(first, last)[spans]
        found = self.chain.classes[canvas.ids[rows, first:last]]
        return found.masked_fill(~stands, FREE).T

    def state(self, canvas: Canvas, place: int) -> Tensor:
        """The states before a column, before which everything stands, `[N]`; asked for from left to right."""
        if place > self._place:
            everything = torch.arange(len(self.row), device=self.row.device)
            self._state = self.chain.advanced(self._state, self.classes(canvas, self._place, place, everything))
            self._place = place
        return self._state

    def able(self, canvas: Canvas, spans: Tensor, places: Tensor) -> Tensor:
        """The states `[n, Q]` from which some spans can be finished behind their columns `places` `[n]`."""
        left = (self.stop[spans] - places).clamp_min(0)
        ahead = torch.arange(int(left.max()), device=places.device)[:, None]
        columns = (places + ahead).clamp_max(canvas.ids.shape[1] - 1)  # [T, n]
        rows = self.row[spans]
        stands = ~canvas.undecided[rows, columns] & (ahead < left)
        found = self.chain.classes[canvas.ids[rows, columns]].masked_fill(~stands, FREE)
        return self.chain.finishing(found, left)

    def rows(self, canvas: Canvas, spans: Tensor, wanted: Tensor, first: int) -> tuple[Rows, Tensor]:
        """Some spans in the columns of a window, and the classes of what stands there.

        Args:
            canvas: The canvases.
            spans: n of the spans.
            wanted: Columns `[n, W]` whose laws are known. What is undecided and not wanted stands behind them.
            first: First column of the window.
        """
        width = wanted.shape[1]
        begins = (self.start[spans] - first).clamp(0, width)
        ends = (self.stop[spans] - first).clamp(0, width)
        inside = self.inside(first, first + width)[spans]
        unknown = canvas.undecided[self.row[spans], first : first + width] & inside & ~wanted
        last = torch.arange(1, width + 1, device=wanted.device).mul(wanted).amax(1)
        ends = torch.where(unknown.any(1), last, ends)
        able = self.able(canvas, spans, first + ends)
        rows = Rows(self.chain, self.state(canvas, first)[spans], able, begins, ends, width)
        return rows, self.classes(canvas, first, first + width, spans)


def group_spans(
    spans: Sequence[Span],
    canvas: Canvas,
    tokens: Sequence[bytes],
    ends: Collection[int],
    padding: Collection[int],
    banned: Collection[int],
) -> list[SpanGroup]:
    """Spans by their automata, each of which can still be finished.

    Args:
        spans: Of the canvas' rows.
        canvas: The canvases before the first step.
        tokens: The bytes of each token of the vocabulary.
        ends: Tokens that end a text, where a span does not say.
        padding: Tokens that may stand behind an end, where a span does not say.
        banned: Tokens that are never written.

    Raises:
        ValueError: A constraint that no automaton reads or the vocabulary cannot spell; or no allowed text fits what
            stands on the canvas.
    """
    by_kind: dict[Any, list[Span]] = {}
    for span in spans:
        kind = (
            as_constraint(span.constraint),
            tuple(ends) if span.ends is None else span.ends,
            tuple(padding) if span.padding is None else span.padding,
        )
        by_kind.setdefault(kind, []).append(span)
    groups = []
    for (constraint, own_ends, own_padding), members in by_kind.items():
        texts = token_dfa(constraint, tokens)
        whole = with_ends(texts, own_ends, own_padding, banned)
        if whole.empty:
            raise ValueError(
                f"suppress_tokens: expected tokens to be left that spell a text of {constraint}, got none. "
                "Leave some out."
            )
        group = SpanGroup(members, Chain(whole, canvas.ids.device))
        _check_fit(group, canvas, texts.least, bool(set(own_ends) - set(banned)))
        groups.append(group)
    return groups


def check_places(spans: Sequence[Span], canvas: Canvas) -> None:
    """Refuse spans that are not on the canvas, or overlap.

    Raises:
        ValueError: They do.
    """
    taken = torch.zeros_like(canvas.undecided)
    for span in spans:
        _check_place(span, canvas, taken)


def _check_place(span: Span, canvas: Canvas, taken: Tensor) -> None:
    batch, length = canvas.ids.shape
    if not 0 <= span.row < batch or not 0 <= span.start < span.stop <= length:
        raise ValueError(
            f"constraint: expected spans on the canvas of {batch} rows and {length} columns, got row {span.row}, "
            f"columns {span.start} to {span.stop}. Count from 0, the column behind the last included."
        )
    if bool(taken[span.row, span.start : span.stop].any()):
        raise ValueError(
            f"constraint: expected spans that do not overlap, got two over columns {span.start} to {span.stop} of row "
            f"{span.row}. Make one of them."
        )
    taken[span.row, span.start : span.stop] = True


def _check_fit(group: SpanGroup, canvas: Canvas, least: int, ending: bool) -> None:
    """Refuse a canvas that no allowed text fits."""
    everything = torch.arange(len(group.spans), device=group.row.device)
    fits = group.able(canvas, everything, group.start)[:, group.chain.dfa.start]
    if bool(fits.all()):
        return
    span = group.spans[int((~fits).nonzero()[0, 0])]
    length = span.stop - span.start
    if least > length:
        reason = f"needs {least} tokens at least, and there are {length} columns. Raise max_new_tokens."
    elif not bool(canvas.undecided[span.row, span.start : span.stop].all()):
        reason = "does not fit the tokens that are given. Change those, or the constraint."
    elif not ending:
        reason = f"has no text of {length} tokens, and no token ends it before. Give eos_token_id, or another length."
    else:
        reason = f"has no text of at most {length} tokens without those suppressed. Raise max_new_tokens."
    raise ValueError(f"constraint: {span.constraint} in row {span.row} {reason}")
