"""What a checkpoint folder tells of its training."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowcache.files import write_atomically
from flowcache.plots.style import save_figure

logger = logging.getLogger(__name__)


def write_record(runs: Mapping[str, Path], out: Path) -> None:
    """Write the arguments of all runs and the loss curve of the last one.

    Args:
        runs: script to the folder that it wrote.
        out: checkpoint folder.
    """
    arguments = {
        script: _without_folders(json.loads((folder / "arguments.json").read_text()))
        for script, folder in runs.items()
    }
    write_atomically(out / "training.json", (json.dumps(arguments, indent=2) + "\n").encode())
    *_, last = runs.values()
    draw_losses(json.loads((last / "losses.json").read_text()), out / "loss_curve.png")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    logger.info("wrote %s, %.1f MB", out, size / 1e6)


def _without_folders(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in ("vae", "out")}


def forget_origins(folder: Path) -> None:
    """Take out of all configuration files below a folder where their parts were read from."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            write_atomically(path, f"{json.dumps(content, indent=2)}\n".encode())


def draw_losses(losses: list[float], path: Path, window: int = 50) -> None:
    """Save a PNG of the running mean of the loss."""
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure = Figure(figsize=(7, 3.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.plot(np.arange(len(smooth)) + window, smooth, color="#15416e", linewidth=1)
    axis.set(xlabel="step", ylabel=f"velocity error, mean of {window} steps", yscale="log")
    axis.grid(which="both", color="#e6e6e6", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
