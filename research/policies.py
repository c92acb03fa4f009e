"""Compare reuse policies and forecasts at the same compute.

    python -m research.policies --model skyreels

A curve is a policy with a forecast at several values of its option; a point is the median over captions of
the PSNR to the run without reuse, against the share of chunk steps computed. Runs are appended to
``OUTDIR/runs.jsonl``; an interrupted measurement continues where it stopped.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from flowcache import FlowCacheConfig
from flowcache.files import markdown_table, write_csv
from flowcache.reuse import TeaCache

from .compare import Run, draw_panels, main, positive, write_results
from .runs import Model, compare_configs, find_model, new_parser
from .train_small.moving_shapes import read_held_out

INTERVALS = (2, 3, 4, 5, 7, 10)
THRESHOLDS = {"skyreels": (0.03, 0.06, 0.1, 0.15, 0.25, 0.4), "magi": (0.01, 0.02, 0.04, 0.08, 0.15)}
THRESHOLDS["self_forcing_50"] = THRESHOLDS["skyreels"]
#: Combined with every policy; the first at every value of the option, others at every second.
FORECASTS = {
    "corrected line": "corrected_velocity",
    "line": "linear_velocity",
    "held velocity": "hold_velocity",
    "line of the residual": "linear_residual",
}
#: The run without reuse, and the curve that others are compared with.
PLAIN, PAPER = "no reuse", "the paper's rule"
#: Computed shares between which curves are averaged: about 4 to 2 times fewer chunk steps.
SPAN = (0.25, 0.5)

Curves = dict[str, dict[float, FlowCacheConfig]]


def make_curves(model: Model, thresholds: Sequence[float]) -> Curves:
    """Configurations of each curve by the option's value: the originals, every policy with every forecast."""
    ours = model.configure("flowcache", "fast")
    paper = {x: model.configure("flowcache", "paper-fast", threshold=x) for x in thresholds}
    chunkwise = {x: replace(config, clean_pass=ours.clean_pass) for x, config in paper.items()}
    tea = {}
    for x in thresholds[::2]:
        policy = paper[x].policy
        as_tea = TeaCache(x, policy.warmup_steps, 1, policy.coefficients, policy.indicator)
        tea[x] = replace(chunkwise[x], policy=as_tea)
    policies = {
        "TeaCache": tea,
        "chunkwise": chunkwise,
        "chunkwise together": {x: model.configure("flowcache", "fast", threshold=x) for x in thresholds[1:]},
        "interval": {x: replace(ours, policy=replace(ours.policy, interval=x)) for x in INTERVALS},
    }
    curves = {PAPER: paper, "TeaCache": {x: replace(c, forecast="hold_residual") for x, c in tea.items()}}
    for policy, configs in policies.items():
        for index, (name, forecast) in enumerate(FORECASTS.items()):
            values = list(configs)[:: 2 if index and len(configs) > 3 else 1]
            curves[f"{policy}, {name}"] = {x: replace(configs[x], forecast=forecast) for x in values}
    return curves


def bench(args: argparse.Namespace) -> str:
    # more frames than a window are made as one stream
    model = find_model(args, streaming=(args.num_frames or 0) > 97)
    plain = model.configure(model.no_reuse, **({"budget": args.budget} if args.budget else {}))
    curves, configs = make_curves(model, THRESHOLDS[args.model]), {PLAIN: plain}
    for name in args.curves or curves:
        if name not in curves:
            raise ValueError(f"curves: expected names among {'; '.join(curves)}, got {name!r}.")
        for value, config in curves[name].items():
            configs[f"{name} | {value:g}"] = replace(config, compression=plain.compression)
    captions = range(args.skip, min(args.skip + args.captions, len(read_held_out())))
    runs = compare_configs(model, configs, PLAIN, captions, args)
    return report([run for run in runs if run.method != PLAIN], args)


class Curve:
    """Medians over captions of the runs ``NAME | VALUE``, by rising compute.

    Points are the option's value, computed share, FLOPs saved, dB and SSIM.
    """

    def __init__(self, name: str, runs: Sequence[Run]) -> None:
        self.name = name
        by_value: dict[float, list[tuple[float, ...]]] = {}
        for run in runs:
            curve, _, value = run.method.partition(" | ")
            if curve == name:
                saved = run.flops["causal"] / run.flops["actual"]
                point = (1 - run.reuse_ratio, saved, run.psnr[PLAIN], run.ssim[PLAIN])
                by_value.setdefault(float(value), []).append(point)
        rows = [(value, *np.median(points, axis=0).tolist()) for value, points in by_value.items()]
        self.points = sorted(rows, key=lambda row: (row[1], row[3]))
        _, self.computed, _, self.psnr, _ = zip(*self.points, strict=True)

    def psnr_at(self, shares: ArrayLike) -> np.ndarray:
        """PSNR at shares of compute, between the points measured; NaN beyond them."""
        return np.interp(shares, self.computed, self.psnr, left=np.nan, right=np.nan)

    def computed_for(self, psnr: float) -> float:
        """Least share of compute that reaches a PSNR; NaN if none measured does."""
        best = np.maximum.accumulate(self.psnr)
        index = int(np.searchsorted(best, psnr))
        near = slice(max(0, index - 1), index + 1)
        return float(np.interp(psnr, best[near], self.computed[near])) if psnr <= best[-1] else np.nan

    @property
    def area(self) -> float:
        """Mean PSNR over ``SPAN``; NaN if the curve does not cover it."""
        return float(np.mean(self.psnr_at(np.linspace(*SPAN, 101))))


