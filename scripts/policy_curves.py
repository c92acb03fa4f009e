"""Curves of closeness against compute: medians, areas, what they say, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.figure import Figure

from flowcache.files import write_atomically, write_csv
from flowcache.markdown import markdown_table
from flowcache.plots.style import faint_grid, plain_frame, save_figure

#: Computed shares between which curves are averaged: about 4 to 2 times fewer chunk steps.
SPAN = (0.25, 0.5)

#: The curve that all others are held against.
PAPER = "the paper's rule"

#: How the names of curves end that carry the velocity on along a line.
LINE = ", line"


@dataclass(frozen=True)
class Point:
    """One run: its curve and knob, the share of chunk steps computed, FLOPs saved by reuse, dB and SSIM."""

    curve: str
    knob: float
    caption: str
    computed: float
    saved: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Curve:
    """Medians over captions, by rising compute; ``psnr`` is the closeness to the run without reuse."""

    name: str
    knobs: tuple[float, ...]
    computed: tuple[float, ...]
    saved: tuple[float, ...]
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]

    @classmethod
    def of(cls, name: str, points: Sequence[Point]) -> Curve:
        """Of all runs of one name."""
        rows = []
        for knob in {point.knob for point in points}:
            runs = [point for point in points if point.knob == knob]
            values = (median(getattr(r, key) for r in runs) for key in ("computed", "saved", "psnr", "ssim"))
            rows.append((knob, *values))
        return cls(name, *zip(*sorted(rows, key=lambda row: (row[1], row[3])), strict=True))

    def psnr_at(self, computed: float) -> float | None:
        """Closeness at a share of compute, between the points measured; None beyond them."""
        if not self.computed[0] <= computed <= self.computed[-1]:
            return None
        return float(np.interp(computed, self.computed, self.psnr))

    def computed_for(self, psnr: float) -> float | None:
        """The least share of compute that is as close; None if none measured is."""
        best = np.maximum.accumulate(self.psnr)
        if psnr > best[-1]:
            return None
        if psnr <= best[0]:
            return self.computed[0]
        index = int(np.searchsorted(best, psnr))
        (x0, x1), (y0, y1) = self.computed[index - 1 : index + 1], best[index - 1 : index + 1]
        return float(x0 + (x1 - x0) * (psnr - y0) / (y1 - y0))

    @property
    def area(self) -> float | None:
        """Mean closeness over ``SPAN``; None if the curve does not reach across it."""
        shares = np.linspace(*SPAN, 101)
        heights = [self.psnr_at(float(share)) for share in shares]
        return None if None in heights else float(np.mean(heights))


def report(points: Sequence[Point], outdir: Path, family: str) -> str:
    """Write every point and the picture; return the table of curves and of their points."""
    names = list(dict.fromkeys(point.curve for point in points))
    curves = [Curve.of(name, [p for p in points if p.curve == name]) for name in names]
    rows = [
        {"curve": c.name, "knob": knob, "computed": share, "saved": saved, "psnr": height, "ssim": alike}
        for c in curves
        for knob, share, saved, height, alike in zip(
            c.knobs, c.computed, c.saved, c.psnr, c.ssim, strict=True
        )
    ]
    write_csv(outdir / "curves.csv", list(rows[0]), rows)
    draw(curves, outdir / "curves.png", family)
    captions = len({point.caption for point in points})
    parts = [f"Medians over {captions} captions.", summary(curves), grid(curves), all_points(curves)]
    table = "\n\n".join(parts)
    write_atomically(outdir / "curves.md", f"{table}\n".encode())
    return table


def summary(curves: Sequence[Curve]) -> str:
    """Two tables: the area of each curve and its closeness at three shares; what is gained over ``PAPER``.

    The second is left out where that curve was not measured.
    """
    paper = next((curve for curve in curves if curve.name == PAPER), None)
    span = f"{SPAN[0]:.2f} to {SPAN[1]:.2f}"
    titles = ("policy and forecast", f"mean dB, {span} computed", "dB at .25", "dB at .33", "dB at .5")
    rows = []
    for curve in sorted(curves, key=lambda c: -(c.area or 0.0)):
        cells = [curve.area, *(curve.psnr_at(share) for share in (0.25, 1 / 3, 0.5))]
        rows.append([curve.name, *map(_cell, cells)])
    text = markdown_table(titles, rows)
    return text if paper is None else f"{text}\n\n{_against(paper, curves)}"


def _against(paper: Curve, curves: Sequence[Curve]) -> str:
    """The gain over the paper's rule, at each of its points: dB at its compute, compute at its dB."""
    titles = ("the paper's rule at", "computed", "dB", "best at this compute", "least compute for these dB")
    rows = []
    for knob, share, height in zip(paper.knobs, paper.computed, paper.psnr, strict=True):
        others = [c for c in curves if c is not paper]
        heights = [(h, c.name) for c in others if (h := c.psnr_at(share)) is not None]
        shares = [(s, c) for c in others if (s := c.computed_for(height)) is not None]
        cells = [f"{knob:g}", f"{share:.2f}", f"{height:.1f}"]
        best, least = max(heights, default=None), min(shares, key=lambda x: x[0], default=None)
        cells.append("" if best is None else f"{best[0]:.1f} dB ({best[1]})")
        cells.append("" if least is None else _saving(share, *least, height))
        rows.append(cells)
    return markdown_table(titles, rows)


