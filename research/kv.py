"""Measure what KV compression costs in quality, and what it saves in memory and time.

    python -m research.kv --model skyreels --captions 4
    python -m research.kv --model magi --captions 12 --tables method

Long videos of the first held-out captions, with and without reuse, with everything kept and with one setting of
the cache varied at a time. PSNR and SSIM are to the video of the same caption, seed and preset with everything
kept, over its last four chunks, which every budget affects. Runs are appended to ``OUTDIR/runs.jsonl``; an
interrupted measurement continues. After a change of code or weights, give another ``--outdir``.
"""

import argparse
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from flowcache import FlowCacheConfig
from flowcache.files import markdown_table, write_csv
from flowcache.kv.scorers import SCORERS

from .compare import Run, draw_panels, main, positive, write_results
from .runs import LIVE, Model, compare_configs, find_chunk_model, new_parser

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
    compactor: str = "select"

    def __str__(self) -> str:
        if self.budget is None:
            return "all" if self.bits is None else f"all, {self.bits} bits"
        most = self.max_queries and f"{self.max_queries} queries"
        compactor = None if self.compactor == "select" else self.compactor
        parts = (self.budget, self.scorer, self.strategy, self.queries, self.bits, most, compactor)
        return ", ".join(str(part) for part in parts if part is not None)

    @property
    def method(self) -> str | None:
        """Scorer and compactor, where nothing but they and the budget is set."""
        own = Variant(self.budget, self.scorer, compactor=self.compactor)
        if self != own or self.budget is None:
            return None
        return self.scorer if self.compactor == "select" else f"{self.scorer}, {self.compactor}"

    def configure(self, model: Model, preset: str, chunks: int) -> FlowCacheConfig:
        method = (model.no_reuse,) if preset == "none" else ("flowcache", preset)
        if self.budget is None:
            return model.configure(*method, kv_range=chunks, kv_bits=self.bits)
        named = {"scorer": self.scorer, "compactor": self.compactor}
        config = model.configure(*method, budget=self.budget, kv_bits=self.bits, **named)
        changes = {"query_granularity": self.queries, "max_queries": self.max_queries}
        changes = {name: value for name, value in changes.items() if value is not None}
        changes |= {"strategy": self.strategy}
        return replace(config, compression=replace(config.compression, **changes))


KEEP_ALL = Variant()
#: Scorers and compactors that are compared at every budget.
METHODS = (
    ("paper", "select"),
    ("random", "select"),
    ("random", "matched"),
    ("spread", "select"),
    ("spread", "matched"),
)
#: Fields that are varied, and variants, by the name of a table.
TABLES: dict[str, tuple[tuple[str, ...], list[Variant]]] = {
    "budget": (("budget",), [Variant(budget) for budget in range(1, 7)]),
    "method": (
        ("scorer", "compactor", "budget"),
        [Variant(budget, scorer, compactor=made) for scorer, made in METHODS for budget in (1, 2, 3, 4)],
    ),
    "scorer": (("scorer", "budget"), [Variant(budget, scorer) for scorer in SCORERS for budget in SCORED_BUDGETS]),
    "strategy": (("strategy",), [Variant(1, strategy=granularity) for granularity in GRANULARITIES]),
    "queries": (("queries",), [Variant(1, queries=granularity) for granularity in GRANULARITIES]),
    "max_queries": (
        ("compactor", "max_queries"),
        [Variant(1, queries="chunk", max_queries=most) for most in (4, 8, 16, 32)]
        + [Variant(1, "spread", compactor="matched", max_queries=most) for most in (64, 128, 256, 512)],
    ),
    "bits": (
        ("scorer", "compactor", "budget", "bits"),
        [Variant(bits=bits) for bits in (None, 8, 4)]
        + [
            Variant(budget, scorer, compactor=made, bits=bits)
            for scorer, made in (METHODS[0], METHODS[-1])
            for budget in SCORED_BUDGETS
            for bits in (None, 8, 4)
        ],
    ),
}
#: Variants on a contact sheet.
SHEET = (KEEP_ALL, *(Variant(b, s, compactor=c) for b in (3, 1) for s, c in (METHODS[0], METHODS[1], METHODS[-1])))

_QUALITY = "{psnr:.1f} dB ({psnr_low:.1f} to {psnr_high:.1f}), {ssim:.3f}"

Row = dict[str, Any]
#: Runs of the captions, and what is made of them, by preset and variant.
Results = dict[tuple[str, Variant], list[Run]]
Rows = dict[tuple[str, Variant], Row]


