"""Reads sections of configuration files, with the command line's keys over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flowcache.options import MAX_BYTES
from flowcache.typed import as_type, check_keys, field_types
from flowcache.user_files import parse_file

__all__ = ["COMMAND_LINE", "build", "check_keys", "check_mapping", "read_file"]

T = TypeVar("T")

COMMAND_LINE = "the command line"


def read_file(path: str | Path, parse: Callable[[str], Any], kind: str) -> Mapping[str, Any]:
    """Named values of a file, none of an empty one; ``parse`` makes them of its text, ``kind`` names it."""
    content = parse_file(path, parse, kind, most=MAX_BYTES)
    return check_mapping({} if content is None else content, str(path))


def check_mapping(content: Any, where: str) -> Mapping[str, Any]:
    """Return the content; raises ValueError if it does not hold named values."""
    return check_keys(content, content, where)


def build(kind: type[T], content: Mapping[str, Any], where: str, overrides: Mapping[str, Any]) -> T:
    """A dataclass from a file's values and the command line's over them; raises ValueError with the key."""
    known, given = field_types(kind), {}
    for values, place in ((content, where), (overrides, COMMAND_LINE)):
        for key, value in check_keys(values, known, place).items():
            given[key] = as_type(value, known[key][0], f"{place}: {key}", spelled=True)
    return kind(**given)
