"""What is read of a WordNet database: meanings by their usual names, with all that is below them."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest

from lmguide.eval import cognac
from tests.eval.database import write
from tests.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path

    from lmguide.eval.cognac import Taxonomy


def test_concepts_have_the_names_that_mean_them_first(taxonomy: Taxonomy) -> None:
    words = {key: concept.words for key, concept in taxonomy.concepts.items()}
    assert words["dog.n.01"] == ("dog", "domestic dog")
    assert words["german_shepherd.n.01"] == ("german shepherd",)
    assert words["bat.n.02"] == ("flittermouse",), "a bat is first of all a club"
    assert words["young.n.01"] == (), "it is never found as a noun, and often as an adjective"
    assert words["duck.n.01"] == ("duck",)
    assert taxonomy.concepts["duck.n.01"].nouns == (), "it is a verb more often"
    assert taxonomy.concepts["dog.n.01"].nouns == words["dog.n.01"]


def test_a_title_is_a_common_name_in_small_letters(taxonomy: Taxonomy) -> None:
    titles = {key: concept.title for key, concept in taxonomy.concepts.items()}
    assert titles["dog.n.01"] == "dog"
    assert titles["alley_cat.n.01"] == "alley cat"
    rare, capital, verb, other_meaning = "axolotl.n.01", "persian_cat.n.01", "duck.n.01", "bat.n.02"
    assert [titles[key] for key in (rare, capital, verb, other_meaning)] == [None] * 4


def test_all_that_is_below_in_any_way(taxonomy: Taxonomy) -> None:
    assert taxonomy.inside("dog.n.01") == {f"{name}.n.01" for name in DOGS}
    assert taxonomy.inside("pet.n.01") == {"lapdog.n.01"}
    assert taxonomy.inside("animal.n.01") == set(taxonomy.concepts) - {"animal.n.01"}
    assert taxonomy.inside("poodle.n.01") == frozenset()
    assert "thing.n.01" not in taxonomy.concepts
    assert taxonomy.plurals == {"goose": ("geese",), "mouse": ("mice",)}


DOGS = ("poodle", "terrier", "hound", "beagle", "german_shepherd", "lapdog")


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    import nltk.data

    before = list(nltk.data.path)
    cognac.read(write(tmp_path), ["dog.n.01"])
    assert nltk.data.path == before
    gc.collect()  # a file that was left open would warn now


def test_what_is_missing_is_said_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("wordnet", "apt-get install wordnet-base", "--wordnet"):
        cognac.read(tmp_path, ["animal.n.01"])
    write(tmp_path)
    with refused("wordnet", "unicorn"):
        cognac.read(tmp_path, ["unicorn.n.01"])
    (tmp_path / "cntlist.rev").unlink()
    with refused("wordnet", "cntlist"):
        cognac.read(tmp_path, ["animal.n.01"])
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.data", None)
    with pytest.raises(ImportError, match=r"nltk.* pip install 'lmguide\[eval\]'"):
        cognac.read(tmp_path, ["animal.n.01"])


@pytest.mark.slow
def test_the_real_one_knows_animals(wordnet: Taxonomy) -> None:
    dog = wordnet.concepts["dog.n.01"]
    assert (dog.title, dog.words[:2]) == ("dog", ("dog", "domestic dog"))
    assert {"poodle.n.01", "beagle.n.01"} <= wordnet.inside("dog.n.01") <= wordnet.inside("animal.n.01")
    assert len(wordnet.inside("animal.n.01")) > 3900
    assert wordnet.concepts["bear.n.01"].words == ("bear",)
    assert wordnet.concepts["bear.n.01"].nouns == ()
    assert wordnet.plurals["mouse"] == ("mice",)
