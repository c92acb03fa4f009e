"""What a run saves as it goes, so that it can go on where it was killed."""

from __future__ import annotations

import json
import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from .environment import describe_environment, repository_commit
from .files import GrowingFile, check_grown, remove_leftovers, replaced_when_done
from .fingerprint import differences
from .state import State, on_host
from .trace import Trace
from .typed import as_type
from .user_files import reading
from .video import part_of

logger = logging.getLogger(__name__)

#: Raised whenever an older state cannot be gone on from.
FORMAT_VERSION = 2
#: What a run writes beside its video, which may have been killed while it did.
WRITTEN = (".mp4", ".resume.pt", ".trace.json", ".reuse.png")
#: Differences that are named when a state is refused.
MAX_NAMED = 3


class ResumeFile:
    """The state of a run, beside the video that it makes; a killed run goes on from there.

    ``NAME.resume.pt`` holds the newest state and is replaced as a whole. What grows with the video is
    appended to files of its own, ``NAME.part.mp4`` and ``NAME.resume.jsonl`` (the steps of the trace); the
    state knows how far they had come, and what a killed run appended later is cut off. A context manager; it
    keeps other runs that resume away from the video until it is left.

    Args:
        video: path of the video.
        run: all that decides about the video, as plain values by name; what is there must be the same.
        device: where the run works; told by a warning if it was another one, or with other versions.

    Raises:
        ValueError: what lies there cannot be read or is another run's, and what differs is named; or another
            process makes that video now.
    """

    def __init__(self, video: Path, run: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        self._video = video
        self.path = video.with_name(f"{video.stem}.resume.pt")
        self._steps_path = video.with_name(f"{video.stem}.resume.jsonl")
        self._run = _plain(run)
        self._environment = {**describe_environment(device), "code": repository_commit()}
        self._steps: GrowingFile | None = None
        self._num_steps = 0
        self._lock = self._take_lock()
        try:
            for suffix in WRITTEN:
                remove_leftovers(video.with_suffix(suffix))
            self._saved = self._read() if self.path.exists() else None
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

    def begin(self, trace: Trace) -> State | None:
        """The state that ``save`` was given, once; None if there is none. The trace then goes on, too."""
        saved, self._saved = self._saved, None
        if saved is None:
            # One that is of no use must not be taken for that of the files that grow from here on.
            self.path.unlink(missing_ok=True)
            self._steps = GrowingFile(self._steps_path)
            return None
        self._steps = GrowingFile(self._steps_path, saved["steps"])
        trace.load_state_dict(saved["trace"], self._steps_path.read_text())
        self._num_steps = len(trace.steps)
        logger.info("%s: going on after %d steps", self.path, self._num_steps)
        return saved["state"]

    def save(self, state: State, trace: Trace) -> None:
        """Replace what is saved; ``begin`` comes before.

        Args:
            state: with that of the video's writer as ``video``.
            trace: whose steps up to now are saved with it.
        """
        self._steps.append(trace.step_lines(self._num_steps).encode())
        self._num_steps = len(trace.steps)
        content = {
            "format": FORMAT_VERSION,
            "run": self._run,
            "environment": self._environment,
            "trace": _plain(trace.state_dict()),
            "steps": self._steps.state_dict(),
            "state": state,
        }
        with replaced_when_done(self.path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(on_host(content), file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # which PyTorch hides
                    raise error.__context__ from None
                raise
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The video is whole, and nothing is needed any more."""
        for path in (self.path, self._steps_path, Path(self._lock.lock_file)):
            path.unlink(missing_ok=True)

    def _take_lock(self) -> FileLock:
        lock = FileLock(self._video.with_name(f"{self._video.stem}.resume.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(
                f"{self._video} is being made by another process that resumes; wait for it, or name another."
            ) from None
        except NotImplementedError as error:
            raise ValueError(
                f"resume needs locks, which the file system of {self._video.parent} lacks; choose another."
            ) from error
        return lock

    def _read(self) -> State | None:
        """What is saved, if it is this run's; None if the video that it goes with is gone."""
        saved = self._load()
        found = differences(saved["run"], self._run)
        if found:
            named = ", ".join(found[:MAX_NAMED])
            rest = f", and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
            raise ValueError(
                f"{self.path} belongs to another run: {named}{rest}; ask for the same again, or remove it to "
                "begin anew."
            )
        part = part_of(self._video)
        if not part.exists():
            logger.warning("%s is gone, so that %s is of no use; beginning anew.", part, self.path)
            return None
        try:
            check_grown(part, saved["state"]["video"]["part"])
            check_grown(self._steps_path, saved["steps"])
        except ValueError as error:
            raise ValueError(
                f"{self.path} cannot be gone on from, as {str(error).rstrip('.')}; remove it to begin anew."
            ) from error
        for difference in differences(saved["environment"], self._environment):
            logger.warning("%s: %s; the video may not be the same to the last bit.", self.path, difference)
        return saved

    def _load(self) -> State:
        with reading(self.path, "the state of a run", "remove it to start again"):
            with zipfile.ZipFile(self.path) as archive:
                if archive.testzip() is not None:  # which torch.load would not notice
                    raise ValueError("it is damaged")
            try:  # tensors and plain values, and no object of any other kind
                saved = torch.load(self.path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:  # whose text advises to load such objects
                raise ValueError("it holds objects that no state has") from error
            if not isinstance(saved, dict) or saved.get("format") != FORMAT_VERSION:
                raise ValueError("another version saved it")
            as_type(saved["trace"], Trace)
            for name in ("run", "environment"):
                as_type(saved[name], dict[str, Any])
            for grown in (saved["steps"], saved["state"]["video"]["part"]):
                as_type([grown["length"], grown["checksum"]], list[int])
            return saved


def _plain(content: Mapping[str, Any]) -> State:
    """As JSON knows it: lists for tuples, and text for whatever it has no word for."""
    return json.loads(json.dumps(content, default=str))
