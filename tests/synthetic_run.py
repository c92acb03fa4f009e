"""A run's folder without a model: two ways and two prompts, every figure known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowcache.benchmark.ranks import Rank
from flowcache.benchmark.sample import Sample
from flowcache.benchmark.sample_folder import SampleFolder
from flowcache.benchmark.sampling import SamplingJob
from flowcache.benchmark.turns import Turns, folder_of
from flowcache.trace import ChunkEvent, Trace, WindowRecord
from flowcache.video import VideoWriter

PROMPTS = ("a red circle", "a blue square")
SAMPLES = [Sample(f"{prompt}-0", prompt, 0) for prompt in PROMPTS]
#: Denoising seconds of each prompt, by way.
SECONDS = {"vanilla": (10.0, 30.0), "flowcache:paper-fast": (4.0, 10.0), "causal": (8.0, 20.0)}
#: FLOPs of a run, by way.
FLOPS = {"vanilla": 4e15, "flowcache:paper-fast": 1e15, "causal": 2e15}


def make_trace(way: str, seconds: float, sample: Sample) -> Trace:
    """Three chunks in a staircase; every other step of ``flowcache`` is reused, at a distance."""
    trace = Trace(method=way, environment={"hardware": "abacus", "device": "cpu", "threads": "1"})
    reuse = {"whole_window": way == "vanilla", "threshold": 0.1}
    trace.settings = {
        "prompt": sample.prompt,
        "video": {"seed": sample.seed},
        "reuse": reuse,
        "model": "beads",
    }
    trace.begin_window(WindowRecord(4, 2, 0, [2, 2, 2], kv_bytes=2**20))
    for step in range(8):
        live = [(chunk, step - 2 * chunk) for chunk in range(3) if 0 <= step - 2 * chunk < 4]
        reused = "flowcache" in way and step % 2 == 1
        distance = 0.01 * step if "flowcache" in way else None
        events = [ChunkEvent(chunk, local, reused, distance) for chunk, local in live]
        trace.add_step(step, events, 1.0, 10 * len(live), {"actual": FLOPS[way] / 8})
    trace.flops |= {"vanilla": 4e15, "live_only": 3.2e15, "causal": 2e15}
    trace.seconds, trace.peak_memory_bytes = {"denoise": seconds}, 2**30
    return trace


class BeadSampler:
    """Makes grey frames, a little darker the further the way is from vanilla."""

    def __init__(self, way: str, calls: list[tuple[str, str]] | None = None) -> None:
        self.settings = {"method": way}
        self.way, self.calls, self.loaded = way, calls if calls is not None else [], None

    def check(self, sample: Sample) -> None:
        """Nothing to refuse."""

    def load(self) -> None:
        """Note it, and make what others adopt."""
        self.calls.append(("load", self.way))
        self.loaded = object()

    def adopt(self, other: BeadSampler) -> None:
        """Take it."""
        self.loaded = other.loaded

    def generate(self, sample: Sample, path: Path) -> Trace:
        """Frames that depend on sample and way."""
        assert self.loaded is not None, "the weights must be there"
        self.calls.append((sample.name, self.way))
        frames = np.full((9, 32, 32, 3), 100 + 10 * list(SECONDS).index(self.way), np.uint8)
        frames[:, 8:16, 8:16] = 200
        with VideoWriter(path, 8) as writer:
            writer.write(frames)
        return make_trace(self.way, SECONDS[self.way][PROMPTS.index(sample.prompt)], sample)


def make_turns(folder: Path, ways=("vanilla", "flowcache:paper-fast"), samples=SAMPLES, calls=None) -> Turns:
    """The work of making the run in ``folder``; ``calls`` notes loads and videos in their order."""
    jobs = {}
    for way in ways:
        sampler = BeadSampler(way, calls)
        target = SampleFolder(folder / folder_of(way), sampler.settings)
        jobs[way] = SamplingJob(samples, sampler, target, Rank())
    return Turns("Abacus", "9 frames of 32 x 32", folder, jobs)


def make_run(folder: Path, ways=("vanilla", "flowcache:paper-fast"), samples=SAMPLES) -> Path:
    """A whole run in ``folder``/abacus; returns ``folder``."""
    (folder / "abacus").mkdir(parents=True, exist_ok=True)
    turns = make_turns(folder / "abacus", ways, samples)
    turns.check()
    turns.run()
    return folder
