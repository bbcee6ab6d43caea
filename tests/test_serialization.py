"""Descriptions to dictionaries and back, over a small family of dataclasses with every kind of field."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest

from lmguide.gates import GATES, Entropy, Gate, Period
from lmguide.schedules import SCHEDULES
from lmguide.serialization import Registry, did_you_mean, from_dict, to_dict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from a_module_that_only_type_checkers_see import Unseen  # type: ignore[import-not-found]


class Animal:
    name: ClassVar[str]


ANIMALS: Registry[Animal] = Registry("animal")


@ANIMALS.register("cat")
@dataclass(frozen=True)
class Cat(Animal):
    lives: int = 9
    weight: float = 4.5
    mood: Literal["calm", "cross"] = "calm"
    asleep: bool = True


@ANIMALS.register("tabby_cat")
@dataclass(frozen=True)
class TabbyCat(Cat):
    stripes: int = 12


@dataclass(frozen=True)
class Stray(Cat):
    """Not registered: it has a name by inheritance only."""


@ANIMALS.register("herd")
@dataclass(frozen=True)
class Herd(Animal):
    members: tuple[Animal, ...]
    place: tuple[float, float] | None = None
    calls: Sequence[str] | Sequence[Mapping[str, str]] | str = ()
    notes: dict[str, Any] = field(default_factory=dict)
    gate: Gate | None = None
    owner: Unseen | str | None = None
    count: int = field(init=False, default=0)


@dataclass(frozen=True)
class Plain:
    size: float
    label: str = "x"


DESCRIPTIONS: list[Animal] = [
    Cat(),
    Cat(lives=7, weight=3, mood="cross", asleep=False),
    TabbyCat(stripes=0),
    Herd((Cat(), TabbyCat(), Herd(()))),
    Herd((), place=(1.0, -2.5), calls=("moo", "baa"), notes={"a": [1, {"b": None}]}, owner="me"),
    Herd((), calls="moo", gate=Entropy(1.0) & ~Period(2)),
    Herd((), calls=({"role": "user", "name": "cat"},)),
]


@pytest.mark.parametrize("animal", DESCRIPTIONS, ids=repr)
def test_round_trip_through_json(animal: Animal) -> None:
    text = json.dumps(to_dict(animal), allow_nan=False)
    back = from_dict(ANIMALS, json.loads(text))
    assert back == animal
    assert type(back) is type(animal)


def test_every_field_is_written_under_the_name_of_the_class() -> None:
    assert to_dict(Cat(lives=7)) == {"name": "cat", "lives": 7, "weight": 4.5, "mood": "calm", "asleep": True}
    assert list(to_dict(Cat())) == ["name", "lives", "weight", "mood", "asleep"]
    assert to_dict(Plain(2.0)) == {"size": 2.0, "label": "x"}
    assert "count" not in to_dict(Herd(()))


def test_nested_descriptions_carry_their_own_names() -> None:
    data = to_dict(Herd((TabbyCat(),), gate=~Entropy(0.5)))
    assert data["members"][0]["name"] == "tabby_cat"
    assert data["gate"] == {"name": "not", "gate": {"name": "entropy", "threshold": 0.5}}


def test_what_is_left_out_takes_its_default() -> None:
    assert from_dict(ANIMALS, {"name": "cat"}) == Cat()
    assert from_dict(Plain, {"size": 1}) == Plain(1)


def test_a_class_is_a_target_as_well() -> None:
    assert from_dict(Plain, {"size": 1, "label": "y"}) == Plain(1, "y")
    assert from_dict(Animal, {"name": "tabby_cat"}) == TabbyCat()
    assert from_dict(Cat, {"name": "cat"}) == Cat()
    assert from_dict(Cat, {"name": "tabby_cat"}) == TabbyCat()
    with pytest.raises(ValueError, match=r"name of a cat \(cat, tabby_cat\), got 'herd'"):
        from_dict(Cat, {"name": "herd"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "cat", "live": 7}, r"^cat: .* \(lives, weight, mood, asleep\), got 'live'\. Did you mean 'lives'\?$"),
        ({"name": "kat"}, r"name of a animal \(cat, tabby_cat, herd\), got 'kat'\. Did you mean 'cat'\?"),
        ({"name": "zebra"}, r"got 'zebra'\. Use one of these\.$"),
        ({"name": 3}, "got 3"),
        ({"name": ["cat"]}, r"got \['cat'\]"),
        ({"lives": 7}, r"expected a dictionary with the key 'name', got the keys \['lives'\]\. Add it\."),
        ({"name": "herd"}, r"^herd: expected a value for members, got none\. Add the key 'members'\."),
        ({"name": "cat", "lives": 7.5}, r"^cat\.lives: expected a whole number, got 7\.5\."),
        ({"name": "cat", "lives": True}, r"^cat\.lives: expected a whole number, got True\."),
        ({"name": "cat", "lives": None}, r"^cat\.lives: expected a whole number, got None\."),
        ({"name": "cat", "weight": "4"}, r"^cat\.weight: expected a finite number, got '4'\."),
        ({"name": "cat", "weight": True}, r"^cat\.weight: expected a finite number, got True\."),
        ({"name": "cat", "weight": math.nan}, r"^cat\.weight: expected a finite number, got nan\. JSON has no other\."),
        ({"name": "cat", "weight": -math.inf}, r"^cat\.weight: expected a finite number, got -inf\."),
        ({"name": "cat", "asleep": 1}, r"^cat\.asleep: expected true or false, got 1\."),
        ({"name": "cat", "mood": "clam"}, r"^cat\.mood: expected one of 'calm', 'cross', got 'clam'.*'calm'\?"),
        ({"name": "herd", "members": {"name": "cat"}}, r"^herd\.members: expected a list of dictionaries that each"),
        ({"name": "herd", "members": ["cat"]}, r"^herd\.members\[0\]: expected a dictionary that describes a animal"),
        (
            {"name": "herd", "members": [{"name": "cat", "lives": "7"}]},
            r"^cat\.lives: expected a whole number, got '7'",
        ),
        ({"name": "herd", "members": [{"name": "tabby"}]}, r"name of a animal \(.*\), got 'tabby'"),
        ({"name": "herd", "members": [], "place": [1]}, r"^herd\.place: expected .* or null, got \[1\]"),
        (
            {"name": "herd", "members": [], "place": [1, math.inf]},
            r"^herd\.place\[1\]: expected a finite number",
        ),
        (
            {"name": "herd", "members": [], "calls": ["a", 1]},
            r"^herd\.calls: expected a list of texts or a list",
        ),
        ({"name": "herd", "members": [], "notes": [1]}, r"^herd\.notes: expected a dictionary, got \[1\]"),
        ({"name": "herd", "members": [], "gate": {"name": "cat"}}, r"name of a gate \(.*\), got 'cat'"),
        ({"name": "herd", "members": [], "gate": "entropy"}, r"^herd\.gate: expected .* describes a gate or null, got"),
        (
            {"name": "herd", "members": [], "gate": {"name": "entropy", "threshold": "a"}},
            r"^entropy\.threshold: expected",
        ),
        ({"name": "herd", "members": [], "gate": {"name": "period", "every": 0}}, "^every: expected a whole number of"),
        ({"name": "herd", "members": [], "owner": 3}, r"^herd\.owner: expected .* a text or null, got 3"),
        ({"name": "herd", "members": [], "count": 3}, "^herd: expected the name of a field"),
    ],
)
def test_refusals(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_dict(ANIMALS, data)
    assert type(caught.value) is ValueError


def test_what_is_no_dictionary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a dictionary, got \['cat'\]"):
        from_dict(ANIMALS, ["cat"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Plain: expected the name of a field \(size, label\), got 'name'"):
        from_dict(Plain, {"name": "plain", "size": 1})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_lacks_are_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="size: expected a finite number, got"):
        to_dict(Plain(value))


def test_values_that_json_lacks_are_not_written() -> None:
    with pytest.raises(TypeError, match=r"owner: expected text, numbers, None, .* got object\. Give it in"):
        to_dict(Herd((), owner=object()))
    with pytest.raises(TypeError, match=r"notes: expected text, numbers"):
        to_dict(Herd((), notes={1: "a"}))  # type: ignore[dict-item]
    for value in ("cat", Cat, None):
        with pytest.raises(TypeError, match="expected an instance of a dataclass, got"):
            to_dict(value)


def test_registry() -> None:
    assert ANIMALS.names() == ("cat", "tabby_cat", "herd")
    assert ANIMALS.get("cat") is Cat
    assert ANIMALS.name_of(TabbyCat) == "tabby_cat"
    assert TabbyCat.name == "tabby_cat"
    with pytest.raises(ValueError, match="expected a registered animal, got Stray"):
        ANIMALS.name_of(Stray)
    with pytest.raises(ValueError, match="expected a new name for a animal, got 'cat' again"):
        ANIMALS.register("cat")(Stray)
    assert ANIMALS.get("cat") is Cat


def test_names_in_two_registries_do_not_meet() -> None:
    assert set(GATES.names()).isdisjoint(ANIMALS.names())
    with pytest.raises(ValueError, match="name of a gate"):
        GATES.get("linear")
    with pytest.raises(ValueError, match="name of a schedule"):
        SCHEDULES.get("entropy")


def test_did_you_mean_sees_through_spelling() -> None:
    assert did_you_mean("Tabby-Cat", ANIMALS.names()) == "Did you mean 'tabby_cat'?"
    assert did_you_mean("cta", ANIMALS.names()) == "Did you mean 'cat'?"
    assert did_you_mean("cgf", ["icg", "cfg"]) == "Did you mean 'cfg'?"  # as near as the other, but for its letters
    assert did_you_mean("horse", ANIMALS.names()) == "Use one of these."
