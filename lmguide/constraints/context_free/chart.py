"""Whether columns, some of them open, can be a text of a grammar, and the tokens of one.

The columns are an automaton: its states are the *points* at which a terminal may end and the next one begin, between
two tokens or within one. The grammar meets it if its start symbol leads from the first point to a last one (Bar-Hillel;
Mündler et al., arXiv 2508.10111). That is worked out point by point from right to left: what each symbol leads to from
there, as the bits of a number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmguide.constraints.context_free.lexemes import Lexeme, bits
from lmguide.constraints.context_free.lexing import lexing
from lmguide.constraints.context_free.productions import normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmguide.constraints.automaton.reduction import Flags
    from lmguide.constraints.context_free.productions import Productions


LONGEST_BRIDGE = 3
"""Bytes of a token."""
MOST_BRIDGES = 48


class Column(NamedTuple):
    """What may stand in a column.

    Attributes:
        anything: Any usable token that lies within one terminal.
        tokens: These tokens too, wherever terminals end in them.
    """

    anything: bool
    tokens: tuple[int, ...] = ()


class Point(NamedTuple):
    """Where a terminal may begin, in the order of the columns.

    Attributes:
        column: The column before, -1 before the first one.
        within: Minus the bytes that are left of its token; 0 between tokens.
        left: Those bytes.
        ahead: Number of the set of characters that must not follow.
    """

    column: int
    within: int
    left: bytes
    ahead: int


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
        self.tokens = tokens
        self._usable = usable
        known: dict[int, Lexeme] = {}
        for piece in self.lexing.pieces:
            if id(piece.dfa) not in known:
                known[id(piece.dfa)] = Lexeme(piece.dfa, tokens, usable)
        self._lexemes = list(known.values())
        self.lexemes = [known[id(piece.dfa)] for piece in self.lexing.pieces]

    @cached_property
    def bridges(self) -> tuple[int, ...]:
        """Some short tokens in which terminals end: ways out where columns are too few for one terminal in each."""
        found = []
        for token in np.flatnonzero(self._usable).tolist():
            text = self.tokens[token]
            if 2 <= len(text) <= LONGEST_BRIDGE:
                ways = [lexeme.along(lexeme.every, text) for lexeme in self._lexemes]
                if any(left for _, left in ways) and not any(there for there, _ in ways):
                    found.append(token)
        return tuple(sorted(found, key=lambda token: len(self.tokens[token]))[:MOST_BRIDGES])

    def completed(self, columns: Sequence[Column], ends: Sequence[int]) -> tuple[int, ...] | None:
        """Tokens for the columns up to one of the ends that spell a text of the grammar; `None` if there are none.

        Args:
            columns: What may stand in each.
            ends: How many columns the text may fill; the first that does is taken.
        """
        if self.normal.empty and 0 in ends:
            ends = [*(end for end in ends if end), 0]
        chart = _Chart(self, columns, frozenset(ends))
        for end in ends:
            if not end and self.normal.empty:
                return ()
            for last in chart.last(end):
                if chart.leads(0, last):
                    return chart.tokens(last)
        return None


@dataclass
class _Chart:
    """The points of some columns, and what each symbol leads to from each of them."""

    grammar: Grammar
    columns: Sequence[Column]
    ends: frozenset[int]
    points: list[Point] = field(init=False)
    rows: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        edges = self._explored()
        self.points = sorted(edges)
        number = {point: place for place, point in enumerate(self.points)}
        self.rows = []
        pieces, width = self.grammar.lexing.pieces, len(self.grammar.normal.names)
        rows: list[list[int]] = [[0] * width for _ in self.points]
        alive = [False] * len(self.points)
        begun = [0] * width  # the points from which a symbol leads anywhere
        for place in range(len(self.points) - 1, -1, -1):
            point = self.points[place]
            leads: dict[int, int] = {}
            for piece, targets in edges[point].items():
                there = sum(1 << number[each] for each in targets if alive[number[each]])
                if there:
                    symbol = pieces[piece].symbol
                    leads[symbol] = leads.get(symbol, 0) | there
            alive[place] = bool(leads) or (not point.within and point.column + 1 in self.ends)
            if leads:
                self._fill(rows, place, leads, begun)
        self.rows = rows

    def last(self, end: int) -> list[int]:
        """The points behind so many columns."""
        return [at for at, point in enumerate(self.points) if not point.within and point.column + 1 == end]

    def leads(self, first: int, last: int) -> bool:
        """Whether the start symbol leads from one point to another."""
        return bool(self.rows[first][self.grammar.normal.start] >> last & 1)

    def _fill(self, rows: list[list[int]], place: int, leads: dict[int, int], begun: list[int]) -> None:
        """What each symbol leads to from a point, those behind it being known."""
        heads, joins = self.grammar.normal.heads, self.grammar.normal.joins
        row, here = rows[place], 1 << place
        work: list[tuple[int, int]] = []

        def add(symbol: int, there: int) -> None:
            for head in heads[symbol]:
                if new := there & ~row[head]:
                    row[head] |= new
                    begun[head] |= here
                    if joins[head]:
                        work.append((head, new))

        for symbol, there in leads.items():
            add(symbol, there)
        while work:
            symbol, there = work.pop()
            for head, right in joins[symbol]:
                beyond = 0
                for middle in bits(there & begun[right]):
                    beyond |= rows[middle][right]
                if beyond:
                    add(head, beyond)

    def _explored(self) -> dict[Point, dict[int, list[Point]]]:
        """The points that terminals lead to, and to which from where, by piece."""
        lexing = self.grammar.lexing
        start = Point(-1, 0, b"", 0)
        wanted: dict[Point, set[int]] = {start: set(lexing.first)}
        edges: dict[Point, dict[int, list[Point]]] = {start: {}}
        memory: dict[tuple[int, int, bytes], list[tuple[int, bytes]]] = {}
        work = [start]
        while work:
            point = work.pop()
            for piece in wanted[point] - edges[point].keys():
                if not self._may_begin(self.grammar.lexemes[piece], point):
                    edges[point][piece] = []
                    continue
                key = id(self.grammar.lexemes[piece]), point.column, point.left
                if key not in memory:
                    memory[key] = self._ends(self.grammar.lexemes[piece], point.column, point.left)
                ahead = lexing.pieces[piece].ahead
                targets = [Point(column, -len(left), left, ahead) for column, left in memory[key]]
                edges[point][piece] = targets
                for each in targets:
                    before = wanted.setdefault(each, set())
                    edges.setdefault(each, {})
                    if not before.issuperset(lexing.after[piece]):
                        before.update(lexing.after[piece])
                        work.append(each)
        return edges

    def _may_begin(self, lexeme: Lexeme, point: Point) -> bool:
        """Whether the first byte behind a point, where it is known, begins a text of a terminal."""
        if point.left:
            return point.left[0] in lexeme.first
        if point.column + 1 >= len(self.columns):
            return False
        options = self.columns[point.column + 1]
        return options.anything or any(self.grammar.tokens[token][:1] in lexeme.begin for token in options.tokens)

    def _ends(self, lexeme: Lexeme, column: int, left: bytes) -> list[tuple[int, bytes]]:
        """Where a terminal that begins behind a column, but for what is left of its token, may end."""
        found: dict[tuple[int, bytes], None] = {}
        for at, states, within in self._walk(lexeme, column, left):
            found |= dict.fromkeys((at, rest) for rest in within)
            if states & lexeme.accept and at >= 0 and (at, b"") != (column, left):
                found[at, b""] = None
        return list(found)

    def _walk(self, lexeme: Lexeme, column: int, left: bytes) -> list[tuple[int, int, tuple[bytes, ...]]]:
        """Column by column the states behind it, and what is left of tokens in it where a text may end within."""
        states, within = lexeme.along(lexeme.start, left) if left else (lexeme.start, ())
        steps = [(column, states, within)]
        while states and column + 1 < len(self.columns):
            column += 1
            options = self.columns[column]
            there = lexeme.anything(states) if options.anything else 0
            rests: set[bytes] = set()
            for token in options.tokens:
                if text := self.grammar.tokens[token]:
                    further, ends = lexeme.along(states, text)
                    there |= further
                    rests.update(ends)
            states = there
            steps.append((column, states, tuple(rests)))
        return steps

    def tokens(self, last: int) -> tuple[int, ...]:
        """Tokens of a text from the first point to one that the start symbol leads to."""
        found: dict[int, int] = {}
        work = [(self.grammar.normal.start, 0, last)]
        while work:
            work += self._derived(*work.pop(), found)
        return tuple(found[column] for column in range(self.points[last].column + 1))

    def _derived(self, symbol: int, first: int, last: int, found: dict[int, int]) -> list[tuple[int, int, int]]:
        """The parts of a symbol between two points; the tokens of a terminal are written down."""
        normal = self.grammar.normal
        for inner in normal.inner[symbol]:
            if inner in normal.terminals:
                if self.rows[first][inner] >> last & 1:
                    self._spell(inner, self.points[first], self.points[last], found)
                    return []
                continue
            for left, right in normal.pairs[inner]:
                for middle in bits(self.rows[first][left]):
                    if self.rows[middle][right] >> last & 1:
                        return [(left, first, middle), (right, middle, last)]
        raise AssertionError(f"{normal.names[symbol]} does not lead from {first} to {last}")

    def _spell(self, symbol: int, first: Point, last: Point, found: dict[int, int]) -> None:
        """Write down tokens with which a terminal leads from one point to another."""
        for piece, lexeme in zip(self.grammar.lexing.pieces, self.grammar.lexemes, strict=True):
            if piece.symbol != symbol or piece.behind != first.ahead or piece.ahead != last.ahead:
                continue
            steps = self._walk(lexeme, first.column, first.left)
            ends = {(at, rest) for at, _, rests in steps for rest in rests}
            if first.column == last.column:
                if (last.column, last.left) in ends or (not last.left and steps[0][1] & lexeme.accept):
                    return
                continue
            count = last.column - first.column
            if len(steps) > count and self._written(lexeme, steps[: count + 1], last.left, found):
                return
        raise AssertionError(f"{self.grammar.normal.names[symbol]} has no text from {first} to {last}")

    def _written(
        self, lexeme: Lexeme, steps: list[tuple[int, int, tuple[bytes, ...]]], left: bytes, found: dict[int, int]
    ) -> bool:
        """Tokens from the last column back to the first; `left` of the last one belongs to what follows."""
        targets, chosen = lexeme.accept, {}
        for (_, before, _), (column, _, _) in zip(steps[-2::-1], steps[:0:-1], strict=True):
            taken = self._token(lexeme, before, column, targets, left)
            if taken is None:
                return False
            chosen[column], targets, left = *taken, b""
        found |= chosen
        return True

    def _token(self, lexeme: Lexeme, before: int, column: int, targets: int, left: bytes) -> tuple[int, int] | None:
        """A token for a column that leads from some states to some others, and the state it leads from."""
        options = self.columns[column]
        for token in options.tokens:
            text = self.grammar.tokens[token]
            if text and text.endswith(left) and len(text) > len(left):
                for source in bits(before):
                    if lexeme.along(1 << source, text[: len(text) - len(left)])[0] & targets:
                        return token, 1 << source
        if options.anything and not left:
            for source in bits(before):
                if (way := lexeme.token(source, targets)) is not None:
                    return way[0], 1 << source
        return None
