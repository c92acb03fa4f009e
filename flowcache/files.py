"""Files of the project, and files that are written whole or not at all."""

import csv
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from .state import State


def shipped(name: str) -> Path:
    """Path of a folder such as ``assets/magi1_small``: in the checkout, or in ``data`` of the installed package."""
    package = Path(__file__).resolve().parent
    return (package.parent if (package.parent / "pyproject.toml").is_file() else package / "data") / name


@contextmanager
def replaced_when_done(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path of the same suffix beside ``path``; it replaces ``path`` on success."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # writing names no file
            with suppress(AttributeError):  # PyAV's errors take no name
                error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: str | Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote ``path``."""
    path = Path(path)
    for temporary in path.parent.glob(f".{escape(path.stem)}.{'?' * 8}{escape(path.suffix)}"):
        temporary.unlink(missing_ok=True)


class GrowingFile:
    """A file that grows by pieces, each written whole or not at all.

    An earlier file of that name stays for a process that has it open. With the ``state_dict`` of a file at
    that path, it continues there without later pieces; ValueError where the file is another.
    """

    def __init__(self, path: Path, state: State | None = None) -> None:
        if state is None:
            path.unlink(missing_ok=True)
        else:
            check_grown(path, state)
        self.path = path
        self.length, self._checksum = (state["length"], state["checksum"]) if state else (0, 0)
        self.file = path.open("r+b" if state else "x+b", buffering=0)
        self._cut()

    def append(self, content: bytes) -> None:
        """Write a piece whole, or leave the file unchanged."""
        try:
            written = 0
            while written < len(content):
                written += self.file.write(content[written:])
        except BaseException as error:
            self._cut()
            if isinstance(error, OSError):
                error.filename = str(self.path)  # writing names no file
            raise
        self.length += len(content)
        self._checksum = zlib.crc32(content, self._checksum)

    def _cut(self) -> None:
        """Cut the file after its last whole piece."""
        self.file.truncate(self.length)
        self.file.seek(self.length)

    def state_dict(self) -> State:
        """Flush to the disk; return length and checksum."""
        os.fsync(self.file.fileno())
        return {"length": self.length, "checksum": self._checksum}

    def close(self) -> None:
        self.file.close()

    def remove(self) -> None:
        """Remove the file, unless another file has its name by now."""
        with suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(self.file.fileno())):
                self.path.unlink()


def check_grown(path: Path, state: State) -> None:
    """Raise ValueError unless a file begins with the content of the ``GrowingFile`` that gave ``state``."""
    if not path.exists():
        raise ValueError(f"{path} is missing.")
    left, checksum = state["length"], 0
    with path.open("rb") as file:
        while left and (content := file.read(min(left, 2**20))):
            checksum = zlib.crc32(content, checksum)
            left -= len(content)
    if left or checksum != state["checksum"]:
        raise ValueError(f"{path} is not the file that was written.")


def write_atomically(path: str | Path, content: bytes) -> None:
    with replaced_when_done(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as JSON; raise ValueError for a number that is not finite."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode())


def write_csv(path: str | Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV below a line with the names of the columns; missing values stay empty."""
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, table.getvalue().encode())


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a column for each title; cells are written as ``str`` writes them."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (titles, ["---"] * len(titles), *rows))


def write_results(
    stem: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], content: Mapping[str, Any]
) -> list[Path]:
    """Write rows to ``stem.csv`` and everything to ``stem.json``; returns both paths."""
    paths = [Path(f"{stem}{suffix}") for suffix in (".csv", ".json")]
    write_csv(paths[0], columns, rows)
    write_json(paths[1], content)
    return paths
