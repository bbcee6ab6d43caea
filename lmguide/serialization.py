"""Descriptions (frozen dataclasses) to JSON-safe dictionaries and back, and the registries that name them.

Generic: it reads the fields and type hints of whatever dataclass it is given and knows none of them.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """Names of the classes of one kind.

    Args:
        kind: What they are, for messages: ``"gate"``, ``"schedule"``.

    Example:
        >>> shapes: Registry[object] = Registry("shape")
        >>> @shapes.register("circle")
        ... class Circle:
        ...     pass
        >>> shapes.names(), Circle.name
        (('circle',), 'circle')
        >>> shapes.get("circel")
        Traceback (most recent call last):
        ...
        ValueError: expected the name of a shape (circle), got 'circel'. Did you mean 'circle'?
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Decorate a class with its name, which it gets as the class variable ``name``.

        Raises:
            ValueError: the name is taken.
        """

        def decorate(cls: C) -> C:
            if name in self._classes:
                raise ValueError(f"expected a new name for a {self.kind}, got {name!r} again. Choose another name.")
            cls.name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> tuple[str, ...]:
        """Every name, in the order of registration."""
        return tuple(self._classes)

    def get(self, name: object) -> type[T]:
        """The class of a name.

        Raises:
            ValueError: no class has this name; the message proposes the nearest one.
        """
        return _look_up(name, self._classes, self.kind)

    def name_of(self, cls: type) -> str:
        """The name of a class.

        Raises:
            ValueError: the class is not registered here.
        """
        for name, registered in self._classes.items():
            if registered is cls:
                return name
        raise ValueError(
            f"expected a registered {self.kind}, got {cls.__name__}. Decorate the class with register(name)."
        )


def to_dict(description: object) -> dict[str, Any]:
    """Encode a dataclass as a dictionary that ``json.dumps`` takes as it is.

    Every field is written, defaults too, so that the meaning does not move with a later default. A registered class
    starts with its ``"name"``; nested dataclasses are encoded the same way, tuples become lists.

    Args:
        description: an instance of a dataclass.

    Returns:
        The dictionary.

    Raises:
        TypeError: not a dataclass instance, or a field holds what JSON cannot.
        ValueError: a number is NaN or infinite.

    Example:
        >>> from lmguide.gates import Entropy
        >>> to_dict(Entropy(threshold=1.0))
        {'name': 'entropy', 'threshold': 1.0}
    """
    if not dataclasses.is_dataclass(description) or isinstance(description, type):
        raise TypeError(f"expected an instance of a dataclass, got {description!r}. Describe it by a frozen dataclass.")
    name = vars(type(description)).get("name")
    encoded = {} if name is None else {"name": name}
    for field in dataclasses.fields(description):
        if field.init:
            encoded[field.name] = _encode(getattr(description, field.name), field.name)
    return encoded


def from_dict(target: Registry[T] | type[T], data: Mapping[str, Any]) -> T:
    """Decode what ``to_dict`` wrote.

    Fields that are left out take their defaults. An int is accepted for a float field and kept as it is.

    Args:
        target: a registry, or a dataclass, or a base class whose registered subclasses are meant; with a registry or
            a base class ``data["name"]`` says which class.
        data: the dictionary.

    Returns:
        The description; its own checks have run.

    Raises:
        ValueError: not a dictionary, an unknown name or key (the message proposes the nearest one), a missing field,
            a value that does not fit its field, NaN or infinity.

    Example:
        >>> from lmguide.gates import GATES
        >>> from_dict(GATES, {"name": "entropy", "threshold": 1.0})
        Entropy(threshold=1.0)
        >>> from_dict(GATES, {"name": "entropy", "treshold": 1.0})
        Traceback (most recent call last):
        ...
        ValueError: entropy: expected the name of a field (threshold), got 'treshold'. Did you mean 'threshold'?
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"expected a dictionary, got {data!r}. Write for example {{'name': ...}}.")
    try:
        if isinstance(target, Registry):
            return cast("T", _build(target.get(_name(data)), data))
        return cast("T", _decode_class(target, data, target.__name__))
    except _Mismatch as mismatch:
        raise ValueError(str(mismatch)) from None


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A last sentence for an error about an unknown word: the nearest known one, or nothing near.

    Example:
        >>> did_you_mean("Entropi", ["entropy", "period"])
        "Did you mean 'entropy'?"
    """
    folded = {name.lower().replace("-", "_"): name for name in known}
    spelled = str(word).lower().replace("-", "_")
    near = difflib.get_close_matches(spelled, folded)
    near.sort(key=lambda name: sorted(name) != sorted(spelled))  # first those of the same letters in another order
    return f"Did you mean {folded[near[0]]!r}?" if near else "Use one of these."


def _look_up(name: object, classes: Mapping[str, type[T]], kind: str) -> type[T]:
    if isinstance(name, str) and name in classes:
        return classes[name]
    known = ", ".join(classes)
    raise ValueError(f"expected the name of a {kind} ({known}), got {name!r}. {did_you_mean(name, classes)}")


def _name(data: Mapping[str, Any]) -> object:
    if "name" not in data:
        raise ValueError(f"expected a dictionary with the key 'name', got the keys {list(data)}. Add it.")
    return data["name"]


def _encode(value: object, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _finite(value, where)
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_encode(item, where) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _encode(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{where}: expected text, numbers, None, or sequences and dictionaries of them, got {type(value).__name__}. "
        "Give it in one of these forms (a model by its name or path) to make it JSON."
    )


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}. JSON has no other.")
    return value


def _build(cls: type[Any], data: Mapping[str, Any]) -> object:
    """Make an instance of this very class."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    title = vars(cls).get("name", cls.__name__)
    for key in data:
        if key not in fields and not (key == "name" and "name" in vars(cls)):
            known = ", ".join(fields) or "there is none"
            raise ValueError(
                f"{title}: expected the name of a field ({known}), got {key!r}. {did_you_mean(key, fields)}"
            )
    for field in fields.values():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if not optional and field.name not in data:
            raise ValueError(f"{title}: expected a value for {field.name}, got none. Add the key {field.name!r}.")
    hints = _hints(cls)
    return cls(**{key: _decode(hints[key], data[key], f"{title}.{key}") for key in data if key in fields})


