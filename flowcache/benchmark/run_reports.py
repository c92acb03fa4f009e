"""Measures the videos of a run, way by way, and leaves reports beside them."""

from __future__ import annotations

from pathlib import Path

from ..metrics.compare import METRICS
from ..metrics.report import measure
from .run_folder import ModelRun, WayRun
from .vbench import package_full_info, prepare_environment, score
from .vbench_prompts import DIMENSIONS


def measure_closeness(run: ModelRun, device: str, again: bool = False) -> None:
    """Compare every way's videos with those of the references.

    Args:
        run: whose videos to compare.
        device: where to measure.
        again: also what is measured already.

    Raises:
        ValueError: a video that is needed is gone or broken.
    """
    for reference in run.references:
        for way in run.ways:
            if way is not reference and (again or not _is_measured(run, way, reference)):
                folders = (reference.folder / "videos", way.folder / "videos")
                measure(*folders, METRICS, device).save(way.closeness_stem(reference.way))


def score_vbench(run: ModelRun, environment: Path, base: str, device: str, again: bool = False) -> None:
    """Score every way's videos in VBench's own environment, where some came after the last scores.

    Args:
        run: whose videos to score.
        environment: of VBench; made if need be.
        base: the Python to make it with.
        device: ``cuda`` or ``cpu``.
        again: also what is scored already.

    Raises:
        OSError: the environment could not be made ready.
    """
    for way in run.ways:
        if again or not _is_scored(run, way):
            python = prepare_environment(environment, base)
            videos, results = (way.folder / "videos").absolute(), way.folder / "vbench_results"
            info = package_full_info(python).absolute()
            score(python, videos, results, list(DIMENSIONS), device, info).save(way.folder / "vbench")


def _is_measured(run: ModelRun, way: WayRun, reference: WayRun) -> bool:
    report = way.closeness(reference.way)
    return report is not None and all(way.video(name).name in report["videos"] for name in run.names)


def _is_scored(run: ModelRun, way: WayRun) -> bool:
    report = way.vbench()
    return report is not None and {way.video(name).name for name in run.names} <= set(
        report.get("looked_at", ())
    )
