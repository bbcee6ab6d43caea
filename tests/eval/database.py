"""A small WordNet in the files of the real one, for tests of what is made from it.

Some kinds of animal, and what there is to get wrong: other meanings, verbs, adjectives, proper and irregular names, and
a concept below two others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {"noun": ("n", 1), "verb": ("v", 2), "adj": ("a", 3), "adv": ("r", 4)}


@dataclass(frozen=True)
class Synset:
    """A meaning: its names with how often texts use them so, what it means, and what it is a kind of."""

    key: str
    names: tuple[tuple[str, int], ...]
    gloss: str
    above: tuple[str, ...] = ()
    kind: str = "noun"


def _kinds(above: str, count: int, *names: str) -> list[Synset]:
    """Concepts with one name each."""
    return [
        Synset(name.lower(), ((name, count),), f"the {above} that people know by this name", (above,)) for name in names
    ]


SYNSETS = (
    Synset("thing", (("thing", 9),), "what there is"),
    Synset("animal", (("animal", 9), ("beast", 3)), "a living thing that moves by itself", ("thing",)),
    Synset(
        "dog", (("dog", 9), ("domestic_dog", 0)), "an animal (of the house) that barks; kept for company", ("animal",)
    ),
    *_kinds("dog", 2, "poodle", "terrier", "hound", "beagle", "German_shepherd"),
    Synset("cat", (("cat", 9),), "an animal of the house that purrs, and hunts mice", ("animal",)),
    *_kinds("cat", 2, "tabby", "tomcat", "alley_cat", "Persian_cat", "kitten"),
    Synset("bird", (("bird", 9),), "an animal with feathers and wings, that lays eggs", ("animal",)),
    *_kinds("bird", 2, "owl", "hawk", "gull", "wren", "finch", "goose", "heron", "duck"),
    *_kinds("animal", 0, "axolotl", "mouse"),
    Synset("young", (("young", 0),), "an animal that is not yet grown, of any kind", ("animal",)),
    Synset("club", (("bat", 5), ("club", 5)), "a thing to hit others with", ("thing",)),
    Synset("bat", (("bat", 3), ("flittermouse", 0)), "an animal with wings that flies at night", ("animal",)),
    Synset("pet", (("pet", 4),), "an animal that is kept for company", ("animal",)),
    Synset("lapdog", (("lapdog", 1),), "a dog small enough to be held on the lap", ("dog", "pet")),
    Synset("to_duck", (("duck", 8),), "lower oneself quickly", (), "verb"),
    Synset("not_old", (("young", 20),), "having lived for a short time", (), "adj"),
    Synset("quickly", (("quickly", 4),), "with speed", (), "adv"),
)
"""The order is that of the meanings of a name."""

EXCEPTIONS = {"noun": "geese goose\nmice mouse\n"}


def write(folder: Path) -> Path:
    """Write the database; returns its folder."""
    for kind in KINDS:
        mine = [synset for synset in SYNSETS if synset.kind == kind]
        offsets: dict[str, int] = {}
        for _ in range(2):  # lines have equal lengths whatever the offsets in them
            lines = [_line(synset, offsets) for synset in mine]
            places = [sum(map(len, lines[:number])) for number in range(len(lines))]
            offsets = {synset.key: place for synset, place in zip(mine, places, strict=True)}
        (folder / f"data.{kind}").write_text("".join(lines))
        (folder / f"index.{kind}").write_text("".join(sorted(_index(mine, offsets))))
        (folder / f"{kind}.exc").write_text(EXCEPTIONS.get(kind, ""))
    counts = [
        f"{name.lower()}%{KINDS[synset.kind][1]}:03:{_number(synset, name):02d}:: 1 {count}\n"
        for synset in SYNSETS
        for name, count in synset.names
        if count
    ]
    first = "a%1:03:00:: 1 0\n"  # nltk's search passes over the first line
    (folder / "cntlist.rev").write_text("".join([first, *sorted(counts)]))
    return folder


def _number(synset: Synset, name: str) -> int:
    """Which of the meanings of a name in one file this is."""
    same = [other for other in SYNSETS if other.kind == synset.kind and name in dict(other.names)]
    return same.index(synset)


def _line(synset: Synset, offsets: dict[str, int]) -> str:
    letter = KINDS[synset.kind][0]
    words = " ".join(f"{name} {_number(synset, name):x}" for name, _ in synset.names)
    above = [("@", key) for key in synset.above]
    below = [("~", other.key) for other in SYNSETS if synset.key in other.above]
    pointers = "".join(f" {sign} {offsets.get(key, 0):08d} {letter} 0000" for sign, key in above + below)
    count = f"{len(above + below):03d}{pointers}"
    place = f"{offsets.get(synset.key, 0):08d}"
    frames = " 00" if synset.kind == "verb" else ""
    return f"{place} 03 {letter} {len(synset.names):02x} {words} {count}{frames} | {synset.gloss}  \n"


def _index(mine: list[Synset], offsets: dict[str, int]) -> list[str]:
    names = dict.fromkeys(name.lower() for synset in mine for name, _ in synset.names)
    lines = []
    for name in names:
        found = [synset for synset in mine if name in {each.lower() for each, _ in synset.names}]
        letter, places = KINDS[mine[0].kind][0], " ".join(f"{offsets[synset.key]:08d}" for synset in found)
        lines.append(f"{name} {letter} {len(found)} 0 {len(found)} 1 {places}  \n")
    return lines
