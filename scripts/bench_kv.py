"""Measure what KV compression costs in quality, and what it saves in memory and time.

    bash scripts/bench_kv.sh --model skyreels --captions 4

Held-out captions are drawn in long videos, without reuse and with it, with everything kept and with
one setting of the cache varied at a time. PSNR and SSIM are to the video of the same caption, seed and preset
with everything kept, over its last four chunks, which no budget spares. A run is a line in ``runs.jsonl``:
a measurement that was interrupted goes on; after a change of code or weights, give it another ``--outdir``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from chunk_videos import LIVE, MODELS, ChunkVideos, add_video_flags, checked_flags
from interleaved import main, positive
from matplotlib.figure import Figure
from small_models import held_out
from tqdm import tqdm

from flowcache import FlowCacheConfig, Trace
from flowcache.benchmark.sample_folder import Manifest
from flowcache.command_line import Parser
from flowcache.environment import describe_environment, repository_commit
from flowcache.files import write_atomically, write_csv, write_json
from flowcache.kv.scorers import SCORERS
from flowcache.markdown import markdown_table
from flowcache.metrics import psnr, ssim
from flowcache.plots.style import faint_grid, plain_frame, save_figure
from flowcache.video import Frames, contact_sheet

PRESETS = ("none", "fast")
#: Scorers that are there for comparison.
CONTROLS = ("recency", "sink_window", "key_norm", "random")
#: Budgets at which scorers are compared.
SCORED_BUDGETS = (1, 3)
GRANULARITIES = ("token", "frame", "chunk")
#: Of a chunk's queries, of which there are 80 and 96.
FEW_QUERIES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Variant:
    """What is done to the cache.

    Attributes:
        budget: chunks' worth of tokens that finished chunks keep; None: all.
        scorer, strategy: as in ``KVCompressionConfig``.
        queries: its ``query_granularity``; None: as the model's method has it.
        bits: in which finished chunks are kept; None: as the model makes them.
        max_queries: of those that count; None: as the model's method has it.
    """

    budget: int | None = None
    scorer: str = "paper"
    strategy: str = "token"
    queries: str | None = None
    bits: int | None = None
    max_queries: int | None = None

    def __str__(self) -> str:
        if self.budget is None:
            return "all" if self.bits is None else f"all, {self.bits} bits"
        asked = None if self.max_queries is None else f"{self.max_queries} queries"
        parts = (self.budget, self.scorer, self.strategy, self.queries, self.bits, asked)
        return ", ".join(str(part) for part in parts if part is not None)

    def cache(self, videos: ChunkVideos, preset: str) -> FlowCacheConfig:
        """Settings of the cache for a preset."""
        cache = videos.cache(preset, self.budget, self.bits)
        if self.budget is None:
            return cache
        changes = {"scorer": self.scorer, "strategy": self.strategy}
        if self.queries is not None:
            changes["query_granularity"] = self.queries
        if self.max_queries is not None:
            changes["max_queries"] = self.max_queries
        return replace(cache, compression=replace(cache.compression, **changes))


KEEP_ALL = Variant()

#: Variants by what is varied: the fields that differ, and the variants.
AXES: dict[tuple[str, ...], list[Variant]] = {
    ("budget",): [Variant(budget) for budget in range(1, 7)],
    ("scorer", "budget"): [Variant(budget, scorer) for scorer in SCORERS for budget in SCORED_BUDGETS],
    ("strategy",): [Variant(1, strategy=granularity) for granularity in GRANULARITIES],
    ("queries",): [Variant(1, queries=granularity) for granularity in GRANULARITIES],
    ("max_queries",): [Variant(1, queries="chunk", max_queries=most) for most in FEW_QUERIES],
    ("budget", "bits"): [Variant(budget, bits=bits) for budget in (None, 1) for bits in (None, 8, 4)],
}

#: Variants that a contact sheet shows.
SHEET = (KEEP_ALL, Variant(3), Variant(1), Variant(1, "recency"), Variant(1, "random"), Variant(1, bits=4))


@dataclass(frozen=True)
class Run:
    """One video; ``caption`` is its place among the captions, and its seed."""

    model: str
    chunks: int
    steps: int
    preset: str
    caption: int
    variant: Variant

    @property
    def name(self) -> str:
        """What it is known by in the file of all runs."""
        video = f"{self.model}, {self.chunks} chunks of {self.steps} steps, {self.preset}"
        return f"{video}, caption {self.caption}: {self.variant}"


@dataclass(frozen=True)
class Result:
    """What a run came to; seconds of denoising, and those of compression among them.

    Without closeness where everything is kept, for there is nothing to compare with.
    """

    kv_bytes: int
    seconds: float
    compress_seconds: float
    psnr: float | None = None
    ssim: float | None = None


def bench(args: argparse.Namespace) -> str:
    """Run what is not there yet, write everything, and return Markdown tables."""
    args.outdir.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(args.outdir / "runs.jsonl")
    groups = list(groups_of_runs(args))
    missing = [[run for run in group if run.name not in manifest.records()] for group in groups]
    if any(missing):
        videos = warmed_up(args)
        with tqdm(total=sum(map(len, missing)), unit="video") as bar:
            for runs in filter(None, missing):
                measure(runs, videos, manifest, args.outdir, bar.update)
    records = manifest.records()
    results = {run: Result(**records[run.name]["result"]) for group in groups for run in group}
    rows = summarise(results)
    write_csv(args.outdir / f"kv_{args.model}.csv", list(rows[0]), rows)
    record = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "environment": describe_environment(torch.device(args.device)),
        "runs": [records[run.name] for run in results],
    }
    write_json(args.outdir / f"kv_{args.model}.json", record)
    draw(rows, args.outdir / f"kv_{args.model}.png")
    text = "\n\n".join([*(table(rows, axis) for axis in AXES), verdict(results)])
    write_atomically(args.outdir / f"kv_{args.model}.md", f"{text}\n".encode())
    return text


def groups_of_runs(args: argparse.Namespace) -> Iterator[list[Run]]:
    """All runs, those of one caption and preset together, the one that keeps everything first."""
    variants = list(dict.fromkeys([KEEP_ALL, *chain(*AXES.values())]))
    for caption in range(args.captions):
        for preset in PRESETS:
            video = (args.model, args.chunks, args.steps, preset, caption)
            yield [Run(*video, variant) for variant in variants]


def warmed_up(args: argparse.Namespace) -> ChunkVideos:
    """The model, after two chunks that pay for what later ones find ready."""
    videos = MODELS[args.model](args.chunks, args.steps, args.device)
    for _ in islice(videos.stream(KEEP_ALL.cache(videos, "none"), Trace()), 2):
        pass
    return videos


def measure(
    runs: Sequence[Run], videos: ChunkVideos, manifest: Manifest, outdir: Path, done: Callable[[], Any]
) -> None:
    """Make videos of one caption and preset; each is remembered as soon as it is there.

    The one that keeps everything is made in any case, for the others to be held against.
    """
    first = replace(runs[0], variant=KEEP_ALL)
    shown: dict[str, Frames] = {}
    reference: Frames | None = None
    for run in dict.fromkeys([first, *runs]):
        frames, result = make(run, videos)
        if reference is None:
            reference = frames
        else:
            result = replace(result, psnr=psnr(frames, reference)[0], ssim=ssim(frames, reference)[0])
        if run.variant in SHEET:
            shown[str(run.variant)] = frames
        if run in runs:
            content = {"run": asdict(run), "result": asdict(result), "commit": repository_commit()}
            manifest.append({"name": run.name, **content})
            done()
    if len(shown) == len(SHEET):
        path = outdir / f"{first.model}_{first.preset}_caption{first.caption}.png"
        contact_sheet(shown, path, columns=14, scale=1)


def make(run: Run, videos: ChunkVideos) -> tuple[Frames, Result]:
    """Make one video: the frames of its last chunks, and what it cost."""
    trace, cache = Trace(), run.variant.cache(videos, run.preset)
    frames = videos.last_frames(cache, trace, held_out()[run.caption], seed=run.caption)
    cost = (trace.seconds["denoise"], trace.seconds.get("compress", 0.0))
    return frames, Result(trace.windows[0].kv_bytes, *cost)


def summarise(results: Mapping[Run, Result]) -> list[dict[str, Any]]:
    """A row for each preset and variant: medians over the captions, and the range of PSNR.

    ``time`` is to the run of the same caption and preset that keeps everything, ``compress`` a share of it.
    """
    by_row: dict[tuple[str, Variant], list[tuple[Result, Result]]] = {}
    for run, result in results.items():
        base = results[replace(run, variant=KEEP_ALL)]
        by_row.setdefault((run.preset, run.variant), []).append((result, base))
    rows = []
    for (preset, variant), pairs in by_row.items():
        runs = [result for result, _ in pairs]
        row = {"preset": preset, **asdict(variant), "captions": len(runs)}
        row["kv_bytes"] = runs[0].kv_bytes
        row["seconds"] = median(r.seconds for r in runs)
        row["time"] = median(result.seconds / base.seconds for result, base in pairs)
        row["compress"] = median(r.compress_seconds / r.seconds for r in runs)
        close = [r.psnr for r in runs if r.psnr is not None]
        row["psnr"] = median(close) if close else None
        row["psnr_least"], row["psnr_most"] = (min(close), max(close)) if close else (None, None)
        row["ssim"] = median(r.ssim for r in runs) if close else None
        rows.append(row)
    return rows


def _find(rows: Sequence[Mapping[str, Any]], preset: str, variant: Variant) -> Mapping[str, Any]:
    wanted = {"preset": preset, **asdict(variant)}
    return next(row for row in rows if wanted.items() <= row.items())


def table(rows: Sequence[Mapping[str, Any]], axis: tuple[str, ...]) -> str:
    """Markdown: a row for each variant of an axis, with its cost and closeness for every preset."""
    titles = [*axis, "KV MiB"]
    for preset in PRESETS:
        titles += [f"{preset}: PSNR, SSIM", "time", "of it compression"]
    lines = []
    for variant in AXES[axis]:
        values = [getattr(variant, name) for name in axis]
        cells = ["all" if value is None else str(value) for value in values]
        cells.append(f"{_find(rows, PRESETS[0], variant)['kv_bytes'] / 2**20:.2f}")
        for preset in PRESETS:
            row = _find(rows, preset, variant)
            cells.append("" if row["psnr"] is None else f"{row['psnr']:.1f} dB, {row['ssim']:.3f}")
            cells += [f"{row['time']:.2f}", f"{row['compress']:.1%}"]
        lines.append(cells)
    return markdown_table(titles, lines)


def verdict(results: Mapping[Run, Result]) -> str:
    """Markdown: how the paper's score stands against each other one, run by run, and whether it wins."""
    lines, beaten = [], True
    for name in (name for name in SCORERS if name != "paper"):
        gains = [
            results[replace(run, variant=replace(run.variant, scorer="paper"))].psnr - result.psnr
            for run, result in results.items()
            if run.variant in [Variant(budget, name) for budget in SCORED_BUDGETS]
        ]
        wins = sum(gain > 0 for gain in gains)
        beaten &= wins > len(gains) / 2
        lines.append((name, f"{wins} of {len(gains)}", f"{mean(gains):+.1f} dB"))
    word = "is" if beaten else "is not"
    table = markdown_table(("the paper's score against", "closer in", "by, mean"), lines)
    return f"{table}\n\nThe paper's score {word} closer than each of the others in most runs."


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Save a PNG: closeness over the memory of keys and values, a line for each scorer."""
    figure = Figure(figsize=(9, 3.8), dpi=130, layout="constrained")
    for preset, axis in zip(PRESETS, figure.subplots(1, len(PRESETS), sharey=True), strict=True):
        for name in SCORERS:
            budgets = AXES["budget",] if name == "paper" else [Variant(b, name) for b in SCORED_BUDGETS]
            found = [_find(rows, preset, variant) for variant in budgets]
            style = {"linewidth": 2.2, "color": "black"} if name == "paper" else {"linewidth": 1.2}
            style["linestyle"] = "--" if name in CONTROLS else "-"
            sizes = [row["kv_bytes"] / 2**20 for row in found]
            axis.plot(sizes, [row["psnr"] for row in found], marker="o", markersize=3.5, label=name, **style)
        axis.set(title=f"reuse: {preset}", xlabel="keys and values, MiB")
        plain_frame(axis)
        faint_grid(axis)
    figure.axes[0].set_ylabel("PSNR to everything kept, dB")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    save_figure(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add_video_flags(parser, steps=16)
    add("--captions", type=positive, default=4, help="the first so many of those held out of training")
    add("--chunks", type=positive, default=11, help="of each video; more than 10, for a budget of 6 to bind")
    add("--outdir", type=Path, default=Path("outputs/bench_kv"))
    args = checked_flags(parser)
    if args.chunks <= LIVE + max(v.budget for v in AXES["budget",]):
        raise ValueError(f"chunks must be more than 10, or the largest budget keeps all, got {args.chunks}.")
    if args.captions > (known := len(held_out())):
        raise ValueError(f"captions must be at most {known}, got {args.captions}.")
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
