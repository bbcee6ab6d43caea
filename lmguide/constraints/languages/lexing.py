"""The automata of `lay_out`: words and white space, lines and blocks, semicolons left out.

Each terminal is written as a regular expression that begins with the white space in front of it. Which white space that
is depends on the brackets around it and on the terminal before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from lmguide.constraints.languages.layout import DEEPEST, Step
from lmguide.constraints.languages.terminals import Definitions, Pattern, Spaced

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lmguide.constraints.languages.bnf import Rules
    from lmguide.constraints.languages.terminals import Terminal


class Place(NamedTuple):
    """Between which brackets a terminal stands.

    Args:
        space: The name of what may be skipped in front of a terminal.
        opens: Terminal that opens another place, to that place's name and the terminals that close it.
        without: Terminals that may not stand here.
    """

    space: str
    opens: Mapping[str, tuple[str, tuple[str, ...]]] = {}
    without: frozenset[str] = frozenset()


WORD = r"0-9A-Za-z_\x80-\U0010ffff"
"""What words are made of, as the inside of a set of characters; beyond ASCII anything."""


class Words:
    """White space anywhere, and at least some of it where two terminals would be read as one.

    After a name none is asked for: a name is the longest match, so `aif` is read as one. That holds as names are
    allowed wherever they could be read on.

    States: `m`, and for each kind of terminal that something may not follow at once a state of its own; `w` is after
    a keyword, which no word may follow at once.

    Args:
        rules: The grammar.
        spaces: By name, the regular expression of one piece of what may be skipped.
        places: By name; the first is outside of all brackets.
        names: Terminals that match words but may not be a reserved one.
        reserved: Reserved words, beside the words that stand in the grammar's rules.
        open_words: Words of the rules that are not reserved.
        closed: Terminals, beside these words, that no word may follow at once.
        apart: Terminals, by name or text, and the set of characters that may not follow them at once.
        spaced: Terminals, by name or text, with white space in front even where nothing asks for it.
        glued: Terminals with no white space in front.
        unended: Regular expression of a comment that ends with the text, if there is one.
    """

    indent = ""
    dedent = ""
    line = ""
    start = "m"

    def __init__(
        self,
        rules: Rules,
        spaces: Mapping[str, str],
        places: Mapping[str, Place],
        names: Iterable[str] = (),
        reserved: Iterable[str] = (),
        open_words: Iterable[str] = (),
        closed: Iterable[str] = (),
        apart: Mapping[str, str] | None = None,
        spaced: Iterable[str] = (),
        glued: Iterable[str] = (),
        unended: str = "",
    ) -> None:
        self.rules = rules
        self.spaces = spaces
        self.places = places
        self.outermost = next(iter(places))
        self.literals = {name: t.literal for name, t in rules.terminals.items() if t.literal is not None}
        words = {name for name, text in self.literals.items() if re.fullmatch(r"\w+", text)}
        sets = {"": "m", WORD: "w"}
        self.after = {name: "w" for name in (*words, *closed)}
        for name, characters in (apart or {}).items():
            state = sets.setdefault(characters, f"a{len(sets)}")
            self.after.update((found, state) for found in self.named([name]))
        self.kept_apart = {state: characters for characters, state in sets.items()}
        self.spaced = self.named(spaced)
        self.glued = set(glued)
        self.unended = unended
        self.names = set(names)
        opened = set(open_words)
        own = {rules.terminals[name].regex for name in words if self.literals[name] not in opened}
        self.reserved = "|".join(sorted(own | set(reserved)))
        self.lexemes: dict[str, Terminal] = {}

    def named(self, texts: Iterable[str]) -> set[str]:
        """Names of terminals given by name or text."""
        wanted = set(texts)
        return {name for name in self.rules.terminals if name in wanted or self.literals.get(name) in wanted}

    def opens(self, place: str, terminal: str) -> tuple[str, tuple[str, ...]] | None:
        """The place that `terminal` opens and the terminals that close it."""
        return self.places[place].opens.get(terminal)

    def context(self, terminal: str, rule: str, place: str, behind: str) -> str:
        """The white space behind it; for brackets their place; for what is glued to other text its rule."""
        own = rule if terminal in self.glued else place if place != behind else ""
        return f"{own}>{self.places[behind].space}"

    def may_touch(self, terminal: str, characters: str) -> bool | None:
        """Whether a terminal never begins with one of `characters`; `None` if only some of its texts do."""
        literal = self.literals.get(terminal)
        if not characters:
            return True
        return None if literal is None else re.match(f"[{characters}]", literal) is None

    def lexeme(self, terminal: str, space: str, front: str) -> str:
        """The name of a terminal with white space in front.

        That is "no", "any", "some", or the name of a state: some in front of what may not follow at once in that state.
        """
        if front in self.kept_apart:
            touches = self.may_touch(terminal, self.kept_apart[front])
            front = front if touches is None else "any" if touches else "some"
        body, space = f"B{terminal}", f"SPACE_{space.upper()}"
        without = self.reserved if terminal in self.names else ""
        self.lexemes[body] = Pattern(self.rules.terminals[terminal].regex, without)
        if front == "no":
            return body
        name = f"T{terminal}__{space}_{front.upper()}"
        self.lexemes[name] = Spaced(space, body, front != "some", self.kept_apart.get(front, ""))
        return name

    def steps(self, place: str, state: str, terminal: str) -> list[Step]:
        """One step, or none where the terminal may not stand."""
        if terminal in self.places[place].without:
            return []
        front = "no" if terminal in self.glued else "some" if terminal in self.spaced else state
        return [Step((self.lexeme(terminal, self.places[place].space, front),), self.after.get(terminal, "m"))]

    def enters(self, state: str, first: frozenset[str]) -> Step | None:
        """Nothing is common to all beginnings."""
        return None

    def merged(self, state: str, following: frozenset[str]) -> str:
        """A terminal before what may follow it at once is like any other."""
        characters = self.kept_apart.get(state, "")
        return "m" if characters and all(self.may_touch(name, characters) for name in following) else state

    def begin(self, depth: int) -> tuple[str, ...]:
        """Nothing: there are no lines."""
        return ()

    def ends(self) -> dict[str, str]:
        """In any state, white space may follow."""
        return dict.fromkeys(self.kept_apart, "ending")

    def definitions(self) -> Definitions:
        """The terminals written, and what may follow the last one: white space, and a comment that ends the text."""
        space = f"SPACE_{self.places[self.outermost].space.upper()}"
        terminals: dict[str, Terminal] = {
            f"SPACE_{name.upper()}": Pattern(f"(?:{space})+") for name, space in self.spaces.items()
        }
        last: tuple[tuple[str, ...], ...] = (), (space,)
        if self.unended:
            terminals |= {"COMMENT": Pattern(self.unended), "LAST_COMMENT": Spaced(space, "COMMENT", optional=True)}
            last += (("LAST_COMMENT",),)
        return Definitions({"ending": last}, {**terminals, **self.lexemes})


class Lines(Words):
    """Words; and lines that are indented by their depth, with empty lines and comments between them.

    A newline is written with the line after it, so that the last line may end without. States, beside those of `Words`
    inside of a line: `f` before the first line, `n` where a line has ended, `s` where the next is begun and indented.

    Args:
        rules: The grammar.
        spaces: As for `Words`.
        places: As for `Words`.
        unit: What a block is indented by.
        comment: Regular expression of a comment, up to the end of its line.
        newline: Name of the terminal that ends a line.
        indent: Name of the terminal that opens a block.
        dedent: Name of the terminal that closes one.
        words: The other arguments of `Words`.
    """

    line = "next_line"
    start = "f"

    def __init__(
        self,
        rules: Rules,
        spaces: Mapping[str, str],
        places: Mapping[str, Place],
        unit: str = "    ",
        comment: str = r"#[^\r\n]*",
        newline: str = "_NEWLINE",
        indent: str = "_INDENT",
        dedent: str = "_DEDENT",
        **words: Any,
    ) -> None:
        super().__init__(rules, spaces, places, **words)
        self.unit = unit
        self.comment = comment
        self.newline, self.indent, self.dedent = newline, indent, dedent

    def steps(self, place: str, state: str, terminal: str) -> list[Step]:
        """A line's first terminal has newline and indentation in front."""
        if terminal == self.newline:
            return [] if state in "fn" else [Step((), "n")]
        if terminal in (self.indent, self.dedent):
            return [Step((), "n")] if state == "n" else []
        if state not in "fns":
            return super().steps(place, state, terminal)
        if terminal in self.places[place].without:
            return []
        begun = self.enters(state, frozenset())
        bare = self.lexeme(terminal, self.places[place].space, "no")
        return [Step((*(begun.written if begun else ()), bare), self.after.get(terminal, "m"))]

    def enters(self, state: str, first: frozenset[str]) -> Step | None:
        """A line, if that is what begins."""
        if state not in "fn" or first & {"", self.newline, self.indent, self.dedent}:
            return None
        return Step(("first_lines" if state == "f" else self.line,), "s")

    def begin(self, depth: int) -> tuple[str, ...]:
        """A newline, lines without content, the indentation."""
        return ("new_line", f"INDENT_{depth}") if depth else ("new_line",)

    def ends(self) -> dict[str, str]:
        """After a line, or before there is one."""
        return {"n": "ending", "f": "last_lines"}

    def definitions(self) -> Definitions:
        """The terminals written, how far a line is indented, and empty lines, of which the last may be unended."""
        newline = r"(?:\r\n?|\n)"
        space = self.spaces[self.places[self.outermost].space]
        blanks = rf"[ \t]+(?:{self.comment})?|{self.comment}"
        rules = {
            "ending": ((), ("UNENDED",), ("new_line",), ("new_line", "UNENDED")),
            "last_lines": (("first_lines",), ("first_lines", "UNENDED")),
            "first_lines": ((), ("first_lines", "BLANK")),
            "new_line": (("NEWLINE",), ("new_line", "BLANK")),
        }
        terminals = {
            "NEWLINE": Pattern(f"(?:{space})*(?:{self.comment})?{newline}"),
            "BLANK": Pattern(f"(?:{blanks})?{newline}"),
            "UNENDED": Pattern(blanks),
            **{f"INDENT_{at}": Pattern(re.escape(self.unit) * at) for at in range(1, DEEPEST + 1)},
        }
        return Definitions(rules, {**super().definitions().terminals, **terminals})


