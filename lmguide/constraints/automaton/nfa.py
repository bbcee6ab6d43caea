"""From trees of character sets to deterministic automata: Thompson's construction, then that of subsets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lmguide.constraints.automaton.dfa import LAST, Dfa, check_size, smallest
from lmguide.constraints.regex import Cat, Chars, Node, Ranges, Rep, complement, intersection, literal, merged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lmguide.constraints.automaton.reduction import Ints

MOST_PARTS = 200_000
"""States of an automaton that is not deterministic yet."""


def of_tree(tree: Node) -> Dfa:
    """The automaton of a pattern's tree.

    Args:
        tree: As `lmguide.constraints.regex.translate` makes it.

    Raises:
        ValueError: It needs too many states.

    Example:
        >>> from lmguide.constraints.regex import translate
        >>> number = of_tree(translate("[0-9]{1,3}"))
        >>> number.accepts("42"), number.accepts("")
        (True, False)
    """
    nfa = _Nfa()
    return nfa.determined(*nfa.tree(tree))


def sequence(parts: Sequence[Dfa]) -> Dfa:
    """The texts of the parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    nfa = _Nfa()
    return nfa.determined(*nfa.row([nfa.embedded(part) for part in parts]))


def union(parts: Sequence[Dfa]) -> Dfa:
    """The texts of any part; of no parts, none."""
    if len(parts) == 1:
        return parts[0]
    nfa = _Nfa()
    return nfa.determined(*nfa.either([nfa.embedded(part) for part in parts]))


def repeated(part: Dfa, least: int, most: int | None) -> Dfa:
    """The part's texts from `least` to `most` times in a row; `None` is no bound."""
    nfa = _Nfa()
    return nfa.determined(*nfa.times(lambda: nfa.embedded(part), least, most))


def graph(edges: Sequence[tuple[int, Dfa | None, int]], start: int, ends: Sequence[int]) -> Dfa:
    """The texts along the ways through a graph whose edges are automata themselves, or `None` for the empty text.

    Args:
        edges: From a node, over a text, to a node; nodes are numbers from 0.
        start: The first node.
        ends: Nodes in which a way may end.
    """
    nfa = _Nfa()
    nodes = [nfa.state() for _ in range(1 + max([start, *ends, *(max(edge[0], edge[2]) for edge in edges)]))]
    for source, part, target in edges:
        first, last = (nodes[target],) * 2 if part is None else nfa.embedded(part)
        nfa.free[nodes[source]].append(first)
        if part is not None:
            nfa.free[last].append(nodes[target])
    end = nfa.state()
    for node in ends:
        nfa.free[nodes[node]].append(end)
    return nfa.determined(nodes[start], end)


def respelled(dfa: Dfa, spellings: Mapping[str, str]) -> Dfa:
    """The texts of an automaton with some characters written as other texts.

    Args:
        dfa: The automaton.
        spellings: What is written in the place of a character.
    """
    nfa = _Nfa()
    return nfa.determined(*nfa.embedded(dfa, spellings))


