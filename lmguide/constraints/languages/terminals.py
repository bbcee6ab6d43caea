"""What a language's terminals match: regular expressions, words but for reserved ones, white space in front."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from lmguide.constraints.regex import render, translate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@lru_cache(maxsize=1024)
def written(regex: str) -> str:
    """A regular expression of Python's as the engine reads it, between slashes."""
    return f"/{render(translate(regex))}/"


class Pattern(NamedTuple):
    """The texts of a regular expression but for those of another one."""

    regex: str
    without: str = ""

    @property
    def text(self) -> str:
        """In llguidance's notation."""
        return written(self.regex) + (f" & ~{written(self.without)}" if self.without else "")


class Spaced(NamedTuple):
    """The texts of a terminal with white space in front.

    Args:
        space: Name of the white space.
        body: Name of the terminal.
        optional: Whether it may also stand without white space.
        apart: The inside of a set of characters with which it must not begin then; "" for none.
    """

    space: str
    body: str
    optional: bool
    apart: str = ""

    @property
    def rest(self) -> str:
        """What may stand without white space, as a regular expression."""
        return f"[^{self.apart}](?s:.*)"

    @property
    def text(self) -> str:
        """In llguidance's notation."""
        if self.optional and self.apart:
            return f"{self.space} {self.body} | ({self.body} & {written(self.rest)})"
        return f"{self.space}{'?' if self.optional else ''} {self.body}"


Terminal: TypeAlias = "Pattern | Spaced"


class Definitions(NamedTuple):
    """Rules and terminals.

    Args:
        rules: The alternatives of each nonterminal, rows of names.
        terminals: What each terminal matches. Names in `Spaced` are keys of this mapping too.
    """

    rules: Mapping[str, tuple[tuple[str, ...], ...]]
    terminals: Mapping[str, Terminal]

    def lines(self) -> Iterator[str]:
        """In llguidance's notation."""
        for name, bodies in self.rules.items():
            yield f"{name}: {' | '.join(' '.join(body) or chr(34) * 2 for body in bodies)}"
        for name, terminal in self.terminals.items():
            yield f"{name}: {terminal.text}"
