"""What the policy measured, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..trace import ChunkEvent, Trace
from .style import TEXT, check_windows, chunk_colours, chunk_scale, faint_grid, finish, plain_frame, title_of


def distance_curves(trace: Trace, path: str | Path) -> None:
    """Save a PNG of what the policy measured: relative L1 distance and its accumulation, chunk by chunk.

    Above, the distance of each chunk against its local step; below, what was accumulated since the chunk
    was last computed, with the threshold, if the trace's settings name it under ``reuse``, and a dot where
    it made the chunk run again. A column for each window.

    Args:
        trace: of a run with an adaptive policy.
        path: of the picture; an earlier one stays if this fails.

    Raises:
        ValueError: the trace holds no window or no distance.
    """
    _check_distances(trace)
    columns = len(trace.windows)
    figure = Figure(figsize=(min(16, 3.5 + 4.5 * columns), 5.6), dpi=150, layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="row")
    colours = chunk_colours(max(len(window.chunk_frames) for window in trace.windows))
    threshold = (trace.settings.get("reuse") or {}).get("threshold")
    for window in range(columns):
        _draw_distances(axes[:, window], _events_by_chunk(trace, window), colours, threshold)
        axes[1, window].set_xlabel("local step")
        if columns > 1:
            axes[0, window].set_title(f"window {window}", fontsize=9, color=TEXT)
    for axis in axes[:, 0]:
        axis.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("relative L1 distance")
    axes[1, 0].set_ylabel("accumulated")
    if colours.N > 1:
        chunk_scale(figure, axes, colours)
    finish(figure, title_of(trace), _curve_legend(threshold), path)


def step_distances(trace: Trace, path: str | Path) -> None:
    """Save a PNG of the relative L1 distance of each chunk against the step of the loop.

    Chunks that are live at one step stand at different timesteps, and so change by different amounts: where
    the curves lie apart, one decision for all of them is wrong for some, as the paper finds. A panel for
    each window.

    Args:
        trace: of a run with an adaptive policy.
        path: of the picture; an earlier one stays if this fails.

    Raises:
        ValueError: the trace holds no window or no distance.
    """
    _check_distances(trace)
    columns = len(trace.windows)
    figure = Figure(figsize=(float(np.clip(3.5 + 4.5 * columns, 9, 16)), 3.8), dpi=150, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=True)
    colours = chunk_colours(max(len(window.chunk_frames) for window in trace.windows))
    for window, axis in enumerate(axes[0]):
        _draw_steps(axis, trace, window, colours)
        axis.set_xlabel("step")
        if columns > 1:
            axis.set_title(f"window {window}", fontsize=9, color=TEXT)
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("relative L1 distance")
    if colours.N > 1:
        chunk_scale(figure, axes, colours)
    finish(figure, title_of(trace), [], path)


def _check_distances(trace: Trace) -> None:
    check_windows(trace)
    if not trace.has_distances:
        raise ValueError("The trace holds no distance; its policy measured none.")


def _events_by_chunk(trace: Trace, window: int) -> dict[int, list[ChunkEvent]]:
    """Events of each chunk of a window, by local step."""
    events: dict[int, list[ChunkEvent]] = {}
    for record in trace.steps:
        if record.window == window:
            for event in record.events:
                events.setdefault(event.chunk, []).append(event)
    return events


def _draw_distances(
    axes: Sequence[Axes],
    chunks: dict[int, list[ChunkEvent]],
    colours: ListedColormap,
    threshold: float | None,
) -> None:
    """Draw one window: distances on the first of two axes, accumulated distances on the second."""
    for chunk, events in chunks.items():
        # Older chunks draw wider, and first: where curves coincide, all of them still show.
        width = 1.2 + 1.8 * (1 - (chunk + 1) / colours.N)
        local_steps = [event.local_step for event in events]
        for axis, field in zip(axes, ("distance", "accumulated"), strict=True):
            values = [getattr(event, field) for event in events]
            values = [np.nan if value is None else value for value in values]
            axis.plot(local_steps, values, color=colours(chunk), linewidth=width)
        again = [event for event in events if event.accumulated is not None and not event.reused]
        axes[1].plot(
            [event.local_step for event in again],
            [event.accumulated for event in again],
            "o",
            color=colours(chunk),
            markersize=2 + 1.5 * width,
        )
    for axis in axes:
        _tidy(axis)
    if threshold is not None:
        axes[1].axhline(threshold, color=TEXT, linewidth=1, linestyle="--")


def _curve_legend(threshold: float | None) -> list[Line2D]:
    handles = [
        Line2D([], [], color="#777777", marker="o", linestyle="", markersize=3.5, label="computed again")
    ]
    if threshold is not None:
        label = f"threshold {threshold:g}"
        handles.append(Line2D([], [], color=TEXT, linewidth=1, linestyle="--", label=label))
    return handles


def _draw_steps(axis: Axes, trace: Trace, window: int, colours: ListedColormap) -> None:
    """Draw one window: a curve for each chunk, over the steps at which it is live."""
    curves: dict[int, list[tuple[int, float]]] = {}
    for record in trace.steps:
        for event in record.events if record.window == window else ():
            value = np.nan if event.distance is None else event.distance
            curves.setdefault(event.chunk, []).append((record.step, value))
    for chunk, points in curves.items():
        axis.plot(*zip(*points, strict=True), color=colours(chunk), linewidth=1.4)
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    plain_frame(axis)
    faint_grid(axis)
    axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
