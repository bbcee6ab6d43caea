"""Checks of the numbers in a description, with errors that say what was expected, what came, and what to do."""

from __future__ import annotations

import math
from numbers import Integral, Real


def check_number(
    argument: str,
    value: object,
    cure: str,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Refuse what is not a finite number in the range.

    Args:
        argument: Its name, which starts the message.
        value: What came.
        cure: The last sentence of the message: what to do instead.
        least: Smallest value allowed.
        most: Largest value allowed.
        above: The value must be larger than this.
        below: The value must be smaller than this.

    Raises:
        TypeError: not a number, of Python or of an array library; a bool is not one.
        ValueError: NaN, infinite, or outside the range.

    Example:
        >>> check_number("alpha", 2.0, "Use 0.05 for one answer in twenty.", above=0, most=1)
        Traceback (most recent call last):
        ...
        ValueError: alpha: expected a finite number above 0 and at most 1, got 2.0. Use 0.05 for one answer in twenty.
    """
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("above", above), ("at least", least), ("below", below), ("at most", most))
        if math.isfinite(bound)
    ]
    expected = " ".join(["a finite number", " and ".join(bounds)]).rstrip()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument}: expected {expected}, got {value!r}. {cure}")
    number = value if isinstance(value, int | float) else float(value)
    if not (math.isfinite(number) and least <= number <= most and above < number < below):
        raise ValueError(f"{argument}: expected {expected}, got {value}. {cure}")


def check_whole(argument: str, value: object, cure: str, *, least: int) -> None:
    """Refuse what is not a whole number of at least ``least``.

    Args:
        argument: Its name, which starts the message.
        value: What came.
        cure: The last sentence of the message: what to do instead.
        least: Smallest value allowed.

    Raises:
        TypeError: not an integer, of Python or of an array library; a bool is not one.
        ValueError: smaller than ``least``.

    Example:
        >>> check_whole("every", 0, "Use 1 to guide every token.", least=1)
        Traceback (most recent call last):
        ...
        ValueError: every: expected a whole number of at least 1, got 0. Use 1 to guide every token.
    """
    message = f"{argument}: expected a whole number of at least {least}, got {value!r}. {cure}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(message)
    if int(value) < least:
        raise ValueError(message)
