"""The runner of a benchmark: makes its videos by one method or several, in any number of processes.

Each process makes its share of the samples that are not finished, then those at which nobody works: a process may have
been killed, or be slower. A sample gives the same video whichever process makes it. A failure does not stop the
others: the manifest keeps the reason, other processes and the next run try again, and the run ends with a list.
Where several processes share a video, such a group does what is said of a process here: its first process chooses the
samples and writes.
Several methods run in turn on each sample, so that a slow spell of the machine hits all:

    METHOD/        a folder of videos for each method, see ``sample_folder``
    ways.json      the model, and the methods in their order
"""

import errno
import gc
import logging
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from filelock import Timeout
from tqdm import tqdm

from ..environment import repository_commit
from ..files import write_json
from ..parallel import Group
from ..parallel.launch import Rank, start_on_all
from ..parallel.world import World
from ..sampler import Sampler
from ..user_files import read_json
from .sample_folder import SampleFolder
from .samples import Sample, SamplesFailed

logger = logging.getLogger(__name__)

METHODS_FILE = "ways.json"
#: A process stops after this number of failures in a row: their cause is then hardly in the samples.
MAX_FAILURES_IN_A_ROW = 10
#: Errors that the next sample would meet as well: full disk, exceeded quota, read-only file system.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def folder_name(method: str) -> str:
    return method.replace(":", "_")


@dataclass(frozen=True)
class MethodList:
    """The model of a folder of several methods, what all its videos share, and the methods."""

    model: str
    settings: str
    ways: list[str]


def read_methods(folder: Path) -> MethodList:
    return read_json(folder / METHODS_FILE, MethodList, "a list of methods")


