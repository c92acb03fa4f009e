"""Measure what KV compression costs in quality, and what it saves in memory and time.

    python -m research.kv --model skyreels --captions 4

Long videos of held-out captions, with and without reuse, with everything kept and with one setting of the
cache varied at a time. PSNR and SSIM are to the video of the same caption, seed and preset with everything
kept, over its last four chunks, which every budget affects. Runs are appended to ``OUTDIR/runs.jsonl``; an
interrupted measurement continues. After a change of code or weights, give another ``--outdir``.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from matplotlib.figure import Figure

from flowcache import FlowCacheConfig, Trace
from flowcache.files import write_csv
from flowcache.kv.scorers import SCORERS
from flowcache.markdown import markdown_table
from flowcache.plots.style import save_figure
from flowcache.video import Frames, to_uint8

from .compare import Run, compare, main, new_parser, positive, style_axis, write_results
from .runs import LIVE, Model, add_model_flags, find_chunk_model
from .train_small.moving_shapes import read_held_out

PRESETS = ("none", "fast")
#: Scorers that serve as controls.
CONTROLS = ("recency", "sink_window", "key_norm", "random")
#: Budgets at which scorers are compared.
SCORED_BUDGETS = (1, 3)
GRANULARITIES = ("token", "frame", "chunk")


@dataclass(frozen=True)
class Variant:
    """Settings of the cache; None: as the model's method has it, of ``budget`` and ``bits``: everything."""

    budget: int | None = None
    scorer: str = "paper"
    strategy: str = "token"
    queries: str | None = None
    bits: int | None = None
    max_queries: int | None = None

    def __str__(self) -> str:
        if self.budget is None:
            return "all" if self.bits is None else f"all, {self.bits} bits"
        most = None if self.max_queries is None else f"{self.max_queries} queries"
        parts = (self.budget, self.scorer, self.strategy, self.queries, self.bits, most)
        return ", ".join(str(part) for part in parts if part is not None)

    def configure(self, model: Model, preset: str, chunks: int) -> FlowCacheConfig:
        """Make the configuration for a preset."""
        method = (model.no_reuse,) if preset == "none" else ("flowcache", preset)
        if self.budget is None:
            return model.configure(*method, kv_range=chunks, kv_bits=self.bits)
        config = model.configure(*method, budget=self.budget, kv_bits=self.bits)
        changes = {"query_granularity": self.queries, "max_queries": self.max_queries}
        changes = {name: value for name, value in changes.items() if value is not None}
        changes |= {"scorer": self.scorer, "strategy": self.strategy, "mix_lambda": None}
        return replace(config, compression=replace(config.compression, **changes))


KEEP_ALL = Variant()
#: Variants by the fields that are varied.
AXES: dict[tuple[str, ...], list[Variant]] = {
    ("budget",): [Variant(budget) for budget in range(1, 7)],
    ("scorer", "budget"): [Variant(budget, scorer) for scorer in SCORERS for budget in SCORED_BUDGETS],
    ("strategy",): [Variant(1, strategy=granularity) for granularity in GRANULARITIES],
    ("queries",): [Variant(1, queries=granularity) for granularity in GRANULARITIES],
    ("max_queries",): [Variant(1, queries="chunk", max_queries=most) for most in (4, 8, 16, 32)],
    ("budget", "bits"): [Variant(budget, bits=bits) for budget in (None, 1) for bits in (None, 8, 4)],
}
#: Variants on a contact sheet.
SHEET = (KEEP_ALL, Variant(3), Variant(1), Variant(1, "recency"), Variant(1, "random"), Variant(1, bits=4))

Row = dict[str, Any]
Rows = dict[tuple[str, Variant], Row]


def bench(args: argparse.Namespace) -> str:
    """Run, write, and return the tables."""
    model, captions = find_chunk_model(args, args.chunks), read_held_out()
    variants = list(dict.fromkeys([KEEP_ALL, *chain(*AXES.values())]))
    model.warm_up(KEEP_ALL.configure(model, "none", args.chunks))
    results: dict[tuple[str, Variant], list[Run]] = {}
    for preset in PRESETS:
        configs = {str(variant): variant.configure(model, preset, args.chunks) for variant in variants}

        def make(
            name: str, seed: int, configs: Mapping[str, FlowCacheConfig] = configs
        ) -> tuple[Frames, Trace]:
            trace = Trace(method=name)
            parts = deque(model.stream(captions[seed], seed, configs[name], trace), maxlen=LIVE)
            return to_uint8(torch.cat([part.frames for part in parts], dim=1)), trace

        video = {"model": args.model, "chunks": args.chunks, "steps": args.steps, "preset": preset}
        settings = {name: {**video, "cache": config.as_dict(args.steps)} for name, config in configs.items()}
        sheet = {"shown": [str(variant) for variant in SHEET], "name": f"{args.model}_{preset}_caption"}
        seeds = range(args.captions)
        runs = compare(make, list(configs), seeds, [str(KEEP_ALL)], args.outdir, settings, **sheet)
        for index, variant in enumerate(variants):
            results[preset, variant] = runs[index :: len(variants)]
    rows = summarise(results)
    write_csv(args.outdir / f"kv_{args.model}.csv", list(rows[PRESETS[0], KEEP_ALL]), rows.values())
    draw(rows, args.outdir / f"kv_{args.model}.png")
    table = "\n\n".join([*(tabulate(rows, axis) for axis in AXES), judge(results)])
    return write_results(args, f"kv_{args.model}", table, list(chain(*results.values())))