class Semicolons(Words):
    """Words; and newlines that are semicolons, after a terminal that can end a statement.

    States: those of `Words` where a newline is white space; the same with `_` in front where it ends the statement; `e`
    where the text has ended in the place of a last semicolon.

    Args:
        rules: The grammar.
        spaces: As for `Words`; `inline` names the one without newlines.
        places: As for `Words`.
        semicolon: Name of the terminal that ends a statement, declared in the grammar.
        ending: Terminals, by name or text, that a newline behind ends a statement after.
        newline: Regular expression of what ends a statement in the place of a semicolon, with a comment before.
        words: The other arguments of `Words`.
    """

    def __init__(
        self,
        rules: Rules,
        spaces: Mapping[str, str],
        places: Mapping[str, Place],
        semicolon: str,
        ending: Iterable[str],
        newline: str,
        **words: Any,
    ) -> None:
        super().__init__(rules, spaces, places, **words)
        self.semicolon = semicolon
        self.ending = self.named(ending)
        self.newline = newline
        self.after.update({name: f"_{self.after.get(name, 'm')}" for name in self.ending})
        self.kept_apart.update({f"_{state}": characters for state, characters in self.kept_apart.items()})

    def steps(self, place: str, state: str, terminal: str) -> list[Step]:
        """A semicolon may be a newline, or the end of the text, where a statement may end."""
        if state == "e":
            return []
        if terminal == self.semicolon and state.startswith("_"):
            return [Step(("SEMICOLON",), "m"), Step((), "e"), Step(("UNENDED",), "e")]
        if terminal == self.semicolon:
            return [Step(("SEMICOLON_ALONE",), "m")]
        if terminal in self.places[place].without:
            return []
        space = "inline" if state.startswith("_") else self.places[place].space
        front = "no" if terminal in self.glued else "some" if terminal in self.spaced else state
        return [Step((self.lexeme(terminal, space, front),), self.after.get(terminal, "m"))]

    def merged(self, state: str, following: frozenset[str]) -> str:
        """As in `Words`, on either side."""
        merged = super().merged(state, following - {self.semicolon})
        return "_m" if merged != state and state.startswith("_") else merged

    def ends(self) -> dict[str, str]:
        """After a last semicolon, with white space and comments, or without it."""
        return {"m": "ending", "e": ""}

    def definitions(self) -> Definitions:
        """The terminals written, and semicolons."""
        inline, anywhere = self.spaces["inline"], self.spaces[self.places[self.outermost].space]
        found = super().definitions()
        terminals = {
            "SEMICOLON": Pattern(f"(?:{inline})*(?:;|{self.newline})"),
            "SEMICOLON_ALONE": Pattern(f"(?:{anywhere})*;"),
            "UNENDED": Pattern(f"(?:{inline})+(?:{self.unended})?|{self.unended}"),
        }
        return Definitions(found.rules, {**found.terminals, **terminals})
