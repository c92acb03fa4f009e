"""Results of a comparison as CSV, JSON and text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..environment import describe_environment
from ..files import write_csv, write_json
from .compare import Comparison, Pairing, compare_files, load_metrics, pair_up


@dataclass
class Report:
    """Results of a comparison.

    Attributes:
        original, generated: files or folders.
        metrics: that were asked for.
        pairing: files to compare.
        missing: by metric, why it was measured nowhere.
        videos: results by file name.
        environment: versions and hardware.
    """

    original: Path
    generated: Path
    metrics: tuple[str, ...]
    pairing: Pairing
    missing: Mapping[str, str]
    videos: dict[str, Comparison] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def mean(self, metric: str) -> float | None:
        """Average a metric over the videos that have it; None where no video has."""
        means = [video.mean(metric) for video in self.videos.values()]
        means = [mean for mean in means if mean is not None]
        return sum(means) / len(means) if means else None

    def save(self, stem: Path) -> list[Path]:
        """Write ``stem.csv`` and ``stem.json``; return both paths."""
        paths = [Path(f"{stem}{suffix}") for suffix in (".csv", ".json")]
        write_csv(paths[0], ["video", "frame", *self.metrics], list(self._rows()))
        write_json(paths[1], self._content())
        return paths

    def text(self) -> str:
        """Describe the means, a line for each metric, then what they leave out and why."""
        lines = []
        for metric in self.metrics:
            mean, count = self.mean(metric), sum(metric in video.frames for video in self.videos.values())
            if mean is None:
                lines.append(f"{metric}: none: {self.missing.get(metric, 'no video has it.')}")
            else:
                over = f", mean of {count} videos" if count > 1 else ""
                lines.append(f"{metric}: {mean:.4f}{' dB' if metric == 'psnr' else ''}{over}")
        for name, video in self.videos.items():
            lines += [f"{name}: no {metric}: {why}" for metric, why in video.missing.items()]
        lines += [f"{name}: only in original_video" for name in self.pairing.only_original]
        lines += [f"{name}: only in generated_video" for name in self.pairing.only_generated]
        return "\n".join(lines)

    def _rows(self) -> list[dict[str, Any]]:
        """List a row for each frame, for the mean of each video, and for the mean of all."""
        rows = []
        for name, video in self.videos.items():
            length = max(map(len, video.frames.values()), default=0)
            for index in range(length):
                values = {metric: frames[index] for metric, frames in video.frames.items()}
                rows.append({"video": name, "frame": index, **values})
            rows.append({"video": name, "frame": "mean", **{m: video.mean(m) for m in self.metrics}})
        rows.append({"video": "all", "frame": "mean", **{m: self.mean(m) for m in self.metrics}})
        return rows

    def _content(self) -> dict[str, Any]:
        return {
            "original_video": str(self.original),
            "generated_video": str(self.generated),
            "mean": {metric: self.mean(metric) for metric in self.metrics},
            "missing": dict(self.missing),
            "videos": {
                name: {
                    "mean": {metric: video.mean(metric) for metric in self.metrics},
                    "missing": video.missing,
                    "frames": video.frames,
                }
                for name, video in self.videos.items()
            },
            "only_in_original_video": list(self.pairing.only_original),
            "only_in_generated_video": list(self.pairing.only_generated),
            "environment": dict(self.environment),
        }


def measure(
    original: Path,
    generated: Path,
    names: Sequence[str],
    device: str,
    pairing: Pairing | None = None,
    compare: Callable[..., Comparison] = compare_files,
) -> Report:
    """Compare two videos, or two folders of them, by all metrics that are available.

    Args:
        original, generated: files or folders.
        names: metrics, among ``compare.METRICS``.
        device: ``cpu`` or ``cuda``.
        pairing: of the two; default: ``pair_up`` of both.
        compare: measures a pair, with the arguments of ``compare_files``.

    Raises:
        ValueError: they cannot be paired, or a file breaks off.
    """
    pairing = pairing or pair_up(original, generated)
    metrics, missing = load_metrics(names, device)
    environment = describe_environment(device)
    report = Report(original, generated, tuple(names), pairing, missing, environment=environment)
    for name, pair in tqdm(pairing.pairs.items(), unit="video", disable=len(pairing.pairs) == 1):
        report.videos[name] = compare(*pair, metrics, device)
    return report
