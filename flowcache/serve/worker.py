"""The worker: makes the videos of a queue, one after another, with weights that stay loaded."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from threading import Event, Thread

from ..adapter import Adapter
from ..cli import Job, prepare_video
from ..command_line import one_line
from ..options import DEFAULTS
from ..running import describe_failure
from ..sampler import Sampler
from ..state import VideoPart
from .queue import Video, VideoQueue

logger = logging.getLogger(__name__)


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
        return prepare_video(self.model, [*words, DEFAULTS, *self.words])

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
        while not self._stopping.is_set():
            self._wake.clear()
            if (video := self.queue.claim()) is None:
                self._wake.wait()
                continue
            try:
                self._make(video)
            except Cancelled:
                is_wanted = self.queue.get(video.id) is not None
            except Exception as error:
                is_wanted = self._fail(video, describe_failure(error))
            else:
                is_wanted = self.queue.finish(video.id)
            if not is_wanted:
                self.remove_files(video.id)

    def _make(self, video: Video) -> None:
        path = self.video_path(video.id)
        if path.exists():  # a video has its name when it is whole: a process was killed behind it
            return
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

        job.run(on_step=on_step, on_part=on_part)
        self._loaded = job.sampler

    def _fail(self, video: Video, sentence: str) -> bool:
        logger.warning("%s failed: %s", video.id, sentence)
        gc.collect()  # frees what the exception held
        return self.queue.finish(video.id, sentence)
