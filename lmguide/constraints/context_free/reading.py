"""From constraints to context-free grammars: grammars in Lark's notation, JSON, and what is composed of such."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmguide.constraints.automaton.json_values import pattern
from lmguide.constraints.automaton.language import character_dfa
from lmguide.constraints.base import Constraint, Repeat, Sequence, Union
from lmguide.constraints.context_free.description import ContextFree
from lmguide.constraints.context_free.productions import Body, Productions, with_ignored
from lmguide.constraints.context_free.programs import program_productions
from lmguide.constraints.descriptions import Grammar, JSONSchema, Triggered
from lmguide.constraints.languages.bnf import read_lark
from lmguide.constraints.languages.description import Language
from lmguide.constraints.lark_text import in_larks_words
from lmguide.constraints.lowering import leaves, read_grammar

if TYPE_CHECKING:
    from lmguide.constraints.automaton.dfa import Dfa

_NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_STRING = r'"([^"\\\x00-\x1f]|\\(["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_JSON: dict[str, list[Body]] = {
    "value": [("SCALAR",), ("STRING",), ("{", "}"), ("{", "members", "}"), ("[", "]"), ("[", "values", "]")],
    "members": [("member",), ("members", ",", "member")],
    "member": [("STRING", ":", "value")],
    "values": [("value",), ("values", ",", "value")],
}


def is_context_free(constraint: Constraint) -> bool:
    """Whether a constraint has a part that is a grammar, or to be read as one."""
    if isinstance(constraint, ContextFree):
        return True
    if isinstance(constraint, Sequence | Union):
        return any(map(is_context_free, constraint.parts))
    if isinstance(constraint, Repeat):
        return is_context_free(constraint.part)
    return any(isinstance(leaf, Grammar) for leaf in leaves(constraint))


def productions_of(constraint: Constraint) -> Productions:
    """The grammar of the texts that a constraint allows.

    `Grammar` in Lark's notation or GBNF, `Language`, `JSON`, whatever an automaton reads, and sequences, unions and
    repetitions of these. Parts that an automaton reads are terminals.

    Args:
        constraint: Which texts.

    Raises:
        ValueError: A grammar that Lark cannot read, with the position, or that says what only its engine knows; or a
            part that neither a grammar nor an automaton reads.

    Example:
        >>> from lmguide.constraints import Literal
        >>> found = productions_of("x = " + Grammar('start: "(" start ")" | "1"'))
        >>> found.bodies[found.start]
        [('0', '1 start')]
    """
    reader = _Reader()
    start = reader.symbol(constraint)
    if start in reader.terminals:
        reader.bodies["text"] = [(start,)]
        start = "text"
    return Productions(start, reader.bodies, reader.terminals, reach=reader.reach)


@dataclass
class _Reader:
    """Rules as they are found; each part of a constraint has names of its own."""

    bodies: dict[str, list[Body]] = field(default_factory=dict)
    terminals: dict[str, Dfa] = field(default_factory=dict)
    parts: int = 0
    reach: int | None = None

    def symbol(self, constraint: Constraint) -> str:
        """The symbol that derives the texts of a constraint."""
        if not any(map(_nests, leaves(constraint))):
            return self._terminal(character_dfa(constraint))
        constraint = _core(constraint)
        if isinstance(constraint, Language):
            program = program_productions(constraint.laid())
            self.reach = program.reach
            return self._own(program)
        if isinstance(constraint, Grammar):
            return self._grammar(constraint)
        if isinstance(constraint, JSONSchema) and json.loads(str(constraint.schema)) is True:
            return self._json(constraint.whitespace == "flexible")
        if isinstance(constraint, Sequence):
            return self._rule([tuple(map(self.symbol, _joined(constraint)))])
        if isinstance(constraint, Union):
            return self._rule([(self.symbol(part),) for part in constraint.parts])
        assert isinstance(constraint, Repeat)
        return self._repeated(constraint)

    def _name(self) -> str:
        self.parts += 1
        return str(self.parts - 1)

    def _terminal(self, dfa: Dfa) -> str:
        name = self._name()
        self.terminals[name] = dfa
        return name

    def _rule(self, rows: list[Body]) -> str:
        name = self._name()
        self.bodies[name] = rows
        return name

    def _repeated(self, constraint: Repeat) -> str:
        part = self.symbol(constraint.part)
        if constraint.most is None:
            more = self._name()
            self.bodies[more] = [(), (part, more)]
        else:
            more = self._rule([()])
            for _ in range(constraint.most - constraint.least):
                more = self._rule([(), (part, more)])
        return self._rule([(*(part,) * constraint.least, more)])

    def _json(self, spaces: bool) -> str:
        name = self._name()
        space = " ?" if spaces else ""
        forms = {"SCALAR": f"true|false|null|{_NUMBER}", "STRING": _STRING, ",": f",{space}", ":": f":{space}"}
        forms |= {sign: f"\\{sign}" for sign in "[]{}"}
        self.terminals |= {f"{name} {terminal}": pattern(form) for terminal, form in forms.items()}
        self.bodies |= {
            f"{name} {head}": [tuple(f"{name} {part}" for part in row) for row in rows] for head, rows in _JSON.items()
        }
        return f"{name} value"

    def _grammar(self, grammar: Grammar) -> str:
        """The rules of a grammar, what it ignores written into them."""
        try:
            rules = read_lark(in_larks_words(read_grammar(grammar)[0]))
            terminals = {terminal: pattern(each.regex) for terminal, each in rules.terminals.items()}
            ignored = [pattern(form) for form in rules.ignored]
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                "constraint: expected a grammar of plain rules and terminals on a canvas, got one that is not: "
                f"{reason if len(reason) < 300 else reason[:300] + ' ...'}"
            ) from None
        used = {part.name for rows in rules.bodies.values() for row in rows for part in row}
        if unknown := sorted(used - terminals.keys() - rules.bodies.keys()):
            raise ValueError(
                f"constraint: expected a grammar that defines what it uses, got {unknown[0]!r}, which is declared "
                "alone. Define it."
            )
        bodies = {head: [tuple(part.name for part in row) for row in rows] for head, rows in rules.bodies.items()}
        kept = {terminal: dfa for terminal, dfa in terminals.items() if terminal in used}
        return self._own(with_ignored(Productions(rules.start, bodies, kept, ignored)))

    def _own(self, whole: Productions) -> str:
        """The start of a grammar whose symbols get names of their own."""
        name = self._name()

        def own(symbol: str) -> str:
            return f"{name} {symbol}"

        self.terminals |= {own(terminal): dfa for terminal, dfa in whole.terminals.items()}
        self.bodies |= {own(head): [tuple(map(own, row)) for row in rows] for head, rows in whole.bodies.items()}
        return own(whole.start)


def _core(constraint: Constraint) -> Constraint:
    """A constraint in terms of those that are read here."""
    while not isinstance(constraint, Language):
        if isinstance(constraint, Triggered):
            raise ValueError(
                "constraint: expected sequences, unions and repetitions around a grammar, got Triggered. Compose it "
                "otherwise."
            )
        lowered = constraint.grammar()
        if lowered is constraint:
            break
        constraint = lowered
    return constraint


def _nests(leaf: Constraint) -> bool:
    """Whether a part is more than an automaton reads, or less than the grammar of it."""
    return isinstance(leaf, Grammar) or (isinstance(leaf, JSONSchema) and json.loads(str(leaf.schema)) is True)


def _joined(constraint: Sequence) -> list[Constraint]:
    """The parts of a sequence, those next to each other that an automaton reads as one."""
    found: list[Constraint] = []
    for nests, group in itertools.groupby(constraint.parts, lambda part: any(map(_nests, leaves(part)))):
        parts = tuple(group)
        found += parts if nests else [Sequence(parts)]
    return found
