"""Grammars in which indentation counts, for engines that know of none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmguide.constraints.descriptions import Grammar
from lmguide.constraints.languages.bnf import read_lark
from lmguide.constraints.languages.layout import laid, lay_out
from lmguide.constraints.languages.lexing import Lines, Place

if TYPE_CHECKING:
    from collections.abc import Iterable


def indented(
    text: str,
    unit: str = "    ",
    *,
    start: str = "start",
    newline: str = "_NEWLINE",
    indent: str = "_INDENT",
    dedent: str = "_DEDENT",
    comment: str = "COMMENT",
    brackets: Iterable[tuple[str, str]] = (("(", ")"), ("[", "]"), ("{", "}")),
    names: Iterable[str] = ("NAME",),
    open_words: Iterable[str] = (),
) -> Grammar:
    r"""A grammar with INDENT and DEDENT, rewritten for an engine that knows of no lines and columns.

    The text is one for Lark with an `Indenter`: `newline` ends a line, `indent` and `dedent` stand around a block in
    one alternative. What comes out derives the texts of which the lexer makes such sentences: each line begins with
    `unit` as many times as blocks are open, the depth being the 4-bit parameter of llguidance's parametric rules; lines
    of white space and comments may stand between; in brackets line ends are white space; what the grammar ignores may
    stand in front of any terminal; a keyword and a word have white space between them. The last line may end without a
    newline.

    Args:
        text: The grammar in Lark's notation. Regular expressions have no lookaround.
        unit: What a block is indented by.
        start: The rule that derives the language.
        newline: Terminal at the end of a line, declared or defined: it is a line break whatever it matches.
        indent: Declared terminal at the beginning of a block.
        dedent: Declared terminal at its end.
        comment: Terminal of a comment, from its first character to the end of the line; "" for none.
        brackets: Pairs between which line ends do not count.
        names: Terminals that match words, but no words that stand in the rules.
        open_words: Words in the rules that may be names too.

    Returns:
        The constraint, in llguidance's dialect; blocks are up to 15 deep.

    Raises:
        ValueError: The text is no grammar, or has brackets or blocks that one alternative opens and another closes;
            lookaround.

    Example:
        >>> todo = r'''
        ...     start: item+
        ...     item: NAME _NEWLINE | NAME ":" _NEWLINE _INDENT item+ _DEDENT
        ...     NAME: /[a-z]+/
        ...     %declare _NEWLINE _INDENT _DEDENT
        ...     %ignore " "
        ... '''
        >>> indented(todo, unit="- ", comment="").text.splitlines()[0]
        'start: start__o_f_n::0 ending'
    """
    rules = read_lark(text, start)
    literals = {terminal.literal: name for name, terminal in rules.terminals.items()}
    pairs = {literals[left]: literals[right] for left, right in brackets if left in literals and right in literals}
    opens = {left: ("b", (right,)) for left, right in pairs.items()}
    remark = rules.terminals[comment].regex if comment in rules.terminals else ""
    skipped = "|".join(f"(?:{regex})" for regex in rules.ignored if regex != remark)
    ends = rf"(?:{remark})?(?:\r\n?|\n)"
    lexing = Lines(
        rules,
        {"line": skipped, "brackets": f"{skipped}|{ends}" if skipped else ends},
        {"o": Place("line", opens), "b": Place("brackets", opens)},
        unit=unit,
        comment=remark,
        newline=newline,
        indent=indent,
        dedent=dedent,
        names=names,
        open_words=open_words,
    )
    return Grammar(lay_out(laid(rules, lexing)))
