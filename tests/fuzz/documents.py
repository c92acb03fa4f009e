"""Damage to documents: a place of a tree, lines of a text, bytes of a file."""

from __future__ import annotations

import copy
import json
import math
from random import Random
from typing import Any, NamedTuple

from .values import number, plain_value, text

#: YAML that its reader turns into an exception of another kind, or into a value nobody expects.
TAGS = ("!!int ''", "!!bool x", "!!timestamp x", "!!float ''", "!!python/object:os.system {}", "&a [*a]")
TAGS += (
    "2026-01-01",
    "0o17",
    "1:30",
    "yes",
    "~",
    "!!binary x",
    "!!set {a}",
    "? a",
    "- - a",
    "!!null x",
    "*b",
)

DEPTH = 100_000


class Damaged(NamedTuple):
    """A damaged document.

    Attributes:
        content: of the file.
        what: was done, in words.
        name: of the value that was replaced; empty: none was.
        value: in its place.
    """

    content: bytes
    what: str
    name: str = ""
    value: Any = None


def damage_tree(rng: Random, document: Any) -> Damaged:
    """A JSON document with one place of its tree changed."""
    place = rng.choice(list(_places(document)))
    changed = copy.deepcopy(document)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    last = place[-1]
    name, value, what = "", None, "deleted"
    kind = rng.choice(("value", "value", "number", "number", "delete", "nest", "rename"))
    if kind == "delete":
        del holder[last]
    elif kind == "rename" and isinstance(holder, dict):
        what = f"renamed to {(other := text(rng))!r}"
        holder[other] = holder.pop(last)
    else:
        value = {"nested": holder[last]} if kind == "nest" else _other(rng, holder[last], kind)
        name = next((key for key in reversed(place) if isinstance(key, str)), "")
        holder[last], what = value, f"= {str(value)[:60]!r}"
    return Damaged(json.dumps(changed).encode(), f"{list(place)} {what}", name, value)


def _other(rng: Random, value: Any, kind: str) -> Any:
    """A value of any kind in the place of another, or a number in the place of a number."""
    if kind == "value" or isinstance(value, (str, bool, dict, list)) or value is None:
        return plain_value(rng)
    near = (0, 1, 2, value + 1, value * 2, -value, value * 10)
    return rng.choice((*near, 10**4, 10**7, 10**9, 2**40, 1e-9, 1e12, math.nan, math.inf))


def _places(document: Any, before: tuple = ()) -> list[tuple]:
    """Paths of keys to every value but the document itself."""
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document[:20]))
    else:
        return []
    found = []
    for key, value in items:
        found += [(*before, key), *_places(value, (*before, key))]
    return found


def damage_json(rng: Random, content: bytes) -> Damaged:
    """A JSON file with one place of its tree changed, or its text damaged."""
    if rng.random() < 0.7 and (document := json.loads(content)):
        return damage_tree(rng, document)
    return damage_text(rng, content)


def damage_text(rng: Random, content: bytes) -> Damaged:
    """A text file in another encoding, of another form, or with damaged bytes."""
    deep = b"[" * DEPTH
    whole = {
        "empty": b"",
        "byte order mark": b"\xef\xbb\xbf" + content,
        "UTF-16": content.decode(errors="replace").encode("utf-16"),
        "deep list": deep,
        "deep mapping": b'{"a":' * DEPTH,
        "deep and closed": deep + b"]" * DEPTH,
        "list": b"[1, 2]",
        "number": b"3",
        "null": b"null",
        "word": b"word",
        "NUL bytes": b"\0" * 64,
        "twice": content + content,
        "invalid UTF-8": content + b"\xff\xfe",
        "CRLF": content.replace(b"\n", b"\r\n"),
        "tab": b"\t" + content,
    }
    name = rng.choice((*whole, "bytes", "bytes", "bytes"))
    return Damaged(whole[name], name) if name in whole else damage_bytes(rng, content)


def damage_yaml(rng: Random, content: bytes) -> Damaged:
    """A YAML file with one line's value changed, a tag, a key twice, or its text damaged."""
    lines = content.decode().splitlines()
    keyed = [index for index, line in enumerate(lines) if ":" in line and not line.startswith("#")]
    if not keyed or rng.random() < 0.3:
        return damage_text(rng, content)
    index = rng.choice(keyed)
    key = lines[index].split(":")[0]
    drawn = (rng.choice(TAGS), json.dumps(plain_value(rng)), text(rng).replace("\udcff", "?"), number(rng))
    new = rng.choice(drawn)
    if rng.random() < 0.1:
        lines.append(lines[index])
    lines[index] = f"{key}: {new}"
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return Damaged(content, f"{key}: {new[:60]}", key, new)


def damage_bytes(rng: Random, content: bytes) -> Damaged:
    """A file cut off, with bytes overwritten, or with a piece doubled or left out."""
    if not content:
        return Damaged(b"\x80", "one byte")
    kind = rng.choice(("cut", "overwrite", "overwrite", "double", "leave out", "random"))
    first = rng.randrange(len(content))
    last = min(len(content), first + rng.choice((1, 4, 64, 1024)))
    if kind == "cut":
        return Damaged(content[:first], f"cut at byte {first}")
    if kind == "random":
        return Damaged(rng.randbytes(min(len(content), 4096)), "random bytes")
    if kind == "overwrite":
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed[rng.randrange(len(content))] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
        return Damaged(bytes(changed), "bytes overwritten")
    piece = content[first:last] * (2 if kind == "double" else 0)
    return Damaged(content[:first] + piece + content[last:], f"{kind}: bytes {first} to {last}")
