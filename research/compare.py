"""Compare methods on the same videos in turn: time, FLOPs, memory, PSNR and SSIM; shared by the scripts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib.axes import Axes
from tqdm import tqdm

from flowcache import Trace
from flowcache.command_line import Parser, writable_folder
from flowcache.environment import describe_environment
from flowcache.files import write_atomically, write_json
from flowcache.markdown import markdown_table
from flowcache.metrics import psnr, ssim
from flowcache.plots.style import faint_grid, plain_frame
from flowcache.running import run_checked
from flowcache.video import Frames, contact_sheet

MAX_COUNT = 10**4

#: Makes the video of a method and a seed.
Make = Callable[[str, int], tuple[Frames, Trace]]


@dataclass(frozen=True)
class Run:
    """Measurements of one video; PSNR (dB) and SSIM are to the same seed's videos of other methods."""

    method: str
    seed: int
    seconds: float
    compress_seconds: float
    flops: dict[str, float]
    reuse_ratio: float | None
    kv_bytes: int
    psnr: dict[str, float]
    ssim: dict[str, float]


def compare(
    make: Make,
    methods: Sequence[str],
    seeds: Iterable[int],
    references: Sequence[str],
    outdir: Path,
    settings: Mapping[str, Any] | None = None,
    shown: Sequence[str] = (),
    name: str = "seed",
) -> list[Run]:
    """Run every method for every seed; appends each run to ``runs.jsonl`` and draws a contact sheet per seed.

    Methods take turns within a seed, so that a slow spell of the machine hits all of them.

    Args:
        references: methods whose videos the others are compared with, as far as they are in ``methods``.
        settings: of each method; runs in ``runs.jsonl`` with the same are not repeated. None: start over.
        shown: methods on the sheets.
        name: of the sheets.
    """
    outdir.mkdir(parents=True, exist_ok=True)
    path, known = outdir / "runs.jsonl", {}
    if settings is None:
        path.unlink(missing_ok=True)
    elif path.exists():
        known = _read_runs(path, settings)
    seeds, present = list(seeds), [method for method in methods if method in references]
    with tqdm(total=len(seeds) * len(methods), unit="video") as bar:
        for seed in seeds:
            missing = [method for method in methods if (method, seed) not in known]
            bar.update(len(methods) - len(missing))
            videos: dict[str, Frames] = {}
            waiting: dict[str, Trace] = {}
            for method in dict.fromkeys([*present, *missing] if missing else ()):
                videos[method], waiting[method] = make(method, seed)
                if len(videos) < len(present):
                    continue  # references are compared with each other, too
                for done, trace in waiting.items():
                    if done in missing:
                        run = known[done, seed] = _measure(done, seed, videos, present, trace)
                        line = {"settings": (settings or {}).get(done), "run": asdict(run)}
                        with path.open("a") as file:
                            file.write(f"{json.dumps(line)}\n")
                        bar.update()
                waiting.clear()
            if shown and videos.keys() >= set(shown):
                pictures = {method: videos[method] for method in shown}
                width = max(video.shape[2] for video in pictures.values())
                contact_sheet(pictures, outdir / f"{name}{seed}.png", columns=12, scale=max(0.2, 112 / width))
    return [known[method, seed] for seed in seeds for method in methods]


def _read_runs(path: Path, settings: Mapping[str, Any]) -> dict[tuple[str, int], Run]:
    """Runs of the same settings; a last line that was cut off is removed."""
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_atomically(path, whole.encode())
    runs = {}
    for line in map(json.loads, whole.splitlines()):
        run = Run(**line["run"])
        if line["settings"] == json.loads(json.dumps(settings.get(run.method))):
            runs[run.method, run.seed] = run
    return runs


def _measure(
    method: str, seed: int, videos: dict[str, Frames], references: Sequence[str], trace: Trace
) -> Run:
    video, others = videos[method], [other for other in references if other != method]
    return Run(
        method,
        seed,
        trace.seconds.get("denoise", 0.0),
        trace.seconds.get("compress", 0.0),
        dict(trace.flops),
        trace.reuse_ratio if trace.windows else None,
        max((window.kv_bytes for window in trace.windows), default=0),
        {other: psnr(video, videos[other])[0] for other in others},
        {other: ssim(video, videos[other])[0] for other in others},
    )


