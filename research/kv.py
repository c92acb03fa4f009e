"""Measure what KV compression costs in quality, and what it saves in memory and time.

    python -m research.kv --model skyreels --steps 12 --captions 12 --tables method bits parts controls
    python -m research.kv --model magi --captions 4

Long videos of the first held-out captions, with and without reuse, with everything kept and with one setting of
the cache varied at a time. PSNR and SSIM are to the video of the same caption, seed and preset with everything
kept, over its last four chunks, which every budget affects. Captions follow one another, with both presets each;
tables, CSV and picture are written after every caption, of the captions so far. Runs are appended to
``OUTDIR/runs.jsonl``; an interrupted measurement continues, and makes again only the video with everything kept of
the caption and preset at which it stopped. ``OUTDIR/kv.png`` shows all models that were measured in the folder.
After a change of code or weights, give another ``--outdir``.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, cycle, product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from flowcache import FlowCacheConfig, KVCompressionConfig
from flowcache.files import markdown_table, write_csv
from flowcache.kv.scorers import SCORERS

from .compare import Run, draw_panels, main, positive, write_results
from .runs import LIVE, Model, compare_configs, find_chunk_model, new_parser
from .train_small.moving_shapes import read_held_out

PRESETS = ("none", "fast")
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
        """Scorer, compactor and bits, where nothing but they and the budget is set; None: it is no method."""
        own = Variant(self.budget, self.scorer, bits=self.bits, compactor=self.compactor)
        if self != own or self == KEEP_ALL:
            return None
        if self.budget is None:
            return "everything, 8 and 4 bits"
        return f"{self.scorer}, {self.compactor}" + (f", {self.bits} bits" if self.bits else "")

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
#: Scorer and compactor of the paper, and our default.
PAPER, OURS = ("paper", "select"), tuple(KVCompressionConfig().as_dict()[part] for part in ("scorer", "compactor"))
#: What each half of our default brings.
PARTS = (("random", "select"), (OURS[0], "select"), ("random", OURS[1]))
#: Rows that no query has a say in.
CONTROLS = tuple((scorer, "select") for scorer in ("random", "recency", "sink_window", "key_norm"))


def vary(
    methods: Sequence[tuple[str, str]], budgets: Sequence[int], bits: Sequence[int | None] = (None,)
) -> list[Variant]:
    """Variants of scorers and compactors."""
    made = product(methods, budgets, bits)
    return [Variant(budget, scorer, bits=each, compactor=compactor) for (scorer, compactor), budget, each in made]


#: Fields that are varied, and variants, by the name of a table.
TABLES: dict[str, tuple[tuple[str, ...], list[Variant]]] = {
    "budget": (("budget",), [Variant(budget) for budget in range(1, 7)]),
    "method": (("scorer", "compactor", "budget"), vary((PAPER, OURS), (1, 2, 3, 4))),
    "parts": (("scorer", "compactor", "budget"), vary((PAPER, *PARTS, OURS), SCORED_BUDGETS)),
    "controls": (("scorer", "compactor", "budget"), vary((PAPER, *CONTROLS, OURS), SCORED_BUDGETS)),
    "scorer": (("scorer", "budget"), [Variant(budget, scorer) for scorer in SCORERS for budget in SCORED_BUDGETS]),
    "strategy": (("strategy",), [Variant(1, strategy=granularity) for granularity in GRANULARITIES]),
    "queries": (("queries",), [Variant(1, queries=granularity) for granularity in GRANULARITIES]),
    "max_queries": (
        ("compactor", "max_queries"),
        [Variant(1, queries="chunk", max_queries=most) for most in (4, 8, 16, 32)]
        + [Variant(1, OURS[0], compactor=OURS[1], max_queries=most) for most in (64, 128, 256, 512)],
    ),
    "bits": (
        ("scorer", "compactor", "budget", "bits"),
        [Variant(bits=bits) for bits in (None, 8, 4)] + vary((PAPER, OURS), SCORED_BUDGETS, (None, 8, 4)),
    ),
}
#: Colour and marker of the paper's method and ours, and of others, in the picture; lines of fewer bits.
EMPHASISED = (("black", "o"), ("tab:red", "o"))
OTHERS = tuple(
    (f"tab:{colour}", marker)
    for colour, marker in zip(("blue", "green", "purple", "orange", "cyan", "brown", "gray"), "sD^vP*X", strict=True)
)
BIT_LINES = {"8": "--", "4": ":"}
TITLES = {"magi": "MAGI-1", "skyreels": "SkyReels-V2"}
#: Variants on a contact sheet.
SHEET = (KEEP_ALL, *vary((PAPER, OURS), (3, 1)))

_QUALITY = "{psnr:.1f} dB ({psnr_low:.1f} to {psnr_high:.1f}), {ssim:.3f}"

Row = dict[str, Any]
#: Runs of the captions, and what is made of them, by preset and variant.
Results = dict[tuple[str, Variant], list[Run]]
Rows = dict[tuple[str, Variant], Row]


def bench(args: argparse.Namespace) -> str:
    model = find_chunk_model(args, args.chunks)
    variants = list(dict.fromkeys([KEEP_ALL, *chain(*(TABLES[name][1] for name in args.tables))]))
    most = max(variant.budget or 0 for variant in variants)
    if args.chunks <= LIVE + most:
        raise ValueError(
            f"chunks: expected more than {LIVE + most}, as the largest budget is {most}, got {args.chunks}."
        )
    if args.captions > len(read_held_out()):
        raise ValueError(f"captions: expected at most {len(read_held_out())}, got {args.captions}.")
    model.warm_up(KEEP_ALL.configure(model, "none", args.chunks))
    results: Results = {key: [] for key in product(PRESETS, variants)}
    text = ""
    for caption, preset in product(range(args.captions), PRESETS):
        configs = {str(variant): variant.configure(model, preset, args.chunks) for variant in variants}
        sheet = {"shown": [str(v) for v in SHEET if v in variants], "name": f"{args.model}_{preset}_caption"}
        runs = compare_configs(model, configs, str(KEEP_ALL), [caption], args, last=LIVE, **sheet)
        for variant, run in zip(variants, runs, strict=True):
            results[preset, variant].append(run)
        if preset == PRESETS[-1]:
            text = report(args, results)
    return text


def report(args: argparse.Namespace, results: Results) -> str:
    """Write CSV, picture and tables of the captions so far."""
    rows = {key: summarise(*key, results) for key in results}
    write_csv(args.outdir / f"kv_{args.model}.csv", list(rows[PRESETS[0], KEEP_ALL]), rows.values())
    draw(args.outdir)
    tables = [tabulate(rows, *TABLES[name]) for name in args.tables]
    text = "\n\n".join([*tables, judge(results)])
    return write_results(args, f"kv_{args.model}", text, list(chain(*results.values())))


def summarise(preset: str, variant: Variant, results: Results) -> Row:
    """Medians over the captions, and the quartiles of PSNR; ``compress`` is the share of the run's denoising."""
    runs = results[preset, variant]
    decibels = [value for run in runs for value in run.psnr.values()]
    low, middle, high = quartiles(decibels) if decibels else [None] * 3
    return {
        "preset": preset,
        **asdict(variant),
        "method": variant.method,
        "captions": len(runs),
        "kv_bytes": runs[0].kv_bytes,
        "seconds": median(run.seconds for run in runs),
        "compress": median(run.compress_share for run in runs),
        "psnr": middle,
        "psnr_low": low,
        "psnr_high": high,
        "ssim": median([value for run in runs for value in run.ssim.values()] or [None]),
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """First quartile, median and third."""
    return torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()


def tabulate(rows: Rows, axis: tuple[str, ...], variants: list[Variant]) -> str:
    """Markdown: a row per variant, with the fields of an axis, cost, PSNR and SSIM for every preset."""
    titles = [*axis, "KV MiB"]
    for preset in PRESETS:
        titles += [f"{preset}: PSNR (quartiles), SSIM", "of it compression"]
    lines = []
    for variant in variants:
        values = (getattr(variant, name) for name in axis)
        cells = ["all" if value is None else value for value in values]
        cells.append(f"{rows[PRESETS[0], variant]['kv_bytes'] / 2**20:.2f}")
        for preset in PRESETS:
            row = rows[preset, variant]
            cells.append("" if row["psnr"] is None else _QUALITY.format_map(row))
            cells.append(f"{row['compress']:.1%}")
        lines.append(cells)
    return markdown_table(titles, lines)


def judge(results: Results) -> str:
    """Markdown: gain over the paper's method at the same budget, bits and preset, caption by caption."""
    lines = []
    for variant in dict.fromkeys(made for _, made in results):
        paper = Variant(variant.budget, bits=variant.bits)
        if variant.budget is None or variant.method in (None, paper.method) or (PRESETS[0], paper) not in results:
            continue
        cells = [variant.scorer, variant.compactor, variant.budget, variant.bits or "all"]
        for preset in PRESETS:
            pairs = zip(results[preset, variant], results[preset, paper], strict=True)
            gains = [own.psnr[str(KEEP_ALL)] - other.psnr[str(KEEP_ALL)] for own, other in pairs]
            low, middle, high = quartiles(gains)
            wins = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
            cells.append(f"{middle:+.1f} dB ({low:+.1f} to {high:+.1f}), {wins}")
        lines.append(cells)
    titles = [f"{preset}: gain over the paper's (quartiles), closer in" for preset in PRESETS]
    return markdown_table(["scorer", "compactor", "budget", "bits", *titles], lines)


def draw(folder: Path) -> None:
    """Save ``kv.png``: PSNR over the bytes of keys and values, a panel per model of the folder, a line per method.

    Of the preset that users get. The paper's method and ours are thick, with quartiles as bands; in fewer bits, a
    method has the colour that it has without.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted(folder.glob("kv_*.csv")):
        with path.open() as file:
            rows = [row for row in csv.DictReader(file) if row["method"] and row["preset"] == PRESETS[-1]]
        found[path.stem.removeprefix("kv_")] = rows
    thick = dict(zip((", ".join(PAPER), ", ".join(OURS)), EMPHASISED, strict=True))
    others = dict.fromkeys(name for name in map(name_line, chain(*found.values())) if name not in thick)
    styles = thick | dict(zip(others, cycle(OTHERS), strict=False))
    with draw_panels(folder / "kv.png", 11, len(found)) as axes:
        for axis, (model, rows) in zip(axes, found.items(), strict=True):
            for name in dict.fromkeys(row["method"] for row in rows):
                points = sorted((row for row in rows if row["method"] == name), key=lambda row: int(row["kv_bytes"]))
                mebibytes = [int(row["kv_bytes"]) / 2**20 for row in points]
                psnr, low, high = ([float(row[key]) for row in points] for key in ("psnr", "psnr_low", "psnr_high"))
                line = name_line(points[0])
                colour, marker = styles[line]
                dashes = BIT_LINES.get(points[0]["bits"], "-") if line != name else "-"
                width = 2.4 if name in thick else 1.1
                axis.plot(mebibytes, psnr, dashes, color=colour, marker=marker, ms=4, lw=width, label=name)
                if name in thick:
                    axis.fill_between(mebibytes, low, high, color=colour, alpha=0.12, lw=0)
            axis.set(title=TITLES.get(model, model), xlabel="keys and values, MiB")
        axes[0].set_ylabel("PSNR to everything kept, dB")


def name_line(row: Mapping[str, str]) -> str:
    """Method of a row of the CSV whatever its bits."""
    return f"{row['scorer']}, {row['compactor']}" if row["budget"] else row["method"]


if __name__ == "__main__":
    parser = new_parser(__doc__, "kv")
    add = parser.add_argument
    add("--steps", type=positive, default=16, help=f"denoising steps, a multiple of {LIVE} (default: 16)")
    add("--captions", type=positive, default=4, help="number of held-out captions (default: 4)")
    add("--chunks", type=positive, default=11, help="of each video, more than 10 (default: 11)")
    add("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="tables to make (default: all)")
    main(parser, bench)
