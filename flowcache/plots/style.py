"""What all pictures of traces share: colours, frames, titles, and how they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import replaced_when_done
from ..trace import Trace

#: Dark and warm: told apart by colour-blind eyes and on a grey print.
COMPUTED, REUSED = "#15416e", "#e0801f"
GIVEN, GIVEN_HATCH = "#ececec", "#9a9a9a"
TEXT, RULE = "#222222", "#b0b0b0"


def check_windows(trace: Trace) -> None:
    """Refuse a trace without a window.

    Raises:
        ValueError: it holds none.
    """
    if not trace.windows:
        raise ValueError("The trace holds no window; there is nothing to draw.")


def finish(figure: Figure, title: str, handles: Sequence[Artist], path: str | Path) -> None:
    """Add title and legend, which take room of their own, and save."""
    figure.suptitle(title, fontsize=10.5, color=TEXT)
    if handles:
        inches = 0.7 + 0.085 * max(len(str(handle.get_label())) for handle in handles)
        columns = min(len(handles), max(1, int(figure.get_figwidth() / inches)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replaced_when_done(path) as temporary:
        figure.savefig(temporary, format="png")


def plain_frame(axis: Axes) -> None:
    """A thin line on the left, which also divides windows, and below; nothing around."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set(color=RULE, linewidth=0.8)
    axis.tick_params(color=RULE, labelcolor=TEXT, labelsize=8.5)


def faint_grid(axis: Axes) -> None:
    """Lines across, behind what is drawn."""
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def chunk_colours(num_chunks: int) -> ListedColormap:
    """A colour for each chunk, dark to light in their order and none too light for white."""
    return ListedColormap(colormaps["plasma"](np.linspace(0, 0.8, num_chunks)))


def run_colours(count: int) -> list[tuple[float, ...]]:
    """A colour for each of several runs."""
    return [colormaps["tab10"](index % 10) for index in range(count)]


def chunk_scale(figure: Figure, axes: np.ndarray, colours: ListedColormap) -> None:
    """A colour bar with one field for each chunk."""
    norm = BoundaryNorm(np.arange(colours.N + 1) - 0.5, colours.N)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, label="chunk", aspect=30, pad=0.015)
    bar.ax.yaxis.set_major_locator(MaxNLocator(min(10, colours.N), integer=True, min_n_ticks=1))
    bar.ax.tick_params(labelsize=8.5, length=0)
    bar.ax.minorticks_off()
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)


def title_of(trace: Trace) -> str:
    """One line: method, reuse, time and FLOPs, as far as the trace knows them."""
    parts = [trace.method or "run", f"reuse ratio {trace.reuse_ratio:.2f}"]
    if "denoise" in trace.seconds:
        parts.append(f"{readable_time(trace.seconds['denoise'])} denoising")
    actual, vanilla = trace.flops.get("actual", 0), trace.flops.get("vanilla", 0)
    if actual:
        saving = f" ({vanilla / actual:.2f}× fewer than vanilla)" if vanilla else ""
        parts.append(readable_flops(actual) + saving)
    return "  ·  ".join(parts)


def readable_time(seconds: float) -> str:
    """``8.4 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def readable_flops(flops: float) -> str:
    """Three digits in the largest of GFLOPs, TFLOPs and PFLOPs that leaves one before the point."""
    scale, unit = next((s, u) for s, u in ((1e15, "P"), (1e12, "T"), (1e9, "G")) if flops >= s or u == "G")
    amount = flops / scale
    digits = max(0, 2 - int(np.floor(np.log10(amount))))
    return f"{amount:.{digits}f} {unit}FLOPs"
