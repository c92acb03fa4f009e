"""Measures ways to make the same video against each other, taking turns; shared by the benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

import torch
from tqdm import tqdm

from flowcache import Trace
from flowcache.command_line import Parser, writable_folder
from flowcache.environment import describe_environment
from flowcache.files import write_atomically
from flowcache.markdown import markdown_table
from flowcache.metrics import psnr, ssim
from flowcache.plots import distance_curves, reuse_map
from flowcache.running import run_checked
from flowcache.video import Frames, contact_sheet

MAX_COUNT = 10**4

#: Makes the video of a seed in one of the ways.
Run = Callable[[str, int], tuple[Frames, Trace]]


@dataclass(frozen=True)
class Measurement:
    """One run of one way; closeness is to the same seed's video of other ways, dB and SSIM."""

    way: str
    seed: int
    denoise_seconds: float
    flops: dict[str, float]
    reuse_ratio: float
    psnr: dict[str, float]
    ssim: dict[str, float]


def measure(run: Run, args: argparse.Namespace, compare_with: Sequence[str]) -> str:
    """Run every way for every seed, write everything to ``args.outdir``, and return a Markdown table.

    The ways take turns within each seed, so that a slow spell of the machine hits all of them. Times are
    medians over the seeds, ratios are medians of the ratios within a seed.

    Args:
        run: makes a video.
        args: what ``new_parser`` read.
        compare_with: ways to which closeness is measured.
    """
    measurements: list[Measurement] = []
    for seed, videos, traces in take_turns(run, args):
        for way, trace in traces.items():
            measurements.append(measurement(way, seed, videos, trace, compare_with))
            _draw(trace, args.outdir, f"{way.replace(':', '_')}_seed{seed}")
    table = summarise(measurements, args.ways, compare_with)
    write_results(args, measurements, table)
    return table


def take_turns(
    run: Run, args: argparse.Namespace
) -> Iterator[tuple[int, dict[str, Frames], dict[str, Trace]]]:
    """Run every way for every seed; yield a seed with the videos and traces by way, drawn side by side."""
    args.outdir.mkdir(parents=True, exist_ok=True)
    for seed in tqdm(range(args.seed, args.seed + args.repeats), unit="repeat"):
        results = {way: run(way, seed) for way in tqdm(args.ways, leave=False, unit="way")}
        videos = {way: video for way, (video, _) in results.items()}
        width = max(video.shape[2] for video in videos.values())
        contact_sheet(videos, args.outdir / f"seed{seed}.png", columns=12, scale=112 / width)
        yield seed, videos, {way: trace for way, (_, trace) in results.items()}


def write_results(args: argparse.Namespace, measurements: Sequence[Measurement], table: str) -> None:
    """Write what was measured as JSON, with all that it holds for, and the table."""
    record = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "environment": describe_environment(torch.device(args.device)),
        "measurements": [asdict(m) for m in measurements],
    }
    write_atomically(args.outdir / "bench.json", json.dumps(record, indent=1).encode())
    write_atomically(args.outdir / "bench.md", f"{table}\n".encode())


def measurement(
    way: str, seed: int, videos: dict[str, Frames], trace: Trace, compare_with: Sequence[str]
) -> Measurement:
    """One way's run, with its closeness to those of ``compare_with`` that ran."""
    others = [other for other in compare_with if other in videos]
    return Measurement(
        way,
        seed,
        trace.seconds["denoise"],
        trace.flops,
        trace.reuse_ratio,
        {other: psnr(videos[way], videos[other])[0] for other in others},
        {other: ssim(videos[way], videos[other])[0] for other in others},
    )


def _draw(trace: Trace, folder: Path, name: str) -> None:
    trace.save(folder / f"{name}.trace.json")
    reuse_map(trace, folder / f"{name}.reuse.png")
    if trace.has_distances:
        distance_curves(trace, folder / f"{name}.distances.png")


def summarise(measurements: list[Measurement], ways: Sequence[str], compare_with: Sequence[str]) -> str:
    """A Markdown table, a row for each way, and the split of the gain."""
    seeds = sorted({m.seed for m in measurements})
    by_run = {(m.way, m.seed): m for m in measurements}
    titles = ["way", "denoising s", "speed-up", "TFLOPs", "FLOPs ratio", "speed-up / FLOPs ratio"]
    titles += ["reuse ratio", *(f"PSNR, SSIM to {other}" for other in compare_with)]
    rows = []
    for way in ways:
        runs, bases = ([by_run[name, seed] for seed in seeds] for name in (way, ways[0]))
        pairs = list(zip(bases, runs, strict=True))
        speed = median(base.denoise_seconds / run.denoise_seconds for base, run in pairs)
        saved = median(base.flops["actual"] / run.flops["actual"] for base, run in pairs)
        cells = [way, f"{median(r.denoise_seconds for r in runs):.2f}", f"{speed:.2f}"]
        cells += [f"{mean(r.flops['actual'] for r in runs) / 1e12:.3f}", f"{saved:.2f}"]
        cells += [f"{speed / saved:.2f}", f"{mean(r.reuse_ratio for r in runs):.2f}"]
        rows.append(cells + [closeness(runs, other) for other in compare_with])
    splits = [_split(by_run[way, seeds[0]]) for way in ways]
    return "\n".join([markdown_table(titles, rows), *(f"\n{split}" for split in splits if split)])


def positive(text: str) -> int:
    """A whole number of at least 1 that can be meant, for argparse."""
    value = int(text)
    if not 1 <= value <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MAX_COUNT}, got {value}")
    return value


def closeness(runs: Sequence[Measurement], other: str) -> str:
    """Mean PSNR and SSIM of one way's runs to another's of the same seeds; empty where there is none."""
    if other not in runs[0].psnr or other == runs[0].way:
        return ""
    return f"{mean(r.psnr[other] for r in runs):.1f} dB, {mean(r.ssim[other] for r in runs):.3f}"


def _split(run: Measurement) -> str:
    """Where the gain of a run comes from."""
    flops = run.flops
    if not run.reuse_ratio or flops["actual"] >= flops["causal"]:
        return ""
    return (
        f"{run.way}: {flops['vanilla'] / flops['live_only']:.2f}x from running live chunks only, "
        f"{flops['live_only'] / flops['causal']:.2f}x from causal attention through the cache, "
        f"{flops['causal'] / flops['actual']:.2f}x from reuse (seed {run.seed})."
    )


def main(parse: Callable[[], argparse.Namespace], bench: Callable[[argparse.Namespace], str]) -> None:
    """Parse, measure and show the table; bad input ends in one sentence and code 2, a failure in 1."""

    def prepare() -> argparse.Namespace:
        args = parse()
        writable_folder("outdir", args.outdir)
        return args

    def run(args: argparse.Namespace) -> str:
        return f"{bench(args)}\n\nmeasurements, contact sheets, traces and pictures: {args.outdir}"

    sys.exit(run_checked(prepare, run))


def new_parser(description: str, ways: Sequence[str], outdir: Path) -> argparse.ArgumentParser:
    """The flags that all benchmarks share."""
    parser = Parser(description)
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--ways", nargs="+", default=list(ways), help="ratios are to the first")
    add("--repeats", type=positive, default=3, help="each has a seed of its own")
    add("--seed", type=int, default=0, help="of the first repeat")
    add("--prompt", help="default: the model's")
    add("--outdir", type=Path, default=outdir)
    return parser
