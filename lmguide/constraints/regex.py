r"""Python's regular expressions for the engines: parsed by Python's own parser, with its meaning of every class.

What comes out is a small tree of character sets, and its text in the syntax of Rust's `regex`, which llguidance and
outlines-core read. Code points are written out, so `\d`, `\w`, `\s`, `.` and case are those of the running Python and
not of an engine's tables.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

if sys.version_info >= (3, 11):
    from re import _constants as codes  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as codes
    import sre_parse as parser

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""A set of code points: inclusive ranges in order, apart, without surrogates."""

_LAST = 0x10FFFF
EVERY: Ranges = ((0, 0xD7FF), (0xE000, _LAST))
"""All characters that UTF-8 can write."""


@dataclass(frozen=True)
class Chars:
    """One character out of a set; of the empty set, nothing."""

    ranges: Ranges


@dataclass(frozen=True)
class Cat:
    """One after the other; of no parts, the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    """Any one of the parts; of no parts, nothing."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Rep:
    """Several times in a row; `most=None` is no bound."""

    part: Node
    least: int
    most: int | None


Node: TypeAlias = Chars | Cat | Alt | Rep


def translate(pattern: str, flags: int = 0) -> Node:
    r"""The tree of a pattern, as `re.fullmatch` reads it.

    Greedy and lazy quantifiers are one: they differ in what is found, not in what matches as a whole. `^`, `$`, `\A`
    and `\Z` are accepted where they say nothing: at the ends.

    Args:
        pattern: A pattern of Python's `re` on strings.
        flags: `re.IGNORECASE` and its like, as `re.compile` takes them.

    Returns:
        The tree, without parts that nothing matches.

    Raises:
        TypeError: Not a string.
        ValueError: No pattern of Python's, or one with lookaround, a backreference, `\b`, a condition, an atomic group
            or a possessive quantifier, which no automaton reads; with the position. Or no text matches.

    Example:
        >>> render(translate(r"(?i)v[0-9]{1,2}$"))
        '[Vv][0-9]{1,2}'
    """
    if not isinstance(pattern, str):
        raise TypeError(
            f"pattern: expected a string, got {type(pattern).__name__}. Give the pattern of a compiled one as text."
        )
    try:
        parsed = parser.parse(pattern, flags)
    except (re.error, OverflowError) as error:
        place = getattr(error, "pos", None)
        where = "" if place is None else f" at position {place}"
        reason = getattr(error, "msg", str(error))
        raise ValueError(
            f"pattern: expected a regular expression of Python's re, got {pattern!r}, broken{where}: {reason}. Mend it."
        ) from None
    except RecursionError as error:
        raise ValueError(
            "pattern: expected a pattern of moderate depth, got one nested too deep. Flatten it."
        ) from error
    for place, what in _refused(pattern, parsed.state.flags):
        raise ValueError(
            f"pattern: expected a pattern that an automaton can read, got {what} at position {place} of {pattern!r}. "
            "Write it without."
        )
    tree = simplified(_Reader(pattern).sequence(parsed.data, parsed.state.flags, True, True))
    if tree is None:
        raise ValueError(f"pattern: expected one that some text matches, got {pattern!r}, which none does. Mend it.")
    return tree


def literal(text: str) -> Node:
    """The tree of one text."""
    return Cat(tuple(Chars(((ord(character), ord(character)),)) for character in text))


def simplified(node: Node, alphabet: Ranges = EVERY) -> Node | None:
    """The tree without what nothing matches, or `None` if nothing matches at all.

    Args:
        node: A tree.
        alphabet: Characters that can be written; the others are taken out first.
    """
    if isinstance(node, Chars):
        ranges = intersection(node.ranges, alphabet) if alphabet is not EVERY else node.ranges
        return Chars(ranges) if ranges else None
    if isinstance(node, Rep):
        part = simplified(node.part, alphabet)
        if part is None:
            return Cat(()) if node.least == 0 else None
        return Rep(part, node.least, node.most)
    parts = [simplified(part, alphabet) for part in node.parts]
    kept = tuple(part for part in parts if part is not None)
    if isinstance(node, Alt):
        return (kept[0] if len(kept) == 1 else Alt(kept)) if kept else None
    return Cat(kept) if len(kept) == len(parts) else None