class _Nfa:
    """States with edges over sets of characters, and edges over nothing."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[int, int]]] = []  # the number of a set, and the state it leads to
        self.free: list[list[int]] = []
        self.sets: dict[Ranges, int] = {}

    def state(self) -> int:
        """A new state."""
        if len(self.edges) >= MOST_PARTS:
            check_size(MOST_PARTS)
        self.edges.append([])
        self.free.append([])
        return len(self.edges) - 1

    def edge(self, source: int, ranges: Ranges, target: int) -> None:
        """An edge over one character out of a set."""
        self.edges[source].append((self.sets.setdefault(ranges, len(self.sets)), target))

    def tree(self, node: Node) -> tuple[int, int]:
        """The first and the last state of a tree; nothing leads into the first or out of the last."""
        if isinstance(node, Chars):
            start, end = self.state(), self.state()
            self.edge(start, node.ranges, end)
            return start, end
        if isinstance(node, Rep):
            return self.times(lambda: self.tree(node.part), node.least, node.most)
        parts = [self.tree(part) for part in node.parts]
        return self.row(parts) if isinstance(node, Cat) else self.either(parts)

    def row(self, parts: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Parts one after the other."""
        start = end = self.state()
        for first, last in parts:
            self.free[end].append(first)
            end = last
        return start, end

    def either(self, parts: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Any one of the parts."""
        start, end = self.state(), self.state()
        for first, last in parts:
            self.free[start].append(first)
            self.free[last].append(end)
        return start, end

    def times(self, part: Callable[[], tuple[int, int]], least: int, most: int | None) -> tuple[int, int]:
        """New copies of a part in a row."""
        copies = [part() for _ in range(least + 1 if most is None else most)]
        start, _ = self.row(copies)
        end = self.state()
        for first, _ in copies[least:]:
            self.free[first].append(end)
        if copies:
            first, last = copies[-1]
            self.free[last].append(first if most is None else end)
        else:
            self.free[start].append(end)
        return start, end

    def embedded(self, dfa: Dfa, spellings: Mapping[str, str] | None = None) -> tuple[int, int]:
        """The states of an automaton; characters that have another spelling lead over that."""
        offset = len(self.edges)
        for _ in range(len(dfa.table)):
            self.state()
        apart = merged((ord(character),) * 2 for character in spellings or ())
        ranges = dfa.ranges()
        plain = [intersection(each, complement(apart)) for each in ranges] if apart else ranges
        for source, symbol in zip(*(place.tolist() for place in dfa.table.nonzero()), strict=True):
            first, last = offset + source, offset + int(dfa.table[source, symbol])
            if plain[symbol]:
                self.edge(first, plain[symbol], last)
            for character, text in (spellings or {}).items():
                if any(low <= ord(character) <= high for low, high in ranges[symbol]):
                    start, end = self.tree(literal(text))
                    self.free[first].append(start)
                    self.free[end].append(last)
        start, end = self.state(), self.state()
        self.free[start].append(offset + dfa.start)
        for state in dfa.accept.nonzero()[0].tolist():
            self.free[offset + state].append(end)
        return start, end

    def determined(self, start: int, end: int) -> Dfa:
        """The smallest deterministic automaton of the texts that lead from one state to another."""
        bounds, symbols, letters = self._alphabet()
        reach: dict[int, frozenset[int]] = {}

        def closure(state: int) -> frozenset[int]:
            if state not in reach:
                reach[state] = self._closure(state, end)
            return reach[state]

        number = {frozenset[int](): 0}
        begin = number.setdefault(closure(start), len(number))
        worklist, entries = [closure(start)], []
        for subset in worklist:  # grows as it is read
            moves: dict[int, frozenset[int]] = {}
            for state in subset:
                for name, target in self.edges[state]:
                    there = closure(target)
                    for letter in letters[name]:
                        moves[letter] = moves[letter] | there if letter in moves else there
            for letter, there in moves.items():
                if there not in number:
                    number[there] = len(number)
                    worklist.append(there)
                    check_size(len(number))
                entries.append((number[subset], letter, number[there]))
        table = np.zeros((len(number), int(symbols.max()) + 1), np.int32)
        if entries:
            rows, columns, targets = np.array(entries).T
            table[rows, columns] = targets
        accept = np.array([end in subset for subset in number])
        return smallest(bounds, symbols, table, accept, begin)

    def _closure(self, state: int, end: int) -> frozenset[int]:
        """Where one may be without reading anything; states that say nothing themselves are left out."""
        seen, stack = {state}, [state]
        while stack:
            for target in self.free[stack.pop()]:
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return frozenset(each for each in seen if self.edges[each] or each == end)

    def _alphabet(self) -> tuple[Ints, Ints, list[list[int]]]:
        """Runs of characters that no set tells apart, the symbol of each, and the symbols of each set."""
        points = {0}
        for ranges in self.sets:
            points.update(point for low, high in ranges for point in (low, high + 1))
        bounds = np.array(sorted(points - {LAST + 1}), np.int32)
        inside = np.zeros((len(self.sets), len(bounds)), np.bool_)
        for row, ranges in enumerate(self.sets):
            for low, high in ranges:
                inside[row, np.searchsorted(bounds, low) : np.searchsorted(bounds, high, "right")] = True
        named = inside.any(0)
        symbols = np.zeros(len(bounds), np.int32)
        columns, found = np.unique(inside[:, named], axis=1, return_inverse=True)
        symbols[named] = found.ravel() + 1
        return bounds, symbols, [(np.flatnonzero(row) + 1).tolist() for row in columns]