def _read_hints(cls: type) -> dict[str, Any]:
    """Type hints by field.

    A name that only type checkers import is a container of the standard library, or else becomes a class that no JSON
    value is an instance of.
    """
    unknown: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(cls, localns=unknown)
        except NameError as error:
            name = str(error.name)
            unknown[name] = getattr(collections.abc, name, None) or type(name, (), {})


_hints: Callable[[type], dict[str, Any]] = functools.cache(_read_hints)
"""Read once for a class: a server decodes the same few for every request."""


class _Mismatch(ValueError):
    """A value of another kind than its hint: in a union the next alternative may fit."""


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in {Union, types.UnionType}:
        return _decode_union(arguments, value, where)
    if origin is Literal:
        if any(value == known and type(value) is type(known) for known in arguments):
            return value
        words = ", ".join(map(repr, arguments))
        raise _Mismatch(f"{where}: expected one of {words}, got {value!r}. {did_you_mean(value, map(str, arguments))}")
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _decode_sequence(hint, arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _mismatch(hint, value, where)
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value, where)
    if hint in {str, int, bool, types.NoneType}:
        if type(value) is not hint:
            raise _mismatch(hint, value, where)
        return value
    if isinstance(hint, type) and isinstance(value, Mapping):
        return _decode_class(hint, value, where)
    raise _mismatch(hint, value, where)


def _decode_union(alternatives: Sequence[Any], value: Any, where: str) -> Any:
    """Take the first alternative that fits; if none does, tell of the one that came nearest."""
    mismatches = []
    for alternative in alternatives:
        try:
            return _decode(alternative, value, where)
        except _Mismatch as mismatch:
            mismatches.append(mismatch)
    expected = " or ".join(_spelled(alternative) for alternative in alternatives)
    inner = [str(each) for each in mismatches if not str(each).startswith(f"{where}: expected")]
    raise _Mismatch(inner[0] if len(inner) == 1 else f"{where}: expected {expected}, got {value!r}. Give one of these.")


def _decode_sequence(hint: Any, arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _mismatch(hint, value, where)
    fixed = get_origin(hint) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis)
    if fixed and len(value) != len(arguments):
        raise _mismatch(hint, value, where)
    hints = arguments if fixed else (arguments[0],) * len(value)
    return tuple(_decode(each, item, f"{where}[{i}]") for i, (each, item) in enumerate(zip(hints, value, strict=True)))


def _decode_class(cls: type, data: Mapping[str, Any], where: str) -> object:
    """Make an instance of ``cls``, or of the registered subclass that ``data`` names."""
    known = dict(_registered(cls))
    if known:
        return _build(_look_up(_name(data), known, cls.__name__.lower()), data)
    if not dataclasses.is_dataclass(cls):
        raise _mismatch(cls, data, where)
    return _build(cls, data)


def _registered(cls: type[Any]) -> Iterable[tuple[str, type[Any]]]:
    """The registered classes among ``cls`` and its subclasses. An inherited name does not count."""
    if isinstance(name := vars(cls).get("name"), str):
        yield name, cls
    for subclass in cls.__subclasses__():
        yield from _registered(subclass)


def _mismatch(hint: Any, value: object, where: str) -> _Mismatch:
    return _Mismatch(f"{where}: expected {_spelled(hint)}, got {value!r}. Give a value of this kind.")


_WORDS: dict[Any, tuple[str, str]] = {
    float: ("a finite number", "finite numbers"),
    int: ("a whole number", "whole numbers"),
    str: ("a text", "texts"),
    bool: ("true or false", "trues and falses"),
    types.NoneType: ("null", "nulls"),
}


def _spelled(hint: Any, plural: bool = False) -> str:
    """A hint in the words of someone who writes JSON."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint][plural]
    if origin in {Union, types.UnionType}:
        return " or ".join(_spelled(alternative, plural) for alternative in arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"{'lists' if plural else 'a list'} of {_spelled(arguments[0], plural=True)}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "dictionaries" if plural else "a dictionary"
    if isinstance(hint, type):
        name = hint.__name__.lower()
        return f"dictionaries that each describe a {name}" if plural else f"a dictionary that describes a {name}"
    return str(hint).replace("typing.", "")
