"""The worker: makes the videos of a queue, one after another, with weights that stay loaded."""

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import rmtree
from threading import Event, Thread
from typing import TypeVar

from ..adapter import Adapter
from ..cli import Job, prepare_video
from ..command_line import describe_error, one_line
from ..options import DEFAULTS
from ..running import describe_failure
from ..sampler import Sampler
from ..state import VideoPart
from .queue import Video, VideoQueue

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Attempts at a video: one kill may be chance or another program's need for memory, three are the video's own.
MAX_ATTEMPTS = 3
#: Seconds until the queue is written again that could not be.
RETRY = 10.0


class Cancelled(Exception):
    """The video is not wanted any more, or the worker is to stop."""


@dataclass
class Worker:
    """Thread that makes videos with a model and the options of ``flowcache generate`` that all of them share.

    Each is ``ID/video.mp4`` in the folder. A video saves its state as it grows, and resumes from it when a worker of
    the same folder starts.
    """

    model: type[Adapter]
    words: Sequence[str]
    queue: VideoQueue
    folder: Path
    _loaded: Sampler | None = None
    _wake: Event = field(default_factory=Event)
    _stopping: Event = field(default_factory=Event)

    def prepare(self, *words: str) -> Job:
        """Check a video with options of its own over those of all videos; raises as ``prepare_video`` does."""
        try:
            return prepare_video(self.model, [*words, DEFAULTS, *self.words])
        except SystemExit as error:  # of the parser: the server that queued the video had other options
            raise ValueError("the server no longer takes the options of this video; ask again.") from error

    def start(self) -> None:
        self._thread = Thread(target=self._work, name="flowcache worker")
        self._thread.start()

    def wake(self) -> None:
        """Look for a new video."""
        self._wake.set()

    def stop(self) -> None:
        """Stop behind the running step; the video resumes at the next start."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def video_path(self, id: str) -> Path:
        return self.folder / id / "video.mp4"

    def remove_files(self, id: str) -> None:
        rmtree(self.folder / id, ignore_errors=True)

    def _work(self) -> None:
        while True:
            self._wake.clear()  # before the look at what ``stop`` sets
            if self._stopping.is_set():
                return
            if (video := self._write(self.queue.claim)) is None:
                self._wake.wait()
                continue
            end = self.queue.finish
            try:
                self._make(video)
            except Cancelled:
                end = self.queue.release
            except Exception as error:
                end = partial(end, error=describe_failure(error))
                if self._write(partial(self.queue.get, video.id)) is not None:
                    logger.warning("%s failed: %s", video.id, end.keywords["error"])
            gc.collect()  # frees what an exception held
            if self._write(partial(end, video.id)) is False:  # the video is not wanted any more
                self.remove_files(video.id)

    def _write(self, write: Callable[[], T]) -> T | None:
        """Write to the queue, again and again while it cannot be; None if the worker is to stop before it was."""
        while True:
            try:
                return write()
            except OSError as error:
                logger.error("%s The worker tries again in %g s.", describe_error(error), RETRY)
                if self._stopping.wait(RETRY):
                    return None

    def _make(self, video: Video) -> None:
        path = self.video_path(video.id)
        if path.exists():  # a video has its name when it is whole: a process was killed behind it
            return
        if video.attempts > MAX_ATTEMPTS:
            ended = f"the server was killed {MAX_ATTEMPTS} times while it made this video"
            raise ValueError(f"{ended}, perhaps for want of memory; ask for a shorter or smaller one.")
        logger.info("%s: %s", video.id, one_line(video.prompt))
        job = self.prepare(*video.words, "--resume", f"--output_path={path}")
        if self._loaded is not None:
            job.sampler.adopt(self._loaded)
        total = job.sampler.model.video.num_frames
        num_frames = video.progress * total // 100  # in the file of a video that resumes

        def on_part(part: VideoPart) -> VideoPart:
            nonlocal num_frames
            num_frames += part.frames.shape[1]
            self.queue.report(video.id, min(99, 100 * num_frames // total))
            return part

        def on_step() -> None:
            if self._stopping.is_set() or self.queue.get(video.id) is None:
                raise Cancelled

        try:
            job.run(on_step=on_step, on_part=on_part)
        except OSError as error:
            if not path.exists():
                raise
            logger.warning("%s: %s", video.id, describe_error(error))  # of a file beside the video
        self._loaded = job.sampler
