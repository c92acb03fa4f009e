"""The folder that a benchmark's videos go to: what was made, with which settings, and who is at what.

    videos/        the videos and nothing else, as benchmarks want it
    traces/        what happened in each run
    manifest.jsonl a line for each video: prompt, seed, settings, files, time, environment;
                   and one for each that failed, with the reason as ``error``
    settings.json  what all videos share

Any number of processes may work in it at once; one that is killed leaves it readable. While they do, the
folder also holds ``.locks`` and ``.unfinished``, which the last one removes.
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
from ..user_files import read_json
from .locks import Locks, locked
from .sample import Sample, is_file_name, safe_name

logger = logging.getLogger(__name__)

#: Leaves room for ``.trace.json`` and for the temporary name while that is written.
MAX_TRACE_BYTES = 230


class SampleFolder:
    """A benchmark's folder, for videos that share their settings.

    Args:
        path: made if need be; nothing is written there before ``open``.
        settings: everything that decides about a video but the sample itself; plain values, as JSON has them.

    Raises:
        ValueError: it cannot be written to, or holds videos of other settings; the difference is named.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = writable_folder("base_save_path", path)
        self.videos, self._traces, self._scratch = (
            path / name for name in ("videos", "traces", ".unfinished")
        )
        self._manifest_file = path / "manifest.jsonl"
        self._manifest = Manifest(self._manifest_file)
        self.locks = Locks(path / ".locks", self._manifest_file, self._scratch)
        self._settings = json.loads(json.dumps(settings))
        if self._manifest.records():
            self._check_settings()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let this process make videos within the block.

        Raises:
            ValueError: another run has meanwhile begun to fill the folder with videos of other settings.
            OSError: the file system has no locks.
        """
        with locked(self._manifest_file):
            if self._manifest.records():
                self._check_settings()
            else:  # those of a run that made nothing bind nobody
                write_json(self._settings_file, self._settings)
            for folder in (self.videos, self._traces):
                folder.mkdir(exist_ok=True)
        with self.locks:
            yield

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
        file = None if record is None else record.get("file")
        if not isinstance(file, str) or not (self.path / file).is_file():
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
        folder.mkdir(parents=True)
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
        name = sample.name if is_file_name(sample.name, MAX_TRACE_BYTES) else safe_name(sample.name)
        files = {
            "file": self.videos / f"{sample.name}{video.suffix}",
            "trace": self._traces / f"{name}.trace.json",
        }
        places = {key: str(file.relative_to(self.path)) for key, file in files.items()}
        with locked(self._manifest_file):
            self._check_settings()
            trace.save(files["trace"])
            os.replace(video, files["file"])
            self._manifest.append({**sample.as_dict(), **places, "settings": self._settings, **details})

    def note_failure(self, sample: Sample, reason: str) -> None:
        """Write into the manifest why a video could not be made, for all processes and the next run."""
        with locked(self._manifest_file):
            self._manifest.append({**sample.as_dict(), "error": reason})

    def failure(self, sample: Sample) -> str | None:
        """Why the newest attempt to make a video failed; None if it did not."""
        return self._manifest.failures().get(sample.name)


class Manifest:
    """Records in a file of JSON lines, the newest of a name counting. Who appends must hold a lock.

    A line that a killed process left unfinished is passed over, and the next one begins behind it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._records: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, str] = {}

    def records(self) -> dict[str, dict[str, Any]]:
        """Records by name, without failures; reads what others have added since."""
        self._update()
        return self._records

    def failures(self) -> dict[str, str]:
        """By name, the reason of a failure that no record followed."""
        self._update()
        return self._failures

    def _update(self) -> None:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                self._add(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                logger.warning("%s: an unfinished or damaged line is passed over.", self._path)

    def _add(self, record: dict[str, Any]) -> None:
        name = record["name"]
        if "error" in record:
            self._failures[name] = str(record["error"])
        else:
            self._records[name] = record
            self._failures.pop(name, None)

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
