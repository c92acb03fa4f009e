"""Pictures of a single run: where chunks were reused, and what the policy measured."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ..schedule import StaircaseSchedule
from ..trace import Trace
from . import style
from .style import COMPUTED, REUSED, TEXT, plain_frame

_GIVEN = {"facecolor": style.GIVEN, "edgecolor": "#9a9a9a", "hatch": "////", "linewidth": 0}


def reuse_map(trace: Trace, path: str | Path) -> None:
    """Save a PNG that shows for each chunk and step whether it was computed or reused, window beside window.

    Cells of chunks that are not live stay blank; given chunks are hatched. A run that was stopped keeps the
    width of the whole one.
    """
    style.check_windows(trace)
    windows = trace.windows
    steps = [len(StaircaseSchedule(len(w.chunk_frames), w.num_steps, w.stride, w.first_chunk)) for w in windows]
    chunks = max(len(window.chunk_frames) for window in windows)
    cells = [np.full((len(w.chunk_frames), count), np.nan) for w, count in zip(windows, steps, strict=True)]
    for record in trace.steps:
        for event in record.events:
            cells[record.window][event.chunk, record.step] = event.reused
    # at most 40 inches, also for thousands of chunks
    row_height = min(float(np.clip(8 / chunks, 0.15, 0.34)), 40 / chunks)
    size = float(np.clip(1.4 + 0.09 * sum(steps), 8, 16)), 1.4 + row_height * chunks
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.get_layout_engine().set(wspace=0.0, w_pad=0.03)
    axes = figure.subplots(1, len(steps), width_ratios=steps, squeeze=False, sharey=True)[0]
    gap = 0.6 if 72 * size[0] / sum(steps) > 4 else 0  # points of white between steps
    cell_style = {"cmap": ListedColormap([COMPUTED, REUSED]), "vmin": 0, "vmax": 1, "linewidth": gap}
    for window, axis in enumerate(axes):
        rows, columns = (np.arange(count + 1) - 0.5 for count in cells[window].shape)
        axis.pcolormesh(columns, rows, cells[window], edgecolors="white" if gap else "none", **cell_style)
        axis.hlines(rows[1:-1], -0.5, columns[-1], colors="white", linewidth=1.2)
        for chunk in range(windows[window].first_chunk):
            axis.add_patch(Rectangle((-0.5, chunk - 0.44), steps[window], 0.88, **_GIVEN))
        plain_frame(axis)
        axis.tick_params(axis="y", left=not window, labelleft=not window)
        ticks = max(1, round(10 * steps[window] / sum(steps)))
        axis.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
        axis.set(xlabel="step", xlim=(-0.5, columns[-1]))
        if len(axes) > 1:
            axis.set_title(f"window {window}" if len(axes) < 8 else str(window), fontsize=9, color=TEXT)
    axes[0].set(ylabel="chunk", ylim=(chunks - 0.5, -0.5))
    axes[0].yaxis.set_major_locator(MaxNLocator(min(10, chunks), integer=True, min_n_ticks=1))
    handles = [Patch(color=COMPUTED, label="computed"), Patch(color=REUSED, label="reused")]
    if any(window.first_chunk for window in windows):
        handles.append(Patch(**_GIVEN, label="given"))
    style.decorate(figure, style.run_title(trace), handles)
    style.save_figure(figure, path)


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
    _draw_curves(trace, path, {"distance": "relative L1 distance"}, "step")


def _draw_curves(
    trace: Trace,
    path: str | Path,
    rows: Mapping[str, str],
    x_label: str,
    handles: Sequence[Line2D] = (),
    threshold: float | None = None,
) -> None:
    """Draw a row of axes for each field of the events in ``rows``, and a column for each window."""
    style.check_windows(trace)
    if not trace.has_distances:
        raise ValueError("The trace holds no distance; its policy measured none.")
    columns, local = len(trace.windows), x_label == "local step"
    size = float(np.clip(3.5 + 4.5 * columns, 9, 16)), 1.6 + 2.2 * len(rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex="col", sharey="row")
    num_chunks = max(len(window.chunk_frames) for window in trace.windows)
    colours = ListedColormap(colormaps["plasma"](np.linspace(0, 0.8, num_chunks)))  # from dark to light
    curves = defaultdict(list)
    for record in trace.steps:
        for event in record.events:
            step = event.local_step if local else record.step
            curves[record.window, event.chunk].append((step, event))
    for row, (name, y_label) in enumerate(rows.items()):
        for (window, chunk), points in curves.items():
            # Earlier chunks are wider and below: coinciding curves all stay visible.
            width = 1.2 + 1.8 * (1 - (chunk + 1) / num_chunks) if local else 1.4
            values = np.array([(step, getattr(event, name), event.reused) for step, event in points], float)
            axes[row, window].plot(*values.T[:2], color=colours(chunk), linewidth=width)
            if name == "accumulated":
                computed, dot = values[values[:, 2] == 0], 2 + 1.5 * width
                axes[row, window].plot(*computed.T[:2], "o", color=colours(chunk), markersize=dot)
        axes[row, 0].set_ylabel(y_label)
    for window, axis in enumerate(axes[-1]):
        axis.set_xlabel(x_label)
        if threshold is not None:
            axis.axhline(threshold, color=TEXT, linewidth=1, linestyle="--")
        if columns > 1:
            axes[0, window].set_title(f"window {window}", fontsize=9, color=TEXT)
    for axis in axes.flat:
        plain_frame(axis)
        style.faint_grid(axis)
        axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axis.set_ylim(bottom=0)
    if num_chunks > 1:
        scale = ScalarMappable(BoundaryNorm(np.arange(num_chunks + 1) - 0.5, num_chunks), colours)
        bar = figure.colorbar(scale, ax=axes, label="chunk", aspect=30, pad=0.015)
        bar.ax.yaxis.set_major_locator(MaxNLocator(min(10, num_chunks), integer=True, min_n_ticks=1))
        bar.ax.tick_params(labelsize=8.5, length=0)
        bar.ax.minorticks_off()
        bar.ax.invert_yaxis()
        bar.outline.set_visible(False)
    style.decorate(figure, style.run_title(trace), handles)
    style.save_figure(figure, path)
