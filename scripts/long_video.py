"""Show what a long video costs: memory over its length, and time per chunk over the video.

    bash scripts/long_video.sh --model skyreels --chunks 10 40 160

Every run is a process of its own, with and without compression, and writes its video. Memory is the most
that the process ever held and what was allocated for keys and values. The time of a chunk is that between
its frames and those of the one before, all that happens included: on a CPU the time that the process had,
which does not tell how busy the machine was otherwise; on a GPU that of the clock.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from chunk_videos import LIVE, MODELS, add_video_flags, checked_flags
from interleaved import main, positive
from matplotlib.figure import Figure
from tqdm import tqdm

from flowcache import Trace
from flowcache.command_line import Parser
from flowcache.environment import describe_environment, peak_memory_bytes
from flowcache.files import write_json
from flowcache.markdown import markdown_table
from flowcache.plots.style import COMPUTED, REUSED, faint_grid, plain_frame, save_figure
from flowcache.video import VideoWriter, to_uint8

WAYS = {"compressed": COMPUTED, "plain": REUSED}


@dataclass(frozen=True)
class Run:
    """One video: how, how long, and with what."""

    way: str
    chunks: int
    model: str
    steps: int
    budget: int
    device: str
    outdir: Path


@dataclass(frozen=True)
class Measurement:
    """What a run took; ``seconds`` lie between a chunk's frames and those of the one before."""

    way: str
    chunks: int
    frames: int
    kv_bytes: int
    process_bytes: int
    seconds: list[float]

    @property
    def slowdown(self) -> float | None:
        """Median time of the last tenth of the chunks over the first; None for too few.

        Chunks during which fewer than usual are live, the last ones, are left out; the first, which takes
        all of its steps, has no one before it.
        """
        steady = self.seconds[: len(self.seconds) + 1 - LIVE]
        tenth = len(steady) // 10
        return median(steady[-tenth:]) / median(steady[:tenth]) if tenth >= 3 else None


def measure(run: Run) -> Measurement:
    """Make one video and write it; to be called in a process of its own."""
    trace = Trace(method=run.way)
    videos = MODELS[run.model](run.chunks, run.steps, run.device)
    cache = videos.cache("balanced", run.budget if run.way == "compressed" else None)
    parts = videos.stream(cache, trace)
    now = time.process_time if run.device == "cpu" else time.perf_counter
    times, frames = [], 0
    with VideoWriter(run.outdir / f"{run.model}_{run.way}_{run.chunks}.mp4", fps=24) as writer:
        for part in parts:
            writer.write(to_uint8(part.frames))
            times.append(now())
            frames += part.frames.shape[1]
    seconds = [after - before for before, after in pairwise(times)]
    kv_bytes = trace.windows[0].kv_bytes
    return Measurement(run.way, run.chunks, frames, kv_bytes, peak_memory_bytes("cpu"), seconds)


def bench(args: argparse.Namespace) -> str:
    """Run everything, one process after another; returns a Markdown table."""
    args.outdir.mkdir(parents=True, exist_ok=True)
    shared = (args.model, args.steps, args.budget, args.device, args.outdir)
    runs = [Run(way, chunks, *shared) for chunks in args.chunks for way in WAYS]
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        measurements = list(tqdm(pool.map(measure, runs), total=len(runs), unit="video"))
    record = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "environment": describe_environment(torch.device(args.device)),
        "measurements": [asdict(m) | {"slowdown": m.slowdown} for m in measurements],
    }
    write_json(args.outdir / f"long_video_{args.model}.json", record)
    draw(measurements, args.outdir / f"long_video_{args.model}.png")
    return summarise(measurements)


def summarise(measurements: Sequence[Measurement]) -> str:
    """A row for each run."""
    titles = ("chunks", "frames", "cache", "KV MiB", "process MiB", "s per chunk", "last tenth / first tenth")
    rows = []
    for m in measurements:
        slowdown = "" if m.slowdown is None else f"{m.slowdown:.2f}"
        cells = [m.chunks, m.frames, m.way, f"{m.kv_bytes / 2**20:.1f}", f"{m.process_bytes / 2**20:.0f}"]
        rows.append([*cells, f"{median(m.seconds):.2f}", slowdown])
    return markdown_table(titles, rows)


def draw(measurements: Sequence[Measurement], path: Path) -> None:
    """Save a PNG: memory over the length of the video, and the time of each chunk of the longest."""
    figure = Figure(figsize=(11, 3.6), dpi=110, layout="constrained")
    keys, process, clock = figure.subplots(1, 3)
    for way, colour in WAYS.items():
        runs = sorted((m for m in measurements if m.way == way), key=lambda m: m.chunks)
        chunks = [m.chunks for m in runs]
        style = {"color": colour, "label": way}
        keys.plot(chunks, [m.kv_bytes / 2**20 for m in runs], marker="o", **style)
        process.plot(chunks, [m.process_bytes / 2**20 for m in runs], marker="o", **style)
        clock.plot(range(1, chunks[-1]), runs[-1].seconds, linewidth=0.9, **style)
    for axis, title in ((keys, "keys and values, MiB"), (process, "process at its peak, MiB")):
        axis.set(title=title, xlabel="chunks of the video")
    clock.set(title="time of a chunk, s", xlabel="chunk of the longest video")
    for axis in (keys, process, clock):
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
        plain_frame(axis)
        faint_grid(axis)
    keys.legend(frameon=False)
    save_figure(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add_video_flags(parser, steps=20)
    add("--chunks", type=positive, nargs="+", default=[10, 40, 160], help="lengths of the videos")
    add("--budget", type=positive, default=4, help="chunks' worth of tokens kept of finished ones")
    add("--outdir", type=Path, default=Path("outputs/long_video"))
    args = checked_flags(parser)
    if min(args.chunks) < 2:
        raise ValueError(f"chunks must be at least 2, got {min(args.chunks)}.")
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