def summarise(results: Mapping[tuple[str, Variant], Sequence[Run]]) -> Rows:
    """Medians over the captions, and the range of PSNR, by preset and variant.

    ``time`` is to the run of the same caption and preset that keeps everything, ``compress`` a share of it.
    """
    rows = {}
    for (preset, variant), runs in results.items():
        bases = results[preset, KEEP_ALL]
        row = {"preset": preset, **asdict(variant), "captions": len(runs), "kv_bytes": runs[0].kv_bytes}
        row["seconds"] = median(run.seconds for run in runs)
        row["time"] = median(run.seconds / base.seconds for run, base in zip(runs, bases, strict=True))
        row["compress"] = median(run.compress_seconds / run.seconds for run in runs)
        close = [value for run in runs for value in run.psnr.values()]
        alike = [value for run in runs for value in run.ssim.values()]
        for name, function in (("psnr", median), ("psnr_least", min), ("psnr_most", max)):
            row[name] = function(close) if close else None
        row["ssim"] = median(alike) if alike else None
        rows[preset, variant] = row
    return rows


def tabulate(rows: Rows, axis: tuple[str, ...]) -> str:
    """Markdown: a row per variant of an axis, with cost, PSNR and SSIM for every preset."""
    titles = [*axis, "KV MiB"]
    for preset in PRESETS:
        titles += [f"{preset}: PSNR, SSIM", "time", "of it compression"]
    lines = []
    for variant in AXES[axis]:
        values = (getattr(variant, name) for name in axis)
        cells = ["all" if value is None else str(value) for value in values]
        cells.append(f"{rows[PRESETS[0], variant]['kv_bytes'] / 2**20:.2f}")
        for preset in PRESETS:
            row = rows[preset, variant]
            cells.append("" if row["psnr"] is None else f"{row['psnr']:.1f} dB, {row['ssim']:.3f}")
            cells += [f"{row['time']:.2f}", f"{row['compress']:.1%}"]
        lines.append(cells)
    return markdown_table(titles, lines)


def judge(results: Mapping[tuple[str, Variant], Sequence[Run]]) -> str:
    """Markdown: the paper's scorer against each other one, run by run, and whether it wins."""
    lines, wins_all, reference = [], True, str(KEEP_ALL)
    for name in (name for name in SCORERS if name != "paper"):
        pairs = chain.from_iterable(
            zip(results[preset, Variant(budget)], results[preset, Variant(budget, name)], strict=True)
            for preset in PRESETS
            for budget in SCORED_BUDGETS
        )
        gains = [paper.psnr[reference] - other.psnr[reference] for paper, other in pairs]
        wins = sum(gain > 0 for gain in gains)
        wins_all &= wins > len(gains) / 2
        lines.append((name, f"{wins} of {len(gains)}", f"{mean(gains):+.1f} dB"))
    word = "has" if wins_all else "does not have"
    table = markdown_table(("the paper's scorer against", "higher PSNR in", "by, mean"), lines)
    return f"{table}\n\nThe paper's scorer {word} the higher PSNR against each of the others in most runs."


def draw(rows: Rows, path: Path) -> None:
    """Save a PNG: PSNR over the memory of keys and values, a line per scorer."""
    figure = Figure(figsize=(9, 3.8), dpi=130, layout="constrained")
    for preset, axis in zip(PRESETS, figure.subplots(1, len(PRESETS), sharey=True), strict=True):
        for name in SCORERS:
            budgets = AXES["budget",] if name == "paper" else [Variant(b, name) for b in SCORED_BUDGETS]
            found = [rows[preset, variant] for variant in budgets]
            style = {"linewidth": 2.2, "color": "black"} if name == "paper" else {"linewidth": 1.2}
            style["linestyle"] = "--" if name in CONTROLS else "-"
            sizes = [row["kv_bytes"] / 2**20 for row in found]
            axis.plot(sizes, [row["psnr"] for row in found], marker="o", markersize=3.5, label=name, **style)
        style_axis(axis, title=f"reuse: {preset}", xlabel="keys and values, MiB")
    figure.axes[0].set_ylabel("PSNR to everything kept, dB")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    save_figure(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "kv")
    add_model_flags(parser)
    add = parser.add_argument
    add("--steps", type=positive, default=16, help=f"denoising steps, a multiple of {LIVE} (default: 16)")
    add("--captions", type=positive, default=4, help="number of held-out captions (default: 4)")
    add("--chunks", type=positive, default=11, help="of each video, more than 10 (default: 11)")
    args = parser.parse_args()
    find_chunk_model(args, args.chunks)
    if args.chunks <= LIVE + max(v.budget for v in AXES["budget",]):
        raise ValueError(f"chunks: expected more than 10, as the largest budget is 6, got {args.chunks}.")
    if args.captions > (known := len(read_held_out())):
        raise ValueError(f"captions: expected at most {known}, got {args.captions}.")
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