def render(node: Node) -> str:
    r"""The text of a tree in the syntax of Rust's `regex`: ASCII, without slashes, line breaks or look-around.

    Example:
        >>> print(render(literal("a/b")))
        a\x{2f}b
    """
    if isinstance(node, Chars):
        return _rendered_set(node.ranges)
    if isinstance(node, Rep):
        inner = render(node.part)
        return (inner if isinstance(node.part, Chars) else f"(?:{inner})") + _quantifier(node.least, node.most)
    if isinstance(node, Alt):
        return "(?:" + "|".join(map(render, node.parts)) + ")"
    return "".join(map(render, node.parts))


def _quantifier(least: int, most: int | None) -> str:
    short = {(0, None): "*", (1, None): "+", (0, 1): "?", (1, 1): ""}
    if (least, most) in short:
        return short[least, most]
    return f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"


def _rendered_set(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _rendered(ranges[0][0])
    inner = "".join(_rendered(low) + (f"-{_rendered(high)}" if high > low else "") for low, high in ranges)
    return f"[{inner}]"


def _rendered(code: int) -> str:
    return chr(code) if code < 128 and chr(code).isalnum() else f"\\x{{{code:x}}}"


class _Reader:
    """From Python's parse tree to ours."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def sequence(self, items: Sequence[Any], flags: int, first: bool, last: bool) -> Node:
        """Items in a row; `first` and `last` say whether nothing can stand before or behind them."""
        parts = []
        for index, (code, value) in enumerate(items):
            leads = first and all(_is_anchor(item) for item in items[:index])
            ends = last and all(_is_anchor(item) for item in items[index + 1 :])
            parts.append(self.item(code, value, flags, leads, ends))
        return parts[0] if len(parts) == 1 else Cat(tuple(parts))

    def item(self, code: Any, value: Any, flags: int, first: bool, last: bool) -> Node:
        """One item."""
        if code in {codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN}:
            return Chars(_set_of(code, value, flags))
        if code is codes.BRANCH:
            return Alt(tuple(self.sequence(branch, flags, first, last) for branch in value[1]))
        if code is codes.SUBPATTERN:
            _, added, removed, items = value
            return self.sequence(items, (flags | added) & ~removed, first, last)
        if code in {codes.MAX_REPEAT, codes.MIN_REPEAT}:
            least, most, items = value
            once = most == 1  # an optional part stands at most once, so its anchors stay at the ends
            part = self.sequence(items, flags, first and once, last and once)
            return Rep(part, int(least), None if most == codes.MAXREPEAT else int(most))
        if code is codes.AT:
            return self.anchor(value, first, last)
        raise ValueError(
            f"pattern: expected a pattern that an automaton can read, got {str(code).lower()} in {self.pattern!r}. "
            "Write it without."
        )

    def anchor(self, value: Any, first: bool, last: bool) -> Node:
        """`^` and `$`, which say nothing at the ends of the whole pattern."""
        begins = value in {codes.AT_BEGINNING, codes.AT_BEGINNING_STRING}
        if (begins and first) or (not begins and last):
            return Cat(())
        sign, end = ("^", "beginning") if begins else ("$", "end")
        places = [place for place, token in _tokens(self.pattern, 0) if token in {sign, "\\A" if begins else "\\Z"}]
        raise ValueError(
            f"pattern: expected {sign!r} only at the {end}, got it within {self.pattern!r} (position "
            f"{' or '.join(map(str, places))}). The whole text is matched without it."
        )


def _is_anchor(item: Any) -> bool:
    return item[0] is codes.AT


_CATEGORIES = {
    codes.CATEGORY_DIGIT: r"\d",
    codes.CATEGORY_NOT_DIGIT: r"\D",
    codes.CATEGORY_SPACE: r"\s",
    codes.CATEGORY_NOT_SPACE: r"\S",
    codes.CATEGORY_WORD: r"\w",
    codes.CATEGORY_NOT_WORD: r"\W",
}


def _set_of(code: Any, value: Any, flags: int) -> Ranges:
    if code is codes.ANY:
        return EVERY if flags & re.DOTALL else complement(((10, 10),))
    items = value if code is codes.IN else [(codes.LITERAL, value)]
    negated = code is codes.NOT_LITERAL or items[0][0] is codes.NEGATE
    items = [item for item in items if item[0] is not codes.NEGATE]
    ascii_only = flags & re.ASCII
    ranges = merged(_members(items, ascii_only))
    if flags & re.IGNORECASE:
        ranges = _with_cases(ranges, items, ascii_only)
    return complement(ranges) if negated else intersection(ranges, EVERY)


def _members(items: Iterable[Any], ascii_only: int) -> Iterator[tuple[int, int]]:
    for code, value in items:
        if code is codes.LITERAL:
            yield value, value
        elif code is codes.RANGE:
            yield value
        else:
            yield from _category(_CATEGORIES[value], ascii_only)


@lru_cache(maxsize=16)
def _category(category: str, ascii_only: int) -> Ranges:
    r"""The characters of a class such as `\w`, asked of `re` itself."""
    everything = "".join(map(chr, range(_LAST + 1)))
    return tuple((found.start(), found.end() - 1) for found in re.finditer(f"{category}+", everything, ascii_only))


@lru_cache(maxsize=1)
def _cased() -> str:
    """Every character that has another case, or is one."""
    found = set()
    for code in range(_LAST + 1):
        character = chr(code)
        forms = {character.lower(), character.upper(), character.title()}
        if forms != {character}:
            found |= {character} | {form for form in forms if len(form) == 1}
    return "".join(sorted(found))


def _with_cases(ranges: Ranges, items: Sequence[Any], ascii_only: int) -> Ranges:
    """A set with the other cases of its members, asked of `re` itself; characters without case stay as they are."""
    spelled = "".join(_spelled(code, value) for code, value in items)
    found = re.findall(f"[{spelled}]", _cased(), re.IGNORECASE | ascii_only)
    return merged([*ranges, *((ord(character), ord(character)) for character in found)])


def _spelled(code: Any, value: Any) -> str:
    if code is codes.LITERAL:
        return f"\\U{value:08x}"
    return f"\\U{value[0]:08x}-\\U{value[1]:08x}" if code is codes.RANGE else _CATEGORIES[value]


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """A set out of ranges in any order."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    """All other characters."""
    edges = ((-1, -1), *ranges, (_LAST + 1, _LAST + 1))
    gaps = ((left[1] + 1, right[0] - 1) for left, right in pairwise(edges))
    return intersection(tuple(gap for gap in gaps if gap[0] <= gap[1]), EVERY)


def intersection(left: Ranges, right: Ranges) -> Ranges:
    """The characters of both sets."""
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        low, high = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if low <= high:
            found.append((low, high))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


_REFUSED = {
    "(?=": "a lookahead",
    "(?!": "a negative lookahead",
    "(?<=": "a lookbehind",
    "(?<!": "a negative lookbehind",
    "(?>": "an atomic group",
    "(?(": "a condition",
    "(?P=": "a backreference",
    "\\b": r"the word boundary \b",
    "\\B": r"the word boundary \B",
}
_TOKEN = re.compile(
    r"\\[0-9]{1,3}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?#[^)]*\)|\(\?(?:P=|<=|<!|[=!>(])|\{(?:[0-9]+|[0-9]*,[0-9]*)\}\+?|[*+?]\+?|.",
    re.DOTALL,
)


def _tokens(pattern: str, flags: int) -> Iterator[tuple[int, str]]:
    """The signs of a pattern with their positions; sets and comments are one each."""
    place = 0
    while place < len(pattern):
        if flags & re.VERBOSE and pattern[place] == "#":
            place = (pattern.find("\n", place) + 1) or len(pattern)
            continue
        found = _TOKEN.match(pattern, place)
        if found is None:  # an unclosed set, which the parser has refused before
            return
        yield place, found[0]
        place = found.end()


def _refused(pattern: str, flags: int) -> Iterator[tuple[int, str]]:
    before = ""
    for place, token in _tokens(pattern, flags):
        if token in _REFUSED:
            yield place, _REFUSED[token]
        elif re.fullmatch(r"\\[1-9][0-9]?", token):
            yield place, f"the backreference {token}"
        elif len(token) > 1 and token.endswith("+") and not token.startswith("\\") and before not in {"", "(", "|"}:
            yield place, f"the possessive quantifier {token}"
        before = token
