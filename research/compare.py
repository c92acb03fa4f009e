"""Compare methods on the same videos: time, FLOPs, memory, PSNR and SSIM; shared by the scripts."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from flowcache import Trace
from flowcache.benchmark.tables import compare_gains
from flowcache.command_line import writable_folder
from flowcache.environment import describe_environment
from flowcache.files import markdown_table, write_atomically, write_json
from flowcache.metrics import psnr, ssim
from flowcache.plots.style import faint_grid, plain_frame, save_figure
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
    seconds: float  # of denoising, ``Trace.denoising_seconds``
    compress_share: float
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

    The methods of a seed follow one another, so that a slow spell of the machine hits all of them.

    Args:
        references: methods whose videos the others are compared with, as far as they are in ``methods``.
        settings: of each method; runs in ``runs.jsonl`` with the same are not repeated. None: start over.
        shown, name: methods on the contact sheets, and their names.
    """
    path, seeds, settings = outdir / "runs.jsonl", list(seeds), settings or {}
    known, present = _read_runs(path, settings), [method for method in methods if method in references]
    pairs = [(method, seed) for seed in seeds for method in methods]
    bar = tqdm(total=len(pairs), initial=len(known.keys() & set(pairs)), unit="video")
    for seed in seeds:
        missing = [method for method in methods if (method, seed) not in known]
        videos = {method: make(method, seed) for method in (present if missing else ())}
        for method in missing:
            if method not in videos:
                videos[method] = make(method, seed)
            run = known[method, seed] = _measure(method, seed, videos, present)
            with path.open("a") as file:
                file.write(f"{json.dumps({'settings': settings.get(method), 'run': asdict(run)})}\n")
            bar.update()
        if shown and videos.keys() >= set(shown):
            pictures = {method: videos[method][0] for method in shown}
            scale = max(0.2, 112 / max(video.shape[2] for video in pictures.values()))
            contact_sheet(pictures, outdir / f"{name}{seed}.png", columns=12, scale=scale)
    return [known[pair] for pair in pairs]


def _read_runs(path: Path, settings: Mapping[str, Any]) -> dict[tuple[str, int], Run]:
    """Runs of the same settings; without any, the file is emptied, else a last line that was cut off goes."""
    lines = path.read_text().splitlines(keepends=True) if settings and path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if whole != lines or not settings:
        # Else the file stays, as another measurement may be appending to it.
        write_atomically(path, "".join(whole).encode())
    current, runs = json.loads(json.dumps(settings)), {}
    for line in map(json.loads, whole):
        run = Run(**line["run"])
        if line["settings"] == current.get(run.method):
            runs[run.method, run.seed] = run
    return runs


def _measure(method: str, seed: int, videos: Mapping[str, tuple[Frames, Trace]], references: Sequence[str]) -> Run:
    frames, trace = videos[method]
    others = {other: videos[other][0] for other in references if other != method}
    return Run(
        method,
        seed,
        seconds=trace.denoising_seconds,
        compress_share=trace.seconds.get("compress", 0.0) / max(trace.seconds.get("denoise", 0.0), 1e-9),
        flops=dict(trace.flops),
        reuse_ratio=trace.reuse_ratio if trace.windows else None,
        kv_bytes=max((window.kv_bytes for window in trace.windows), default=0),
        psnr={name: psnr(frames, other)[0] for name, other in others.items()},
        ssim={name: ssim(frames, other)[0] for name, other in others.items()},
    )


def speed_table(runs: Sequence[Run], references: Sequence[str], base: Callable[[str], str]) -> str:
    """A Markdown table with a row per method: medians over the seeds, ratios to its ``base`` within a seed.

    ``references``: columns of PSNR and SSIM.
    """
    by_run = {(run.method, run.seed): run for run in runs}
    titles = ["method", "denoising s", "speed-up", "TFLOPs", "FLOPs ratio", "speed-up / FLOPs ratio"]
    titles += ["reuse ratio", *(f"PSNR, SSIM to {other}" for other in references)]
    rows, found = [], []
    for method in dict.fromkeys(run.method for run in runs):
        own, gains = [run for run in runs if run.method == method], [""] * 3
        pairs = [(by_run[base(method), run.seed], run) for run in own if (base(method), run.seed) in by_run]
        if pairs:
            speed = median(b.seconds / max(r.seconds, 1e-9) for b, r in pairs)
            saved = median(b.flops["actual"] / r.flops["actual"] for b, r in pairs)
            gains = [f"{gain:.2f}" for gain in (speed, saved, speed / saved)]
            found.append((method, speed, saved))
        seconds, tflops = median(r.seconds for r in own), mean(r.flops["actual"] for r in own) / 1e12
        cells = [method, f"{seconds:.2f}", gains[0], f"{tflops:.3f}", *gains[1:]]
        cells.append("" if own[0].reuse_ratio is None else f"{mean(r.reuse_ratio for r in own):.2f}")
        for other in references:
            compared = [(r.psnr[other], r.ssim[other]) for r in own if other in r.psnr]
            means = map(mean, zip(*compared, strict=True))
            cells.append("{:.1f} dB, {:.3f}".format(*means) if compared else "")
        rows.append(cells)
    return "\n\n".join([markdown_table(titles, rows), *(f"- {note}" for note in compare_gains(found))])


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


@contextmanager
def draw_panels(path: Path, width: float, count: int = 1, sharey: bool = False) -> Iterator[Sequence[Axes]]:
    """Yield the axes of panels side by side, ``width`` inches in all; save them as PNG, with a legend for all."""
    figure = Figure(figsize=(width, 3.8), dpi=130, layout="constrained")
    axes = figure.subplots(1, count, sharey=sharey, squeeze=False)[0]
    yield axes
    for axis in axes:
        plain_frame(axis)
        faint_grid(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    save_figure(figure, path)


def positive(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MAX_COUNT}, got {value}")
    return value


def main(parser: argparse.ArgumentParser, bench: Callable[[argparse.Namespace], str]) -> None:
    """Parse, measure and print the table; exits with 2 for bad input, 1 for a failure, and one sentence."""
    args = parser.parse_args()

    args.outdir = Path(str(args.outdir).replace("MODEL", args.model))

    def prepare() -> str:
        writable_folder("outdir", args.outdir)
        return bench(args)

    sys.exit(run_checked(prepare, lambda table: f"{table}\n\nresults: {args.outdir}"))
