"""Makes the videos of a benchmark, with as many processes as there are; knows no model.

Every process takes its share of what is not finished, and then what others left: videos at which nobody
works, be it that a process was killed or that it is slower. A sample gives the same video whichever process
makes it.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ..environment import repository_commit
from ..trace import Trace
from .ranks import Rank, start_on_all, starts_others
from .sample import Sample
from .sample_folder import SampleFolder


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

    def generate(self, sample: Sample, path: Path) -> Trace:
        """Make a sample's video, write it to ``path``, and return what happened."""


@dataclass(frozen=True)
class SamplingJob:
    """A benchmark's samples, what makes them and where they go; checked when ``check`` returns."""

    samples: Sequence[Sample]
    sampler: Sampler
    folder: SampleFolder
    rank: Rank = field(default_factory=Rank)

    def check(self) -> None:
        """Refuse what cannot be done, before any weight is read.

        Raises:
            ValueError: two samples share a name, one cannot be made, or one was made from something else.
        """
        names: set[str] = set()
        for sample in self.samples:
            if sample.name in names:
                raise ValueError(f"two samples share the name {sample.name}.")
            names.add(sample.name)
        for sample in self.unfinished():
            self.sampler.check(sample)

    def unfinished(self) -> list[Sample]:
        """Samples without a video so far."""
        return [sample for sample in self.samples if not self.folder.is_finished(sample)]

    def run(self) -> str:
        """Make this process's share and what others left; returns what to say of it.

        Processes of one machine load one after another. One that has no share does not load.
        """
        share, others = split(self.unfinished(), self.rank)
        made = 0
        if share:
            with self.folder.locks.hold(f"load {socket.gethostname()}"):
                self.sampler.load()
            with tqdm(total=len(self.samples), unit="video", disable=self.rank.index != 0) as bar:
                for sample in (*share, *others):
                    made += self.make_unless_taken(sample)
                    bar.update(len(self.samples) - len(self.unfinished()) - bar.n)
        there = len(self.samples) - len(self.unfinished())
        return (
            f"rank {self.rank.index} made {made} videos; {there} of {len(self.samples)} are there\n"
            f"videos: {self.folder.videos}"
        )

    def make_unless_taken(self, sample: Sample) -> bool:
        """Make a sample, if it is neither there nor on its way; says whether. ``load`` comes before."""
        with self.folder.locks.attempt(f"sample {sample.name}") as free:
            if not free or self.folder.is_finished(sample):
                return False
            self._make(sample)
            return True

    def _make(self, sample: Sample) -> None:
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        with self.folder.scratch(sample) as path:
            trace = self.sampler.generate(sample, path)
            details = {
                "started": started,
                "seconds": time.perf_counter() - clock,
                "seconds_by_stage": trace.seconds,
                "rank": self.rank.index,
                "environment": {**trace.environment, "commit": repository_commit()},
            }
            self.folder.keep(sample, path, trace, details)


class Work(Protocol):
    """What a process does, as told by ``run_on``."""

    def run(self) -> str:
        """Do this process's part; returns what to say of it."""


def run_on(devices: Sequence[str], job: Work) -> str:
    """Sample, or hand over to one process for each device, started with this one's arguments.

    Returns:
        What to say of it.
    """
    if starts_others(os.environ, devices):
        start_on_all(devices, sys.argv)
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
