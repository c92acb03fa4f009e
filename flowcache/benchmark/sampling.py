"""Makes the videos of a benchmark, with as many processes as there are; knows no model.

Every process takes its share of what is not finished, and then what others left: videos at which nobody
works, be it that a process was killed or that it is slower. A sample gives the same video whichever process
makes it. A sample that fails does not stop the others: the manifest keeps the reason, other processes and the
next run try it again, and the run ends with a list.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from ..environment import repository_commit
from ..trace import Trace
from .ranks import Rank, start_on_all, starts_others
from .sample import Sample, SamplesFailed
from .sample_folder import SampleFolder

logger = logging.getLogger(__name__)

#: Failures in a row after which a process stops: their cause is then hardly in the samples.
MAX_FAILURES_IN_A_ROW = 10
#: Errors that the next sample would meet as well: full disk, exceeded quota, file system gone read-only.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Sampler(Protocol):
    """What a model package gives: makes videos that differ in their samples only."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides about a video but the sample; plain values, as JSON has them."""

    def check(self, sample: Sample) -> None:
        """Refuse a sample that cannot be made, before any weight is read.

        Raises:
            ValueError: one sentence that says why.
        """

    def load(self) -> None:
        """Read the weights; called once."""

    def adopt(self, other: Any) -> None:
        """Take the weights that another sampler of the same model has loaded, in place of ``load``."""

    def generate(self, sample: Sample, path: Path) -> Trace:
        """Make a sample's video, write it to ``path``, and return what happened."""


@dataclass(frozen=True)
class SamplingJob:
    """A benchmark's samples, what makes them and where they go; checked when ``check`` returns.

    With ``keep_going``, a sample that cannot be made does not keep the others from being made.
    """

    samples: Sequence[Sample]
    sampler: Sampler
    folder: SampleFolder
    rank: Rank = field(default_factory=Rank)
    keep_going: bool = False

    def check(self) -> None:
        """Refuse what cannot be done, before any weight is read.

        Raises:
            ValueError: two samples share a name, some cannot be made, or one was made from something else.
        """
        names: set[str] = set()
        for sample in self.samples:
            if sample.name in names:
                raise ValueError(f"two samples share the name {sample.name}.")
            names.add(sample.name)
        reasons = {}
        for sample in self.unfinished():
            try:
                self.sampler.check(sample)
            except ValueError as error:
                reasons[sample.name] = str(error)
        if reasons and not self.keep_going:
            raise SamplesFailed(
                f"{len(reasons)} of {len(self.samples)} samples cannot be made; mend or remove them, or make "
                "the others with --keep_going:",
                reasons,
            )

    def unfinished(self) -> list[Sample]:
        """Samples without a video so far."""
        return [sample for sample in self.samples if not self.folder.is_finished(sample)]

    def run(self) -> str:
        """Make this process's share and what others left; returns what to say of it."""
        return f"{make_videos([self])}\nvideos: {self.folder.videos}"

    def make_unless_taken(self, sample: Sample) -> bool | None:
        """Make a sample, if it is neither there nor on its way; weights are loaded before.

        Returns:
            True: made. False: failed, and the manifest has the reason. None: there, or another's.
        """
        with self.folder.locks.attempt(f"sample {sample.name}") as free:
            return self._make(sample) if free and not self.folder.is_finished(sample) else None

    def wait_for(self, sample: Sample) -> None:
        """Wait while another process makes a sample."""
        with self.folder.locks.hold(f"sample {sample.name}"):
            pass

    def failures(self) -> dict[Path, str]:
        """By the path of a video that is not there, why the newest attempt at it failed."""
        found = {sample.name: self.folder.failure(sample) for sample in self.unfinished()}
        return {self.folder.videos / f"{name}.mp4": why for name, why in found.items() if why is not None}

    def _make(self, sample: Sample) -> bool:
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        with self.folder.scratch(sample) as path:
            try:
                trace = self.sampler.generate(sample, path)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                    raise
                self._note_failure(sample, error)
            else:
                details = {
                    "started": started,
                    "seconds": time.perf_counter() - clock,
                    "seconds_by_stage": trace.seconds,
                    "rank": self.rank.index,
                    "environment": {**trace.environment, "commit": repository_commit()},
                }
                self.folder.keep(sample, path, trace, details)
                return True
        if torch.cuda.is_available():  # the error, which is gone by now, referred to tensors on the GPU
            gc.collect()
            torch.cuda.empty_cache()
        return False

    def _note_failure(self, sample: Sample, error: Exception) -> None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        expected = isinstance(error, (OSError, ValueError, torch.OutOfMemoryError))
        logger.warning("%s failed: %s", sample.name, reason, exc_info=None if expected else error)
        self.folder.note_failure(sample, reason)


