"""Whole numbers in decimal as regular expressions."""

from __future__ import annotations


def numerals(low: int, high: int) -> str:
    """A pattern of the numerals from `low` to `high`, without leading zeros.

    Example:
        >>> numerals(-3, 120)
        '-[1-3]|[0-9]|[1-9][0-9]|1(?:[0-1][0-9]|20)'
    """
    parts = [f"-{pattern}" for pattern in _positive(max(1, -high), -low)] if low < 0 else []
    return "|".join([*parts, *_positive(max(0, low), high)])


def _positive(low: int, high: int) -> list[str]:
    """Patterns of the numerals from `low` to `high`, not below zero; one for each length."""
    found = []
    while low <= high:
        last = min(high, 10 ** len(str(low)) - 1)
        found.append(_alike(str(low), str(last)))
        low = last + 1
    return found


def _alike(low: str, high: str) -> str:
    """The pattern of the numerals between two of the same length."""
    first, last, rest = low[:1], high[:1], len(low) - 1
    if low == high:
        return low
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        digits = "" if rest == 0 else "[0-9]" if rest == 1 else f"[0-9]{{{rest}}}"
        return (first if first == last else f"[{first}-{last}]") + digits
    if first == last:
        return first + _alike(low[1:], high[1:])
    parts = []
    if low[1:] != "0" * rest:
        parts.append(first + _alike(low[1:], "9" * rest))
        first = str(int(first) + 1)
    ends = [] if high[1:] == "9" * rest else [last + _alike("0" * rest, high[1:])]
    last = str(int(last) - len(ends))
    if first <= last:
        parts.append(_alike(first + "0" * rest, last + "9" * rest))
    return f"(?:{'|'.join([*parts, *ends])})"
