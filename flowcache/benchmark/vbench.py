"""VBench's scores of a folder of videos (arXiv 2311.17982).

The ``vbench`` package pins versions that conflict with ours. It therefore has an environment and processes of its own.
"""

import logging
import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_results
from ..user_files import UnreadableFile, read_json, reading
from ..video import probe_video
from .prompts import DIMENSIONS, SAMPLES, find_full_info, read_full_info

logger = logging.getLogger(__name__)

PACKAGE = "vbench==0.1.5"
#: Scores one dimension and writes ``RESULTS/DIMENSION_eval_results.json``.
_WORKER = """
import sys, torch, vbench
videos, results, dimension, device, full_info = sys.argv[1:]
scorer = vbench.VBench(torch.device(device), full_info, results)
scorer.evaluate(videos_path=videos, name=dimension, dimension_list=[dimension], mode="vbench_standard")
"""
#: Prints the folder of the package, if there is one.
_FIND = "import importlib.util as u; print(u.find_spec('vbench').submodule_search_locations[0])"

QUALITY, SEMANTIC = tuple(DIMENSIONS)[:7], tuple(DIMENSIONS)[7:]
#: Weight of quality relative to semantics in the total.
QUALITY_WEIGHT = 4


@dataclass
class VBenchReport:
    """Scores of a folder of videos, 0 to 1."""

    videos: Path
    dimensions: Sequence[str]
    scores: dict[str, float] = field(default_factory=dict)  # by dimension
    by_video: dict[str, dict[str, float]] = field(default_factory=dict)  # by file name and dimension
    missing: dict[str, str] = field(default_factory=dict)  # why a dimension has no score
    absent: dict[str, int] = field(default_factory=dict)  # videos that VBench expects, by dimension
    looked_at: list[str] = field(default_factory=list)  # names of the videos that were scored
    broken: dict[str, str] = field(default_factory=dict)  # why a video was left out, by name

    def totals(self) -> dict[str, float | None]:
        """``quality``, ``semantic`` and ``total``, 0 to 100; None if a dimension of it is missing."""
        quality, semantic = (_average(self.scores, names) for names in (QUALITY, SEMANTIC))
        known = quality is not None and semantic is not None
        total = (QUALITY_WEIGHT * quality + semantic) / (QUALITY_WEIGHT + 1) if known else None
        return {"quality": quality, "semantic": semantic, "total": total}

    def save(self, stem: Path) -> list[Path]:
        """Write ``stem.csv``, a row for each video and one for all, and ``stem.json``; returns both."""
        rows: list[dict[str, Any]] = [{"video": name, **row} for name, row in sorted(self.by_video.items())]
        rows.append({"video": "all", **self.scores})
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
        return write_results(stem, ["video", *self.dimensions], rows, content)

    def text(self) -> str:
        lines = [f"{name}: {value:.2f} of 100" for name, value in self.totals().items() if value is not None]
        for name in self.dimensions:
            absent, score = self.absent.get(name, 0), self.scores.get(name)
            note = f" (not comparable with published scores: {absent} videos are absent)" if absent else ""
            lines.append(
                f"{name}: " + (f"none: {self.missing[name]}" if score is None else f"{100 * score:.2f}{note}")
            )
        return "\n".join(lines)

    def add(self, dimension: str, path: Path) -> None:
        """Read a result of VBench: the score, and a list of the score of each video."""
        try:
            with reading(path, "a result of VBench"):
                value, videos = read_json(path, dict[str, Any], "a result of VBench")[dimension]
                rows = [(Path(v["video_path"]).name, v["video_results"]) for v in videos]
                if not math.isfinite(value):
                    raise ValueError("VBench gives no number")
        except UnreadableFile as error:
            self.missing[dimension] = str(error)
            return
        self.scores[dimension] = float(value)
        for name, value in rows:
            if isinstance(value, (int, float)) and math.isfinite(value):
                self.by_video.setdefault(name, {})[dimension] = float(value)


