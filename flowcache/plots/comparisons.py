"""Pictures of several runs: quality against speed-up, and the cache over time."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from ..trace import Trace
from .style import COMPUTED, REUSED, RULE, TEXT, check_windows, decorate, faint_grid, plain_frame, save_figure

#: Offsets of a label from its point, in typographic points, best first.
_PLACES = [(8, 0, "left"), (-8, 0, "right")]
for _up in (9, -9, 16, -16, 24, -24, 34, -34, 46, -46):
    _PLACES += [(4, _up, "left"), (-4, _up, "right"), (0, _up, "center")]


class Point(NamedTuple):
    """A method's label, speed-up and quality."""

    label: str
    speedup: float
    quality: float


def tradeoff(panels: Mapping[str, Sequence[Point]], title: str, path: str | Path) -> None:
    """Save a PNG of quality against speed-up, a panel for each measure; the Pareto front is joined by a line.

    Lower is better for measures named LPIPS or ST-LPIPS.
    """
    if not panels or not all(panels.values()):
        raise ValueError("A trade-off needs at least one measure, and a method that has it.")
    figure = Figure(figsize=(1.2 + 5 * len(panels), 4.8), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    dot = {"marker": "o", "linestyle": "", "markersize": 7}
    front = dot | {"linestyle": "-", "color": RULE, "markerfacecolor": REUSED, "markeredgecolor": REUSED}
    handles = [
        Line2D([], [], **front, label="Pareto front"),
        Line2D([], [], **dot, color=COMPUTED, label="another method is both faster and better"),
    ]
    fronts = []
    for axis, (measure, points) in zip(axes, panels.items(), strict=True):
        less_is_better = "LPIPS" in measure
        fronts.append(pareto_front(points, less_is_better))
        axis.plot(*zip(*[p[1:] for p in fronts[-1]], strict=True), color=RULE, linewidth=1.2, zorder=1)
        for point in points:
            axis.plot(*point[1:], **dot, color=REUSED if point in fronts[-1] else COMPUTED, zorder=2)
        plain_frame(axis)
        faint_grid(axis)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.xaxis.set_major_formatter("{x:g}x")
        axis.margins(x=0.2, y=0.16)
        if less_is_better:
            axis.invert_yaxis()
        axis.set_ylabel(f"{measure} (axis inverted)" if less_is_better else measure)
        axis.set_xlabel("speed-up")
    decorate(figure, title, handles)
    figure.draw_without_rendering()  # fixes the layout that the labels are fitted into
    figure.set_layout_engine("none")
    for axis, points, front in zip(axes, panels.values(), fronts, strict=True):
        _label(axis, points, front)
    save_figure(figure, path)


def pareto_front(points: Sequence[Point], less_is_better: bool = False) -> list[Point]:
    """Points that no other beats in speed and quality, the slowest first."""
    sign, front = -1 if less_is_better else 1, []
    for point in sorted(points, key=lambda point: (-point.speedup, -sign * point.quality)):
        if not front or sign * point.quality > sign * front[-1].quality:
            front.append(point)
    return front[::-1]


def _label(axis: Axes, points: Sequence[Point], front: Sequence[Point]) -> None:
    """Write names inside the axis, where they touch no name, no point and not the front's line, or as few as can be.

    Names that have the fewest free places are written first.
    """
    inside, to_pixels = axis.get_window_extent(), axis.transData.transform
    dots = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in (to_pixels(p[1:]) for p in points)]
    ends = [to_pixels(point[1:]) for point in front]
    line = np.concatenate([ends[:1], *(np.linspace(a, b, 300) for a, b in pairwise(ends))])
    boxes, touched = [], []
    for point in points:
        found = _name_boxes(axis, point)
        clipped = [inside.count_contains(box.corners()) < 4 for box in found]
        on_line = [box.count_contains(line) > 0 for box in found]
        touched.append(len(_PLACES) * np.array(clipped) + on_line + _count_overlaps(found, dots))
        boxes.append(found)
    names = []
    for index in sorted(range(len(points)), key=lambda index: np.count_nonzero(touched[index] == 0)):
        best = int(np.argmin(touched[index] + _count_overlaps(boxes[index], names)))
        names.append(boxes[index][best])
        _annotate(axis, points[index], *_PLACES[best])


def _annotate(axis: Axes, point: Point, right: int, up: int, side: str) -> Text:
    # a thin line to the point where the name is far from it
    arrow = {"arrowstyle": "-", "color": RULE, "linewidth": 0.8} if abs(up) > 20 else None
    style = {"fontsize": 8, "color": TEXT, "textcoords": "offset points", "va": "center", "ha": side}
    outline = [withStroke(linewidth=2.5, foreground="white")]
    return axis.annotate(point.label, point[1:], (right, up), arrowprops=arrow, path_effects=outline, **style)


def _name_boxes(axis: Axes, point: Point) -> list[Bbox]:
    """Extent of a point's name, in pixels, at each of ``_PLACES``."""
    text = _annotate(axis, point, 0, 0, "center")
    box = text.get_window_extent()
    text.remove()
    shifts, scale = {"left": box.width / 2, "right": -box.width / 2, "center": 0}, axis.figure.dpi / 72
    box = box.padded(4)  # the white outline of letters cuts no line
    return [box.translated(right * scale + shifts[side], up * scale) for right, up, side in _PLACES]


def _count_overlaps(boxes: Sequence[Bbox], others: Sequence[Bbox]) -> np.ndarray:
    """How many of the others each box overlaps, ``[boxes]``."""
    return np.array([box.count_overlaps(others) for box in boxes])


def cache_over_time(traces: Mapping[str, Trace], path: str | Path) -> None:
    """Save a PNG of the cache's tokens per layer and branch, and of its MiB, over each run's denoising time.

    Memory is that of the window's cache on the device and in host memory. A dot marks the end of a run.
    """
    for trace in traces.values() or (Trace(),):
        check_windows(trace)
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    handles = []
    for index, (label, trace) in enumerate(traces.items()):
        colour = colormaps["tab10"](index % 10)
        steps = [*trace.steps[:1], *trace.steps]  # the first step's values hold from time 0
        times = np.append(0, step_times(trace))
        held = [(w.kv_bytes + w.kv_host_bytes) / 2**20 for w in trace.windows]
        rows = [record.kv_tokens for record in steps], [held[record.window] for record in steps]
        for axis, values in zip(axes, rows, strict=True):
            # earlier runs are wider and below: coinciding lines all stay visible
            width = 1.4 + 2.2 * (1 - (index + 1) / len(traces))
            axis.step(times, values, where="pre", color=colour, linewidth=width)
            axis.plot(times[-1:], values[-1:], "o", color=colour, markersize=4)
        handles.append(Line2D([], [], color=colour, linewidth=2, label=f"{label}, {times[-1]:.3g} s"))
    for axis, label in zip(axes, ("tokens in the cache", "cache, MiB"), strict=True):
        plain_frame(axis)
        faint_grid(axis)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
    axes[1].set_xlabel("denoising time, s")
    decorate(figure, "Key-value cache over time", handles)
    save_figure(figure, path)


def step_times(trace: Trace) -> np.ndarray:
    """Denoising time in seconds at the end of each step, ``[steps]``, scaled to the measured total."""
    ends = np.cumsum([record.seconds for record in trace.steps])
    total = trace.seconds.get("denoise")
    return ends * (total / ends[-1]) if total and len(ends) and ends[-1] else ends
