"""Quality against speed-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from .style import COMPUTED, REUSED, RULE, TEXT, faint_grid, finish, plain_frame

#: Where a name may stand beside its point, best first.
_PLACES = (
    (8, 0, "left"),
    (-8, 0, "right"),
    *((right, up, side) for up in (9, -9, 16, -16, 24, -24) for right, side in ((4, "left"), (-4, "right"))),
)


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
    """Write names beside points, where they cover neither another name nor a point nor leave the axis."""
    axis.figure.draw_without_rendering()  # only then is it known where everything lies
    inside = axis.get_window_extent()
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in _places(axis, points)]
    for point in points:
        fitting = (text for place in _PLACES if _fits(text := _write(axis, point, *place), inside, taken))
        text = next(fitting, None) or _write(axis, point, *_PLACES[0])
        taken.append(text.get_window_extent())


def _places(axis: Axes, points: Sequence[Point]) -> list[tuple[float, float]]:
    return [tuple(axis.transData.transform(point[1:])) for point in points]


def _write(axis: Axes, point: Point, right: float, up: float, side: str) -> Annotation:
    """A name, so many typographic points to the right of and above its point."""
    return axis.annotate(
        point.label,
        point[1:],
        xytext=(right, up),
        textcoords="offset points",
        ha=side,
        va="center",
        fontsize=8,
        color=TEXT,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _fits(text: Annotation, inside: Bbox, taken: Sequence[Bbox]) -> bool:
    """Whether a name covers nothing; one that does is removed."""
    box = text.get_window_extent()
    within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
    if within and not any(box.overlaps(other) for other in taken):
        return True
    text.remove()
    return False
