"""The folder that a benchmark's videos go to: what was made, with which settings, and who is at what.

    videos/        the videos and nothing else, as benchmarks want it
    traces/        what happened in each run
    manifest.jsonl a line for each video: prompt, seed, settings, files, time, environment
    settings.json  what all videos share

Any number of processes may work in it at once; one that is killed leaves it readable.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import writable_folder
from ..files import write_json
from ..trace import Trace
from .locks import Locks

logger = logging.getLogger(__name__)

#: Room for suffixes and for the name that a file bears while it is written; a name has 255 bytes at most.
MAX_NAME_BYTES = 230


@dataclass(frozen=True)
class Sample:
    """A video to make.

    Attributes:
        name: of the file, without suffix.
        prompt: what to show.
        seed: of the noise.
        image: first frame.
        video: what to continue.

    Raises:
        ValueError: the name cannot be a file's, or it starts from an image and from a video.
    """

    name: str
    prompt: str
    seed: int
    image: Path | None = None
    video: Path | None = None

    def __post_init__(self) -> None:
        if not self.name or any(c in "/\0\n" for c in self.name) or self.name.startswith("."):
            raise ValueError(f"a video cannot be named {self.name!r}.")
        if len(self.name.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"a name may have {MAX_NAME_BYTES} bytes, but this one has more: {self.name!r}.")
        if self.image is not None and self.video is not None:
            raise ValueError(f"{self.name}: a video starts from an image or from a video, not from both.")

    def as_dict(self) -> dict[str, Any]:
        """What tells it from others, for the manifest."""
        given = {"image": self.image, "video": self.video}
        sources = {key: None if path is None else str(path) for key, path in given.items()}
        return {"name": self.name, "prompt": self.prompt, "seed": self.seed, **sources}


class SampleFolder:
    """A benchmark's folder, opened with the settings that all of its videos share.

    Args:
        path: made if need be.
        settings: everything that decides about a video but the sample itself; plain values, as JSON has them.

    Raises:
        ValueError: it cannot be written to, or holds videos of other settings; both differing values are named.
        OSError: its file system has no locks.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = writable_folder("base_save_path", path)
        self.videos, self._traces, self._scratch = (path / name for name in ("videos", "traces", ".unfinished"))
        for folder in (self.videos, self._traces, self._scratch):
            folder.mkdir(exist_ok=True)
        self.locks = Locks(path / ".locks")
        self._settings = json.loads(json.dumps(settings))
        with self.locks.hold("settings"):
            self._share_settings(path / "settings.json")
        self._manifest = Manifest(path / "manifest.jsonl")

    def _share_settings(self, path: Path) -> None:
        if not path.exists():
            write_json(path, self._settings)
            return
        difference = _first_difference(json.loads(path.read_text()), self._settings)
        if difference is not None:
            key, there, here = difference
            raise ValueError(
                f"base_save_path {self.path} holds videos of other settings ({key} is {there!r} there and "
                f"{here!r} here); give another folder, or the same settings."
            )

    def is_finished(self, sample: Sample) -> bool:
        """Whether its video is there and the manifest says how it came about.

        Raises:
            ValueError: a video of that name was made from something else.
        """
        record = self._manifest.records().get(sample.name)
        if record is None or not (self.path / record["file"]).is_file():
            return False
        difference = _first_difference({key: record.get(key) for key in sample.as_dict()}, sample.as_dict())
        if difference is not None:
            key, there, here = difference
            raise ValueError(
                f"base_save_path {self.path} holds a video {sample.name} of another {key} ({there!r} there, "
                f"{here!r} here); give another folder."
            )
        return True

    @contextmanager
    def workplace(self, sample: Sample) -> Iterator[Path]:
        """A path to write a sample's video to, in a folder of its own that is gone afterwards.

        What a killed process left there goes first; only who holds the sample's lock may come here.
        """
        folder = self._scratch / sample.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder / "video.mp4"
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, sample: Sample, video: Path, trace: Trace, details: Mapping[str, Any]) -> None:
        """Take a video and its trace in, and write the manifest's line, in this order.

        Args:
            details: more to write into the line.
        """
        files = {
            "file": self.videos / f"{sample.name}{video.suffix}",
            "trace": self._traces / f"{sample.name}.trace.json",
        }
        trace.save(files["trace"])
        os.replace(video, files["file"])
        places = {key: str(file.relative_to(self.path)) for key, file in files.items()}
        with self.locks.hold("manifest"):
            self._manifest.append({**sample.as_dict(), **places, "settings": self._settings, **details})


class Manifest:
    """Records in a file of JSON lines, the newest of a name counting. Who appends must hold a lock.

    A line that a killed process left unfinished is passed over, and the next one begins behind it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._records: dict[str, dict[str, Any]] = {}

    def records(self) -> dict[str, dict[str, Any]]:
        """All records by name; reads what others have added since."""
        if not self._path.is_file():
            return self._records
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                self._records[record["name"]] = record
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: an unfinished line is passed over.", self._path)
        return self._records

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line; it is on the disk when this returns."""
        with self._path.open("a+b") as file:
            ends_whole = file.tell() == 0 or _last_byte(file) == b"\n"
            file.write((b"" if ends_whole else b"\n") + json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Records of a benchmark's folder, in the order in which the videos were first made.

    Raises:
        ValueError: there is no manifest.
    """
    path = folder / "manifest.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} holds no manifest.jsonl: no video was made there.")
    return list(Manifest(path).records().values())


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _first_difference(there: Any, here: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key, in alphabetical order, under which two trees of values differ, and both values."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        return None if there == here else (key, there, here)
    for name in sorted(there.keys() | here.keys()):
        found = _first_difference(there.get(name), here.get(name), f"{key}.{name}".lstrip("."))
        if found is not None:
            return found
    return None
