"""The state that a run saves as it goes, from which it resumes after it was killed."""

from __future__ import annotations

import json
import logging
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from .environment import describe_environment, repository_commit
from .files import GrowingFile, check_grown, remove_leftovers, replaced_when_done
from .fingerprint import differences
from .parallel import Group
from .parallel.layout import SINGLE
from .state import State, on_host
from .trace import Trace
from .typed import as_type
from .user_files import reading
from .video import part_path

logger = logging.getLogger(__name__)

#: Raised whenever an older state cannot be resumed from.
FORMAT_VERSION = 8
#: Suffixes of the files beside the video, which a killed run may have left half-written.
WRITTEN = (".mp4", ".resume.pt", ".trace.json", ".reuse.png")
#: Differences that are named when a state is refused.
MAX_NAMED = 3


class ResumeFile:
    """The state of a run, beside its video; a killed run resumes from it.

    ``NAME.resume.pt`` holds the newest state and is replaced as a whole. ``NAME.part.mp4`` and
    ``NAME.resume.jsonl`` (the steps of the trace) grow; the state knows their lengths, and what a killed run
    appended later is cut off. A context manager; it keeps other runs that resume away from the video.

    ``run`` is all that decides about the video, as plain values by name; a saved state must have the same. Another
    device, or other versions of libraries, are a warning.

    Of several processes, this is the first one's; its state counts the saves, and so names the files of the others
    that belong to it, see ``ResumeShare``.
    """

    def __init__(self, video: Path, run: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self._group, self._num_saves = SINGLE.world, 0
        self._video = video
        self.path = video.with_name(f"{video.stem}.resume.pt")
        self._steps_path = video.with_name(f"{video.stem}.resume.jsonl")
        self._run = _plain(run)
        self._environment = {**describe_environment(device), "code": repository_commit()}
        self._steps: GrowingFile | None = None
        self._num_steps = 0
        self._lock = FileLock(video.with_name(f"{video.stem}.resume.lock"))
        try:
            self._lock.acquire(blocking=False)
            for suffix in WRITTEN:
                remove_leftovers(video.with_suffix(suffix))
            self._saved = self._read() if self.path.exists() else None
        except Timeout:
            raise ValueError(
                f"{video} is being made by another process that resumes; wait for it, or name another."
            ) from None
        except NotImplementedError as error:
            raise ValueError(
                f"resume needs locks, which the file system of {video.parent} lacks; choose another."
            ) from error
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> ResumeFile:
        return self

    def __exit__(self, _: object, failure: BaseException | None, __: object) -> None:
        if self._steps is not None:
            self._steps.close()
        if not self.path.exists():
            self.remove()
        elif failure is not None:
            failure.add_note(f"to resume from {self.path}, run the same command again")
        self._lock.release()

    def open(self, group: Group) -> None:
        """Tell the other processes of the run what was saved."""
        self._group, saved = group, self._saved
        steps = saved and self._steps_path.read_text()[: saved["steps"]["length"]]
        group.broadcast_object(saved and (saved["saves"], saved["trace"], steps))

    def restart(self) -> None:
        """Disregard a saved state, before ``open``."""
        self._saved = None

    def begin(self, trace: Trace) -> State | None:
        """Return the saved state, once, and restore the trace; None if nothing was saved."""
        saved, self._saved = self._saved, None
        if saved is None:
            # A useless state must not be taken for that of the files that grow from here on.
            self.path.unlink(missing_ok=True)
            self._steps = GrowingFile(self._steps_path)
            return None
        self._steps, self._num_saves = GrowingFile(self._steps_path, saved["steps"]), saved["saves"]
        trace.load_state_dict(saved["trace"], self._steps_path.read_text())
        self._num_steps = len(trace.steps)
        logger.info("%s: resuming after %d steps", self.path, self._num_steps)
        return saved["state"]

    def save(self, state: State, trace: Trace) -> None:
        """Replace the saved state, whose ``video`` is that of the writer, and save the trace's new steps.

        Those of other processes are on the disk before; they are removed after.
        """
        self._steps.append(trace.step_lines(self._num_steps).encode())
        self._num_steps = len(trace.steps)
        self._num_saves += 1
        content = {
            "format": FORMAT_VERSION,
            "run": self._run,
            "environment": self._environment,
            "saves": self._num_saves,
            "trace": _plain(trace.state_dict()),
            "steps": self._steps.state_dict(),
            "state": state,
        }
        self._group.gather_objects(None)
        _write_state(self.path, content)
        self._group.gather_objects(None)

    def finish(self) -> None:
        """Remove the state of a video that is whole, before those of the other processes."""
        self.remove()
        self._group.gather_objects(None)

    def remove(self) -> None:
        for path in (self.path, self._steps_path, Path(self._lock.lock_file)):
            path.unlink(missing_ok=True)

    def _read(self) -> State | None:
        """The saved state, if it is this run's; None if the video that belongs to it is gone."""
        saved = self._load()
        found = differences(saved["run"], self._run)
        if found:
            named = ", ".join(found[:MAX_NAMED])
            rest = f", and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            raise ValueError(
                f"{self.path} belongs to another run: {named}{rest}; give the same options, or remove it to "
                "start again."
            )
        part = part_path(self._video)
        if not part.exists():
            logger.warning("%s is gone, so that %s is useless; starting again.", part, self.path)
            return None
        try:
            check_grown(part, saved["state"]["video"]["part"])
            check_grown(self._steps_path, saved["steps"])
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise ValueError(f"{self.path} cannot be used, as {reason}; remove it to start again.") from error
        for difference in differences(saved["environment"], self._environment):
            logger.warning("%s: %s; the video may not be the same to the last bit.", self.path, difference)
        return saved

    def _load(self) -> State:
        with _reading_state(self.path) as saved:
            as_type(saved["trace"], Trace)
            for name in ("run", "environment"):
                as_type(saved[name], dict[str, Any])
            for grown in (saved["steps"], saved["state"]["video"]["part"]):
                as_type([grown["length"], grown["checksum"], saved["saves"]], list[int])
            return saved


