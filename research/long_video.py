"""Measure long videos: memory over their length, and time per chunk over the video.

    python -m research.long_video --model skyreels --chunks 10 40 160

Every run is a process of its own, with our default compression, the paper's and none, and writes its video. Memory
is the peak of the process, and what was allocated for keys and values. The time of a chunk is that between its
frames and those of the previous chunk: on a CPU process time, which other programs hardly change; on a GPU wall
time. A contact sheet shows every tenth chunk of the longest videos in the folder.
"""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tqdm import tqdm

from flowcache import Trace
from flowcache.environment import peak_memory_bytes
from flowcache.files import markdown_table
from flowcache.plots.style import COMPUTED, REUSED
from flowcache.video import VideoWriter, contact_sheet, read_video, to_uint8

from .compare import draw_panels, main, positive, write_results
from .runs import LIVE, PROMPT, find_chunk_model, new_parser

#: Colours by what is done to the cache.
CACHES = {"default": REUSED, "paper": "black", "plain": COMPUTED}


class Measurement(NamedTuple):
    """Cost of one video; ``seconds`` between a chunk's frames and those of the previous chunk."""

    cache: str
    chunks: int
    frames: int
    kv_bytes: int
    process_bytes: int
    seconds: list[float]

    @property
    def slowdown(self) -> float | None:
        """Median of the last tenth of the chunks over that of the first; None for too few.

        Without the last chunks, during which fewer are live.
        """
        steady = self.seconds[: len(self.seconds) + 1 - LIVE]
        tenth = len(steady) // 10
        return median(steady[-tenth:]) / median(steady[:tenth]) if tenth >= 3 else None


def measure(args: argparse.Namespace, run: tuple[int, str]) -> Measurement:
    """Make one video and write it; to be called in a process of its own."""
    chunks, cache = run
    model, trace = find_chunk_model(args, chunks), Trace(method=cache)
    limit = {"kv_range": chunks} if cache == "plain" else {"budget": args.budget}
    limit |= {"scorer": "paper", "compactor": "select"} if cache == "paper" else {}
    now = time.process_time if args.device == "cpu" else time.perf_counter
    times, frames = [], 0
    with VideoWriter(args.outdir / f"{args.model}_{cache}_{chunks}.mp4", fps=24) as writer:
        for part in model.stream(PROMPT, 0, model.configure("flowcache", "balanced", **limit), trace):
            writer.write(to_uint8(part.frames))
            times.append(now())
            frames += part.frames.shape[1]
    seconds = [after - before for before, after in pairwise(times)]
    return Measurement(cache, chunks, frames, trace.windows[0].kv_bytes, peak_memory_bytes("cpu"), seconds)


def bench(args: argparse.Namespace) -> str:
    find_chunk_model(args, max(args.chunks))
    if min(args.chunks) < 2:
        raise ValueError(f"chunks: expected at least 2, got {min(args.chunks)}.")
    runs = list(product(args.chunks, args.caches))
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        measurements = list(tqdm(pool.map(partial(measure, args), runs), total=len(runs), unit="video"))
    records = [each._asdict() | {"slowdown": each.slowdown} for each in measurements]
    draw(measurements, args.outdir / f"long_video_{args.model}.png")
    draw_sheet(args, args.outdir / f"long_video_{args.model}_frames.png")
    return write_results(args, f"long_video_{args.model}", summarise(measurements), records)


def summarise(measurements: Sequence[Measurement]) -> str:
    titles = ("chunks", "frames", "cache", "KV MiB", "process MiB", "s per chunk", "last tenth / first tenth")
    rows = []
    for m in measurements:
        cells = [m.chunks, m.frames, m.cache, f"{m.kv_bytes / 2**20:.1f}", f"{m.process_bytes / 2**20:.0f}"]
        slowdown = "" if m.slowdown is None else f"{m.slowdown:.2f}"
        rows.append([*cells, f"{median(m.seconds):.2f}", slowdown])
    return markdown_table(titles, rows)


def draw(measurements: Sequence[Measurement], path: Path) -> None:
    """Save a PNG: memory over the length of the video, and the time of each chunk of the longest."""
    with draw_panels(path, 11, 3) as (keys, process, times):
        for cache in dict.fromkeys(m.cache for m in measurements):
            runs = sorted((m for m in measurements if m.cache == cache), key=lambda m: m.chunks)
            colour, chunks = CACHES[cache], [m.chunks for m in runs]
            style = {"color": colour, "label": cache, "marker": "o"}
            keys.plot(chunks, [m.kv_bytes / 2**20 for m in runs], **style)
            process.plot(chunks, [m.process_bytes / 2**20 for m in runs], **style)
            times.plot(range(1, chunks[-1]), runs[-1].seconds, color=colour, lw=0.9)
        keys.set(title="keys and values, MiB", xlabel="chunks of the video")
        process.set(title="process at its peak, MiB", xlabel="chunks of the video")
        times.set(title="time of a chunk, s", xlabel="chunk of the longest video")
        for axis in (keys, process, times):
            axis.set_ylim(0, 1.05 * axis.dataLim.y1)


def draw_sheet(args: argparse.Namespace, path: Path) -> None:
    """Save a PNG: the middle frame of every tenth chunk of the longest videos in the folder, a row per cache."""
    chunks, sheet = max(args.chunks), {}
    for cache in CACHES:
        video = args.outdir / f"{args.model}_{cache}_{chunks}.mp4"
        if video.exists():  # --caches may leave some out
            frames = read_video(video)[0]
            sheet[cache] = frames[[int((chunk + 0.5) / chunks * len(frames)) for chunk in range(0, chunks, 10)]]
    contact_sheet(sheet, path, columns=-(-chunks // 10))


if __name__ == "__main__":
    parser = new_parser(__doc__, "long_video")
    add = parser.add_argument
    add("--steps", type=positive, default=20, help=f"denoising steps, a multiple of {LIVE} (default: 20)")
    add("--chunks", type=positive, nargs="+", default=[10, 40, 160], help="lengths (default: 10 40 160)")
    add("--budget", type=positive, default=4, help="chunks' worth of KV tokens kept (default: 4)")
    add("--caches", nargs="+", choices=CACHES, default=list(CACHES), help="what is measured (default: all)")
    main(parser, bench)
