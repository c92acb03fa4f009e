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
from pathlib import Path
from typing import Any

from ..command_line import writable_folder
from ..files import write_json
from ..trace import Trace
from ..typed import as_type
from ..user_files import read_json, reading
from .locks import Locks
from .sample import Sample

logger = logging.getLogger(__name__)


class SampleFolder:
    """A benchmark's folder, opened with the settings that all of its videos share.

    Args:
        path: made if need be.
        settings: everything that decides about a video but the sample itself; plain values, as JSON has them.

    Raises:
        ValueError: it cannot be written to, or holds videos of other settings; the difference is named.
        OSError: its file system has no locks.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = writable_folder("base_save_path", path)
        self.videos, self._traces, self._scratch = (
            path / name for name in ("videos", "traces", ".unfinished")
        )
        for folder in (self.videos, self._traces, self._scratch):
            folder.mkdir(exist_ok=True)
        self.locks = Locks(path / ".locks")
        self._settings = json.loads(json.dumps(settings))
        self._manifest = Manifest(path / "manifest.jsonl")
        with self.locks.hold("manifest"):
            if self._manifest.records():
                self._check_settings()
            else:  # those of a run that made nothing bind nobody
                write_json(self._settings_file, self._settings)

    @property
    def _settings_file(self) -> Path:
        return self.path / "settings.json"

    def _check_settings(self) -> None:
        there = read_json(self._settings_file, dict[str, Any], "settings of videos")
        difference = _first_difference(there, self._settings)
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
    def scratch(self, sample: Sample) -> Iterator[Path]:
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

        Raises:
            ValueError: another run has meanwhile begun to fill the folder with videos of other settings.
        """
        files = {
            "file": self.videos / f"{sample.name}{video.suffix}",
            "trace": self._traces / f"{sample.name}.trace.json",
        }
        places = {key: str(file.relative_to(self.path)) for key, file in files.items()}
        with self.locks.hold("manifest"):
            self._check_settings()
            trace.save(files["trace"])
            os.replace(video, files["file"])
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
            except ValueError:
                logger.warning("%s: an unfinished line is passed over.", self._path)
                continue
            with reading(self._path, "a list of records", "remove that line"):
                name = as_type(record, dict[str, Any], "a line")["name"]
                as_type(record.get("file"), str | None, "file")
                self._records[as_type(name, str, "name")] = record
        return self._records

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line; it is on the disk when this returns."""
        with self._path.open("a+b") as file:
            ends_whole = file.tell() == 0 or _last_byte(file) == b"\n"
            file.write(
                (b"" if ends_whole else b"\n") + json.dumps(record, ensure_ascii=False).encode() + b"\n"
            )
            file.flush()
            os.fsync(file.fileno())


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
