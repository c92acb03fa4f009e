"""Damage to documents: a place of a tree, lines of a text, bytes of a file."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from .values import plain_value, text

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


def damage_tree(rng: Random, document: Any) -> tuple[str, Any]:
    """A copy of a JSON or YAML document with one place changed, and what was done to it."""
    places = list(_places(document))
    if not places:
        return "nothing", document
    place = rng.choice(places)
    changed = copy.deepcopy(document)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    last = place[-1]
    kind = rng.choice(("value", "value", "value", "delete", "nest", "rename"))
    if kind == "delete":
        del holder[last]
        return f"{list(place)} deleted", changed
    if kind == "rename" and isinstance(holder, dict):
        name = text(rng)
        holder[name] = holder.pop(last)
        return f"{list(place)} renamed to {name!r}", changed
    new = {"nested": holder[last]} if kind == "nest" else plain_value(rng)
    holder[last] = new
    return f"{list(place)} = {str(new)[:60]!r}", changed


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


def damage_json(rng: Random, content: bytes) -> tuple[str, bytes]:
    """A JSON file with one place of its tree changed, or its text damaged."""
    if rng.random() < 0.7:
        try:
            what, changed = damage_tree(rng, json.loads(content))
        except ValueError:
            return damage_bytes(rng, content)
        return what, json.dumps(changed).encode()
    return damage_text(rng, content)


def damage_text(rng: Random, content: bytes) -> tuple[str, bytes]:
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
    return (name, whole[name]) if name in whole else damage_bytes(rng, content)


def damage_yaml(rng: Random, content: bytes) -> tuple[str, bytes]:
    """A YAML file with one line's value changed, a tag, a key twice, or its text damaged."""
    lines = content.decode().splitlines()
    keyed = [index for index, line in enumerate(lines) if ":" in line and not line.startswith("#")]
    if not keyed or rng.random() < 0.3:
        return damage_text(rng, content)
    index = rng.choice(keyed)
    key = lines[index].split(":")[0]
    new = rng.choice((rng.choice(TAGS), json.dumps(plain_value(rng)), text(rng).replace("\udcff", "?")))
    if rng.random() < 0.1:
        lines.append(lines[index])
    lines[index] = f"{key}: {new}"
    return f"{key}: {new[:60]}", "\n".join(lines).encode("utf-8", "surrogatepass")


def damage_bytes(rng: Random, content: bytes) -> tuple[str, bytes]:
    """A file cut off, with bytes overwritten, or with a piece doubled or left out."""
    if not content:
        return "one byte", b"\x80"
    kind = rng.choice(("cut", "overwrite", "overwrite", "double", "leave out", "random"))
    first = rng.randrange(len(content))
    last = min(len(content), first + rng.choice((1, 4, 64, 1024)))
    if kind == "cut":
        return f"cut at byte {first}", content[:first]
    if kind == "random":
        return "random bytes", rng.randbytes(min(len(content), 4096))
    if kind == "overwrite":
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed[rng.randrange(len(content))] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
        return "bytes overwritten", bytes(changed)
    piece = content[first:last] * (2 if kind == "double" else 0)
    return f"{kind}: bytes {first} to {last}", content[:first] + piece + content[last:]
