"""The part of WordNet that the benchmark is about, read from a database folder and then kept as plain data.

`nltk` reads the files. What it needs beyond those of Debian's package is made up here, and it is let go again.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

FOLDER = "/usr/share/wordnet"
"""Where Debian's package wordnet-base has its database."""

FILES = tuple(f"{kind}.{part}" for kind in ("index", "data") for part in ("noun", "verb", "adj", "adv"))
"""Without these there is no WordNet."""

LEXICOGRAPHERS = 45
"""Files that lexicographers wrote. Debian leaves out the list of their names, which nltk wants to read."""

_NAME = re.compile(r"[A-Za-z](?:[A-Za-z'_-]*[A-Za-z])?")


@dataclass(frozen=True)
class Concept:
    """A noun's meaning.

    Attributes:
        key: Its name in WordNet, such as `dog.n.01`.
        title: What people call it, in one or two words; `None` if that is rare or mostly means something else.
        words: Names whose first meaning as a noun this is, in small letters.
        nouns: Those of them that are nouns more often than verbs or adjectives.
        gloss: What it means.
        below: Keys of the concepts directly below.
    """

    key: str
    title: str | None
    words: tuple[str, ...]
    nouns: tuple[str, ...]
    gloss: str
    below: tuple[str, ...]


@dataclass(frozen=True)
class Taxonomy:
    """Concepts by their keys, with all that are below them.

    Attributes:
        concepts: The concepts.
        plurals: Irregular plurals by their singulars.
    """

    concepts: Mapping[str, Concept]
    plurals: Mapping[str, tuple[str, ...]]

    @cached_property
    def _inside(self) -> dict[str, frozenset[str]]:
        return {}

    def inside(self, key: str) -> frozenset[str]:
        """Keys of all concepts below one, which may be below each other in several ways."""
        if key not in self._inside:
            below = self.concepts[key].below
            self._inside[key] = frozenset(below).union(*(self.inside(child) for child in below))
        return self._inside[key]


def read(folder: str | os.PathLike[str] = FOLDER, roots: Iterable[str] = ()) -> Taxonomy:
    """Some concepts of a WordNet database and all below them.

    Args:
        folder: With the files of WordNet 3, as Debian's package has them.
        roots: Keys of the concepts.

    Raises:
        ValueError: There is no database, or no such concept in it.
        ImportError: nltk is not installed.
    """
    missing = [name for name in FILES if not Path(folder, name).is_file()]
    if missing:
        raise ValueError(
            f"wordnet: expected a WordNet database in {str(folder)!r}, got no {missing[0]} there. Install it with "
            "apt-get install wordnet-base, or name the folder that has it with --wordnet."
        )
    try:
        import nltk.data
        from nltk.corpus.reader.wordnet import WordNetError
    except ImportError as error:
        raise ImportError(
            "WordNet is read by nltk, which is not installed. Install it: pip install 'lmguide[eval]'."
        ) from error
    place = str(Path(folder).resolve())
    nltk.data.path.append(place)  # nltk opens files only below folders that it was told of
    try:
        reader = _reader(place)
        try:
            return Taxonomy(_concepts(reader, roots), _plurals(reader))
        finally:
            reader.close()
    except (WordNetError, OSError) as error:
        raise ValueError(
            f"wordnet: expected a whole WordNet 3 in {str(folder)!r}, but: {error}. "
            "Install it anew with apt-get install wordnet-base, or name another folder with --wordnet."
        ) from error
    finally:
        nltk.data.path.remove(place)


def _reader(folder: str) -> Any:
    """The reader of a folder, with a way to close what it has opened."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):  # type: ignore[misc]  # nltk has no types
        def open(self, file: str) -> Any:
            names = "".join(f"{number:02d}\t{number}\t0\n" for number in range(LEXICOGRAPHERS))
            stream = io.StringIO(names) if file == "lexnames" else super().open(file)
            opened.append(stream)
            return stream

        def map_wn(self, version: str = "wordnet") -> None:
            """Other releases, of which there are none, have nothing to do with this one."""

        def close(self) -> None:
            for stream in opened:
                stream.close()

    opened: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no other languages
        return Reader(folder, None)


def _concepts(reader: Any, roots: Iterable[str]) -> dict[str, Concept]:
    found: dict[str, Concept] = {}
    waiting = [reader.synset(root) for root in roots]
    while waiting:
        synset = waiting.pop()
        if synset.name() not in found:
            below = sorted(synset.hyponyms(), key=lambda child: str(child.name()))
            found[synset.name()] = _concept(reader, synset, tuple(child.name() for child in below))
            waiting += below
    return found


def _concept(reader: Any, synset: Any, below: tuple[str, ...]) -> Concept:
    words, nouns = [], []
    for lemma in synset.lemmas():
        senses = reader.synsets(lemma.name())
        if not _NAME.fullmatch(lemma.name()) or next(s for s in senses if s.pos() == "n") != synset:
            continue
        as_noun, otherwise = _counts(lemma.name(), senses)
        if as_noun or not otherwise:
            words.append(_spelled(lemma))
            nouns += words[-1:] if as_noun >= otherwise else []
    first = synset.lemmas()[0]
    known = _spelled(first) in nouns and first.count() > 0 and first.name().islower() and first.name().count("_") < 2
    return Concept(
        synset.name(),
        _spelled(first) if known else None,
        tuple(words),
        tuple(nouns),
        synset.definition(),
        below,
    )


def _spelled(lemma: Any) -> str:
    return str(lemma.name()).replace("_", " ").lower()


def _counts(name: str, senses: Iterable[Any]) -> tuple[int, int]:
    """How often tagged texts have a name as a noun, and as anything else; 0 and 0 if it is nothing else."""
    if all(synset.pos() == "n" for synset in senses):
        return 0, 0
    named = [(s.pos(), lemma) for s in senses for lemma in s.lemmas() if lemma.name().lower() == name.lower()]
    counts = [(kind, lemma.count()) for kind, lemma in named]
    return sum(n for kind, n in counts if kind == "n"), sum(n for kind, n in counts if kind != "n")


def _plurals(reader: Any) -> dict[str, tuple[str, ...]]:
    """From the exceptions of WordNet's own morphology, `mice mouse`, the other way round."""
    found: dict[str, tuple[str, ...]] = {}
    with reader.open("noun.exc") as lines:
        for line in lines:
            plural, *singulars = line.replace("_", " ").split()
            for singular in singulars:
                found[singular] = (*found.get(singular, ()), plural)
    return found
