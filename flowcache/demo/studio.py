"""Makes the videos of visitors, one at a time, and shows the progress of each."""

import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Literal

from ..cli import Job
from ..prompts import check_prompt
from ..running import describe_failure
from ..sampler import Sampler
from ..state import VideoPart
from ..trace import Trace
from ..video import to_uint8
from .request import Request
from .strips import Part

#: Seconds between two looks at a run.
PACE = 0.2

#: Stages whose time counts until a part is ready.
_STAGES = ("text", "encode", "denoise", "decode")


class Stopped(Exception):
    """The visitor stopped the run."""


@dataclass
class Run:
    """One video as it is made; it can be stopped after any step, and resumes behind its last part.

    ``changes`` are new prompts by the number of steps behind which they were sent; runs that are compared share them.
    """

    request: Request
    changes: dict[int, str] = field(default_factory=dict)
    state: Literal["waiting", "computing", "stopped", "failed", "done"] = "waiting"
    trace: Trace = field(default_factory=Trace)
    parts: list[Part] = field(default_factory=list)
    error: str = ""
    job: Job | None = None
    _stop: Event = field(default_factory=Event, repr=False)
    _sent: str = ""  # waits for the end of the running step

    def stop(self) -> None:
        """Stop after the step that is being computed, or at the first one."""
        self._stop.set()

    def allow(self) -> None:
        """Disregard an earlier stop."""
        self._stop.clear()

    def work(self, job: Job) -> None:
        """Make the video, or what is left of it."""
        self.job, self.trace = job, Trace()
        if not self.parts:
            job.resume.restart()
        elif not job.resume.path.exists():
            self.parts = []
        job.run(None, self.trace, self._end_step, self._show)

    def change_prompt(self, prompt: str) -> None:
        """Give a prompt to the chunks that begin behind the running step; raises ValueError for one without words."""
        if not prompt.strip():
            raise ValueError("prompt: expected text, got none; describe the video.")
        check_prompt("prompt", prompt, self.request.adapter.clean_prompt)
        self._sent = prompt

    def _end_step(self) -> dict[str, str] | None:
        if self._stop.is_set():
            raise Stopped
        if not self.trace.windows:  # a step of a pilot video
            return None
        steps, sent, self._sent = len(self.trace.steps), self._sent, ""
        if sent:
            for later in [at for at in self.changes if at > steps]:
                del self.changes[later]  # of the part that is made again
            self.changes[steps] = sent
        return {"prompt": self.changes[steps]} if steps in self.changes else None

    def _show(self, part: VideoPart) -> VideoPart:
        ready = sum(self.trace.seconds.get(stage, 0.0) for stage in _STAGES)
        self.parts.append(Part.encode(to_uint8(part.frames), ready))
        return part


class Studio:
    """One model in memory and one thread that computes, shared by all visitors."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._loaded: Sampler | None = None
        self._current: Run | None = None

    def close(self) -> None:
        """Stop what is computed, and wait for it."""
        if self._current is not None:
            self._current.stop()
        self._pool.shutdown(cancel_futures=True)

    def play(self, requests: Sequence[Request]) -> Iterator[list[Run]]:
        """Make videos one after another; yields all runs at each change.

        Requests are checked before the first is made; raises ValueError or OSError with one sentence. Each video has a
        folder of its own: with changes of the prompt, equal requests do not make equal videos.
        """
        for request in requests:
            request.prepare(dry_run=True)
        changes: dict[int, str] = {}
        own = [replace(request, folder=request.folder / secrets.token_hex(6)) for request in requests]
        yield from self.resume([Run(request, changes) for request in own])

    def resume(self, runs: Sequence[Run]) -> Iterator[list[Run]]:
        """Continue with the runs that are not done; what ends one early is its ``state`` and its ``error``."""
        for run in runs:
            run.allow()
        for run in runs:
            if run.state == "done":
                continue
            run.state, run.error = "computing", ""
            self._current = run
            yield list(runs)
            work = self._pool.submit(self._work, run)
            try:
                seen = None
                while not work.done():
                    wait([work], timeout=PACE)
                    loaded = run.job is not None and run.job.sampler.is_loaded
                    if (now := (len(run.trace.steps), len(run.parts), run.job, loaded)) != seen:
                        seen = now
                        yield list(runs)
            finally:  # also where nobody watches any more
                run.stop()
                wait([work])
            yield list(runs)
            if run.state != "done":
                return

    def _work(self, run: Run) -> None:
        try:
            job = run.request.prepare()
            if self._loaded is not None and _weights(self._loaded) == _weights(job.sampler):
                job.sampler.adopt(self._loaded)
            else:
                self._loaded = None  # before others are read
            run.work(job)
            run.state = "done"
        except Stopped:
            run.state = "stopped"
        except Exception as error:
            run.state, run.error = "failed", describe_failure(error)
        finally:
            if run.job is not None and run.job.sampler.is_loaded:
                self._loaded = run.job.sampler


def change_prompt(runs: Sequence[Run], prompt: str) -> None:
    """Change the prompt of runs that are compared, behind the same step of each; raises ValueError."""
    if not takes_prompts(runs):
        is_late = any(run.state == "computing" for run in runs)
        why = "the first of the two videos is finished" if is_late else "no video is running"
        raise ValueError(f"prompt: {why}; change it while the {'first' if is_late else 'video'} runs.")
    runs[0].change_prompt(prompt)


def takes_prompts(runs: Sequence[Run]) -> bool:
    """Whether the first of the runs is computed: a later one must not have prompts that the first lacks."""
    return bool(runs) and runs[0].state == "computing"


def _weights(sampler: Sampler) -> tuple[object, ...]:
    """What must be the same for a loaded model to serve another run."""
    model = sampler.model
    return type(model), model.location, str(model.folders), model.loading, sampler.device
