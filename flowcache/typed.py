"""Values of files and of the command line, checked against types."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from fractions import Fraction
from functools import cache
from reprlib import repr as short_repr
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def as_type(value: Any, kind: Any, place: str = "its content", spelled: bool = False) -> Any:
    """Convert what ``json.loads`` or ``yaml.safe_load`` gave to a type, with all that it holds.

    An object becomes a dataclass, a list becomes a tuple where the type says so. ``kind`` is a dataclass, a list,
    tuple or mapping with the type of its items, a literal, a plain type, one of these or None, or Any.

    ``spelled``: people wrote the value: accept text such as ``1e-2`` or ``24000/1001`` for a number, a whole number
    for text, and nothing for empty text. A ValueError names the ``place`` of a wrong value, or a missing field.
    """
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        (other,) = (of for of in inner if of is not NoneType)
        return None if value is None else as_type(value, other, place, spelled)
    if is_dataclass(kind):
        _check(isinstance(value, Mapping), "an object", value, place)
        known = field_types(kind)
        for name in value.keys() - known.keys():
            raise ValueError(f"{place} has an unknown field {short_repr(name)}")
        for name in (name for name, (_, needed) in known.items() if needed and name not in value):
            raise ValueError(f"{place} lacks {name}")
        return kind(**{n: as_type(item, known[n][0], f"{place}.{n}", spelled) for n, item in value.items()})
    if origin in (dict, Mapping):
        _check(isinstance(value, Mapping), "an object", value, place)
        of_key, of_item = inner or (str, Any)  # JSON has no keys but text
        return {of_key(k): as_type(item, of_item, f"{place}.{k}", spelled) for k, item in value.items()}
    if origin in (list, tuple, Sequence):
        _check(isinstance(value, (list, tuple) if spelled else list), "a list", value, place)
        items = [as_type(item, inner[0], f"{place}[{i}]", spelled) for i, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is Literal:
        _check(value in inner, " or ".join(map(str, inner)), value, place)
    elif kind in _NAMES:  # others are objects of Python, which no file holds
        value = _read_spelled(value, kind) if spelled else value
        right = isinstance(value, (int, float) if kind is float else kind)
        _check(right and (kind is bool or not isinstance(value, bool)), _NAMES[kind], value, place)
    return value


def check_keys(content: Any, known: Collection[str], where: str) -> Mapping[str, Any]:
    """Return named values; raises ValueError if they are none, or for an unknown name with a similar one."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must hold named values, got {type(content).__name__}.")
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key)[:100], list(known), 1, 0.5)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise ValueError(f"{where}: there is no {str(key)[:100]}{hint}")
    return content


@cache
def field_types(kind: type) -> dict[str, tuple[Any, bool]]:
    """Type of each field of a dataclass, and whether it has no default."""
    hints = get_type_hints(kind)
    return {f.name: (hints[f.name], f.default is f.default_factory is MISSING) for f in fields(kind)}


def _read_spelled(value: Any, kind: type) -> Any:
    """The value as ``kind`` if it spells one, else unchanged."""
    if kind is str:
        return "" if value is None else str(value) if type(value) is int else value
    if kind is bool or isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    try:
        number = float(Fraction(value) if isinstance(value, str) and "/" in value else value)
        return int(value if isinstance(value, int) else number) if kind is int and number % 1 == 0 else number
    except (ValueError, OverflowError, ZeroDivisionError):
        return value


def _check(holds: bool, wanted: str, value: Any, place: str) -> None:
    if not holds:
        raise ValueError(f"{place}: expected {wanted}, got {short_repr(value)}")
