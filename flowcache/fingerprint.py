"""What tells one run from another: its settings, and digests of what is too large to be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

#: How files of a model's folder end that decide what it makes.
_ENDS = (".safetensors", ".pth", ".pt", ".bin", ".model", "config.json", "tokenizer.json")
#: Bytes that are read of a file, in pieces spread over it: enough to tell weights that were trained apart.
_PIECES, _PIECE_BYTES = 16, 2**16


def differences(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> list[str]:
    """What differs between two nested mappings: ``steps was 8 and is 16 now``, in the order of ``before``."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{above}{name}.")
        elif old != new:
            found.append(f"{above}{name} was {_short(old)} and is {_short(new)} now")
    return found


def array_digest(array: ArrayLike | None) -> str | None:
    """Of an image or a video, all of it; None of none."""
    if array is None:
        return None
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(array)
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Of a file, all of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def folder_digest(folder: Path) -> str:
    """Of a model's files: their names, their sizes and pieces of each; the folder itself may be moved."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.name.endswith(_ENDS) and path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size};".encode())
        with path.open("rb") as file:
            last = max(0, size - _PIECE_BYTES)
            for start in sorted({last * piece // (_PIECES - 1) for piece in range(_PIECES)}):
                file.seek(start)
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()[:16]


def _short(value: Any) -> str:
    short = Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)
