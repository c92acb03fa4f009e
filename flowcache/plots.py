"""Pictures of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from .files import replaced_when_done
from .schedule import StaircaseSchedule
from .trace import ChunkEvent, Trace, WindowRecord

#: Dark and warm: told apart by colour-blind eyes and on a grey print.
COMPUTED, REUSED = "#15416e", "#e0801f"
GIVEN, GIVEN_HATCH = "#ececec", "#9a9a9a"
TEXT, RULE = "#222222", "#b0b0b0"


def reuse_map(trace: Trace, path: str | Path) -> None:
    """Save a PNG of what became of each chunk at each step: computed or reused; window beside window.

    Cells of chunks that are not live stay blank; given chunks are hatched.

    Args:
        trace: of a run, also of one that was stopped.
        path: of the picture; an earlier one stays if this fails.

    Raises:
        ValueError: the trace holds no window.
    """
    _check_windows(trace)
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
    _finish(figure, _title(trace), _map_legend(trace), path)


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
    _check_windows(trace)
    if not trace.has_distances:
        raise ValueError("The trace holds no distance; its policy measured none.")
    columns = len(trace.windows)
    figure = Figure(figsize=(min(16, 3.5 + 4.5 * columns), 5.6), dpi=150, layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="row")
    colours = _chunk_colours(max(len(window.chunk_frames) for window in trace.windows))
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
        _chunk_scale(figure, axes, colours)
    _finish(figure, _title(trace), _curve_legend(threshold), path)


def _check_windows(trace: Trace) -> None:
    if not trace.windows:
        raise ValueError("The trace holds no window; there is nothing to draw.")


def _finish(figure: Figure, title: str, handles: list[Patch | Line2D], path: str | Path) -> None:
    """Add title and legend, which take room of their own, and save."""
    figure.suptitle(title, fontsize=10.5, color=TEXT)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    with replaced_when_done(path) as temporary:
        figure.savefig(temporary, format="png")


# The reuse map


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
    _plain_frame(axis)
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


def _plain_frame(axis: Axes) -> None:
    """A thin line on the left, which also divides windows, and below; nothing around."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set(color=RULE, linewidth=0.8)
    axis.tick_params(color=RULE, labelcolor=TEXT, labelsize=8.5)


# The distance curves


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
        _plain_frame(axis)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    if threshold is not None:
        axes[1].axhline(threshold, color=TEXT, linewidth=1, linestyle="--")


def _chunk_colours(num_chunks: int) -> ListedColormap:
    """A colour for each chunk, dark to light in their order and none too light for white."""
    return ListedColormap(colormaps["plasma"](np.linspace(0, 0.8, num_chunks)))


def _chunk_scale(figure: Figure, axes: np.ndarray, colours: ListedColormap) -> None:
    """A colour bar with one field for each chunk."""
    norm = BoundaryNorm(np.arange(colours.N + 1) - 0.5, colours.N)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, label="chunk", aspect=30, pad=0.015)
    bar.ax.yaxis.set_major_locator(MaxNLocator(min(10, colours.N), integer=True, min_n_ticks=1))
    bar.ax.tick_params(labelsize=8.5, length=0)
    bar.ax.minorticks_off()
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)


def _curve_legend(threshold: float | None) -> list[Line2D]:
    handles = [
        Line2D([], [], color="#777777", marker="o", linestyle="", markersize=3.5, label="computed again")
    ]
    if threshold is not None:
        label = f"threshold {threshold:g}"
        handles.append(Line2D([], [], color=TEXT, linewidth=1, linestyle="--", label=label))
    return handles


# The title


def _title(trace: Trace) -> str:
    parts = [trace.method or "run", f"reuse ratio {trace.reuse_ratio:.2f}"]
    if "denoise" in trace.seconds:
        parts.append(f"{_readable_time(trace.seconds['denoise'])} denoising")
    actual, vanilla = trace.flops.get("actual", 0), trace.flops.get("vanilla", 0)
    if actual:
        saving = f" ({vanilla / actual:.2f}× fewer than vanilla)" if vanilla else ""
        parts.append(_readable_flops(actual) + saving)
    return "  ·  ".join(parts)


def _readable_time(seconds: float) -> str:
    """``8.4 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _readable_flops(flops: float) -> str:
    """Three digits in the largest of GFLOPs, TFLOPs and PFLOPs that leaves one before the point."""
    scale, unit = next((s, u) for s, u in ((1e15, "P"), (1e12, "T"), (1e9, "G")) if flops >= s or u == "G")
    amount = flops / scale
    digits = max(0, 2 - int(np.floor(np.log10(amount))))
    return f"{amount:.{digits}f} {unit}FLOPs"
