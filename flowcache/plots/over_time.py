"""What the cache held while a run went on, run beside run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..trace import Trace
from .style import check_windows, faint_grid, finish, plain_frame, run_colours


def cache_over_time(traces: Mapping[str, Trace], path: str | Path) -> None:
    """Save a PNG of the tokens in the cache, and of its memory, over the denoising time of each run.

    Above, tokens per layer and branch; below, the bytes that the window's cache takes on the device and in
    host memory. Each run ends with a dot, so that the picture also shows who is done when.

    Args:
        traces: by label.
        path: of the picture; an earlier one stays if this fails.

    Raises:
        ValueError: there is no trace, or one holds no window.
    """
    if not traces:
        raise ValueError("There is no trace to draw.")
    for trace in traces.values():
        check_windows(trace)
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    handles = []
    for (label, trace), colour in zip(traces.items(), run_colours(len(traces)), strict=True):
        # as it was after the first step from the start on
        steps = [*trace.steps[:1], *trace.steps]
        times, windows = np.append(0, step_times(trace)), [record.window for record in steps]
        tokens = [record.kv_tokens for record in steps]
        held = [(w.kv_bytes + w.kv_host_bytes) / 2**20 for w in trace.windows]
        for axis, values in ((above, tokens), (below, [held[window] for window in windows])):
            axis.step(times, values, where="pre", color=colour, linewidth=1.4)
            axis.plot(times[-1:], values[-1:], "o", color=colour, markersize=4)
        handles.append(Line2D([], [], color=colour, linewidth=2, label=f"{label}, {times[-1]:.3g} s"))
    above.set_ylabel("tokens in the cache")
    below.set_ylabel("cache, MiB")
    below.set_xlabel("denoising time, s")
    for axis in (above, below):
        plain_frame(axis)
        faint_grid(axis)
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
    finish(figure, "Key-value cache over time", handles, path)


def step_times(trace: Trace) -> np.ndarray:
    """Denoising time in seconds at the end of each step, ``[steps]``.

    The steps' own times leave out what happens between them; they are stretched to what denoising took.
    """
    ends = np.cumsum([record.seconds for record in trace.steps])
    total = trace.seconds.get("denoise")
    return ends * (total / ends[-1]) if total and len(ends) and ends[-1] else ends
