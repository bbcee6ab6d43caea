"""A context-free grammar over the tokens of a vocabulary."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lmguide.constraints.context_free.chart import Chart
from lmguide.constraints.context_free.lexemes import Lexeme
from lmguide.constraints.context_free.lexing import lexing
from lmguide.constraints.context_free.productions import normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmguide.constraints.automaton.reduction import Flags
    from lmguide.constraints.context_free.chart import Column
    from lmguide.constraints.context_free.productions import Productions


LONGEST_BRIDGE = 3
"""Bytes of a token."""
MOST_BRIDGES = 48


class Grammar:
    """A grammar over the tokens of a vocabulary.

    Args:
        productions: Its rules.
        tokens: The bytes of each token; `b""` for what is no text.
        usable: Which tokens may be written in open columns, `[V]`.

    Raises:
        ValueError: A terminal is too large an automaton.

    Example:
        >>> import numpy as np
        >>> from lmguide.constraints.automaton.json_values import text
        >>> from lmguide.constraints.context_free.chart import Column
        >>> from lmguide.constraints.context_free.productions import Productions
        >>> pairs = Productions("s", {"s": [("a", "s", "b"), ("a", "b")]}, {"a": text("a"), "b": text("b")})
        >>> grammar = Grammar(pairs, [b"a", b"b", b"bb"], np.array([True, True, True]))
        >>> grammar.completed([Column(True), Column(True), Column(False, (2,))], [3])
        (0, 0, 2)
        >>> grammar.completed([Column(False, (1,)), Column(True)], [2]) is None
        True
    """

    def __init__(self, productions: Productions, tokens: Sequence[bytes], usable: Flags) -> None:
        self.normal = normal(productions)
        self.lexing = lexing(self.normal)
        self.reach = productions.reach
        self.tokens = tokens
        self._usable = usable
        sets = len(self.lexing.sets)
        self.lexemes = {symbol: Lexeme(word, sets, tokens, usable) for symbol, word in self.lexing.words.items()}

    def chart(self) -> Chart:
        """A new chart, for the columns of one text at a time."""
        return Chart(self)

    def completed(self, columns: Sequence[Column], ends: Sequence[int]) -> tuple[int, ...] | None:
        """As `Chart.completed` of a new chart."""
        return self.chart().completed(columns, ends)

    @cached_property
    def bridges(self) -> tuple[int, ...]:
        """Some short tokens in which terminals end: ways out where columns are too few for one terminal in each."""
        found = []
        for token in np.flatnonzero(self._usable).tolist():
            text = self.tokens[token]
            if 2 <= len(text) <= LONGEST_BRIDGE:
                ways = [lexeme.along(lexeme.every, text) for lexeme in self.lexemes.values()]
                if any(within for _, within in ways) and not any(there for there, _ in ways):
                    found.append(token)
        return tuple(sorted(found, key=lambda token: len(self.tokens[token]))[:MOST_BRIDGES])
