"""Two video files, or two folders of them, compared by every metric that is available."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..extras import Unavailable
from ..video import probe_video, read_video
from .similarity import Video, load_lpips, psnr, ssim

#: A function of a generated and a reference video that returns the mean and the values of the frames.
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
    """By metric, the values of each frame of one pair, or why there are none."""

    frames: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def mean(self, metric: str) -> float | None:
        """Average a metric over the frames; None where nothing was measured."""
        values = self.frames.get(metric)
        return sum(values) / len(values) if values else None


def pair_up(original: Path, generated: Path) -> Pairing:
    """Pair two files, whatever their names, or the videos of two folders by file name.

    Raises:
        ValueError: one is missing or of the other kind, or the folders have no name in common.
    """
    for name, path in (("original_video", original), ("generated_video", generated)):
        if not path.exists():
            raise ValueError(f"{name}: {path} does not exist.")
    if original.is_dir() != generated.is_dir():
        raise ValueError(
            "original_video, generated_video: expected two files or two folders, got one of each."
        )
    if not original.is_dir():
        return Pairing({generated.name: (original, generated)})
    theirs, ours = (
        {path.name: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
        for folder in (original, generated)
    )
    if not theirs.keys() & ours.keys():
        raise ValueError(
            f"original_video {original} and generated_video {generated} hold no videos of the same file name."
        )
    return Pairing(
        {name: (theirs[name], ours[name]) for name in sorted(theirs.keys() & ours.keys())},
        only_original=sorted(theirs.keys() - ours.keys()),
        only_generated=sorted(ours.keys() - theirs.keys()),
    )


def load_metrics(
    names: Sequence[str], device: torch.device | str
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Load metrics by name; returns them, and why others are unavailable."""
    metrics: dict[str, Metric] = {}
    missing = {}
    for name in names:
        try:
            metrics[name] = load_lpips(device) if name == "lpips" else {"psnr": psnr, "ssim": ssim}[name]
        except Unavailable as error:
            missing[name] = str(error)
    return metrics, missing


def compare_files(
    original: Path, generated: Path, metrics: Mapping[str, Metric], device: torch.device | str
) -> Comparison:
    """Measure a pair of files, frame by frame.

    A metric that does not suit the videos, such as SSIM of frames smaller than its window, is ``missing``.

    Raises:
        ValueError: a file cannot be read, or sizes or lengths differ.
    """
    theirs, ours = (
        torch.from_numpy(_name_errors(name, read_video, path)[0]).to(device)
        for name, path in (("original_video", original), ("generated_video", generated))
    )
    _check_sizes(original, theirs.shape[:3], generated, ours.shape[:3])
    comparison = Comparison()
    for name, metric in metrics.items():
        try:
            comparison.frames[name] = metric(ours, theirs)[1].tolist()
        except ValueError as error:
            comparison.missing[name] = str(error)
    return comparison


def check_alike(original: Path, generated: Path) -> None:
    """Compare the headers of two videos; decodes their first frames only.

    Raises:
        ValueError: one cannot be read, or sizes or lengths differ; the argument is named.
    """
    theirs, ours = (
        _name_errors(name, probe_video, path)
        for name, path in (("original_video", original), ("generated_video", generated))
    )
    their_length, our_length = (theirs.num_frames, ours.num_frames)
    if not (their_length and our_length):
        their_length = our_length = 0
    sizes = (their_length, theirs.height, theirs.width), (our_length, ours.height, ours.width)
    _check_sizes(original, sizes[0], generated, sizes[1])


def _check_sizes(original: Path, theirs: Sequence[int], generated: Path, ours: Sequence[int]) -> None:
    for what, their, our in zip(("frames", "rows", "columns"), theirs, ours, strict=True):
        if their != our:
            raise ValueError(
                f"generated_video {generated} has {our} {what}, but original_video {original} has {their}."
            )


def _name_errors(name: str, read: Callable[[Path], Content], path: Path) -> Content:
    """Read a file; an error names the argument."""
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
