"""Constraints among guidance methods: one list for both, as users write it."""

from __future__ import annotations

from typing import Any

from lmguide.constraints.base import Constraint
from lmguide.guidance import Guidance, as_methods


def divided(guidance: Any) -> tuple[tuple[Guidance, ...], Constraint | None]:
    """The methods and the constraint among them.

    Args:
        guidance: A method or a constraint, or a list with methods and at most one constraint.

    Returns:
        The methods, none only if there is a constraint; and the constraint, or `None`.

    Raises:
        TypeError: Something else is there.
        ValueError: Nothing, or more than one constraint.

    Example:
        >>> import lmguide as lg
        >>> divided([lg.CFG(1.5), lg.Regex("[0-9]+")])[1]
        Regex(pattern='[0-9]+')
    """
    if isinstance(guidance, Constraint):
        return (), guidance
    if not isinstance(guidance, list | tuple):
        return as_methods(guidance), None
    constraints = [each for each in guidance if isinstance(each, Constraint)]
    if len(constraints) > 1:
        raise ValueError(
            f"guidance: expected at most one constraint, got {len(constraints)}. "
            "Make one of them: a + b is one after the other, a | b either."
        )
    methods = [each for each in guidance if not isinstance(each, Constraint)]
    if constraints and not methods:
        return (), constraints[0]
    return as_methods(methods), (constraints[0] if constraints else None)
