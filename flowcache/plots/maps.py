"""Which chunk ran at which step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ..schedule import StaircaseSchedule
from ..trace import Trace, WindowRecord
from .style import COMPUTED, GIVEN, GIVEN_HATCH, REUSED, TEXT, check_windows, finish, plain_frame, title_of


def reuse_map(trace: Trace, path: str | Path) -> None:
    """Save a PNG of what became of each chunk at each step: computed or reused; window beside window.

    Cells of chunks that are not live stay blank; given chunks are hatched.

    Args:
        trace: of a run, also of one that was stopped.
        path: of the picture; an earlier one stays if this fails.

    Raises:
        ValueError: the trace holds no window.
    """
    check_windows(trace)
    steps = [_num_steps(trace, window) for window in range(len(trace.windows))]
    chunks = max(len(window.chunk_frames) for window in trace.windows)
    # the picture of a video without an end has one
    row_height = min(float(np.clip(8 / chunks, 0.15, 0.34)), 40 / chunks)
    size = float(np.clip(1.4 + 0.09 * sum(steps), 8, 16)), 1.2 + row_height * chunks
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.get_layout_engine().set(wspace=0.0, w_pad=0.03)
    axes = figure.subplots(1, len(steps), width_ratios=steps, squeeze=False, sharey=True)[0]
    cell_width = 72 * size[0] / sum(steps)
    for window, axis in enumerate(axes):
        _draw_window(axis, trace, window, steps[window], gap=0.6 if cell_width > 4 else 0)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(
            MaxNLocator(max(1, round(10 * steps[window] / sum(steps))), integer=True)
        )
        if len(axes) > 1:
            axis.set_title(f"window {window}" if len(axes) < 8 else str(window), fontsize=9, color=TEXT)
    axes[0].set_ylim(chunks - 0.5, -0.5)
    axes[0].yaxis.set_major_locator(MaxNLocator(min(10, chunks), integer=True, min_n_ticks=1))
    axes[0].set_ylabel("chunk")
    finish(figure, title_of(trace), _map_legend(trace), path)


def _num_steps(trace: Trace, window: int) -> int:
    """Steps of the whole staircase of a window, whether or not the run came so far."""
    record = trace.windows[window]
    schedule = StaircaseSchedule(
        len(record.chunk_frames), record.num_steps, record.stride, record.first_chunk
    )
    return len(schedule)


def _draw_window(axis: Axes, trace: Trace, window: int, num_steps: int, gap: float) -> None:
    """Draw one window; ``gap`` points of white between steps, always some between chunks."""
    record = trace.windows[window]
    cells = np.full((len(record.chunk_frames), num_steps), np.nan)
    for step in (step for step in trace.steps if step.window == window):
        for event in step.events:
            cells[event.chunk, step.step] = event.reused
    axis.pcolormesh(
        np.arange(num_steps + 1) - 0.5,
        np.arange(len(cells) + 1) - 0.5,
        cells,
        cmap=ListedColormap([COMPUTED, REUSED]),
        vmin=0,
        vmax=1,
        edgecolors="white" if gap else "none",
        linewidth=gap,
    )
    axis.hlines(np.arange(1, len(cells)) - 0.5, -0.5, num_steps - 0.5, colors="white", linewidth=1.2)
    _draw_given(axis, record, num_steps)
    axis.set_xlim(-0.5, num_steps - 0.5)
    plain_frame(axis)
    if window:
        axis.tick_params(axis="y", left=False, labelleft=False)


def _draw_given(axis: Axes, record: WindowRecord, num_steps: int) -> None:
    for chunk in range(record.first_chunk):
        place = (-0.5, chunk - 0.44)
        axis.add_patch(
            Rectangle(
                place, num_steps, 0.88, facecolor=GIVEN, edgecolor=GIVEN_HATCH, hatch="////", linewidth=0
            )
        )


def _map_legend(trace: Trace) -> list[Patch]:
    handles = [Patch(color=COMPUTED, label="computed"), Patch(color=REUSED, label="reused")]
    if any(window.first_chunk for window in trace.windows):
        handles.append(
            Patch(facecolor=GIVEN, edgecolor=GIVEN_HATCH, hatch="////", linewidth=0, label="given")
        )
    return handles
