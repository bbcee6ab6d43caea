"""The product of a grammar with a lexer: white space, keywords and brackets written into the rules.

An engine's own `%ignore` takes white space anywhere: also where indentation counts or a newline ends a statement. And
it lets `a andb` pass, because contextual lexing looks for nothing but `and` after `a`. So nothing is ignored here. A
small automaton, the `Lexing`, reads the terminals of a text; `lay_out` writes a rule for each nonterminal between each
two of its states, and white space becomes the beginning of a terminal.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lmguide.constraints.languages.bnf import Rules, Symbol
    from lmguide.constraints.languages.terminals import Definitions

DEEPEST = 15
"""How deep blocks may be nested: as deep as four bits count."""
_DEPTH = "[0:4]"


class Step(NamedTuple):
    """One way to read a terminal: the symbols written for it, and the state after it."""

    written: tuple[str, ...]
    state: str


class Lexing(Protocol):
    """An automaton over the terminals of a text.

    Attributes:
        start: The state before the first terminal.
        outermost: The place outside of all brackets.
        indent: The terminal that opens a block, `dedent` the one that closes it; "" where the language has none.
        line: The symbol that steps write where a line begins in a block's column; "" where the language has none.
    """

    start: str
    outermost: str
    indent: str
    dedent: str
    line: str

    def opens(self, place: str, terminal: str) -> tuple[str, tuple[str, ...]] | None:
        """The place that `terminal` opens and the terminals that close it, if it opens one."""

    def context(self, terminal: str, rule: str, place: str, behind: str) -> str:
        """A name for where a terminal stands, other ones where other terminals may follow.

        Args:
            terminal: Its name.
            rule: The nonterminal in whose body it is.
            place: Where it stands.
            behind: The place behind it.
        """

    def steps(self, place: str, state: str, terminal: str) -> list[Step]:
        """The ways to read `terminal`."""

    def enters(self, state: str, first: frozenset[str]) -> Step | None:
        """What to write ahead of a nonterminal that begins with one of `first`, if it is the same for all of them.

        The nonterminal is not empty. It keeps the rules of what comes after it free of that beginning.
        """

    def merged(self, state: str, following: frozenset[str]) -> str:
        """The state to go on in, where only terminals of `following` can come: equal states are made one."""

    def begin(self, depth: int) -> tuple[str, ...]:
        """What `line` stands for in a block of this depth."""

    def ends(self) -> dict[str, str]:
        """States in which a text may end, each with what may follow then: the name of a rule, or ""."""

    def definitions(self) -> Definitions:
        """What the steps have written, and what `line` and the ends stand for."""


class Key(NamedTuple):
    """A nonterminal in a place, read from a state on."""

    name: str
    place: str
    state: str


class _Product:
    def __init__(self, rules: Rules, lexing: Lexing) -> None:
        self.rules = rules
        self.lexing = lexing
        self.reached: dict[Key, set[str]] = {}
        self.readers: dict[Key, set[Key]] = {}
        self.first, self.following = _first_and_follow(rules)
        self.placed: dict[tuple[tuple[Symbol, ...], str], list[str]] = {}

    def solve(self, start: Key) -> None:
        """Fill `reached`: the states in which a nonterminal can leave the automaton. Least fixed point."""
        self.reached[start] = set()
        waiting = [start]
        while waiting:
            key = waiting.pop()
            found = {path[-1].state for body in self.rules.bodies[key.name] for path in self.paths(key, body, waiting)}
            if not found <= self.reached[key]:
                self.reached[key] |= found
                waiting.extend(self.readers.get(key, ()))

    def places(self, body: tuple[Symbol, ...], place: str) -> list[str]:
        """The place of each symbol; a closing bracket still stands inside."""
        if (body, place) not in self.placed:
            stack: list[tuple[str, tuple[str, ...]]] = [(place, ())]
            places = []
            for symbol in body:
                here, closing = stack[-1]
                places.append(here)
                opened = self.lexing.opens(here, symbol.name) if symbol.is_terminal else None
                if symbol.is_terminal and symbol.name in closing:
                    stack.pop()
                elif opened is not None:
                    stack.append(opened)
            if len(stack) > 1:
                raise ValueError(
                    f"text: expected {' or '.join(stack[-1][1])} in the alternative that opens its bracket, "
                    f"got {' '.join(s.name for s in body)}. Write both in one alternative."
                )
            self.placed[body, place] = places
        return self.placed[body, place]

    def paths(self, key: Key, body: tuple[Symbol, ...], waiting: list[Key] | None = None) -> Iterator[list[Step]]:
        """Every way through the automaton along `body`, after a first step that stands for nothing read.

        With `waiting`, nonterminals not met before are added to it and to the table of who reads whom.
        """
        places = self.places(body, key.place)

        def onward(at: int, path: list[Step]) -> Iterator[list[Step]]:
            if at == len(body):
                last = path[-1]
                yield [*path[:-1], last._replace(state=self.lexing.merged(last.state, self.following[key.name]))]
                return
            state = path[-1].state
            if body[at].is_terminal:
                steps = self.lexing.steps(places[at], state, body[at].name)
            else:
                entry = self.lexing.enters(state, self.first[body[at].name]) or Step((), state)
                inner = Key(body[at].name, places[at], entry.state)
                if waiting is not None:
                    self.readers.setdefault(inner, set()).add(key)
                    if inner not in self.reached:
                        self.reached[inner] = set()
                        waiting.append(inner)
                steps = [Step((*entry.written, self.rule(inner, end)), end) for end in sorted(self.reached[inner])]
            for step in steps:
                yield from onward(at + 1, [*path, step])

        yield from onward(0, [Step((), key.state)])

    def rule(self, key: Key, end: str) -> str:
        """The name of the rule for what `key` reads up to a state. Names begin with a letter, as the notation asks."""
        name = re.sub(r"\W", "_", key.name.lower())
        return f"{'x' if name.startswith('_') else ''}{name}__{key.place}_{key.state}_{end}"

    def alternatives(self, key: Key, end: str) -> Iterator[list[str]]:
        """The alternatives of a rule, as `Laid` has them."""
        bounds = {self.lexing.indent: "+", self.lexing.dedent: "-"}
        for body in self.rules.bodies[key.name]:
            here = self.places(body, key.place)
            behind = [*here, key.place][1:]
            for path in self.paths(key, body):
                if path[-1].state == end:
                    written: list[str] = []
                    for symbol, step, place, after in zip(body, path[1:], here, behind, strict=True):
                        if symbol.is_terminal and symbol.name in bounds:
                            written.append(bounds[symbol.name])
                        written.extend(step.written)
                        if symbol.is_terminal and step.written:
                            written[-1] += f">{self.lexing.context(symbol.name, key.name, place, after)}"
                    yield written

    def written(self, tops: list[tuple[Key, str]]) -> dict[str, list[list[str]]]:
        """All rules that `tops` need."""
        known: dict[str, list[list[str]]] = {}
        names = {self.rule(key, end): (key, end) for key, states in self.reached.items() for end in states}
        waiting = [self.rule(*top) for top in tops]
        while waiting:
            name = waiting.pop()
            if name not in known:
                known[name] = list(self.alternatives(*names[name]))
                waiting.extend(part for body in known[name] for part in body if part in names)
        return known


def _first_and_follow(rules: Rules) -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    """FIRST, terminals that a nonterminal can begin with, and "" if it can be empty; FOLLOW, those right after it."""
    empty: set[str] = set()
    first: dict[str, set[str]] = {name: set() for name in rules.bodies}
    follow: dict[str, set[str]] = {name: set() for name in rules.bodies}

    def firsts(symbols: tuple[Symbol, ...]) -> tuple[set[str], bool]:
        found: set[str] = set()
        for symbol in symbols:
            found |= {symbol.name} if symbol.is_terminal else first[symbol.name]
            if symbol.is_terminal or symbol.name not in empty:
                return found, False
        return found, True

    size = -1
    while size < (size := len(empty) + sum(map(len, first.values())) + sum(map(len, follow.values()))):
        for name, bodies in rules.bodies.items():
            for body in bodies:
                found, is_empty = firsts(body)
                first[name] |= found
                empty |= {name} if is_empty else set()
                for at, symbol in enumerate(body):
                    if not symbol.is_terminal:
                        found, is_last = firsts(body[at + 1 :])
                        follow[symbol.name] |= found | (follow[name] if is_last else set())
    return (
        {name: frozenset(found | ({""} if name in empty else set())) for name, found in first.items()},
        {name: frozenset(found) for name, found in follow.items()},
    )


def _without_aliases(rules: dict[str, list[list[str]]], kept: set[str]) -> dict[str, list[list[str]]]:
    """Rules that only name another symbol, replaced by it: a parser pays for each of them at each position."""
    alias = {
        name: bodies[0][0] for name, bodies in rules.items() if name not in kept and len(bodies) == len(bodies[0]) == 1
    }

    def target(name: str) -> str:
        seen = {name}
        while name in alias and alias[name] not in seen:
            name = alias[name]
            seen.add(name)
        return name

    return {
        name: [[target(part) for part in body] for body in bodies]
        for name, bodies in rules.items()
        if name not in alias
    }


class Laid(NamedTuple):
    """A grammar with the white space between its terminals written into it.

    Attributes:
        tops: The alternatives of a whole text.
        rules: The alternatives of each other nonterminal. "+" and "-" stand where a block is opened and closed, and
            `line` where a line begins in it. A terminal's name is followed by ">" and its `Lexing.context`.
        line: That symbol; "" where the language has no blocks.
        begin: What it stands for in a block of some depth.
        definitions: What else is written in the rules.
    """

    tops: list[list[str]]
    rules: dict[str, list[list[str]]]
    line: str
    begin: Callable[[int], tuple[str, ...]]
    definitions: Definitions

    def parametric(self) -> set[str]:
        """Names of the rules that have the depth as parameter: those that reach a line's beginning."""
        found: set[str] = set()
        size = -1
        while size < (size := len(found)):
            found |= {
                name
                for name, bodies in self.rules.items()
                if any(part == self.line or part in found for body in bodies for part in body)
            }
        return found


