"""Colours, frames, titles and units that all pictures share."""

from collections.abc import Sequence
from math import floor, log10
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import replaced_when_done
from ..trace import Trace

#: A dark and a warm colour: distinct for colour-blind readers and in grey print.
COMPUTED, REUSED = "#15416e", "#e0801f"
GIVEN = "#ececec"
TEXT, RULE = "#222222", "#b0b0b0"


def check_windows(trace: Trace) -> None:
    """Raise ValueError for a trace without a window."""
    if not trace.windows:
        raise ValueError("The trace holds no window; there is nothing to draw.")


def decorate(figure: Figure, title: str, handles: Sequence[Artist]) -> None:
    """Add title and legend outside the axes."""
    figure.suptitle(title, fontsize=10, color=TEXT)
    if handles:
        inches = 0.7 + 0.085 * max(len(str(handle.get_label())) for handle in handles)
        columns = min(len(handles), max(1, int(figure.get_figwidth() / inches)))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replaced_when_done(path) as temporary:
        figure.savefig(temporary, format="png")


def plain_frame(axis: Axes) -> None:
    """Keep only a thin left and lower border."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set(color=RULE, linewidth=0.8)
    axis.tick_params(color=RULE, labelcolor=TEXT, labelsize=8.5)


def faint_grid(axis: Axes) -> None:
    """Draw horizontal lines behind the data."""
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def run_title(trace: Trace) -> str:
    """Two lines: method with preset and reuse options; reuse ratio, time and FLOPs as far as known."""
    reuse = trace.settings.get("reuse") or {}
    named, policy = [trace.method or "run", trace.settings.get("preset")], reuse.get("policy") or ""
    for option in ("interval",) if "interval" in policy else (policy, "threshold"):
        named.append(f"{option} {reuse[option]:g}" if reuse.get(option) is not None else policy)
    named.append(reuse.get("forecast"))
    parts = [f"reuse ratio {trace.reuse_ratio:.2f}"]
    if "denoise" in trace.seconds:
        parts.append(f"{format_time(trace.seconds['denoise'])} denoising")
    if actual := trace.flops.get("actual", 0):
        saving = format_saving(actual, trace.flops.get("vanilla", 0))
        parts.append(format_flops(actual) + (f" ({saving})" if saving else ""))
    first = ", ".join(str(name).replace("_", " ") for name in dict.fromkeys(named) if name)
    return f"{first}\n{'  ·  '.join(parts)}"


def format_time(seconds: float) -> str:
    """``8.4 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def format_flops(flops: float) -> str:
    """Three digits with the unit, GFLOPs to PFLOPs, that leaves one digit before the point."""
    scale, unit = next((s, u) for s, u in ((1e15, "P"), (1e12, "T"), (1e9, "G")) if flops >= s or u == "G")
    digits = max(0, 2 - floor(log10(flops / scale))) if flops else 0
    return f"{flops / scale:.{digits}f} {unit}FLOPs"


def format_saving(actual: float, vanilla: float) -> str:
    """``3.10x fewer than vanilla``, or ``same FLOPs as vanilla``; empty where one is unknown."""
    if not actual or not vanilla:
        return ""
    if abs(vanilla / actual - 1) < 0.005:
        return "same FLOPs as vanilla"
    more = actual > vanilla
    return f"{max(actual, vanilla) / min(actual, vanilla):.2f}x {'more' if more else 'fewer'} than vanilla"