def report(runs: Sequence[Run], args: argparse.Namespace) -> str:
    """Write every point and the picture; return the tables."""
    curves = [Curve(name, runs) for name in dict.fromkeys(run.method.partition(" | ")[0] for run in runs)]
    columns = ("curve", "value", "computed", "saved", "psnr", "ssim")
    rows = [dict(zip(columns, (c.name, *point), strict=True)) for c in curves for point in c.points]
    write_csv(args.outdir / "curves.csv", columns, rows)
    draw(curves, args.outdir / "curves.png", args.model)
    tables = [f"Medians over {len({run.seed for run in runs})} captions.", summarise(curves)]
    tables += [compare_with(curve, curves) for curve in curves if curve.name == PAPER]
    form = "{:g}: {:.2f}, {:.2f}x, {:.1f}, {:.3f}"
    points = [(c.name, "; ".join(form.format(*point) for point in c.points)) for c in curves]
    tables.append(markdown_table(("policy and forecast", "option: computed, FLOPs saved, dB, SSIM"), points))
    return write_results(args, "curves", "\n\n".join(tables), rows)


def summarise(curves: Sequence[Curve]) -> str:
    """Area of each curve, and PSNR at three shares."""
    titles = ["policy and forecast", "mean dB, {:.2f} to {:.2f} computed".format(*SPAN)]
    rows = []
    for curve in sorted(curves, key=lambda c: -np.nan_to_num(c.area)):
        cells = [curve.area, *curve.psnr_at([0.25, 1 / 3, 0.5])]
        rows.append([curve.name, *("" if np.isnan(cell) else f"{cell:.1f}" for cell in cells)])
    return markdown_table([*titles, "dB at .25", "dB at .33", "dB at .5"], rows)


def compare_with(paper: Curve, curves: Sequence[Curve]) -> str:
    """Gain over the paper's rule at each of its points: dB at its compute, compute at its dB."""
    titles = ("the paper's rule at", "computed", "dB", "best at this compute", "least compute for these dB")
    rows, others = [], [c for c in curves if c is not paper]
    for value, share, _, height, _ in paper.points:
        heights = [(h, c.name) for c in others if not np.isnan(h := c.psnr_at(share))]
        shares = [(s, c.name, c) for c in others if (s := c.computed_for(height)) < share]
        best = "{:.1f} dB ({})".format(*max(heights)) if heights else ""
        cheapest = ""
        if shares:
            least, name, curve = min(shares)
            # a curve that starts at a higher PSNR would need even less
            less, more = ("less than ", "more than ") if curve.psnr[0] >= height else ("", "")
            cheapest = f"{less}{least:.2f}, {more}{share / least:.1f}x fewer ({name})"
        rows.append([f"{value:g}", f"{share:.2f}", f"{height:.1f}", best, cheapest])
    return markdown_table(titles, rows)


def draw(curves: Sequence[Curve], path: Path, model: str) -> None:
    """Save a PNG of PSNR against compute; of more than 10 curves, those with the first forecast."""
    if len(curves) > 10:
        first = f", {next(iter(FORECASTS))}"
        curves = [c for c in curves if c.name.endswith(first) or ", " not in c.name]
    markers = {"the": "X", "TeaCache": "P", "chunkwise": "o", "interval": "s"}
    with draw_panels(path, 9) as (axis,):
        for curve in curves:
            marker = markers.get(curve.name.split()[0].rstrip(","), "v")
            axis.plot(curve.computed, curve.psnr, label=curve.name, marker=marker, ms=5, lw=1.3)
        axis.set_title(f"PSNR at equal compute, small {model} checkpoint")
        axis.set(xlabel="share of chunk steps computed", ylabel="PSNR to the run without reuse, dB")


if __name__ == "__main__":
    parser = new_parser(__doc__, "policies_MODEL", "97; magi: 96; self_forcing_50: 81", tuple(THRESHOLDS))
    add = parser.add_argument
    add("--captions", type=positive, default=12, help="number of held-out captions (default: 12)")
    add("--skip", type=int, default=0, help="held-out captions to skip (default: 0)")
    add("--budget", type=positive, help="chunks' worth of KV tokens kept of clean chunks (default: all)")
    add("--curves", nargs="+", help="names of the curves to measure (default: all)")
    main(parser, bench)
