"""Hostile values, and damage to files."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any

NUMBERS = (
    *("0", "1", "2", "3", "5", "8", "16", "17", "33", "97", "-1", "-0.0", "0.5", "1.5", "1e-5", "1e3", "2.0"),
    *("+5", "1_000", "0x10", "65536", "1000000", "1000000001", "2147483648", "9223372036854775808"),
    *("1" + "0" * 400, "1e-300", "1e38", "1e309", "nan", ".nan", "inf", "-inf", "", " ", "１２", "1,5"),
    *("true", "null", "[]", "{}", "[1", "x"),
)
TEXTS = (
    *("a", "a red circle", "", " ", "\t", "中文提示", "émile", "\N{GRINNING FACE}", "a" * 300, "a" * 5000),
    *("a\nb", "\udcff", "-", "a/b", "../x", ".hidden", "%s %d", "{x}", "\x1b[31m", "null", "\ufeffa"),
    *("a\u202eb", "~", "word " * 400, "<pad>", "\\", '"', "'"),
)
#: Paths without a file; ``bad`` holds places that cannot be read or written.
PATHS = (
    *("missing", "missing.mp4", "missing/deep/er.mp4", "", " ", ".", "~", "~nosuch_user/a.mp4", "x" * 255),
    *("é" * 130 + ".mp4", "y/" * 1000 + "a.mp4", "a\nb.mp4", "\udcff.mp4", "/proc/nowhere/a.mp4", "a.avi"),
    *("/dev/null/a", ".mp4", "a.mp4/", "-a", "a.part.mp4", "http://127.0.0.1:9/a.mp4", "%03d.png", "*.mp4"),
    *("../bad/fifo", "../bad/loop", "../bad/dangling", "../bad/folder.mp4", "../good/notes.txt", "../good/empty"),
    *("../good/notes.txt/a.mp4", "../good/image.png", "../good/in.mp4", "../good/options.yaml", "../good/prompts"),
    "../good/skyreels",
)
PLAIN_VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 10**4, 10**7, 2**31, 2**40, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e38),
    *(math.nan, math.inf, -math.inf, "", " ", "x", "../x", "nan", "1", "中", "a" * 300, "\ud800"),
    *([], [[]], [1, 2], ["a"], [None], {}, {"a": 1}, {"": {}}),
)
#: YAML that its reader turns into an exception of another kind, or into an unexpected value.
TAGS = (
    *("!!int ''", "!!bool x", "!!timestamp x", "!!python/object:os.system {}", "&a [*a]", "2026-01-01"),
    *("0o17", "1:30", "yes", "~", "!!binary x", "!!set {a}", "? a", "- - a", "*b", ".inf"),
)


def damage_file(rng: Random, path: Path) -> str:
    """Damage a file as its suffix suggests; return a description."""
    content, suffix, kind = path.read_bytes(), path.suffix, rng.random()
    if suffix == ".json" and kind < 0.7:
        content, what = _damage_tree(rng, json.loads(content))
    elif suffix == ".yaml" and kind < 0.7:
        lines = content.decode().splitlines()
        index = rng.choice([i for i, line in enumerate(lines) if ":" in line and not line.startswith("#")])
        new = rng.choice((*TAGS, *NUMBERS, *map(json.dumps, PLAIN_VALUES)))
        lines[index] = f"{lines[index].split(':')[0]}: {new}"
        content, what = "\n".join(lines).encode("utf-8", "surrogatepass"), lines[index][:80]
    elif suffix in (".json", ".jsonl", ".yaml", ".txt") and kind < 0.9:
        whole = (b"", b"3", b"word", b"\0" * 64, b"[" * 100_000, b'{"a":' * 100_000, content * 2)
        utf_16 = content.decode(errors="replace").encode("utf-16")
        other = (b"\xef\xbb\xbf" + content, content + b"\xff\xfe", content.replace(b"\n", b"\r\n"), utf_16)
        content = rng.choice((*whole, *other))
        what = f"{content[:20]}... of {len(content)} bytes"
    else:
        content, what = _damage_bytes(rng, content)
    path.write_bytes(content)
    return what


def _damage_tree(rng: Random, document: Any) -> tuple[bytes, str]:
    """Delete or replace one of the values within a document."""
    holder, key = rng.choice(list(_places(document)) or [([document], 0)])
    old = holder[key]
    holder[key] = new = rng.choice((*PLAIN_VALUES, {"nested": old}))
    if rng.random() < 0.2:
        del holder[key]
        new = "deleted"
    return json.dumps(document).encode(), f"{key} = {str(new)[:60]}"


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Each object or list within a document, with each of its keys."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    return [place for key in keys for place in ((document, key), *_places(document[key]))]


def _damage_bytes(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Cut, overwrite, double, leave out or replace bytes."""
    first = rng.randrange(max(1, len(content)))
    last = first + rng.choice((1, 4, 64, 1024))
    ways = {
        "cut": content[:first],
        "doubled": content[:last] + content[first:],
        "left out": content[:first] + content[last:],
        "overwritten": content[:first] + rng.randbytes(last - first) + content[last:],
        "overwritten in front": rng.randbytes(3) + content[3:],
        "random": rng.randbytes(min(len(content), 4096)),
    }
    kind = rng.choice(list(ways))
    return ways[kind], f"bytes {first} to {last} {kind}"