def laid(rules: Rules, lexing: Lexing) -> Laid:
    """The grammar's strings with white space between their terminals.

    Let A be a nonterminal and p, q states of the automaton. The rule A__p_q derives what is written for the terminals
    of each sentence of A that the automaton reads from p to q: the construction of Bar-Hillel, Perles and Shamir for
    the intersection of a context-free with a regular language. Nothing is left out and nothing comes twice but where
    the grammar itself is ambiguous.

    Args:
        rules: The grammar.
        lexing: The automaton.

    Raises:
        ValueError: a bracket that is closed in another alternative than it is opened in; a grammar without sentences.
    """
    if rules.start not in rules.bodies:
        raise ValueError(f"text: expected a rule {rules.start!r}, got none. Name the one to begin with.")
    product = _Product(rules, lexing)
    start = Key(rules.start, lexing.outermost, lexing.start)
    product.solve(start)
    ends = {state: rule for state, rule in lexing.ends().items() if state in product.reached[start]}
    if not ends:
        raise ValueError(f"text: expected a rule {rules.start!r} that derives a text, got none. Correct the rule.")
    tops = {state: product.rule(start, state) for state in ends}
    found = _without_aliases(product.written([(start, state) for state in ends]), set(tops.values()))
    return Laid(
        [[top, ends[state]] if ends[state] else [top] for state, top in tops.items()],
        found,
        lexing.line,
        lexing.begin,
        lexing.definitions(),
    )


