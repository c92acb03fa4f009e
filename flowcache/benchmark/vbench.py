"""VBench's scores of a folder of videos, from the ``vbench`` package in an environment of its own.

Its pins do not go together with ours, so that it is run as a program of that environment, dimension by
dimension, and its JSON is read back (VBench, arXiv 2311.17982).
"""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_csv, write_json
from ..user_files import UnreadableFile, read_json, reading
from ..video import probe_video
from .vbench_prompts import DIMENSIONS, SAMPLES, find_full_info, read_full_info

logger = logging.getLogger(__name__)

PACKAGE = "vbench==0.1.5"
_WORKER = Path(__file__).with_name("vbench_worker.py")
#: Neither PYTHONPATH nor the worker's own folder, which has a module vbench, may come before its packages.
_ISOLATED = ("-I",)

#: Lowest and highest score that VBench's leaderboard stretches to 0 and 1, and the weight there.
SCALES = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
    "object_class": (0.0, 1.0, 1.0),
    "multiple_objects": (0.0, 1.0, 1.0),
    "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial_relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0),
    "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}
QUALITY = tuple(DIMENSIONS)[:7]
SEMANTIC = tuple(DIMENSIONS)[7:]
#: Weight of quality beside that of semantics in the total.
QUALITY_WEIGHT = 4


@dataclass
class VBenchReport:
    """What was scored.

    Attributes:
        videos: the folder.
        dimensions: that were asked for.
        scores: by dimension, as VBench gives them, 0 to 1.
        by_video: of each video, by its file name and dimension.
        missing: why a dimension has no score.
        absent: videos that VBench looks for in vain, by dimension.
        looked_at: names of all videos that were scored.
        broken: by name, why a video was left out.
    """

    videos: Path
    dimensions: Sequence[str]
    scores: dict[str, float] = field(default_factory=dict)
    by_video: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    absent: dict[str, int] = field(default_factory=dict)
    looked_at: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def totals(self) -> dict[str, float | None]:
        """``quality``, ``semantic`` and ``total``, 0 to 100; None where a dimension of it is missing."""
        quality, semantic = (_weighted(self.scores, names) for names in (QUALITY, SEMANTIC))
        total = None
        if quality is not None and semantic is not None:
            total = (QUALITY_WEIGHT * quality + semantic) / (QUALITY_WEIGHT + 1)
        return {"quality": quality, "semantic": semantic, "total": total}

    def save(self, stem: Path) -> list[Path]:
        """Write ``stem.csv``, a row for each video and one for all, and ``stem.json``; returns both."""
        paths = [Path(f"{stem}{suffix}") for suffix in (".csv", ".json")]
        rows: list[dict[str, Any]] = [{"video": name, **row} for name, row in sorted(self.by_video.items())]
        write_csv(paths[0], ["video", *self.dimensions], [*rows, {"video": "all", **self.scores}])
        content = {
            "generated_video": str(self.videos),
            "mean": {name: self.scores.get(name) for name in self.dimensions},
            "missing": self.missing,
            "absent_videos": self.absent,
            "looked_at": self.looked_at,
            "broken": self.broken,
            "totals": self.totals(),
            "videos": self.by_video,
        }
        write_json(paths[1], content)
        return paths

    def text(self) -> str:
        """The totals, then a line for each dimension, and what stands between it and published scores."""
        lines = [f"{name}: {value:.2f} of 100" for name, value in self.totals().items() if value is not None]
        for name in self.dimensions:
            if name in self.missing:
                lines.append(f"{name}: none: {self.missing[name]}")
                continue
            absent = self.absent.get(name, 0)
            note = f" (not comparable with published scores: {absent} videos are absent)" if absent else ""
            lines.append(f"{name}: {100 * self.scores[name]:.2f}{note}")
        return "\n".join(lines)