def _average(scores: Mapping[str, float], names: Sequence[str]) -> float | None:
    """Weighted mean of the scores as the leaderboard scales them, 0 to 100."""
    if any(name not in scores for name in names):
        return None
    parts = [(scores[name], DIMENSIONS[name]) for name in names]
    weighted = sum(d.weight * (value - d.low) / (d.high - d.low) for value, d in parts)
    return 100 * weighted / sum(d.weight for _, d in parts)


def check_environment(folder: Path, base: str) -> None:
    """Check the environment, or the Python ``base`` to make it with, before anything is installed."""
    if not folder.exists():
        try:
            subprocess.run([base, "--version"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            wanted = "a Python to make the environment with"
            raise ValueError(f"python: expected {wanted}, got {base}.") from error
    elif not (folder / "bin" / "python").is_file():
        raise ValueError(f"environment: {folder} is no Python environment; give one, or a new folder.")


def _run_isolated(python: Path, script: str, *words: object, **options: Any) -> subprocess.CompletedProcess:
    # -I: neither PYTHONPATH nor the current folder may come before the environment's packages
    return subprocess.run([python, "-I", "-c", script, *map(str, words)], **options)


def _prepare_environment(folder: Path, base: str) -> tuple[Path, Path]:
    """Make the environment and install VBench, if not done; returns Python and package folder."""
    python = (folder / "bin" / "python").absolute()
    try:
        if not python.is_file():
            subprocess.run([base, "-m", "venv", folder], check=True)
        if _run_isolated(python, _FIND, capture_output=True).returncode:
            logger.info("installing %s into %s", PACKAGE, folder)
            # setuptools: packages that VBench needs still import pkg_resources
            subprocess.run([python, "-m", "pip", "install", PACKAGE, "setuptools<81"], check=True)
        found = _run_isolated(python, _FIND, capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise OSError(f"{folder} could not be made ready: {error}.") from error
    return python, Path(found.strip())


def score(
    environment: tuple[Path, str],
    videos: Path,
    results: Path,
    dimensions: Sequence[str],
    device: str,
    full_info: Path | None = None,
) -> VBenchReport:
    """Score ``{prompt}-{index}.mp4`` by dimension; neither a failure nor a broken video stops the others.

    ``environment`` is a folder of Python for VBench, and the Python to make it with if need be; VBench's own files go
    to ``results``; ``full_info`` lists prompts by dimension (default: those of the package).
    """
    python, package = _prepare_environment(*environment)
    info, videos = full_info or find_full_info(package), videos.absolute()
    if info is None:
        raise OSError(f"{package} has no list of prompts; give full_info.")
    prompts, report = read_full_info(info), VBenchReport(videos, dimensions)
    results.mkdir(parents=True, exist_ok=True)
    for path in sorted(videos.glob("*.mp4")):
        try:
            probe_video(path)
        except ValueError as error:
            report.broken[path.name] = str(error)
    names = {path.name for path in videos.iterdir()} - report.broken.keys()
    report.looked_at = sorted(names)
    if report.broken:  # VBench would stop at them: give it links to the others
        links = (results / "videos").absolute()
        shutil.rmtree(links, ignore_errors=True)
        links.mkdir()
        for name in names:
            (links / name).symlink_to(videos / name)
        videos = links
    for dimension in dimensions:
        wanted = {f"{p}-{i}.mp4" for p in prompts.get(dimension, ()) for i in range(SAMPLES)}
        if not wanted & names:
            report.missing[dimension] = "no video of its prompts."
            continue
        log = results / f"{dimension}.log"
        logger.info("scoring %s; VBench's messages go to %s", dimension, log)
        words = (videos, results, dimension, device, info.absolute())
        with log.open("w") as output:
            done = _run_isolated(python, _WORKER, *words, stdout=output, stderr=output)
        if done.returncode:
            text = log.read_text(errors="replace").strip() or "VBench failed without a message."
            report.missing[dimension] = text.splitlines()[-1].strip()[:300]
            continue
        report.absent[dimension] = len(wanted - names)
        report.add(dimension, results / f"{dimension}_eval_results.json")
    return report
