"""Fingerprint of a run: digests of its inputs and models, differences of its settings, and its file name."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

#: Endings of the files of a model's folder that determine its output.
_ENDS = (".safetensors", ".pth", ".pt", ".bin", ".model", "config.json", "tokenizer.json")
#: Pieces read of a file, spread over it: enough to distinguish trained weights.
_PIECES, _PIECE_BYTES = 16, 2**16
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60
#: Bytes of a name without suffix. The longest that is written beside a video is 21 bytes longer,
#: ``.NAME.trace.12345678.json``, and stays below 240.
MAX_NAME_BYTES = 218


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], words: str = "was {} and is {} now", above: str = ""
) -> list[str]:
    """List the differences of two nested mappings, by default as ``steps was 8 and is 16 now``."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, words, f"{above}{name}.")
        elif old != new:
            found.append(f"{above}{name} {words.format(_SHORT.repr(old), _SHORT.repr(new))}")
    return found


def array_digest(array: ArrayLike | None) -> str | None:
    """Digest a whole image or video; None for None."""
    if array is None:
        return None
    array = np.asarray(array)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def folder_digest(folder: Path) -> str:
    """Digest names, sizes and pieces of a model's files, or of one file; independent of where the folder is."""
    digest = hashlib.sha256()
    files = [folder]
    if folder.is_dir():
        # ``rglob`` does not enter links, as which models share components.
        links = [path for path in folder.iterdir() if path.is_symlink() and path.is_dir()]
        files = [path for part in (folder, *links) for path in part.rglob("*")]
    for path in sorted(path for path in files if path.name.endswith(_ENDS) and path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size};".encode())
        with path.open("rb") as file:
            last = max(0, size - _PIECE_BYTES)
            for start in sorted({last * piece // (_PIECES - 1) for piece in range(_PIECES)}):
                file.seek(start)
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()[:16]


def video_name(prompt: str, words: Iterable[str], identity: Mapping[str, Any]) -> str:
    """File name of a video, made of ``identity``: all that decides about the video, without its paths."""
    content = json.dumps(identity, sort_keys=True, default=str)
    rest = "_".join([*words, hashlib.sha256(content.encode()).hexdigest()[:8]])
    start = prompt_words(prompt).encode()[: MAX_NAME_BYTES - len(rest) - 1].decode(errors="ignore")
    return f"{start}_{rest}.mp4"


def prompt_words(prompt: str) -> str:
    """A prompt as part of a file's name: letters and digits, at most 60 of them and 120 bytes."""
    words = "".join(c if c.isalnum() else " " for c in prompt).split()
    name = "_".join(words)[:60].strip("_")
    return name.encode()[:120].decode(errors="ignore") or "video"
