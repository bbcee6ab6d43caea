"""Whole numbers in decimal, byte by byte: which numbers can a beginning become?

A numeral is `0`, or a digit from 1 to 9 and any digits, with `-` in front of a negative one: one spelling a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmguide.constraints.ccfg.expressions import Range


def completions(text: bytes, longest: int) -> Iterator[Range]:
    """The ranges of numbers whose numerals begin with `text`, a non-empty beginning, and have up to `longest` digits."""
    sign, digits = (-1, text[1:]) if text[:1] == b"-" else (1, text)
    if not digits:
        yield -(10**longest) + 1, -1
        return
    if digits[0] == ord("0"):
        if digits == b"0" and sign > 0:
            yield 0, 0
        return
    low = high = int(digits)
    for _ in range(longest - len(digits) + 1):
        yield (low, high) if sign > 0 else (-high, -low)
        low, high = low * 10, high * 10 + 9


def overlap(spans: Sequence[Range], others: Iterator[Range]) -> Iterator[Range]:
    """What two unions of ranges share."""
    for low, high in others:
        for span in spans:
            both = max(low, span[0]), min(high, span[1])
            if both[0] <= both[1]:
                yield both


def digits_of(spans: Sequence[Range]) -> int:
    """How many digits the longest number of some ranges has."""
    return max((len(str(abs(end))) for span in spans for end in span), default=1)