@dataclass(frozen=True)
class Sampling:
    """A benchmark's samples, the methods that make them, and the folder of the results."""

    model: str  # its name, as in the paper
    description: str  # what all videos share
    output: Path
    samplers: Mapping[str, Sampler]  # by method, such as ``flowcache:fast``
    samples: Sequence[Sample]
    rank: Rank = field(default_factory=Rank)
    keep_going: bool = False  # make the other samples if some cannot be made
    compare: bool = False  # each method has its own folder in ``output``
    together: int = 1  # consecutive processes that make each video together
    folders: dict[str, SampleFolder] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for method, sampler in self.samplers.items():
            path = self.output / folder_name(method) if self.compare else self.output
            self.folders[method] = SampleFolder(path, sampler.settings)

    def check(self) -> None:
        """Raise ValueError for what cannot be made before any weight is read; write the list of methods."""
        ((name, count),) = Counter(sample.name for sample in self.samples).most_common(1)
        if count > 1:
            raise ValueError(f"samples: two share the name {name}.")
        reasons = {}
        for method, sample in self._unfinished():
            try:
                self.samplers[method].check(sample)
            except ValueError as error:
                reasons[sample.name] = str(error)
        if reasons and not self.keep_going:
            raise SamplesFailed(
                f"{len(reasons)} of {len(self.samples)} samples cannot be made; correct or remove them, or "
                "make the others with --keep_going:",
                reasons,
            )
        if not self.compare:
            return
        path, methods = self.output / METHODS_FILE, list(self.samplers)
        if path.is_file():
            saved = read_methods(self.output)
            theirs = f"{saved.model}, {saved.settings}"
            if theirs != f"{self.model}, {self.description}":
                raise ValueError(f"base_save_path: {self.output} has videos of {theirs}; give another folder.")
            methods = list(dict.fromkeys([*saved.ways, *methods]))
        write_json(path, asdict(MethodList(self.model, self.description, methods)))

    def _unfinished(self) -> list[tuple[str, Sample]]:
        """Videos to make, by method and sample."""
        pairs = [(method, sample) for method in self.samplers for sample in self.samples]
        return [(method, sample) for method, sample in pairs if not self.folders[method].is_finished(sample)]

    def failures(self) -> dict[Path, str]:
        """Why the newest attempt at a video failed, by the path of the absent video."""
        found = [(self.folders[method], sample) for method, sample in self._unfinished()]
        reasons = {folder.videos / f"{sample.name}.mp4": folder.failure(sample) for folder, sample in found}
        return {path: reason for path, reason in reasons.items() if reason is not None}

    def run(self) -> str:
        """Make this process's share and what others left; returns a report, or raises SamplesFailed.

        Processes of one machine load one after another; one without a share does not load.
        """
        made, in_a_row, folders, world = 0, 0, list(self.folders.values()), World(self.rank)
        first, *others = self.samplers.values()
        number, place = divmod(self.rank.index, self.together)
        groups = self.rank.count // self.together
        with ExitStack() as stack:
            group = Group()
            if self.together > 1:
                stack.callback(world.leave)
                _, group = world.join(first.device, first.model.connection).split(groups)
            for folder in folders:
                stack.enter_context(folder.open())
            todo = list(dict.fromkeys(sample for _, sample in self._unfinished()))
            # samples that failed before come last, so that they cannot keep the others from being made
            todo.sort(key=lambda sample: any(folder.failure(sample) is not None for folder in folders))
            share = todo[number::groups]
            if group.broadcast_object(bool(share)):
                with folders[0].lock(f"load {socket.gethostname()}"):
                    first.load(group)
                for other in others:
                    other.adopt(first)
                if not group.is_first:
                    self._follow(group)
                    return f"rank {self.rank.index} shared the videos of rank {self.rank.index - place}"
                made, in_a_row = self._make(list(dict.fromkeys([*share, *reversed(todo)])), group)
                group.broadcast_object()
            if self.failures():
                # torchrun ends all processes with the first that fails: wait for the others' videos
                for method, sample in self._unfinished():
                    with self.folders[method].lock(f"sample {sample.name}"):
                        pass
            failures = self.failures()
        total = len(self.samples) * len(self.samplers)
        exist = total - len(self._unfinished())
        report = f"rank {self.rank.index} made {made} videos; {exist} of {total} exist"
        if in_a_row >= MAX_FAILURES_IN_A_ROW:
            report += f"; stopped after {in_a_row} failures in a row"
        if failures:
            raise SamplesFailed(f"{report}; the same command tries again what failed:", failures)
        place = f"folder: {self.output}" if self.compare else f"videos: {self.output / 'videos'}"
        return f"{report}\n{place}"

    def _follow(self, group: Group) -> None:
        """Take part in the videos that the first process of the group makes."""
        while (chosen := group.broadcast_object()) is not None:
            method, sample = chosen
            with suppress(ValueError):  # which all processes of the group raise, and the first notes
                self.samplers[method].generate(sample, Path())

    def _make(self, samples: Sequence[Sample], group: Group) -> tuple[int, int]:
        """Number of videos that this process made, and of failures in a row at the end."""
        made, in_a_row, methods = 0, 0, list(self.samplers)
        total = len(self.samples) * len(methods)
        with tqdm(total=total, unit="video", disable=self.rank.index != 0) as bar:
            for sample in samples:
                # each sample begins with another method, so that none is always the first
                start = -1 - self.samples.index(sample) % len(methods)
                for method in [*methods[start:], *methods[:start]]:
                    success = self._make_unless_taken(method, sample, group)
                    if success is not None:
                        made, in_a_row = made + success, 0 if success else in_a_row + 1
                    bar.update(total - len(self._unfinished()) - bar.n)
                if in_a_row >= MAX_FAILURES_IN_A_ROW:
                    break
        return made, in_a_row

    def _make_unless_taken(self, method: str, sample: Sample, group: Group) -> bool | None:
        """Whether the video could be made; None: it exists, or another process makes it."""
        folder = self.folders[method]
        with suppress(Timeout), folder.claim(sample) as path:
            return None if folder.is_finished(sample) else self._make_one(method, sample, path, group)
        return None

    def _make_one(self, method: str, sample: Sample, path: Path, group: Group) -> bool:
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        group.broadcast_object((method, sample))
        try:
            trace = self.samplers[method].generate(sample, path)
        except Exception as error:
            if group.size > 1 and not isinstance(error, ValueError):
                raise  # the others of the group may wait for this process
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            expected = isinstance(error, (OSError, ValueError, torch.OutOfMemoryError))
            logger.warning("%s failed: %s", sample.name, reason, exc_info=None if expected else error)
            self.folders[method].note_failure(sample, reason)
        else:
            details = {"started": started, "seconds": time.perf_counter() - clock, "seconds_by_stage": trace.seconds}
            details |= {"rank": self.rank.index, "environment": {**trace.environment, "commit": repository_commit()}}
            self.folders[method].keep(sample, path, trace, details)
            return True
        if torch.cuda.is_available():  # the error, which is gone by now, referred to tensors on the GPU
            gc.collect()
            torch.cuda.empty_cache()
        return False


def run_on(devices: Sequence[str], sampling: Sampling) -> str:
    """Sample, or hand over to one process for each device, started with this one's arguments."""
    start_on_all(devices)
    try:
        return sampling.run()
    except BaseException as failure:
        failure.add_note("finished videos are kept; run the same command again for the others")
        raise