def check_environment(folder: Path, base: str) -> None:
    """Refuse an environment that is none, before anything is installed.

    Args:
        folder: of the environment; may be absent, to be made.
        base: the Python to make it with.

    Raises:
        ValueError: the folder holds something else, or there is no such Python.
    """
    if folder.exists() and not interpreter(folder).is_file():
        raise ValueError(f"environment: {folder} is no Python environment; name one, or a folder to be made.")
    if not folder.exists():
        try:
            subprocess.run([base, "--version"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(f"python: there is no Python {base} to make the environment with.") from error


def interpreter(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / "bin" / "python"


def prepare_environment(folder: Path, base: str) -> Path:
    """Make the environment and install VBench, where that is not done; returns the interpreter.

    Raises:
        OSError: that failed; VBench's own words are on the screen.
    """
    python = interpreter(folder)
    try:
        if not python.is_file():
            logger.info("making %s", folder)
            subprocess.run([base, "-m", "venv", folder], check=True)
        if _package_folder(python) is None:
            logger.info("installing %s into %s", PACKAGE, folder)
            # setuptools: packages that VBench needs still import pkg_resources
            subprocess.run([python, "-m", "pip", "install", PACKAGE, "setuptools<81"], check=True)
    except subprocess.CalledProcessError as error:
        raise OSError(f"{folder} could not be made ready: {error}.") from error
    return python.absolute()


def package_full_info(python: Path) -> Path:
    """The list of prompts that an environment's VBench comes with.

    Raises:
        OSError: it has none.
    """
    folder = _package_folder(python)
    found = None if folder is None else find_full_info(folder)
    if found is None:
        raise OSError(f"the vbench package of {python} has no list of prompts; name one as full_info.")
    return found


def _package_folder(python: Path) -> Path | None:
    """Where an environment has its VBench; None: nowhere."""
    script = "import importlib.util as u; print(u.find_spec('vbench').submodule_search_locations[0])"
    done = subprocess.run([python, *_ISOLATED, "-c", script], capture_output=True, text=True)
    return Path(done.stdout.strip()) if done.returncode == 0 else None


def score(
    python: Path, videos: Path, results: Path, dimensions: Sequence[str], device: str, full_info: Path
) -> VBenchReport:
    """Score dimension by dimension; one that fails does not keep the others from being scored.

    Nor does a video whose header cannot be read: VBench would stop at it, and gets a folder without it.

    Args:
        python: interpreter of an environment with VBench.
        videos: folder of ``{prompt}-{index}.mp4``.
        results: folder for what VBench writes.
        dimensions: to score.
        device: ``cuda`` or ``cpu``.
        full_info: prompts by dimension, in VBench's format.
    """
    prompts, report = read_full_info(full_info), VBenchReport(videos, dimensions)
    results.mkdir(parents=True, exist_ok=True)
    report.broken = _find_broken(videos)
    names = {path.name for path in videos.iterdir()} - report.broken.keys()
    report.looked_at = sorted(names)
    if report.broken:
        videos = _link(videos, names, results / "videos")
    for dimension in dimensions:
        wanted = [f"{p}-{i}.mp4" for p in prompts.get(dimension, ()) for i in range(SAMPLES)]
        absent = len(set(wanted) - names)
        if absent == len(set(wanted)):
            report.missing[dimension] = "no video of its prompts."
            continue
        log = results / f"{dimension}.log"
        logger.info("scoring %s; VBench's words go to %s", dimension, log)
        command = [python, *_ISOLATED, _WORKER, videos, results, dimension, device, full_info]
        with log.open("w") as words:
            done = subprocess.run(list(map(str, command)), stdout=words, stderr=words)
        if done.returncode:
            report.missing[dimension] = _last_line(log.read_text(errors="replace"))
            continue
        report.absent[dimension] = absent
        _read_result(results / f"{dimension}_eval_results.json", dimension, report)
    return report


def _find_broken(videos: Path) -> dict[str, str]:
    """By name, why the header of a video cannot be read."""
    reasons = {}
    for path in sorted(videos.glob("*.mp4")):
        try:
            probe_video(path)
        except ValueError as error:
            reasons[path.name] = str(error)
    return reasons


def _link(videos: Path, names: Iterable[str], folder: Path) -> Path:
    """A folder with links to some videos of another."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(videos / name)
    return folder.absolute()


def _read_result(path: Path, dimension: str, report: VBenchReport) -> None:
    """Take in what VBench wrote: the score, and a list of that of each video."""
    try:
        with reading(path, "a result of VBench"):
            value, videos = read_json(path, dict[str, Any], "a result of VBench")[dimension]
            score, rows = float(value), [(Path(v["video_path"]).name, v["video_results"]) for v in videos]
    except UnreadableFile as error:
        report.missing[dimension] = str(error)
        return
    if not math.isfinite(score):
        report.missing[dimension] = "VBench gives no number."
        return
    report.scores[dimension] = score
    for name, value in rows:
        if isinstance(value, (int, float)) and math.isfinite(value):
            report.by_video.setdefault(name, {})[dimension] = float(value)


def _weighted(scores: Mapping[str, float], names: Sequence[str]) -> float | None:
    """Stretched scores, averaged by weight, 0 to 100."""
    if any(name not in scores for name in names):
        return None
    parts = [(scores[name], *SCALES[name]) for name in names]
    weighted = sum(weight * (value - low) / (high - low) for value, low, high, weight in parts)
    return 100 * weighted / sum(weight for *_, weight in parts)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "VBench failed without a word."
