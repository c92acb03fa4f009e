"""Pictures of a single run: where chunks were reused, and what the policy measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ..schedule import StaircaseSchedule
from ..trace import Trace
from .style import (
    COMPUTED,
    GIVEN_STYLE,
    REUSED,
    TEXT,
    check_windows,
    chunk_colours,
    chunk_scale,
    faint_grid,
    finish,
    plain_frame,
    run_title,
)


def reuse_map(trace: Trace, path: str | Path) -> None:
    """Save a PNG that shows for each chunk and step whether it was computed or reused, window beside window.

    Cells of chunks that are not live stay blank; given chunks are hatched. A run that was stopped keeps the
    width of the whole one.
    """
    check_windows(trace)
    schedules = [
        StaircaseSchedule(len(w.chunk_frames), w.num_steps, w.stride, w.first_chunk) for w in trace.windows
    ]
    steps = [len(schedule) for schedule in schedules]
    chunks = max(len(window.chunk_frames) for window in trace.windows)
    # at most 40 inches, also for thousands of chunks
    row_height = min(float(np.clip(8 / chunks, 0.15, 0.34)), 40 / chunks)
    size = float(np.clip(1.4 + 0.09 * sum(steps), 8, 16)), 1.4 + row_height * chunks
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.get_layout_engine().set(wspace=0.0, w_pad=0.03)
    axes = figure.subplots(1, len(steps), width_ratios=steps, squeeze=False, sharey=True)[0]
    gap = 0.6 if 72 * size[0] / sum(steps) > 4 else 0
    for window, (axis, count) in enumerate(zip(axes, steps, strict=True)):
        _draw_map(axis, trace, window, count, gap)
        ticks = max(1, round(10 * count / sum(steps)))
        axis.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
        axis.set_xlabel("step")
        if len(axes) > 1:
            axis.set_title(f"window {window}" if len(axes) < 8 else str(window), fontsize=9, color=TEXT)
    axes[0].set_ylim(chunks - 0.5, -0.5)
    axes[0].yaxis.set_major_locator(MaxNLocator(min(10, chunks), integer=True, min_n_ticks=1))
    axes[0].set_ylabel("chunk")
    handles = [Patch(color=COMPUTED, label="computed"), Patch(color=REUSED, label="reused")]
    if any(window.first_chunk for window in trace.windows):
        handles.append(Patch(**GIVEN_STYLE, label="given"))
    finish(figure, run_title(trace), handles, path)


def _draw_map(axis: Axes, trace: Trace, window: int, num_steps: int, gap: float) -> None:
    """Draw one window, with ``gap`` points of white between steps."""
    record = trace.windows[window]
    cells = np.full((len(record.chunk_frames), num_steps), np.nan)
    for step in trace.steps:
        if step.window == window:
            for event in step.events:
                cells[event.chunk, step.step] = event.reused
    edges = [np.arange(count + 1) - 0.5 for count in cells.shape[::-1]]
    colours, line = ListedColormap([COMPUTED, REUSED]), "white" if gap else "none"
    axis.pcolormesh(*edges, cells, cmap=colours, vmin=0, vmax=1, edgecolors=line, linewidth=gap)
    axis.hlines(edges[1][1:-1], -0.5, num_steps - 0.5, colors="white", linewidth=1.2)
    for chunk in range(record.first_chunk):
        axis.add_patch(Rectangle((-0.5, chunk - 0.44), num_steps, 0.88, **GIVEN_STYLE))
    axis.set_xlim(-0.5, num_steps - 0.5)
    plain_frame(axis)
    if window:
        axis.tick_params(axis="y", left=False, labelleft=False)


def distance_curves(trace: Trace, path: str | Path) -> None:
    """Save a PNG of the relative L1 distance and its accumulation against the local step, chunk by chunk.

    A column for each window. Dots mark where the accumulated distance reached the threshold and the chunk
    was computed.
    """
    threshold = (trace.settings.get("reuse") or {}).get("threshold")
    label = "computed: threshold reached" if threshold is not None else "computed"
    handles = [Line2D([], [], color="#777777", marker="o", linestyle="", markersize=3.5, label=label)]
    if threshold is not None:
        label = f"threshold {threshold:g}"
        handles.append(Line2D([], [], color=TEXT, linewidth=1, linestyle="--", label=label))
    rows = {"distance": "relative L1 distance", "accumulated": "accumulated distance"}
    _draw_curves(trace, path, rows, "local step", handles, threshold)


def step_distances(trace: Trace, path: str | Path) -> None:
    """Save a PNG of the relative L1 distance of each chunk against the step of the loop, window by window.

    Chunks that are live at one step have different timesteps, so they change by different amounts. Where the
    curves differ, one decision for all chunks is wrong for some.
    """
    _draw_curves(trace, path, {"distance": "relative L1 distance"}, "step", [], None)


def _draw_curves(
    trace: Trace,
    path: str | Path,
    rows: dict[str, str],
    x_label: str,
    handles: Sequence[Line2D],
    threshold: float | None,
) -> None:
    """Draw a row of axes for each field of the events in ``rows``, and a column for each window."""
    check_windows(trace)
    if not trace.has_distances:
        raise ValueError("The trace holds no distance; its policy measured none.")
    columns = len(trace.windows)
    size = float(np.clip(3.5 + 4.5 * columns, 9, 16)), 1.6 + 2.2 * len(rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex="col", sharey="row")
    colours = chunk_colours(max(len(window.chunk_frames) for window in trace.windows))
    for window in range(columns):
        for axis, name in zip(axes[:, window], rows, strict=True):
            _draw_window_curves(axis, trace, window, name, x_label == "local step", colours)
        axes[-1, window].set_xlabel(x_label)
        if threshold is not None:
            axes[-1, window].axhline(threshold, color=TEXT, linewidth=1, linestyle="--")
        if columns > 1:
            axes[0, window].set_title(f"window {window}", fontsize=9, color=TEXT)
    for axis, name in zip(axes[:, 0], rows.values(), strict=True):
        axis.set_ylim(bottom=0)
        axis.set_ylabel(name)
    chunk_scale(figure, axes, colours)
    finish(figure, run_title(trace), handles, path)


def _draw_window_curves(
    axis: Axes, trace: Trace, window: int, name: str, local: bool, colours: ListedColormap
) -> None:
    curves: dict[int, list[tuple[int, float, bool]]] = {}
    for record in trace.steps:
        for event in record.events if record.window == window else ():
            value = getattr(event, name)
            step = event.local_step if local else record.step
            point = (step, np.nan if value is None else value, event.reused)
            curves.setdefault(event.chunk, []).append(point)
    for chunk, points in curves.items():
        # Earlier chunks are wider and below: coinciding curves all stay visible.
        width = 1.2 + 1.8 * (1 - (chunk + 1) / colours.N) if local else 1.4
        colour, steps, values = colours(chunk), [p[0] for p in points], [p[1] for p in points]
        axis.plot(steps, values, color=colour, linewidth=width)
        if name == "accumulated":
            computed = [(step, value) for step, value, reused in points if not reused]
            axis.plot(*zip(*computed, strict=True), "o", color=colour, markersize=2 + 1.5 * width)
    plain_frame(axis)
    faint_grid(axis)
    axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
