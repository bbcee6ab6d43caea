"""Token automata kept on disk, and in memory for the process.

Files are named by a hash of the automaton over bytes and of the vocabulary, so there is nothing to invalidate. What
cannot be read is made anew; where nothing can be written, nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmguide.constraints.automaton.language import byte_dfa
from lmguide.constraints.automaton.lift import TokenDfa, lift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmguide.constraints.automaton.utf8 import ByteDfa
    from lmguide.constraints.base import Constraint

FORMAT = 1
"""Of the files; a change of what a table means is a new one."""

MOST_FILES = 256
"""Kept on disk; the oldest go first."""
MOST_BYTES = 2**26
"""Largest automaton that is kept, in memory or on disk."""
_MOST_KEPT = 16
_PARTS = ("classes", "table", "accept", "start")

_kept: OrderedDict[str, TokenDfa] = OrderedDict()


def token_dfa(constraint: Constraint, tokens: Sequence[bytes]) -> TokenDfa:
    """The automaton of a constraint over the tokens of a vocabulary.

    Args:
        constraint: As `byte_dfa` takes it.
        tokens: The bytes of each token; `b""` for tokens that are no text.

    Raises:
        ValueError: As `byte_dfa` and `lift`; or no tokens spell a text that the constraint allows.

    Example:
        >>> from lmguide.constraints import Regex
        >>> dfa = token_dfa(Regex("(ab)+"), [b"a", b"b", b"ab", b""])
        >>> dfa.accepts([2, 0, 1]), dfa.least
        (True, 1)
    """
    source = byte_dfa(constraint)
    key = _key(source, tokens)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    file = cache_folder() / f"{key}.npz"
    found = _read(file, len(tokens))
    if found is None:
        found = lift(source, tokens)
        if found.table.nbytes + found.classes.nbytes <= MOST_BYTES:
            _write(file, found)
    if found.empty:
        raise ValueError(
            f"constraint: expected one that the tokens of the vocabulary can spell, got {constraint}, of which they "
            "spell no text. Use characters that it has."
        )
    if found.table.nbytes + found.classes.nbytes <= MOST_BYTES:
        _kept[key] = found
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    return found


def cache_folder() -> Path:
    """Where automata are kept: `LMGUIDE_CACHE`, or `lmguide` in the user's folder of caches."""
    given = os.environ.get("LMGUIDE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmguide" if not given else Path(given)
    return base / "automata"


def _key(source: ByteDfa, tokens: Sequence[bytes]) -> str:
    found = hashlib.sha256(f"{FORMAT} {source.digest()} {len(tokens)} ".encode())
    found.update(np.fromiter(map(len, tokens), np.int32, len(tokens)).tobytes())
    found.update(b"".join(tokens))
    return found.hexdigest()


def _read(file: Path, size: int) -> TokenDfa | None:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as data:
            classes, table, accept, start = (data[name] for name in _PARTS)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None  # zipfile says RuntimeError of flags and versions that it does not know
    if len(classes) != size:
        return None
    return TokenDfa(classes, table, accept, int(start))


def _write(file: Path, dfa: TokenDfa) -> None:
    """Write a file at once or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            try:
                np.savez(part, classes=dfa.classes, table=dfa.table, accept=dfa.accept, start=dfa.start)
            except BaseException:
                os.unlink(part.name)
                raise
        os.replace(part.name, file)
        files = sorted(file.parent.glob("*.npz"), key=lambda each: each.stat().st_mtime)
        for old in files[: max(0, len(files) - MOST_FILES)]:
            old.unlink(missing_ok=True)
    except OSError:
        return
