"""Reads sections of configuration files, with the command line's keys over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flowcache.options import MAX_BYTES, check_keys, check_mapping
from flowcache.typed import as_type, field_types
from flowcache.user_files import parse_file

__all__ = ["COMMAND_LINE", "build", "check_keys", "check_mapping", "read_file"]

T = TypeVar("T")

COMMAND_LINE = "the command line"


def read_file(path: str | Path, parse: Callable[[str], Any], kind: str) -> dict[str, Any]:
    """Named values of a file; none of an empty one.

    Args:
        path: of the file.
        parse: makes values of its text.
        kind: name of the format, for errors.

    Raises:
        ValueError: the file is missing, cannot be parsed, or holds no named values.
    """
    content = parse_file(path, parse, kind, most=MAX_BYTES)
    return check_mapping({} if content is None else content, str(path))


def build(kind: type[T], content: Mapping[str, Any], where: str, overrides: Mapping[str, Any]) -> T:
    """A dataclass from a file's values and the command line's over them.

    Raises:
        ValueError: a key is unknown or a value has another type; the key and its place are named.
    """
    known, given = field_types(kind), {}
    for values, place in ((content, where), (overrides, COMMAND_LINE)):
        check_keys(values, known, place)
        for key, value in values.items():
            try:
                given[key] = as_type(value, known[key][0], f"{place}: {key}", spelled=True)
            except ValueError as error:
                raise ValueError(f"{error}.") from error
    return kind(**given)
