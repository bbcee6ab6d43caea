"""Programming languages as constraints: complete programs."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lmguide.constraints.base import CONSTRAINTS, Constraint
from lmguide.constraints.descriptions import Grammar
from lmguide.constraints.languages.bnf import read_lark
from lmguide.constraints.languages.layout import Laid, laid, lay_out
from lmguide.constraints.languages.lexers import lexer
from lmguide.serialization import did_you_mean

LanguageName = typing.Literal["python", "go", "sql", "json", "c"]
LANGUAGES: tuple[str, ...] = typing.get_args(LanguageName)
_FOUR = "    "


@CONSTRAINTS.register("language")
@dataclass(frozen=True)
class Language(Constraint):
    r"""Complete programs of a language.

    What is checked is the syntax: what a parser alone refuses never comes. Names that do not exist, types that do not
    fit and `return` outside of a function are not its business; docs/languages.md has the lists.

    Args:
        language: `"python"`: what `ast.parse` of every Python from 3.10 on accepts, blocks indented by `indent` and up
            to 15 deep; `"go"`; `"sql"`: SQLite's; `"json"`: RFC 8259; `"c"`: C11, where any name may be a type's.
        indent: What each block of Python is indented by: one or more spaces, or a tab. `None` is four spaces, and the
            only choice for other languages.

    Raises:
        ValueError: An unknown language, or an indentation that is none.

    Example:
        >>> Language("python", indent="\t")
        Language(language='python', indent='\t')
    """

    language: LanguageName
    indent: str | None = None

    def __post_init__(self) -> None:
        """Check name and indentation."""
        if self.language not in LANGUAGES:
            raise ValueError(
                f"language: expected one of {', '.join(LANGUAGES)}, got {self.language!r}. "
                f"{did_you_mean(str(self.language), LANGUAGES)}".rstrip()
            )
        if self.indent is None:
            return
        if self.language != "python":
            raise ValueError(
                f"indent: expected nothing for {self.language!r}, which has no blocks by indentation, got "
                f"{self.indent!r}. Leave it out."
            )
        if self.indent != "\t" and (not self.indent or self.indent.strip(" ")):
            raise ValueError(f"indent: expected spaces or one tab, got {self.indent!r}. Use four spaces if unsure.")

    def grammar(self) -> Constraint:
        """The language's grammar, with white space written into it."""
        return _grammar(self.language, self.indent or _FOUR)

    def laid(self) -> Laid:
        """The same as rules and terminals."""
        return _laid(self.language, self.indent or _FOUR)


@lru_cache
def _grammar(language: str, indent: str) -> Grammar:
    return Grammar(lay_out(_laid(language, indent)))


@lru_cache(maxsize=1)
def _laid(language: str, indent: str) -> Laid:
    text = Path(__file__).with_name(f"{language}.lark").read_text(encoding="utf-8")
    rules = read_lark(text, ascii_case=True)
    return laid(rules, lexer(language, indent)(rules))