def make_videos(jobs: Sequence[SamplingJob]) -> str:
    """Make this process's share and what others left, in all jobs; returns what to say of it.

    All jobs have the same samples. The process that takes a sample makes it in all of them, one after
    another, and begins with another job for each sample. Processes of one machine load one after another. A
    process that has no share does not load.

    Raises:
        SamplesFailed: some videos could not be made.
    """
    samples, rank, made, in_a_row = jobs[0].samples, jobs[0].rank, 0, 0
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(job.folder.open())
        todo = [sample for sample in samples if _count(jobs, [sample]) < len(jobs)]
        # first what has not failed before, so that bad samples cannot keep the others from being made
        todo.sort(key=lambda sample: any(job.folder.failure(sample) is not None for job in jobs))
        share, others = split(todo, rank)
        if share:
            _load(jobs)
            made, in_a_row = _make_until_done([*share, *others], jobs)
        if any(job.failures() for job in jobs):
            # torchrun ends all processes with the first that fails: let the others finish their videos
            for job in jobs:
                for sample in job.unfinished():
                    job.wait_for(sample)
        failures = {path: why for job in jobs for path, why in job.failures().items()}
    count = f"{_count(jobs, samples)} of {len(samples) * len(jobs)}"
    report = f"rank {rank.index} made {made} videos; {count} are there"
    if in_a_row >= MAX_FAILURES_IN_A_ROW:
        report += f"; stopped after {in_a_row} failures in a row"
    if failures:
        raise SamplesFailed(f"{report}; the same command tries again what failed:", failures)
    return report


def _make_until_done(samples: Sequence[Sample], jobs: Sequence[SamplingJob]) -> tuple[int, int]:
    """How many videos this process made, and how many failed in a row at the end."""
    made = in_a_row = 0
    everything = jobs[0].samples
    with tqdm(total=len(everything) * len(jobs), unit="video", disable=jobs[0].rank.index != 0) as bar:
        for sample in samples:
            for job in _order(jobs, sample):
                outcome = job.make_unless_taken(sample)
                if outcome is not None:
                    made, in_a_row = made + outcome, 0 if outcome else in_a_row + 1
                bar.update(_count(jobs, everything) - bar.n)
            if in_a_row >= MAX_FAILURES_IN_A_ROW:
                break
    return made, in_a_row


def _count(jobs: Sequence[SamplingJob], samples: Sequence[Sample]) -> int:
    """Videos of these samples that are there."""
    return sum(job.folder.is_finished(sample) for job in jobs for sample in samples)


def _order(jobs: Sequence[SamplingJob], sample: Sample) -> list[SamplingJob]:
    """All jobs, the last one first for the first sample, and so on backwards."""
    start = -1 - jobs[0].samples.index(sample) % len(jobs)
    return [*jobs[start:], *jobs[:start]]


def _load(jobs: Sequence[SamplingJob]) -> None:
    """Read the weights once for all jobs."""
    first, *others = jobs
    with first.folder.locks.hold(f"load {socket.gethostname()}"):
        first.sampler.load()
    for other in others:
        other.sampler.adopt(first.sampler)


class Work(Protocol):
    """What a process does, as told by ``run_on``."""

    def run(self) -> str:
        """Do this process's part; returns what to say of it."""


def run_on(devices: Sequence[str], job: Work, command: Sequence[str] | None = None) -> str:
    """Sample, or hand over to one process for each device, started with this one's arguments.

    Returns:
        What to say of it.
    """
    if starts_others(os.environ, devices):
        start_on_all(devices, command or sys.argv)
    try:
        return job.run()
    except BaseException as failure:
        failure.add_note("whole videos are kept; run the same command again for the others")
        raise


def split(samples: Sequence[Sample], rank: Rank) -> tuple[list[Sample], Iterable[Sample]]:
    """A process's own share, and the rest from its end, where others come last."""
    share = list(samples[rank.index :: rank.count])
    own = {sample.name for sample in share}
    return share, [sample for sample in reversed(samples) if sample.name not in own]
