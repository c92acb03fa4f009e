"""Two files, or two folders of files, by every metric that can be had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..extras import Unavailable
from ..video import probe_video, read_video
from .frames import Video
from .lpips import load_lpips
from .psnr import psnr
from .ssim import ssim

#: A function of a generated and a reference video: its value, and that of each frame.
Metric = Callable[[Video, Video], tuple[float, Tensor]]

Content = TypeVar("Content")

METRICS = ("psnr", "ssim", "lpips")
SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm"})


@dataclass(frozen=True)
class Pairing:
    """Files to compare, ``name: (original, generated)``, and the names that only one side has."""

    pairs: Mapping[str, tuple[Path, Path]]
    only_original: Sequence[str] = ()
    only_generated: Sequence[str] = ()


@dataclass
class Comparison:
    """What was measured of one pair.

    Attributes:
        frames: values of each frame by metric.
        missing: why there are none, by metric.
    """

    frames: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def mean(self, metric: str) -> float | None:
        """Mean over the frames; None where nothing was measured."""
        values = self.frames.get(metric)
        return sum(values) / len(values) if values else None


def pair_up(original: Path, generated: Path) -> Pairing:
    """Pair one file with another, whatever their names, or the videos of two folders by their file names.

    Args:
        original: file or folder; of a folder, only files with a suffix of ``SUFFIXES`` count.
        generated: the same kind.

    Raises:
        ValueError: one is missing or of the other kind, or the folders have no name in common.
    """
    for name, path in (("original_video", original), ("generated_video", generated)):
        if not path.exists():
            raise ValueError(f"{name}: {path} does not exist.")
    if original.is_dir() != generated.is_dir():
        raise ValueError(
            "original_video and generated_video must be two files or two folders, got one of each."
        )
    if not original.is_dir():
        return Pairing({generated.name: (original, generated)})
    ours, theirs = _videos(generated), _videos(original)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise ValueError(
            f"original_video {original} and generated_video {generated} hold no videos of the same file name."
        )
    return Pairing(
        {name: (theirs[name], ours[name]) for name in common},
        only_original=sorted(theirs.keys() - ours.keys()),
        only_generated=sorted(ours.keys() - theirs.keys()),
    )


def _videos(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}


def load_metrics(
    names: Sequence[str], device: torch.device | str
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Metrics by name, and, for those that cannot be had, why.

    Args:
        names: among ``METRICS``.
        device: where to measure.
    """
    loaders: dict[str, Callable[[], Metric]] = {
        "psnr": lambda: psnr,
        "ssim": lambda: ssim,
        "lpips": lambda: load_lpips(device),
    }
    metrics, missing = {}, {}
    for name in names:
        try:
            metrics[name] = loaders[name]()
        except Unavailable as error:
            missing[name] = str(error)
    return metrics, missing


def compare_files(
    original: Path, generated: Path, metrics: Mapping[str, Metric], device: torch.device | str
) -> Comparison:
    """Measure a pair of files, frame by frame.

    A metric that does not suit the videos, such as SSIM for frames smaller than its window, says so in the
    result.

    Args:
        original, generated: videos of one size and length.
        metrics: from ``load_metrics``.
        device: where to measure.

    Raises:
        ValueError: a file cannot be read, or sizes or lengths differ.
    """
    theirs, ours = _read("original_video", original, device), _read("generated_video", generated, device)
    _check_sizes(original, theirs.shape[:3], generated, ours.shape[:3])
    comparison = Comparison()
    for name, metric in metrics.items():
        try:
            comparison.frames[name] = metric(ours, theirs)[1].tolist()
        except ValueError as error:
            comparison.missing[name] = str(error)
    return comparison


def check_alike(original: Path, generated: Path) -> None:
    """Compare what two videos state of themselves; decodes their first frames only.

    Raises:
        ValueError: one cannot be read, or sizes or lengths differ; the argument is named.
    """
    theirs, ours = (
        _named(name, probe_video, path)
        for name, path in (("original_video", original), ("generated_video", generated))
    )
    lengths = (theirs.num_frames, ours.num_frames) if theirs.num_frames and ours.num_frames else (0, 0)
    _check_sizes(
        original, (lengths[0], theirs.height, theirs.width), generated, (lengths[1], ours.height, ours.width)
    )


def _check_sizes(original: Path, theirs: Sequence[int], generated: Path, ours: Sequence[int]) -> None:
    """Raise if frames, height or width differ."""
    for what, their, our in zip(("frames", "rows", "columns"), theirs, ours, strict=True):
        if their != our:
            raise ValueError(
                f"generated_video {generated} has {our} {what}, but original_video {original} has {their}."
            )


def _read(name: str, path: Path, device: torch.device | str) -> Tensor:
    return torch.from_numpy(_named(name, read_video, path)[0]).to(device)


def _named(name: str, read: Callable[[Path], Content], path: Path) -> Content:
    """Read a file; an error names the argument that it came from."""
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
