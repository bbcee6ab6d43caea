"""From constraints to one grammar in llguidance's dialect of Lark.

Neighbouring regular parts become one terminal, so that where they meet nothing is decided by longest match. Everything
else becomes a rule of its own with a name that nothing else has; grammars of users are nested with their own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from lmguide.constraints.base import Constraint, Literal, Repeat, Sequence, Union
from lmguide.constraints.ccfg.description import CCFG
from lmguide.constraints.descriptions import Choice, FreeText, Grammar, JSONSchema, Regex
from lmguide.constraints.extras import grammar_extra
from lmguide.constraints.json_schema import llguidance_schema
from lmguide.constraints.lark_text import Outline, check_lark
from lmguide.constraints.regex import (
    EVERY,
    Alt,
    Cat,
    Chars,
    Node,
    Ranges,
    Rep,
    complement,
    intersection,
    literal,
    merged,
    render,
)

if TYPE_CHECKING:
    from lmguide.constraints.vocabulary import Vocabulary


@dataclass(frozen=True)
class Lowered:
    """A constraint as an engine reads it.

    Attributes:
        lark: The grammar; its rule `start` is the constraint.
        tree: The constraint as one regular expression, if it is regular.
    """

    lark: str
    tree: Node | None


def lower(constraint: Constraint, vocabulary: Vocabulary | None = None) -> Lowered:
    r"""A constraint as one grammar.

    Args:
        constraint: What texts must be.
        vocabulary: Whose special tokens triggers may name; `None`: every trigger is text.

    Raises:
        ValueError: A part that never ends is followed by another, alternatives ignore different texts, or a grammar has
            a rule that no text finishes.
        TypeError: A constraint that says neither what it is nor what it is made of.

    Example:
        >>> print(lower(Regex("[a-z]+") + FreeText(until=";")).lark, end="")
        start: (/[a-z]+/ part_0)
        part_0[lazy]: /[\x{0}-\x{d7ff}\x{e000}-\x{10ffff}]*\x{3b}/
    """
    lowering = _Lowering({} if vocabulary is None else vocabulary.specials)
    kind = core(constraint)
    if isinstance(kind, Grammar):
        return Lowered(read_grammar(kind)[0], None)
    lines = [f"start: {lowering.expression(kind)}", *lowering.rules]
    return Lowered("\n".join(lines) + "\n", regular(kind))


def regular(constraint: Constraint) -> Node | None:
    """The constraint as one tree of character sets, if it is one."""
    constraint = core(constraint)
    if isinstance(constraint, Literal):
        return literal(constraint.text)
    if isinstance(constraint, Regex):
        return constraint.tree
    if isinstance(constraint, Choice):
        return Alt(tuple(map(literal, constraint.options)))
    if isinstance(constraint, FreeText) and constraint.until is None:
        return _ANYTHING
    if isinstance(constraint, Repeat):
        part = regular(constraint.part)
        return None if part is None else Rep(part, constraint.least, constraint.most)
    if isinstance(constraint, Sequence | Union):
        parts = [regular(part) for part in constraint.parts]
        kept = tuple(part for part in parts if part is not None)
        if len(kept) < len(parts):
            return None
        return Cat(kept) if isinstance(constraint, Sequence) else Alt(kept)
    return None


def leaves(constraint: Constraint) -> list[Constraint]:
    """The parts of a constraint that are made of no others, in order."""
    kind = core(constraint)
    if isinstance(kind, Sequence | Union):
        return [leaf for part in kind.parts for leaf in leaves(part)]
    return leaves(kind.part) if isinstance(kind, Repeat) else [kind]


_ANYTHING = Rep(Chars(EVERY), 0, None)
JSON_BEGINS = merged((ord(sign), ord(sign)) for sign in '{["-0123456789tfn')
"""What a JSON document begins with."""


class _Lowering:
    def __init__(self, specials: dict[str, int]) -> None:
        self.specials = specials
        self.rules: list[str] = []

    def expression(self, constraint: Constraint) -> str:
        """The constraint as an expression in the body of a rule."""
        constraint = core(constraint)
        tree = regular(constraint)
        if tree is not None:
            return _terminal(tree)
        if isinstance(constraint, Sequence):
            parts = self._joined(constraint.parts, Cat)
            self._check_ends(parts)
            return "(" + " ".join(self._written(part) for part in parts) + ")"
        if isinstance(constraint, Union):
            self._check_ignored(constraint)
            return "(" + " | ".join(map(self._written, self._joined(constraint.parts, Alt))) + ")"
        if isinstance(constraint, Repeat):
            most = "" if constraint.most is None else constraint.most
            return f"({self.expression(constraint.part)}){{{constraint.least},{most}}}"
        if isinstance(constraint, JSONSchema):
            return self._rule(f": %json {llguidance_schema(str(constraint.schema), constraint.whitespace)}")
        if isinstance(constraint, Grammar):
            return self._rule(f": %lark {{\n{read_grammar(constraint)[0]}\n}}")
        if isinstance(constraint, FreeText):
            return self._free(str(constraint.until))
        if isinstance(constraint, CCFG):
            raise ValueError(
                "constraint: expected parts that llguidance reads, got a CCFG that does not fit into its rules: "
                f"{constraint.lowered}. Let it be the whole answer."
            )
        raise TypeError(
            f"constraint: expected one that lowers to a grammar, got {type(constraint).__name__}. "
            "Give it a grammar() of those that do."
        )

    def _joined(self, parts: tuple[Constraint, ...], join: type[Cat] | type[Alt]) -> list[Node | Constraint]:
        """The parts, neighbouring regular ones as one tree."""
        found: list[Node | Constraint] = []
        for part in parts:
            tree = regular(part)
            if tree is None:
                found.append(part)
            elif found and not isinstance(found[-1], Constraint):
                found[-1] = join((found[-1], tree))
            else:
                found.append(tree)
        return found

    def _written(self, part: Node | Constraint) -> str:
        return self.expression(part) if isinstance(part, Constraint) else _terminal(part)

    def _check_ends(self, parts: list[Node | Constraint]) -> None:
        """Refuse a regular part that takes whatever could begin the part behind it."""
        for tree, behind in pairwise(parts):
            if isinstance(tree, Constraint) or not isinstance(behind, Constraint):
                continue
            begins = JSON_BEGINS if isinstance(core(behind), JSONSchema) else EVERY
            if (taken := _tail(tree)) is not None and not intersection(complement(taken), begins):
                raise ValueError(
                    f"constraint: expected a part that ends before {type(behind).__name__}, got one that may go on "
                    "with any text, so that nothing could ever follow. Use FreeText(until=...) before it."
                )

    def _check_ignored(self, union: Union) -> None:
        """Refuse alternatives that the engine would not tell apart where a text is ignored in one of them alone."""
        for part in union.parts:
            for leaf in leaves(part):
                if isinstance(leaf, Grammar) and read_grammar(leaf)[1].ignores:
                    raise ValueError(
                        "constraint: expected alternatives without %ignore, got a grammar with it beside others. "
                        "Write the alternatives into one grammar."
                    )

    def _free(self, until: str) -> str:
        if until in self.specials:
            return self._rule(f": {_terminal(_ANYTHING)} <[{self.specials[until]}]>")
        return self._rule(f"[lazy]: {_terminal(Cat((_ANYTHING, literal(until))))}")

    def _rule(self, body: str) -> str:
        name = f"part_{len(self.rules)}"
        self.rules.append(f"{name}{body}")
        return name


@lru_cache(maxsize=64)
def read_grammar(grammar: Grammar) -> tuple[str, Outline]:
    """A grammar in Lark's syntax, GBNF converted, and what it defines.

    Raises:
        ValueError: The conversion fails, with the position; or a rule that no text finishes.
    """
    text = str(grammar.text)
    if "::=" in text:
        converter = grammar_extra("llguidance.gbnf_to_lark")
        try:
            text = str(converter.any_to_lark(text))
        except Exception as error:  # its own kind, and whatever escapes it
            raise ValueError(f"text: expected a grammar in GBNF, got one that is broken: {error}. Mend it.") from None
    return text, check_lark(text)


def core(constraint: Constraint) -> Constraint:
    """A constraint in terms of those this file knows."""
    while (lowered := constraint.grammar()) is not constraint:
        constraint = lowered
    return constraint


def _terminal(tree: Node) -> str:
    text = render(tree)
    return f"/{text}/" if text else '""'


def _tail(tree: Node) -> Ranges | None:
    """The characters that may follow every text of the tree for ever, if it ends in such a repetition."""
    if isinstance(tree, Cat):
        return _tail(tree.parts[-1]) if tree.parts else None
    if isinstance(tree, Rep) and tree.most is None and isinstance(tree.part, Chars):
        return tree.part.ranges
    return None