def _alternatives(body: list[str], grammar: Laid, parametric: set[str]) -> Iterator[str]:
    """One alternative as text; one for each depth if it begins a line.

    The engine ends a parametric rule without a look at its parameter (llguidance 1.7.6): whoever waits for the rule at
    its beginning, with whatever parameter, goes on. So at no position of a text may a rule be waited for with two. It
    is not: the indentation stands in the alternatives themselves, as a terminal, and not in a parametric rule of its
    own. After it one depth is left.
    """

    def written(depth: int) -> str:
        parts: list[str] = []
        step, deeper = "_", 0
        for part in body:
            if part in "+-":
                step, deeper = (f"incr({_DEPTH})", 1) if part == "+" else ("_", 0)
            elif part == grammar.line:
                parts.extend(grammar.begin(depth + deeper))
            else:
                parts.append(f"{part}::{step}" if part in parametric else part.partition(">")[0])
        return " ".join(parts) or '""'

    if grammar.line not in body:
        yield written(0)
    else:
        for depth in range(DEEPEST if "+" in body else DEEPEST + 1):
            yield f"{written(depth)} %if eq({_DEPTH}, {depth})"


def lay_out(grammar: Laid) -> str:
    """A grammar in llguidance's notation."""
    parametric = grammar.parametric()

    def called(name: str, parameter: str) -> str:
        return f"{name}::{parameter}" if name in parametric else name

    lines = [f"start: {' | '.join(' '.join(called(part, '0') for part in top) for top in grammar.tops)}"]
    for name, bodies in grammar.rules.items():
        texts = [text for body in bodies for text in _alternatives(body, grammar, parametric)]
        lines.append(f"{called(name, '_')}: " + "\n  | ".join(dict.fromkeys(texts)))
    return "\n".join([*lines, *grammar.definitions.lines()]) + "\n"
