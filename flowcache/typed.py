"""Checks what a file holds against the types that it is read as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from reprlib import repr as short_repr
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def as_type(value: Any, kind: Any, place: str = "its content") -> Any:
    """A value that ``json.loads`` gave as a type: a dataclass of an object, a tuple of a list.

    Args:
        value: checked with all that it holds.
        kind: a dataclass, a list, tuple or mapping with the type of its items, a literal, a plain type, one
            of these or None, or Any.
        place: of the value in its file, for the error.

    Raises:
        ValueError: a value is of another type, or an object lacks a field or has an unknown one.
    """
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        (other,) = (of for of in inner if of is not NoneType)
        return None if value is None else as_type(value, other, place)
    if is_dataclass(kind):
        _check(isinstance(value, dict), "an object", value, place)
        return _as_dataclass(value, kind, place)
    if origin in (dict, Mapping):
        _check(isinstance(value, dict), "an object", value, place)
        # JSON has no keys but text
        return {inner[0](key): as_type(item, inner[1], f"{place}.{key}") for key, item in value.items()}
    if origin in (list, tuple, Sequence):
        _check(isinstance(value, list), "a list", value, place)
        items = [as_type(item, inner[0], f"{place}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is Literal:
        _check(value in inner, " or ".join(map(str, inner)), value, place)
        return value
    if kind not in _NAMES:  # objects of Python, which no file holds
        return value
    right = isinstance(value, (int, float) if kind is float else kind)
    _check(right and (kind is bool or not isinstance(value, bool)), _NAMES[kind], value, place)
    return value


def check_fields(settings: Any) -> None:
    """Refuse a dataclass that was made with a value of another type than its field's.

    Raises:
        ValueError: one sentence that names the field.
    """
    for name, (kind, _) in _fields(type(settings)).items():
        value = getattr(settings, name)
        if is_dataclass(value) and type(value) in (kind, *get_args(kind)):
            continue
        try:
            _check(not isinstance(value, dict), "made by its class", value, name)
            as_type(list(value) if isinstance(value, tuple) else value, kind, name)
        except ValueError as error:
            raise ValueError(f"{error}.") from None


def _as_dataclass(value: dict[str, Any], kind: type, place: str) -> Any:
    known = _fields(kind)
    for name in value:
        if name not in known:
            raise ValueError(f"{place} has an unknown field {short_repr(name)}")
    for name, (_, needed) in known.items():
        if needed and name not in value:
            raise ValueError(f"{place} lacks {name}")
    return kind(**{name: as_type(item, known[name][0], f"{place}.{name}") for name, item in value.items()})


@cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Type of each field, and whether it must be given."""
    hints = get_type_hints(kind)
    return {f.name: (hints[f.name], f.default is f.default_factory is MISSING) for f in fields(kind)}


def _check(holds: bool, wanted: str, value: Any, place: str) -> None:
    if not holds:
        raise ValueError(f"{place} must be {wanted}, got {short_repr(value)}")
