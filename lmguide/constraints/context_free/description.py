"""A constraint that is read as a context-free grammar wherever that makes a difference."""

from __future__ import annotations

from dataclasses import dataclass

from lmguide.constraints.base import CONSTRAINTS, Constraint, as_constraint


@CONSTRAINTS.register("context_free")
@dataclass(frozen=True)
class ContextFree(Constraint):
    """The same texts, read as a context-free grammar.

    For engines that write from left to right it is the part itself. On a canvas `JSON()` is read as an automaton, in
    which values are nested to a depth; `ContextFree(JSON())` has them nested as deep as the canvas is long, and any
    number and string of RFC 8259. See docs/diffusion-constraints.md for what that costs.

    Args:
        part: A constraint, or a string for a literal.

    Example:
        >>> from lmguide.constraints import JSON
        >>> ContextFree(JSON())
        ContextFree(part=JSON(whitespace='flexible'))
    """

    part: Constraint

    def __post_init__(self) -> None:
        """Check the part."""
        object.__setattr__(self, "part", as_constraint(self.part, "part"))

    def grammar(self) -> Constraint:
        """The part."""
        return self.part
