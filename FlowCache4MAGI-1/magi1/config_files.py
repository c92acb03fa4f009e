"""Reads configuration files and what the command line says over them, key by key."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, TypeVar

import yaml

from flowcache.user_files import parse_file, reading

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Keys of users' files that the original reads nowhere.
UNREAD = frozenset(
    {"budget_cache_chunk_nums", "budget_chunk_nums", "budget_cache_len", "reuse_strategy", "debug"}
)

#: Of a configuration file; YAML is slow to parse.
MAX_BYTES = 2**20

COMMAND_LINE = "the command line"

_READABLE = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def read_file(path: str | Path, parse: Callable[[str], Any], kind: str) -> dict[str, Any]:
    """Named values of a file; none of an empty one.

    Args:
        path: the file.
        parse: makes values of its text.
        kind: what the text is called when it cannot be parsed.

    Raises:
        ValueError: the file is missing, cannot be parsed, or holds something else than named values.
    """
    content = parse_file(path, parse, kind, most=MAX_BYTES)
    return check_mapping({} if content is None else content, str(path))


def parse_overrides(rest: list[str], switches: Collection[str] = ()) -> dict[str, Any]:
    """``--key value`` or ``--key=value``, values read as YAML: ``--noise2clean_kvrange "[5, 4, 3, 2]"``.

    Args:
        rest: words of the command line.
        switches: keys that are true where they stand without a value.

    Raises:
        ValueError: a word is no such pair, or its value cannot be read.
    """
    overrides, words = {}, list(rest)
    while words:
        word = words.pop(0)
        flag, equals, text = word.partition("=")
        if not re.fullmatch(r"--\w[\w-]*", flag):
            raise ValueError(f"arguments must be pairs of --key value, or --key=value, got {word!r}.")
        if not equals and words and not words[0].startswith("--"):
            text = words.pop(0)
        elif not equals and flag[2:] in switches:
            text = "true"
        elif not equals:
            raise ValueError(f"arguments must be pairs of --key value, but {flag} has no value.")
        with reading(flag, "YAML"):
            overrides[flag[2:]] = yaml.safe_load(text)
    return overrides


def build(kind: type[T], content: Mapping[str, Any], where: str, overrides: Mapping[str, Any]) -> T:
    """A dataclass from a file's values and the command line's over them.

    Numbers become what the field is, lists tuples.

    Raises:
        ValueError: a key is unknown or a value of another type; the key and its place are named.
    """
    known = kind.__dataclass_fields__
    given = {}
    for values, place in ((content, where), (overrides, COMMAND_LINE)):
        values = without_unread(values, place)
        check_keys(values, known, place)
        given |= {key: cast(value, known[key].type, key, place) for key, value in values.items()}
    return kind(**given)


def without_unread(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values without those that nobody reads, of which a warning says so."""
    for key in sorted(UNREAD & content.keys()):
        logger.warning("%s: %s has no effect: neither the original nor we read it.", where, key)
    return {key: value for key, value in content.items() if key not in UNREAD}


def check_mapping(content: Any, where: str) -> Any:
    """The content, if it holds named values.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must hold named values, got {type(content).__name__}.")
    return content


def check_keys(content: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse keys that are not known.

    Raises:
        ValueError: the first of them is named, with the known one that looks most like it.
    """
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key)[:100], list(known), 1, 0.5)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise ValueError(f"{where}: there is no {str(key)[:100]}{hint}")


def cast(value: Any, kind: str, key: str, where: str) -> Any:
    """A value as the type of its field, by the name of that type.

    Raises:
        ValueError: it is of another type; key and place are named.
    """
    if kind.endswith(" | None") and value is None:
        return None
    kind = kind.removesuffix(" | None")
    number = _number(value) if kind in ("int", "float") else None
    if kind == "int" and (isinstance(number, int) or (number is not None and number.is_integer())):
        return int(number)
    if kind == "float" and number is not None:
        return float(number)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "str" and (value is None or isinstance(value, str)):
        return value or ""
    if kind.startswith("tuple") and isinstance(value, (list, tuple)):
        inner = kind.removeprefix("tuple[").split(",")[0]
        return tuple(cast(item, inner, key, where) for item in value)
    raise ValueError(
        f"{where}: {key} must be {_READABLE.get(kind, 'a list of numbers')}, got {short_repr(value)}."
    )


def _number(value: Any) -> int | float | None:
    """The number that a value is or spells, such as ``24000/1001``; YAML takes ``1e-2`` for text."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        as_float = float(Fraction(value) if isinstance(value, str) and "/" in value else value)
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return as_float if isinstance(value, str) else value
