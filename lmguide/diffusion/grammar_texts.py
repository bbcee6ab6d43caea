"""Spans of a canvas that hold texts of context-free grammars, and one way to complete each of them.

Every text keeps a row of tokens that is a text of the grammar and has what stands: its *completion*. A token may be
written if another such row is found with it. So what stands can always be completed, in the columns that there are.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from lmguide.constraints.context_free.chart import Column
from lmguide.constraints.context_free.grammar import Grammar
from lmguide.constraints.context_free.reading import productions_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from lmguide.constraints import Constraint
    from lmguide.diffusion.spans import Span
    from lmguide.sources.canvas import Canvas

_MOST_KEPT = 8
_kept: OrderedDict[tuple[Constraint, tuple[bytes, ...], bytes], Grammar] = OrderedDict()


class GrammarText:
    """One span under a grammar.

    Args:
        span: Where it is.
        grammar: What it is a text of.
        ends: Tokens that end it.
        padding: Tokens that may stand behind an end.

    Attributes:
        completion: Tokens for all of its columns that are allowed, those that stand among them.
    """

    def __init__(self, span: Span, grammar: Grammar, ends: Collection[int], padding: Collection[int]) -> None:
        self.span, self.grammar = span, grammar
        self._ends, self._rest = tuple(ends), (*ends, *padding)
        self.completion: list[int] = []
        self._charts = grammar.chart(), grammar.chart()

    def standing(self, canvas: Canvas) -> list[int | None]:
        """What stands in its columns; `None` where they are open."""
        here = slice(self.span.start, self.span.stop)
        tokens, open_ = canvas.ids[self.span.row, here].tolist(), canvas.undecided[self.span.row, here].tolist()
        return [None if undecided else token for token, undecided in zip(tokens, open_, strict=True)]

    def completed(
        self,
        standing: Sequence[int | None],
        choices: Mapping[int, Sequence[int]],
        likely: Callable[[], Mapping[int, Sequence[int]]],
    ) -> list[int] | None:
        """Tokens for all columns that are allowed together; `None` if none were found.

        Open columns are filled with tokens that lie within one terminal each; if that is not enough, with the likely
        ones too, wherever terminals end in them.

        Args:
            standing: What stands in each column.
            choices: Columns that hold one of some tokens.
            likely: Further tokens for open columns, asked for where they are needed.
        """
        options = [choices.get(at, None if token is None else (token,)) for at, token in enumerate(standing)]
        ends = self._possible_ends(options)
        for chart, ask in zip(self._charts, (dict, likely), strict=True):
            further = ask()
            columns = [
                Column(True, tuple(further.get(at, ()))) if each is None else Column(False, tuple(each))
                for at, each in enumerate(options)
            ]
            if (text := chart.completed(columns, ends)) is not None:
                return [*text, *self._behind(options, len(text))]
        return None

    def _possible_ends(self, options: Sequence[Sequence[int] | None]) -> list[int]:
        """How many columns the text may fill: first as many as it does now, then the more the better."""
        length, found = len(options), [len(options)]
        for at in range(length - 1, -1, -1):
            each = options[at]
            if self._ends and (each is None or not set(each).isdisjoint(self._ends)):
                found.append(at)
            if each is not None and set(each).isdisjoint(self._rest):
                break
        now = next((at for at, token in enumerate(self.completion) if token in self._ends), length)
        return sorted(found, key=lambda end: (end != now, -end))

    def _behind(self, options: Sequence[Sequence[int] | None], first: int) -> list[int]:
        """An end and what may follow it, for the columns behind a text."""
        found = []
        for at in range(first, len(options)):
            fit = self._ends if at == first else self._rest
            each = options[at]
            found.append(fit[-1] if each is None else next(token for token in each if token in fit))
        return found


def grammar_texts(
    spans: Sequence[Span],
    canvas: Canvas,
    tokens: Sequence[bytes],
    ends: Sequence[int],
    padding: Sequence[int],
    banned: Collection[int],
) -> list[GrammarText]:
    """Spans under grammars, each with a completion.

    Args:
        spans: Of the canvas' rows.
        canvas: The canvases before the first step.
        tokens: The bytes of each token of the vocabulary.
        ends: Tokens that end a text, where a span does not say.
        padding: Tokens that may stand behind an end, where a span does not say.
        banned: Tokens that are never written.

    Raises:
        ValueError: A constraint that is no grammar, or no completion was found.
    """
    return [_text(span, canvas, tokens, ends, padding, banned) for span in spans]


def _text(
    span: Span,
    canvas: Canvas,
    tokens: Sequence[bytes],
    ends: Sequence[int],
    padding: Sequence[int],
    banned: Collection[int],
) -> GrammarText:
    own_ends = [token for token in (ends if span.ends is None else span.ends) if token not in banned]
    own_padding = [token for token in (padding if span.padding is None else span.padding) if token not in banned]
    grammar = _grammar(span.constraint, tokens, {*ends, *own_ends}, banned)
    text = GrammarText(span, grammar, own_ends, own_padding)
    standing = text.standing(canvas)
    completion = text.completed(standing, {}, lambda: dict.fromkeys(range(len(standing)), grammar.bridges))
    if completion is None:
        given = any(token is not None for token in standing)
        cure = "Change those, or the constraint." if given else "Raise max_new_tokens, or give eos_token_id."
        raise ValueError(
            f"constraint: {span.constraint} in row {span.row} has no text in {len(standing)} columns"
            f"{' with the tokens that are given' if given else ''} that could be found. {cure}"
        )
    text.completion = completion
    return text


def _grammar(
    constraint: Constraint, tokens: Sequence[bytes], ends: Collection[int], banned: Collection[int]
) -> Grammar:
    """A grammar over a vocabulary, kept for the next call."""
    texts = tuple(b"" if token in ends else text for token, text in enumerate(tokens))
    usable = np.array([bool(text) for text in texts])
    usable[list(banned)] = False
    key = constraint, texts, usable.tobytes()
    if key not in _kept:
        _kept[key] = Grammar(productions_of(constraint), texts, usable)
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key]
