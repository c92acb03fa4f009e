"""The state that a run saves as it goes, from which it resumes after it was killed."""

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
from .video import part_path

logger = logging.getLogger(__name__)

#: Raised whenever an older state cannot be resumed from.
FORMAT_VERSION = 5
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
    """

    def __init__(self, video: Path, run: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
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

    def begin(self, trace: Trace) -> State | None:
        """Return the saved state, once, and restore the trace; None if nothing was saved."""
        saved, self._saved = self._saved, None
        if saved is None:
            # A useless state must not be taken for that of the files that grow from here on.
            self.path.unlink(missing_ok=True)
            self._steps = GrowingFile(self._steps_path)
            return None
        self._steps = GrowingFile(self._steps_path, saved["steps"])
        trace.load_state_dict(saved["trace"], self._steps_path.read_text())
        self._num_steps = len(trace.steps)
        logger.info("%s: resuming after %d steps", self.path, self._num_steps)
        return saved["state"]

    def save(self, state: State, trace: Trace) -> None:
        """Replace the saved state, whose ``video`` is that of the writer, and save the trace's new steps."""
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
        """Remove the state of a video that is whole."""
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
    """The content as JSON has it: lists for tuples, and text for other objects."""
    return json.loads(json.dumps(content, default=str))
