"""The folder of a benchmark's videos.

    videos/        the videos and nothing else, as benchmarks expect
    traces/        the trace of each run
    manifest.jsonl a line for each video: prompt, seed, settings, files, time, environment;
                   and one for each failure, with the reason as ``error``
    settings.json  what all videos share

Any number of processes may work in it at once, on one machine or on many where the file system has locks for all;
one that is killed leaves it readable. Their locks, and a folder beside each with what its holder writes, are hidden;
the last process removes them.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..command_line import writable_folder
from ..files import write_json
from ..trace import Trace
from ..user_files import read_json
from .samples import Sample, is_file_name, safe_name

logger = logging.getLogger(__name__)

#: Leaves room for ``.trace.json`` and for the temporary name while that is written.
MAX_TRACE_BYTES = 230


class Manifest:
    """Records in a file of JSON lines, of which the newest of a name counts."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0
        self._records: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, str] = {}

    def read(self) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Records, and reasons of failures that no record followed, by name; of all processes so far."""
        if not self._path.is_file():
            return self._records, self._failures
        with self._path.open("rb") as file:
            file.seek(self._position)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                name = record["name"]
                if "error" in record:
                    self._failures[name] = str(record["error"])
                else:
                    self._records[name] = record
                    self._failures.pop(name, None)
            except (ValueError, KeyError, TypeError, RecursionError):
                logger.warning("%s: an unfinished or damaged line is skipped.", self._path)
        return self._records, self._failures

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line to the file on the disk; the caller holds a lock."""
        with self._path.open("a+b") as file:
            size = file.tell()
            file.seek(max(0, size - 1))
            cut_short = size > 0 and file.read() != b"\n"
            file.write(b"\n" * cut_short + json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


class SampleFolder:
    """A folder of videos that share their settings: all that determines a video except the sample.

    Nothing is written there before ``open``. ValueError if it cannot be written to, or holds videos of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = writable_folder("base_save_path", path)
        self.videos, self._settings = path / "videos", json.loads(json.dumps(settings))
        self._manifest = Manifest(path / "manifest.jsonl")
        if self._manifest.read()[0]:
            self._check_settings()

    def lock(self, name: str) -> FileLock:
        """A lock among the processes that work in this folder; one that ends frees its locks, even if killed."""
        return FileLock(self.path / f".{safe_name(name)}.lock")

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let this process make videos within the block; another run may have changed the settings since."""
        try:
            with self.lock("manifest"):
                if self._manifest.read()[0]:
                    self._check_settings()
                else:  # the settings of a run that made nothing do not count
                    write_json(self.path / "settings.json", self._settings)
                (self.path / "manifest.jsonl").touch()
                for folder in (self.videos, self.path / "traces"):
                    folder.mkdir(exist_ok=True)
            yield
        finally:
            with self.lock("manifest") as lock:
                for path in self.path.glob(".*.lock"):
                    with suppress(Timeout), FileLock(path).acquire(blocking=False):  # nobody holds it
                        shutil.rmtree(path.with_suffix(".unfinished"), ignore_errors=True)
                        path.unlink()
                Path(lock.lock_file).unlink()

    def _check_settings(self) -> None:
        saved = read_json(self.path / "settings.json", dict[str, Any], "settings of videos")
        self._check_same(saved, self._settings, "videos")

    def _check_same(self, saved: Any, ours: Any, what: str) -> None:
        if difference := _first_difference(saved, ours):
            key, there, here = difference
            raise ValueError(
                f"base_save_path: {self.path} holds {what} of another {key} ({there!r} there, {here!r} here); give "
                "another folder, or the same settings."
            )

    def is_finished(self, sample: Sample) -> bool:
        """Whether its video exists and has a record; ValueError if it was made from something else."""
        record = self._manifest.read()[0].get(sample.name, {})
        file = record.get("file")
        if not isinstance(file, str) or not (self.path / file).is_file():
            return False
        ours = sample.as_dict()
        self._check_same({key: record.get(key) for key in ours}, ours, f"a video {sample.name}")
        return True

    @contextmanager
    def claim(self, sample: Sample) -> Iterator[Path]:
        """Lock a sample; yields a path to write its video to, in an empty folder that is removed afterwards.

        Raises Timeout if another process has it.
        """
        lock = self.lock(f"sample {sample.name}")
        with self.lock("manifest"):  # no other process clears away the locks that it finds free
            taken = lock.acquire(blocking=False)
        with taken:
            folder = Path(lock.lock_file).with_suffix(".unfinished")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                yield folder / "video.mp4"
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def keep(self, sample: Sample, video: Path, trace: Trace, details: Mapping[str, Any]) -> None:
        """Store a video and its trace, then the manifest's line with ``details``, in this order."""
        name = sample.name if is_file_name(sample.name, MAX_TRACE_BYTES) else safe_name(sample.name)
        places = {"file": f"videos/{sample.name}{video.suffix}", "trace": f"traces/{name}.trace.json"}
        with self.lock("manifest"):
            self._check_settings()
            trace.save(self.path / places["trace"])
            os.replace(video, self.path / places["file"])
            self._manifest.append({**sample.as_dict(), **places, "settings": self._settings, **details})

    def note_failure(self, sample: Sample, reason: str) -> None:
        """Record why a video could not be made."""
        with self.lock("manifest"):
            self._manifest.append({**sample.as_dict(), "error": reason})

    def failure(self, sample: Sample) -> str | None:
        """Why the newest attempt to make a video failed; None if it did not."""
        return self._manifest.read()[1].get(sample.name)


def _first_difference(there: Any, here: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key, in alphabetical order, at which two trees of values differ, and both values."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        return None if there == here else (key, there, here)
    names = sorted(there.keys() | here.keys())
    found = (_first_difference(there.get(n), here.get(n), f"{key}.{n}".lstrip(".")) for n in names)
    return next(filter(None, found), None)
