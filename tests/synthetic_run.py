"""A run's folder without a model: several methods and two prompts, every figure known."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from flowcache.benchmark.sample_folder import Manifest
from flowcache.benchmark.samples import Sample
from flowcache.benchmark.sampling import Sampling
from flowcache.parallel.launch import Rank
from flowcache.schedule import StaircaseSchedule
from flowcache.trace import ChunkEvent, Trace, WindowRecord
from flowcache.video import VideoWriter

PROMPTS = ("a red circle", "a blue square")
SAMPLES = [Sample(f"{prompt}-0", prompt, 0) for prompt in PROMPTS]
#: Denoising seconds of each prompt, by method.
SECONDS = {"vanilla": (10.0, 30.0), "flowcache:paper-fast": (4.0, 10.0), "causal": (8.0, 20.0)}
#: FLOPs of a run, by method.
FLOPS = {"vanilla": 4e15, "flowcache:paper-fast": 1e15, "causal": 2e15}
#: What the documentation says that a benchmark's folder holds.
FINISHED = ["manifest.jsonl", "settings.json", "traces", "videos"]


def make_trace(method, seconds=16.0, sample=SAMPLES[0], chunks=3, num_steps=4, stride=2, windows=1) -> Trace:
    """Chunks in a staircase, two of them given in later windows; every other step of ``flowcache`` is reused."""
    trace = Trace(method=method, environment={"hardware": "abacus", "device": "cpu", "threads": "1"})
    trace.settings = {"prompt": sample.prompt, "video": {"seed": sample.seed}, "model": "beads"}
    trace.settings["reuse"] = {"whole_window": method == "vanilla", "threshold": 0.1}
    for window in range(windows):
        schedule = StaircaseSchedule(chunks, num_steps, stride, 2 if window else 0)
        trace.begin_window(WindowRecord(num_steps, stride, 2 if window else 0, [2] * chunks, kv_bytes=2**20))
        for step, live in enumerate(schedule):
            events = [ChunkEvent(chunk, local, reused=False) for chunk, local in live.items()]
            if "flowcache" in method and step > 0:
                totals = [(chunk, local, 0.05 * (2 - local % 2)) for chunk, local in live.items()]
                events = [ChunkEvent(chunk, local, total < 0.1, 0.05, total) for chunk, local, total in totals]
            trace.add_step(step, events, 1.0, 10 * len(live), {"actual": FLOPS[method] / len(schedule)})
    trace.flops |= {"vanilla": 4e15, "live_only": 3.2e15, "causal": 2e15}
    trace.seconds, trace.peak_memory_bytes = {"denoise": seconds}, 2**30
    return trace


class BeadSampler:
    """Makes grey frames; notes its work in ``calls`` and a file ``log``, and fails by ``errors`` or ``dies_at``."""

    def __init__(self, method: str, calls=None, errors=None, log=None, dies_at: str = "", **settings) -> None:
        self.settings = {"num_steps": 3, "video": {"size": 32}, **settings}
        self.method, self.calls, self.loaded = method, [] if calls is None else calls, False
        self.errors, self.log, self.dies_at = errors or {}, log, dies_at

    def check(self, sample: Sample) -> None:
        pass

    def load(self, group=None) -> None:
        self.calls.append(("load", self.method))
        self.loaded, start = True, time.monotonic()
        if self.log:
            time.sleep(0.2)
            with self.log.open("a") as file:
                file.write(f"{start} {time.monotonic()}\n")

    def adopt(self, other) -> None:
        self.loaded = other.loaded

    def generate(self, sample: Sample, path: Path) -> Trace:
        assert self.loaded, "the weights must be there"
        self.calls.append((sample.name, self.method))
        frames = np.full((9, 32, 32, 3), 100 + 10 * list(SECONDS).index(self.method), np.uint8)
        frames[:, 8:16, 8:16] = 200 - 10 * sample.seed
        with VideoWriter(path, 8) as writer:
            writer.write(frames[:1])
            if sample.name == self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if sample.name in self.errors:
                raise self.errors[sample.name]
            writer.write(frames[1:])
        time.sleep(0.1 if self.log else 0)
        return make_trace(self.method, SECONDS[self.method][PROMPTS.index(sample.prompt)], sample)


def make_sampling(folder: Path, methods=tuple(SECONDS)[:2], samples=SAMPLES, rank=None, **options) -> Sampling:
    """The work of making the run in ``folder``; several methods have folders in it, only the first fails."""
    samplers = {methods[0]: BeadSampler(methods[0], **options)}
    samplers |= {method: BeadSampler(method, **{**options, "errors": {}}) for method in methods[1:]}
    options = {"rank": rank or Rank(), "compare": len(methods) > 1}
    return Sampling("Abacus", "9 frames of 32 x 32", folder, samplers, samples, **options)


def make_run(folder: Path, **given) -> str:
    """Make a run in ``folder``; return what the sampling says at its end."""
    sampling = make_sampling(folder, **given)
    sampling.check()
    return sampling.run()


def read_manifest(folder: Path) -> list[dict]:
    """Records in the order in which the videos were first made."""
    return list(Manifest(folder / "manifest.jsonl").read()[0].values())
