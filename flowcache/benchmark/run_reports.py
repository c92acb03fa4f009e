"""Measures the videos of a run, way by way, and leaves reports beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..metrics.compare import METRICS, Comparison, Metric, compare_files, measure
from .run_folder import ModelRun, WayRun
from .vbench import package_full_info, prepare_environment, score
from .vbench_prompts import DIMENSIONS


def measure_closeness(run: ModelRun, device: str, again: bool = False) -> None:
    """Compare every way's videos with those of the references; a broken one has the reason for a figure.

    Args:
        run: whose videos to compare.
        device: where to measure.
        again: also what is measured already.

    Raises:
        ValueError: two ways have no video in common any more.
    """
    for reference in run.references:
        for way in run.ways:
            if way is not reference and (again or not _is_measured(run, way, reference)):
                folders = (reference.folder / "videos", way.folder / "videos")
                report = measure(*folders, METRICS, device, compare=_compare)
                report.save(way.closeness_stem(reference.way))


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


def _compare(original: Path, generated: Path, metrics: Mapping[str, Metric], device: str) -> Comparison:
    try:
        return compare_files(original, generated, metrics, device)
    except ValueError as error:
        # of a file that cannot be read, the cause, which does not speak of arguments
        reason = str(error.__cause__ or error).rstrip(".")
        told = f"{reason}; remove what is broken and sample again."
        return Comparison(missing=dict.fromkeys(METRICS, told))


def _is_measured(run: ModelRun, way: WayRun, reference: WayRun) -> bool:
    """Whether every video has a figure; one that was broken may be whole by now."""
    report = way.closeness(reference.way)
    if report is None:
        return False
    videos = [report["videos"].get(way.video(name).name, {"mean": {}}) for name in run.names]
    return all(any(value is not None for value in video["mean"].values()) for video in videos)


def _is_scored(run: ModelRun, way: WayRun) -> bool:
    report = way.vbench()
    return report is not None and {way.video(name).name for name in run.names} <= set(
        report.get("looked_at", ())
    )
