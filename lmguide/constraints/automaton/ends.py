"""The rows of a canvas as a language of tokens: a text, then its end and padding up to the last column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lmguide.constraints.automaton.lift import TokenDfa, smallest

if TYPE_CHECKING:
    from collections.abc import Collection


def with_ends(
    dfa: TokenDfa, ends: Collection[int] = (), padding: Collection[int] = (), banned: Collection[int] = ()
) -> TokenDfa:
    """The automaton of whole rows: `L`, or `L E (E | P)*` with the ends `E` and the padding `P`.

    A text ends at its first end token, so an end token is never a part of it, even where it spells something.

    Args:
        dfa: Of texts, `L`.
        ends: Tokens that end a text; with none a text goes on to the last column.
        padding: Tokens that may stand behind an end, beside the ends themselves.
        banned: Tokens that are never written.

    Example:
        >>> ones = TokenDfa(np.array([1, 0]), np.array([[0, 0], [0, 1]]), np.array([False, True]), 1)
        >>> rows = with_ends(ones, ends=[1])
        >>> rows.accepts([0, 0, 1, 1]), rows.accepts([0, 1, 0])
        (True, False)
    """
    ends, padding = set(ends) - set(banned), set(padding) - set(banned)
    states, width = dfa.table.shape
    special = {(int(dfa.classes[token]) * (token not in ends), token in ends) for token in ends | padding}
    added = {kind: width + place for place, kind in enumerate(sorted(special))}
    table = np.zeros((states + 1, width + len(added)), np.int32)
    table[:states, :width] = dfa.table
    done = states
    for (text, is_end), column in added.items():
        table[:states, column] = np.where(dfa.accept, done, 0) if is_end else dfa.table[:, text]
        table[done, column] = done
    classes = dfa.classes.copy()
    classes[list(banned)] = 0
    for token in ends | padding:
        classes[token] = added[int(dfa.classes[token]) * (token not in ends), token in ends]
    return smallest(classes, table, np.append(dfa.accept, True), dfa.start)