class ResumeShare:
    """The state of a process beside the first, with the interface of ``ResumeFile``.

    Each save is a file of its own, ``NAME.rank1.7.resume.pt``: that of the save before remains until the first process
    has replaced its state. So the files that a killed run leaves hold a state of the same step of every process.
    """

    def __init__(self, video: Path, run: Mapping[str, Any], index: int) -> None:
        self._run, self._index, self._first = _plain(run), index, video.with_name(f"{video.stem}.resume.pt")
        self._start = f"{video.stem}.rank{index}."
        self._group, self._num_saves = SINGLE.world, 0
        self._saved: State | None = None

    def __enter__(self) -> ResumeShare:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._first.exists():
            self._remove_all_but(None)

    def open(self, group: Group) -> None:
        """Read the state that belongs to the first process's; raises ValueError if it cannot be used."""
        self._group, first = group, group.broadcast_object()
        self._remove_all_but(None if first is None else first[0])
        if first is None:
            return
        self._num_saves, trace, steps = first
        path, remedy = self._path(), f"remove {self._first} to start again"
        if not path.is_file():
            raise ValueError(f"{path} is missing; {remedy}.")
        with _reading_state(path, remedy) as saved:
            if saved["run"] != self._run:
                raise ValueError("it belongs to another run")
            self._saved = {"trace": trace, "steps": steps, "state": saved["state"]}

    def begin(self, trace: Trace) -> State | None:
        saved, self._saved = self._saved, None
        if saved is None:
            return None
        trace.load_state_dict(saved["trace"], saved["steps"])
        return saved["state"]

    def save(self, state: State, _: Trace) -> None:
        self._num_saves += 1
        _write_state(self._path(), {"format": FORMAT_VERSION, "run": self._run, "state": state})
        self._group.gather_objects(None)
        self._group.gather_objects(None)
        self._remove_all_but(self._num_saves)

    def finish(self) -> None:
        self._group.gather_objects(None)
        self._remove_all_but(None)

    def _path(self) -> Path:
        return self._first.with_name(f"{self._start}{self._num_saves}.resume.pt")

    def _remove_all_but(self, kept: int | None) -> None:
        """Remove the files of other saves, and those that a killed process left half-written."""
        for start in (self._start, f".{self._start}"):
            for path in self._first.parent.glob(f"{escape(start)}*.pt"):
                if path.name != f"{self._start}{kept}.resume.pt":
                    path.unlink(missing_ok=True)


@contextmanager
def _reading_state(path: Path, remedy: str = "remove it to start again") -> Iterator[State]:
    """Read a file of a state; within the block, too, what is wrong with it becomes one sentence."""
    with reading(path, "the state of a run", remedy):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # which torch.load would not notice
                raise ValueError("it is damaged")
        try:  # tensors and plain values, and no object of any other kind
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # whose text advises to load such objects
            raise ValueError("it holds objects that no state has") from error
        if not isinstance(saved, dict) or saved.get("format") != FORMAT_VERSION:
            raise ValueError("another version saved it")
        yield saved


def _write_state(path: Path, content: State) -> None:
    with replaced_when_done(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(on_host(content), file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # which PyTorch hides
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def _plain(content: Mapping[str, Any]) -> State:
    """The content as JSON has it: lists for tuples, and text for other objects."""
    return json.loads(json.dumps(content, default=str))