def speed_table(
    runs: Sequence[Run],
    methods: Sequence[str],
    references: Sequence[str],
    base: Callable[[str], str],
    reasons: Mapping[str, str] | None = None,
) -> str:
    """A Markdown table with a row per method: medians over the seeds, ratios within a seed.

    Args:
        runs: of ``compare``.
        methods: order of the rows.
        references: columns of PSNR and SSIM.
        base: the method that another's ratios are to.
        reasons: why methods could not run.
    """
    by_run = {(run.method, run.seed): run for run in runs}
    seeds = sorted({run.seed for run in runs})
    titles = [
        "method",
        "denoising s",
        "speed-up",
        "TFLOPs",
        "FLOPs ratio",
        "speed-up / FLOPs ratio",
        "reuse ratio",
    ]
    titles += [f"PSNR, SSIM to {other}" for other in references]
    rows = []
    for method in methods:
        if method in (reasons or {}):
            rows.append([method, f"cannot run: {reasons[method]}", *[""] * (len(titles) - 2)])
            continue
        own = [by_run[method, seed] for seed in seeds]
        bases = [by_run.get((base(method), seed)) for seed in seeds]
        cells = [method, f"{median(r.seconds for r in own):.2f}", "", f"{_tflops(own):.3f}", "", ""]
        if None not in bases:
            pairs = list(zip(bases, own, strict=True))
            speed = median(b.seconds / max(r.seconds, 1e-9) for b, r in pairs)
            saved = median(b.flops["actual"] / r.flops["actual"] for b, r in pairs)
            cells[2], cells[4], cells[5] = f"{speed:.2f}", f"{saved:.2f}", f"{speed / saved:.2f}"
        known = own[0].reuse_ratio is not None
        cells.append(f"{mean(r.reuse_ratio for r in own):.2f}" if known else "")
        rows.append(cells + [_closeness(own, other) for other in references])
    return markdown_table(titles, rows)


def _tflops(runs: Sequence[Run]) -> float:
    return mean(run.flops["actual"] for run in runs) / 1e12


def _closeness(runs: Sequence[Run], other: str) -> str:
    if other not in runs[0].psnr:
        return ""
    return f"{mean(r.psnr[other] for r in runs):.1f} dB, {mean(r.ssim[other] for r in runs):.3f}"


def write_results(args: argparse.Namespace, stem: str, table: str, results: Sequence[Any]) -> str:
    """Write ``STEM.json``, with the arguments and the machine, and ``STEM.md``; returns the table."""
    record = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "environment": describe_environment(args.device),
        "measurements": [each if isinstance(each, dict) else asdict(each) for each in results],
    }
    write_json(args.outdir / f"{stem}.json", record)
    write_atomically(args.outdir / f"{stem}.md", f"{table}\n".encode())
    return table


def style_axis(axis: Axes, **labels: str) -> None:
    """Set labels, a plain frame and a faint grid."""
    axis.set(**labels)
    plain_frame(axis)
    faint_grid(axis)


def positive(text: str) -> int:
    """A whole number from 1 to ``MAX_COUNT``, for argparse."""
    value = int(text)
    if not 1 <= value <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MAX_COUNT}, got {value}")
    return value


def new_parser(description: str, name: str) -> argparse.ArgumentParser:
    """A parser with ``--outdir``, whose default is ``outputs/NAME``."""
    parser, default = Parser(description), f"outputs/{name}"
    parser.add_argument("--outdir", type=Path, default=Path(default), help=f"default: {default}")
    return parser


def add_comparison_flags(parser: argparse.ArgumentParser, methods: list[str] | None = None) -> None:
    """Add the flags of scripts that compare methods on one prompt; ``methods``: the default."""
    add = parser.add_argument
    add("--methods", "--ways", nargs="+", default=methods, help="ratios are to the first (default: all)")
    add("--repeats", type=positive, default=3, help="videos per method, each with its own seed (default: 3)")
    add("--seed", type=int, default=0, help="of the first repeat (default: 0)")
    add("--prompt", help="default: the model's")
    add("--height", type=int, help="pixels (default: the model's)")
    add("--width", type=int, help="pixels (default: the model's)")


def main(parse: Callable[[], argparse.Namespace], bench: Callable[[argparse.Namespace], str]) -> None:
    """Parse, measure and print the table; exits with 2 for bad input, 1 for a failure, and one sentence."""

    def prepare() -> argparse.Namespace:
        args = parse()
        writable_folder("outdir", args.outdir)
        return args

    sys.exit(run_checked(prepare, lambda args: f"{bench(args)}\n\nresults: {args.outdir}"))
