"""Whether columns, some of them open, can be a text of a grammar, and the tokens of one.

The columns are an automaton: its states are the *points* at which a terminal may end and the next one begin, between
two tokens or within one. The grammar meets it if its start symbol leads from the first point to a last one (Bar-Hillel;
Mündler et al., arXiv 2508.10111). That is worked out point by point from right to left: what each symbol leads to from
there, as the bits of a number. What was worked out is kept, and holds for other columns that agree from there on.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lmguide.constraints.context_free.lexemes import bits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lmguide.constraints.context_free.grammar import Grammar
    from lmguide.constraints.context_free.lexemes import Lexeme, States, Within

Points = int
"""A set of points, as the bits of a number."""


class Column(NamedTuple):
    """What may stand in a column.

    Attributes:
        anything: Any usable token that lies within one terminal.
        tokens: These tokens too, wherever terminals end in them.
    """

    anything: bool
    tokens: tuple[int, ...] = ()


@dataclass
class _Point:
    """Where a terminal may begin.

    Attributes:
        column: How many columns are to its right; the token it may lie within is in the next one to the left.
        left: Bytes that are left of that token.
        ahead: Number of the set of characters that must not follow.
        edges: Which points each terminal leads to; `None` as long as nobody asked.
        leads: Which points each symbol leads to; `None` as long as nobody asked.
    """

    column: int
    left: bytes
    ahead: int
    edges: dict[int, Points] | None = None
    leads: dict[int, Points] | None = None


class Chart:
    """The points of some columns, and what each symbol leads to from each of them.

    Columns are counted from the right here. Points are numbered column by column, so that those of columns that stay
    the same keep their numbers.

    Args:
        grammar: Whose symbols.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._columns: list[Column] = []
        self._ends: frozenset[int] = frozenset()
        self._first: list[int] = []  # the number of the first point of each column
        self._lefts: list[dict[bytes, int]] = []  # what may be left of a token of a column, with the points' numbers
        self._points: dict[int, _Point] = {}
        self._walks: list[dict[tuple[int, States], Points]] = []
        self._alive: Points = 0
        self._open: list[int] = []  # how many columns from one on to the right may hold anything
        self._beyond: dict[tuple[int, Points], Points] = {}  # of one search: where symbols lead to from sets of points
        self._begun: list[Points] = []  # the points from which a symbol leads anywhere

    def completed(self, columns: Sequence[Column], ends: Sequence[int]) -> tuple[int, ...] | None:
        """Tokens for the columns up to one of the ends that spell a text of the grammar; `None` if there are none.

        Args:
            columns: What may stand in each.
            ends: How many columns the text may fill; the first that does is taken.
        """
        normal, count = self._grammar.normal, len(columns)
        if normal.empty and 0 in ends:
            ends = [*(end for end in ends if end), 0]
        self._lay(list(columns[::-1]), frozenset(count - end for end in ends))
        start = self._first[count]
        self._work_out(start)
        leads = self._leads(start).get(normal.start, 0)
        for end in ends:
            if not end and normal.empty:
                return ()
            there = leads & self._boundary(count - end)
            if there:
                return self._tokens(start, there.bit_length() - 1, count - end)
        return None

    def _lay(self, columns: list[Column], ends: frozenset[int]) -> None:
        """New columns; what was worked out to the right of where they differ is kept."""
        same = 0
        if ends == self._ends:
            for old, new in zip(self._columns, columns, strict=False):
                if old != new:
                    break
                same += 1
        sets = len(self._grammar.lexing.sets)
        first = self._first[same] if same < len(self._first) else 0
        kept = (1 << first) - 1
        self._points = {number: point for number, point in self._points.items() if number < first}
        self._alive &= kept
        self._begun = [begun & kept for begun in self._begun] or [0] * len(self._grammar.normal.names)
        del self._first[same:], self._lefts[same:], self._walks[same + 1 :], self._open[same:]
        self._columns, self._ends = columns, ends
        for at, column in enumerate(columns[same:], same):
            self._open.append(1 + (self._open[at - 1] if at else 0) if column.anything else 0)
        for at in range(same, len(columns) + 1):
            self._first.append(first)
            texts = [self._grammar.tokens[token] for token in columns[at].tokens] if at < len(columns) else []
            lefts = {text[place:] for text in texts for place in range(1, len(text))}
            self._lefts.append(
                {left: first + sets * place for place, left in enumerate(sorted({b"", *lefts}, key=_by_length))}
            )
            first += sets * (1 + len(lefts))
        self._walks += [{} for _ in range(len(columns) + 1 - len(self._walks))]

    def _boundary(self, column: int) -> Points:
        """The points between two tokens, with so many columns to their right."""
        return ((1 << len(self._grammar.lexing.sets)) - 1) << self._first[column]

    def _work_out(self, start: int) -> None:
        """What symbols lead to, from all points that terminals lead to from one."""
        waiting, order = 1 << start, []
        while waiting:
            top = waiting.bit_length() - 1
            waiting ^= 1 << top
            point = self._points[top] if top in self._points else self._new(top)
            order.append((top, point))
            if point.edges is None:
                point.edges = self._edges(point)
            for there in point.edges.values():
                waiting |= there
        ends = 0
        for column in self._ends:
            ends |= self._boundary(column)
        for number, point in reversed(order):
            if point.leads is None:
                assert point.edges is not None
                alive = self._alive
                leads = {symbol: there & alive for symbol, there in point.edges.items() if there & alive}
                if leads or ends >> number & 1:
                    self._alive |= 1 << number
                point.leads = self._filled(number, leads)
        self._beyond.clear()

    def _new(self, number: int) -> _Point:
        column = bisect_right(self._first, number) - 1
        place, ahead = divmod(number - self._first[column], len(self._grammar.lexing.sets))
        self._points[number] = _Point(column, list(self._lefts[column])[place], ahead)
        return self._points[number]

    def _filled(self, number: int, terminals: dict[int, Points]) -> dict[int, Points]:
        """What each symbol leads to from a point, those to the right of it being known."""
        heads, joins = self._grammar.normal.heads, self._grammar.normal.joins
        here, begun = 1 << number, self._begun
        found: dict[int, Points] = {}
        work: dict[int, Points] = {}

        def add(symbol: int, there: Points) -> None:
            for head in heads[symbol]:
                before = found.get(head, 0)
                if new := there & ~before:
                    found[head] = before | new
                    begun[head] |= here
                    if joins[head]:
                        work[head] = work.get(head, 0) | new

        for symbol, there in terminals.items():
            add(symbol, there)
        while work:
            symbol = next(iter(work))
            there = work.pop(symbol)
            for head, right in joins[symbol]:
                if middles := there & begun[right]:
                    add(head, self._from_any(right, middles))
        once: dict[Points, Points] = {}  # many symbols lead to the same points
        return {symbol: once.setdefault(there, there) for symbol, there in found.items()}

    def _from_any(self, symbol: int, points: Points) -> Points:
        """Where a symbol leads to from any of some points: from the leftmost one, and from the others."""
        known, above, found = self._beyond, list[tuple[tuple[int, Points], Points]](), 0
        while points:
            key = symbol, points
            if key in known:
                found = known[key]
                break
            top = points.bit_length() - 1
            above.append((key, self._leads(top)[symbol]))
            points ^= 1 << top
        for key, own in reversed(above):
            found |= own
            known[key] = found
        return found

    def _edges(self, point: _Point) -> dict[int, Points]:
        """Which points terminals lead to from a point."""
        found: dict[int, Points] = {}
        for symbol in self._beginning(point):
            lexeme = self._grammar.lexemes[symbol]
            states, there = lexeme.begin[point.ahead], 0
            if point.left:
                states, within = lexeme.along(states, point.left)
                there = self._within(within, point.column) | self._ending(lexeme, states, point.column)
            there |= self._walked(symbol, states, point.column)
            if there:
                found[symbol] = there
        return found

    def _beginning(self, point: _Point) -> Iterator[int]:
        """The terminals that may stand at a point, as far as the first byte behind it tells."""
        lexing, lexemes = self._grammar.lexing, self._grammar.lexemes
        symbols = lexing.first if point.column == len(self._columns) else lexing.after[point.ahead]
        if point.left:
            texts = [point.left]
        elif not point.column:
            return
        else:
            options = self._columns[point.column - 1]
            if options.anything:
                yield from symbols
                return
            texts = [self._grammar.tokens[token] for token in options.tokens]
        for symbol in symbols:
            if any(lexemes[symbol].may_begin(point.ahead, text) for text in texts):
                yield symbol

    def _walked(self, symbol: int, states: States, column: int) -> Points:
        """The points behind further columns at which a text of a terminal may end, from some states."""
        lexeme = self._grammar.lexemes[symbol]
        path: list[tuple[dict[tuple[int, States], Points], tuple[int, States], Points]] = []
        found = 0
        while states and column:
            known, key = self._walks[column], (symbol, states)
            if key in known:
                found = known[key]
                break
            column -= 1
            states, here = self._step(lexeme, states, column)
            path.append((known, key, here))
        for known, key, here in reversed(path):
            found |= here
            known[key] = found
        return found

    def _step(self, lexeme: Lexeme, states: States, column: int) -> tuple[States, Points]:
        """Behind a column: the states, and the points in it at which a text may end."""
        options = self._columns[column]
        there, points = lexeme.anything(states) if options.anything else 0, 0
        for token in options.tokens:
            if text := self._grammar.tokens[token]:
                further, within = lexeme.along(states, text)
                there |= further
                points |= self._within(within, column)
        reach = self._grammar.reach
        return there, points if reach and self._open[column] > reach else points | self._ending(lexeme, there, column)

    def _within(self, within: tuple[Within, ...], column: int) -> Points:
        found = 0
        for left, ahead in within:
            found |= 1 << self._lefts[column][left] + ahead
        return found

    def _ending(self, lexeme: Lexeme, states: States, column: int) -> Points:
        return lexeme.end(states) << self._first[column]

    def _tokens(self, first: int, last: int, column: int) -> tuple[int, ...]:
        """Tokens of a text from the first point to one that the start symbol leads to."""
        found: dict[int, int] = {}
        work = [(self._grammar.normal.start, first, last)]
        while work:
            work += self._derived(*work.pop(), found)
        return tuple(found[at] for at in range(len(self._columns) - 1, column - 1, -1))

    def _leads(self, number: int) -> dict[int, Points]:
        leads = self._points[number].leads
        assert leads is not None
        return leads

    def _derived(self, symbol: int, first: int, last: int, found: dict[int, int]) -> list[tuple[int, int, int]]:
        """The parts of a symbol between two points; the tokens of a terminal are written down."""
        normal, leads = self._grammar.normal, self._leads(first)
        for inner in normal.inner[symbol]:
            if inner in normal.terminals:
                if leads.get(inner, 0) >> last & 1:
                    self._spell(self._grammar.lexemes[inner], self._points[first], self._points[last], found)
                    return []
                continue
            for left, right in normal.pairs[inner]:
                for middle in bits(leads.get(left, 0) & self._begun[right]):
                    if self._leads(middle).get(right, 0) >> last & 1:
                        return [(left, first, middle), (right, middle, last)]
        raise AssertionError(f"{normal.names[symbol]} does not lead from {first} to {last}")

    def _spell(self, lexeme: Lexeme, first: _Point, last: _Point, found: dict[int, int]) -> None:
        """Write down tokens with which a terminal leads from one point to another."""
        states = lexeme.begin[first.ahead]
        if first.left:
            states, _ = lexeme.along(states, first.left)
        before: list[States] = []
        for column in range(first.column - 1, last.column - 1, -1):
            before.append(states)
            states, _ = self._step(lexeme, states, column)
        targets, left = lexeme.ends[last.ahead], last.left
        for column, states in zip(range(last.column, first.column), reversed(before), strict=True):
            found[column], targets = self._token(lexeme, states, column, targets, left)
            left = b""

    def _token(self, lexeme: Lexeme, before: States, column: int, targets: States, left: bytes) -> tuple[int, States]:
        """A token for a column that leads from some states to some others, but for its last bytes, and from which."""
        options = self._columns[column]
        for token in options.tokens:
            text = self._grammar.tokens[token]
            if text and text.endswith(left) and len(text) > len(left):
                for source in bits(before):
                    if lexeme.along(1 << source, text[: len(text) - len(left)])[0] & targets:
                        return token, 1 << source
        if options.anything and not left:
            for source in bits(before):
                if (way := lexeme.token(source, targets)) is not None:
                    return way, 1 << source
        raise AssertionError(f"no token of column {column} leads on")


def _by_length(text: bytes) -> tuple[int, bytes]:
    return len(text), text