def _saving(share: float, least: float, curve: Curve, height: float) -> str:
    # A curve that begins closer than was asked for would need still less.
    less, more = ("less than ", "more than ") if curve.psnr[0] >= height else ("", "")
    return f"{less}{least:.2f}, {more}{share / least:.1f}x fewer ({curve.name})"


def grid(curves: Sequence[Curve]) -> str:
    """A row for each rule, a column for each forecast: dB at a third of the chunk steps, and the area."""
    pairs = {curve: curve.name.partition(", ")[::2] for curve in curves}
    forecasts = list(dict.fromkeys(forecast for _, forecast in pairs.values()))
    rows = {rule: [rule] + [""] * len(forecasts) for rule, _ in pairs.values()}
    for curve, (rule, forecast) in pairs.items():
        area = "" if curve.area is None else f" ({curve.area:.1f})"
        rows[rule][1 + forecasts.index(forecast)] = _cell(curve.psnr_at(1 / 3)) + area
    titles = ["dB at .33 (mean)", *(forecast or "its own" for forecast in forecasts)]
    return markdown_table(titles, list(rows.values()))


def all_points(curves: Sequence[Curve]) -> str:
    """Every point: knob, share computed, FLOPs saved, dB, SSIM."""
    rows = []
    for c in curves:
        points = zip(c.knobs, c.computed, c.saved, c.psnr, c.ssim, strict=True)
        cells = [f"{k:g}: {x:.2f}, {s:.2f}x, {y:.1f}, {z:.3f}" for k, x, s, y, z in points]
        rows.append([c.name, "; ".join(cells)])
    return markdown_table(("policy and forecast", "knob: computed, FLOPs saved, dB, SSIM"), rows)


def draw(curves: Sequence[Curve], path: Path, family: str) -> None:
    """Closeness against compute, a line for each curve."""
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axis = figure.subplots()
    markers = {
        "the": "X",
        "TeaCache": "P",
        "chunkwise": "o",
        "interval": "s",
        "error-controlled": "^",
        "planned": "D",
    }
    # Where every rule has several forecasts, those with the usual one are enough to look at.
    drawn = [c for c in curves if c.name.endswith(LINE) or ", " not in c.name] if len(curves) > 10 else curves
    for index, curve in enumerate(drawn):
        marker = markers.get(curve.name.split()[0].rstrip(","), "v")
        style = {"color": f"C{index % 10}", "ls": "-" if index < 10 else "--", "label": curve.name}
        axis.plot(curve.computed, curve.psnr, marker=marker, ms=5, lw=1.3, **style)
    axis.set(xlabel="share of chunk steps computed", ylabel="PSNR to the run without reuse, dB")
    axis.set_title(f"Closeness at equal compute, small {family} checkpoint", loc="left", fontsize=10)
    plain_frame(axis)
    faint_grid(axis)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
