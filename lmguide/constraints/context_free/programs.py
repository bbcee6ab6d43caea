"""Programming languages as context-free grammars."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from lmguide.constraints.automaton.dfa import Dfa, difference, intersection
from lmguide.constraints.automaton.json_values import pattern
from lmguide.constraints.automaton.nfa import sequence, union
from lmguide.constraints.context_free.productions import Body, Productions
from lmguide.constraints.languages.terminals import Pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmguide.constraints.languages.layout import Laid

REACH = 8
"""Terminals in a row of open columns: white space fills the rest of the row."""
DEEPEST = 6
"""How deep blocks may be nested on a canvas. Each depth has rules of its own."""


def program_productions(grammar: Laid, deepest: int = DEEPEST) -> Productions:
    """The grammar of a language's programs.

    Args:
        grammar: With white space between its terminals.
        deepest: How deep blocks may be nested, where the language has them.

    Example:
        >>> from lmguide.constraints import Language
        >>> found = program_productions(Language("json").laid())
        >>> found.terminals["TCOMMA__SPACE_ANY_ANY>>any"].accepts(" ,")
        True
    """
    parametric, definitions = grammar.parametric(), grammar.definitions
    bodies: dict[str, list[Body]] = {name: list(rows) for name, rows in definitions.rules.items()}
    bodies["start"] = [tuple(_called(part, 0, parametric) for part in top) for top in grammar.tops]
    for name, rows in grammar.rules.items():
        for depth in range(deepest + 1) if name in parametric else (0,):
            found = dict.fromkeys(body for row in rows for body in _bodies(row, grammar, parametric, depth, deepest))
            bodies[_called(name, depth, parametric)] = list(found)

    @cache
    def terminal(name: str) -> Dfa:
        given = definitions.terminals[name]
        if isinstance(given, Pattern):
            found = pattern(given.regex)
            return difference(found, pattern(given.without)) if given.without else found
        space, body = terminal(given.space), terminal(given.body)
        spaced = sequence([space, body])
        if not given.optional:
            return spaced
        return union([spaced, intersection(body, pattern(given.rest)) if given.apart else body])

    used = {part for rows in bodies.values() for row in rows for part in row}
    terminals = {name: terminal(name.partition(">")[0]) for name in sorted(used - bodies.keys())}
    return Productions("start", bodies, terminals, reach=REACH)


def _called(name: str, depth: int, parametric: set[str]) -> str:
    return f"{name} {depth}" if name in parametric else name


def _bodies(row: list[str], grammar: Laid, parametric: set[str], depth: int, deepest: int) -> Iterator[Body]:
    """An alternative at a depth; none where it would be too deep."""
    found: list[str] = []
    here = depth
    for part in row:
        if part in "+-":
            here = depth + 1 if part == "+" else depth
            if here > deepest:
                return
        elif part == grammar.line:
            found += grammar.begin(here)
        else:
            found.append(_called(part, here, parametric))
    yield tuple(found)
