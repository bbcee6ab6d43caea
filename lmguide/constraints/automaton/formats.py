"""Patterns of strings in JSON Schema: `format` and `pattern`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lmguide.constraints.automaton.nfa import of_tree, sequence
from lmguide.constraints.regex import EVERY, Alt, Chars, Rep, translate

if TYPE_CHECKING:
    from lmguide.constraints.automaton.dfa import Dfa

_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    f"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "ipv4": rf"({_OCTET}\.){{3}}{_OCTET}",
}
"""Formats by name, and strings that have them; dates are days of the calendar from year 1 on."""


def searched(pattern: object) -> Dfa:
    r"""The texts in which a pattern is found, as JSON Schema reads it: `^` and `$` say where.

    Classes are those of ECMA-262, which are Python's with the flag `(?a)`: `\d` is `[0-9]`.

    Raises:
        TypeError: Not a string.
        ValueError: A broken pattern, or one that no automaton reads.

    Example:
        >>> [searched(pattern).accepts("xay") for pattern in ("a", "^a", "y$")]
        [True, False, True]
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern: expected a string, got {type(pattern).__name__}. Give a pattern.")
    begins = pattern.startswith("^")
    ends = re.search(r"(?<!\\)(\\\\)*\$\Z", pattern) is not None
    core = pattern[begins : len(pattern) - ends]
    found = of_tree(translate(core, re.ASCII))
    if _anchored(core, begins or ends):
        raise ValueError(f"pattern: expected ^ and $ around the whole pattern alone, got {pattern!r}. Write ^(...)$.")
    anything = of_tree(Rep(Chars(EVERY), 0, None))
    return sequence([*([] if begins else [anything]), found, *([] if ends else [anything])])


def _anchored(core: str, whole: bool) -> bool:
    """Whether anchors say something within a pattern, or those around it belong to one of its alternatives alone."""
    try:
        translate(f"\x00(?:{core})\x01", re.ASCII)  # with something around, no anchor is idle
    except ValueError:
        return True
    return whole and isinstance(translate(f"\x00{core}\x01", re.ASCII), Alt)
