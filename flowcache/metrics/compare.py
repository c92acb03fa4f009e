"""Two video files, or two folders of them, compared by every metric that is available."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..environment import Unavailable, describe_environment
from ..files import write_results
from ..video import probe_video, read_video
from .similarity import Video, load_lpips, psnr, ssim
from .stlpips import load_st_lpips

#: A function of a generated and a reference video that returns the mean and the values of the frames.
Metric = Callable[[Video, Video], tuple[float, Tensor]]
Content = TypeVar("Content")

METRICS = ("psnr", "ssim", "lpips", "st_lpips")
SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm"})


@dataclass
class Report:
    """Files to compare, and what was measured of them."""

    original: Path
    generated: Path
    metrics: Sequence[str]
    pairs: Mapping[str, tuple[Path, Path]]  # original and generated file by name
    only_original: Sequence[str] = ()  # names of files
    only_generated: Sequence[str] = ()
    missing: dict[str, str] = field(default_factory=dict)  # why a metric was measured nowhere
    broken: dict[str, str] = field(default_factory=dict)  # why a pair could not be measured
    #: By file name: ``mean`` and ``frames`` of each metric, or why it is ``missing``.
    videos: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ValueError, naming the argument, if by their headers no pair can be compared."""
        reasons = []
        for pair in self.pairs.values():
            try:
                return check_alike(*pair)
            except ValueError as error:
                reasons.append(error)
        raise reasons[0]

    def measure(self, device: str, keep_going: bool = False) -> None:
        """Compare all pairs; ValueError for files that break off or differ in shape, or ``keep_going``: ``broken``."""
        metrics: dict[str, Metric] = {}
        plain, loaded = {"psnr": psnr, "ssim": ssim}, {"lpips": load_lpips, "st_lpips": load_st_lpips}
        for name in self.metrics:
            try:
                metrics[name] = loaded[name](device) if name in loaded else plain[name]
            except Unavailable as error:
                self.missing[name] = str(error)
        self.environment = describe_environment(device)
        for name, pair in tqdm(self.pairs.items(), unit="video", disable=len(self.pairs) == 1):
            try:
                self.videos[name] = self._compare(*pair, metrics, device)
            except ValueError as error:
                if not keep_going:
                    raise
                # the cause names no argument
                self.broken[name] = f"{str(error.__cause__ or error).rstrip('.')}; remove it and make it again"
                missing = dict.fromkeys(self.metrics, self.broken[name])
                self.videos[name] = {"mean": dict.fromkeys(self.metrics), "missing": missing, "frames": {}}

    def _compare(self, original: Path, generated: Path, metrics: Mapping[str, Metric], device: str) -> dict[str, Any]:
        """Measure a pair; a metric that does not suit the videos, such as their size, is ``missing``."""
        theirs, ours = (torch.from_numpy(video[0]) for video in _read_both(read_video, original, generated))
        _check_sizes(original, theirs.shape, generated, ours.shape)
        theirs, ours, frames, missing = theirs.to(device), ours.to(device), {}, {}
        for name, metric in metrics.items():
            try:
                frames[name] = metric(ours, theirs)[1].tolist()
            except ValueError as error:
                missing[name] = str(error)
        means = {name: fmean(frames[name]) if name in frames else None for name in self.metrics}
        return {"mean": means, "missing": missing, "frames": frames}

    def mean(self, metric: str) -> float | None:
        means = [video["mean"][metric] for video in self.videos.values() if metric in video["frames"]]
        return fmean(means) if means else None

    def save(self, stem: Path) -> list[Path]:
        content = {
            "original_video": str(self.original),
            "generated_video": str(self.generated),
            "mean": {metric: self.mean(metric) for metric in self.metrics},
            "missing": self.missing,
            "videos": self.videos,
            "only_in_original_video": self.only_original,
            "only_in_generated_video": self.only_generated,
            "environment": self.environment,
        }
        return write_results(stem, ["video", "frame", *self.metrics], list(self._rows()), content)

    def text(self) -> str:
        lines = []
        for metric in self.metrics:
            mean, count = self.mean(metric), sum(metric in video["frames"] for video in self.videos.values())
            over = f", mean of {count} videos" if count > 1 else ""
            reason = f"none: {self.missing.get(metric, 'no video has it.')}"
            unit = " dB" if metric == "psnr" else ""
            lines.append(f"{metric}: " + (reason if mean is None else f"{mean:.4f}{unit}{over}"))
        for name, video in self.videos.items():
            if name not in self.broken:
                lines += [f"{name}: no {metric}: {why}" for metric, why in video["missing"].items()]
        lines += [f"{name}: only in original_video" for name in self.only_original]
        lines += [f"{name}: only in generated_video" for name in self.only_generated]
        return "\n".join(lines)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each frame, for the mean of each video, and for the mean of all."""
        for name, video in self.videos.items():
            frames = video["frames"]
            for index, values in enumerate(zip(*frames.values(), strict=True)):
                yield {"video": name, "frame": index, **dict(zip(frames, values, strict=True))}
            yield {"video": name, "frame": "mean", **video["mean"]}
        yield {"video": "all", "frame": "mean", **{metric: self.mean(metric) for metric in self.metrics}}


def pair_up(original: Path, generated: Path, metrics: Sequence[str] = METRICS) -> Report:
    """Pair two files, whatever their names, or the videos of two folders by file name."""
    for name, path in (("original_video", original), ("generated_video", generated)):
        if not path.exists():
            raise ValueError(f"{name}: {path} does not exist.")
    if original.is_dir() != generated.is_dir():
        raise ValueError("original_video, generated_video: expected two files or two folders, got one each.")
    if not original.is_dir():
        return Report(original, generated, metrics, {generated.name: (original, generated)})
    theirs, ours = (
        {path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES} for folder in (original, generated)
    )
    pairs = {name: (original / name, generated / name) for name in sorted(theirs & ours)}
    if not pairs:
        both = f"original_video {original} and generated_video {generated}"
        raise ValueError(f"{both} hold no videos of the same file name.")
    return Report(original, generated, metrics, pairs, sorted(theirs - ours), sorted(ours - theirs))


def check_alike(original: Path, generated: Path) -> None:
    """Raise ValueError where the headers of two videos differ in size or length."""
    infos = _read_both(probe_video, original, generated)
    known = all(info.num_frames for info in infos)
    theirs, ours = ((info.num_frames if known else 0, info.height, info.width) for info in infos)
    _check_sizes(original, theirs, generated, ours)


def _check_sizes(original: Path, theirs: Sequence[int], generated: Path, ours: Sequence[int]) -> None:
    for what, their, our in zip(("frames", "rows", "columns"), theirs, ours, strict=False):
        if their != our:
            raise ValueError(
                f"generated_video {generated} has {our} {what}, but original_video {original} has {their}."
            )


def _read_both(read: Callable[[Path], Content], original: Path, generated: Path) -> list[Content]:
    found = []
    for name, path in (("original_video", original), ("generated_video", generated)):
        try:
            found.append(read(path))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found
