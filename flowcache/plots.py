"""Pictures of a trace."""

from __future__ import annotations

from pathlib import Path

from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy import full, nan, ndarray

from .files import replaced_when_done
from .trace import Trace

COMPUTED, REUSED, GIVEN = 0, 1, 2
COLOURS = ("#1f4e79", "#f2a93b", "#c8c8c8")
LABELS = ("computed", "reused", "given")


def reuse_map(trace: Trace, path: str | Path) -> None:
    """Save a PNG of which chunk was computed and which was reused at every step, window beside window."""
    grids = [_grid(trace, window) for window in range(len(trace.windows))]
    steps = sum(grid.shape[1] for grid in grids)
    chunks = max(grid.shape[0] for grid in grids)
    figure = Figure(
        figsize=(min(16, max(7, 1.5 + 0.075 * steps)), min(12, 1.9 + 0.32 * chunks)),
        dpi=120,
        layout="constrained",
    )
    widths = [grid.shape[1] for grid in grids]
    axes = figure.subplots(1, len(grids), width_ratios=widths, squeeze=False, sharey=True)[0]
    for window, (axis, grid) in enumerate(zip(axes, grids, strict=True)):
        axis.pcolormesh(
            grid, cmap=ListedColormap(COLOURS), vmin=-0.5, vmax=2.5, edgecolors="white", linewidth=0.3
        )
        axis.set_xlabel("step" if len(grids) == 1 else f"step of window {window + 1}")
        axis.set_yticks([c + 0.5 for c in range(grid.shape[0])], [str(c) for c in range(grid.shape[0])])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("chunk")
    axes[0].invert_yaxis()
    handles = [Patch(color=colour, label=label) for colour, label in zip(COLOURS, LABELS, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(_title(trace), fontsize=11)
    with replaced_when_done(path) as temporary:
        figure.savefig(temporary)


def _grid(trace: Trace, window: int) -> ndarray:
    """What happened to each chunk of a window at each step, ``[chunks, steps]``; NaN where nothing did."""
    record = trace.windows[window]
    steps = [step for step in trace.steps if step.window == window]
    grid = full((len(record.chunk_frames), len(steps)), nan)
    grid[: record.first_chunk] = GIVEN
    for step in steps:
        for event in step.events:
            grid[event.chunk, step.step] = REUSED if event.reused else COMPUTED
    return grid


def _title(trace: Trace) -> str:
    parts = [trace.method or "run", f"reuse ratio {trace.reuse_ratio:.2f}"]
    if "denoise" in trace.seconds:
        parts.append(f"{trace.seconds['denoise']:.1f} s denoising")
    if trace.flops.get("actual"):
        parts.append(f"{trace.flops['vanilla'] / trace.flops['actual']:.1f}x fewer FLOPs than vanilla")
    return ", ".join(parts)
