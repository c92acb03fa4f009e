"""Quality against speed-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from .style import COMPUTED, REUSED, RULE, TEXT, faint_grid, finish, plain_frame


class Point(NamedTuple):
    """A method: what it is called, how many times faster it is, and how good."""

    label: str
    speedup: float
    quality: float


def tradeoff(panels: Mapping[str, Sequence[Point]], title: str, path: str | Path) -> None:
    """Save a PNG of quality against speed-up, a panel for each measure.

    Methods that no other beats in both, the Pareto front, are filled and joined by a line.

    Args:
        panels: points by measure; of a measure whose name begins with LPIPS, less is better.
        title: above all.
        path: of the picture; an earlier one stays if this fails.

    Raises:
        ValueError: there is no panel, or one without a point.
    """
    if not panels or not all(panels.values()):
        raise ValueError("A trade-off needs at least one measure, and a method that has it.")
    figure = Figure(figsize=(1.2 + 5 * len(panels), 4.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (measure, points) in zip(axes, panels.items(), strict=True):
        _draw(axis, points, less_is_better=measure.startswith("LPIPS"))
        axis.set_ylabel(measure)
        axis.set_xlabel("speed-up")
    finish(figure, title, [], path)


def pareto_front(points: Sequence[Point], less_is_better: bool = False) -> list[Point]:
    """Points that no other beats in speed and quality, the slowest first."""
    sign, best, front = -1 if less_is_better else 1, None, []
    for point in sorted(points, key=lambda point: (-point.speedup, -sign * point.quality)):
        if best is None or sign * point.quality > best:
            front.append(point)
            best = sign * point.quality
    return front[::-1]


def _draw(axis: Axes, points: Sequence[Point], less_is_better: bool) -> None:
    front = pareto_front(points, less_is_better)
    axis.plot(*zip(*[point[1:] for point in front], strict=True), color=RULE, linewidth=1.2, zorder=1)
    for point in points:
        colour = REUSED if point in front else COMPUTED
        axis.plot(*point[1:], "o", color=colour, markersize=7, zorder=2)
    plain_frame(axis)
    faint_grid(axis)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.margins(x=0.14, y=0.14)
    if less_is_better:
        axis.invert_yaxis()
    _label(axis, points)


def _label(axis: Axes, points: Sequence[Point]) -> None:
    """Write names beside points: to the left in the right half, and not over one another."""
    taken: list[tuple[float, float, bool]] = []
    middle = sum(axis.get_xlim()) / 2
    height = abs(axis.get_ylim()[1] - axis.get_ylim()[0])
    up = 1 if axis.get_ylim()[1] > axis.get_ylim()[0] else -1
    for point in sorted(points, key=lambda point: up * point.quality):
        left, place = point.speedup > middle, up * point.quality
        while any(abs(place - other) < 0.05 * height and left == side for _, other, side in taken):
            place += 0.01 * height
        taken.append((point.speedup, place, left))
        shift = (place - up * point.quality) / height * axis.get_window_extent().height * 72 / axis.figure.dpi
        axis.annotate(
            point.label,
            point[1:],
            xytext=(-8 if left else 8, shift),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            color=TEXT,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