def bench(args: argparse.Namespace) -> str:
    model = find_chunk_model(args, args.chunks)
    tables = {name: TABLES[name] for name in args.tables}
    variants = list(dict.fromkeys([KEEP_ALL, *chain(*(made for _, made in tables.values()))]))
    most = max(variant.budget or 0 for variant in variants)
    if args.chunks <= LIVE + most:
        raise ValueError(
            f"chunks: expected more than {LIVE + most}, as the largest budget is {most}, got {args.chunks}."
        )
    model.warm_up(KEEP_ALL.configure(model, "none", args.chunks))
    results: Results = {}
    for preset in PRESETS:
        configs = {str(variant): variant.configure(model, preset, args.chunks) for variant in variants}
        sheet = {"shown": [str(v) for v in SHEET if v in variants], "name": f"{args.model}_{preset}_caption"}
        runs = compare_configs(model, configs, str(KEEP_ALL), range(args.captions), args, last=LIVE, **sheet)
        for index, variant in enumerate(variants):
            results[preset, variant] = runs[index :: len(variants)]
    rows = {key: summarise(*key, results) for key in results}
    write_csv(args.outdir / f"kv_{args.model}.csv", list(rows[PRESETS[0], KEEP_ALL]), rows.values())
    draw(rows, args.outdir / f"kv_{args.model}.png")
    table = "\n\n".join([*(tabulate(rows, *each) for each in tables.values()), judge(results)])
    return write_results(args, f"kv_{args.model}", table, list(chain(*results.values())))


def summarise(preset: str, variant: Variant, results: Results) -> Row:
    """Medians over the captions, and the quartiles of PSNR.

    ``time`` is to the run of the same caption and preset that keeps everything, ``compress`` a share of it.
    """
    runs, bases = results[preset, variant], results[preset, KEEP_ALL]
    decibels = [value for run in runs for value in run.psnr.values()]
    low, middle, high = (
        torch.tensor(decibels).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() if decibels else [None] * 3
    )
    return {
        "preset": preset,
        **asdict(variant),
        "captions": len(runs),
        "kv_bytes": runs[0].kv_bytes,
        "seconds": median(run.seconds for run in runs),
        "time": median(run.seconds / base.seconds for run, base in zip(runs, bases, strict=True)),
        "compress": median(run.compress_share for run in runs),
        "psnr": middle,
        "psnr_low": low,
        "psnr_high": high,
        "ssim": median([value for run in runs for value in run.ssim.values()] or [None]),
    }


def tabulate(rows: Rows, axis: tuple[str, ...], variants: list[Variant]) -> str:
    """Markdown: a row per variant, with the fields of an axis, cost, PSNR and SSIM for every preset."""
    titles = [*axis, "KV MiB"]
    for preset in PRESETS:
        titles += [f"{preset}: PSNR (quartiles), SSIM", "time", "of it compression"]
    lines = []
    for variant in variants:
        values = (getattr(variant, name) for name in axis)
        cells = ["all" if value is None else value for value in values]
        cells.append(f"{rows[PRESETS[0], variant]['kv_bytes'] / 2**20:.2f}")
        for preset in PRESETS:
            row = rows[preset, variant]
            cells.append("" if row["psnr"] is None else _QUALITY.format_map(row))
            cells += [f"{row['time']:.2f}", f"{row['compress']:.1%}"]
        lines.append(cells)
    return markdown_table(titles, lines)


def judge(results: Results) -> str:
    """Markdown: the paper's scorer against each other method, run by run, and whether it wins."""
    runs: dict[str, dict[tuple[str, int, int], float]] = {}
    for (preset, variant), made in results.items():
        if variant.method:
            found = {(preset, variant.budget, i): run.psnr[str(KEEP_ALL)] for i, run in enumerate(made)}
            runs.setdefault(variant.method, {}).update(found)
    paper, lines, wins_all = runs.pop("paper", {}), [], True
    for name, others in runs.items():
        gains = [paper[place] - other for place, other in others.items() if place in paper]
        if gains:
            wins = sum(gain > 0 for gain in gains)
            wins_all &= wins > len(gains) / 2
            lines.append((name, f"{wins} of {len(gains)}", f"{mean(gains):+.1f} dB"))
    word = "has" if wins_all else "does not have"
    table = markdown_table(("the paper's scorer against", "higher PSNR in", "by, mean"), lines)
    return f"{table}\n\nThe paper's scorer {word} the higher PSNR against each of the others in most runs."


def draw(rows: Rows, path: Path) -> None:
    """Save a PNG: PSNR over the memory of keys and values, a line per method."""
    methods = dict.fromkeys(variant.method for _, variant in rows if variant.method)
    with draw_panels(path, 9, len(PRESETS), sharey=True) as axes:
        for axis, preset in zip(axes, PRESETS, strict=True):
            for name in methods:
                found = [row for (made, variant), row in rows.items() if (made, variant.method) == (preset, name)]
                found.sort(key=lambda row: row["budget"])
                style = {"lw": 2.2, "color": "black"} if name == "paper" else {"lw": 1.2}
                style |= {"linestyle": "--" if name in CONTROLS else "-", "marker": "o", "ms": 3.5, "label": name}
                axis.plot([row["kv_bytes"] / 2**20 for row in found], [row["psnr"] for row in found], **style)
            axis.set(title=f"reuse: {preset}", xlabel="keys and values, MiB")
        axes[0].set_ylabel("PSNR to everything kept, dB")


if __name__ == "__main__":
    parser = new_parser(__doc__, "kv")
    add = parser.add_argument
    add("--steps", type=positive, default=16, help=f"denoising steps, a multiple of {LIVE} (default: 16)")
    add("--captions", type=positive, default=4, help="number of held-out captions (default: 4)")
    add("--chunks", type=positive, default=11, help="of each video, more than 10 (default: 11)")
    add("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="tables to make (default: all)")
    main(parser, bench)
