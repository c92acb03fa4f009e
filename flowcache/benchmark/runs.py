"""The results of several methods, read back from their folders, and measured.

A run's folder holds a folder for each model, or is one; ``sampling`` describes those.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..metrics.compare import METRICS, Comparison, Metric, compare_files, measure
from ..trace import Trace
from ..typed import as_type
from ..user_files import read_json, read_text, reading
from .prompts import DIMENSIONS
from .sample_folder import Manifest
from .sampling import METHODS_FILE, folder_name, read_methods
from .vbench import score

logger = logging.getLogger(__name__)

#: The commands that made a run, a line each; written by the script that ran them.
COMMAND_FILE = "command.txt"
#: Accountings of the FLOPs of a whole run.
TOTALS = ("actual", "vanilla", "live_only", "causal")


@dataclass(frozen=True)
class _VideoFigures:
    """One video in a comparison, as ``metrics.report`` writes it."""

    mean: dict[str, float | None]
    missing: dict[str, str]
    frames: dict[str, list[float]] | None = None


@dataclass(frozen=True)
class MethodRun:
    """The videos of ``METHOD:PRESET``: the records of its manifest by name."""

    method: str
    folder: Path
    records: Mapping[str, dict[str, Any]]

    def trace(self, name: str) -> Trace:
        """The trace of a video; ValueError if it is missing, or is not that of a whole run."""
        path = self.folder / self.records[name]["trace"]
        trace = Trace.load(path)
        with reading(path, "the trace of a whole run"):
            amounts = [trace.seconds["denoise"], *(trace.flops[key] for key in TOTALS)]
            if min(amounts) <= 0:
                raise ValueError("seconds and flops must be above 0")
        return trace

    def video(self, name: str) -> Path:
        return self.folder / self.records[name]["file"]

    def report_path(self, reference: str) -> Path:
        """Path of the comparison with another method's videos."""
        return self.folder / f"closeness_to_{folder_name(reference)}.json"

    def comparison(self, reference: str) -> dict[str, Any] | None:
        """The comparison with another method's videos; None: not measured."""
        kinds = {"missing": dict[str, str], "videos": dict[str, _VideoFigures]}
        return _read_report(self.report_path(reference), kinds)

    def vbench(self) -> dict[str, Any] | None:
        """VBench's scores; None: not scored."""
        scores = dict[str, float | None]
        return _read_report(self.folder / "vbench.json", {"mean": scores, "totals": scores})


@dataclass(frozen=True)
class ModelRun:
    """One model's videos.

    Attributes:
        model: its name, as in the paper.
        settings: what all videos share, in words.
        methods: those with any video, in their order; ratios are to the first.
        absent: methods without a video so far.
        names: samples that all ``methods`` have made.
        unfinished: number of samples that only some of them have made.
    """

    model: str
    settings: str
    folder: Path
    methods: Sequence[MethodRun]
    absent: Sequence[str]
    names: Sequence[str]
    unfinished: int

    @property
    def references(self) -> list[MethodRun]:
        """Methods that others are compared with: the first, and causal attention without reuse."""
        return [self.methods[0], *(run for run in self.methods[1:] if run.method == "causal")]


def find_model_runs(run_dir: Path) -> list[ModelRun]:
    """The models of a run; warns of one without a sample that all methods have made, and leaves it out."""
    if not run_dir.is_dir():
        raise ValueError(f"run_dir: {run_dir} is not a folder.")
    folders = find_model_folders(run_dir)
    if not folders:
        raise ValueError(
            f"run_dir: {run_dir} has no {METHODS_FILE}; give a folder that scripts/reproduce_tables.sh or "
            "sample_video.py --methods has written."
        )
    found = [_read_model(folder) for folder in folders]
    runs = [run for run in found if isinstance(run, ModelRun)]
    reasons = [run for run in found if isinstance(run, str)]
    if not runs:
        raise ValueError(reasons[0])
    for reason in reasons:
        logger.warning(reason)
    return runs


def find_model_folders(run_dir: Path) -> list[Path]:
    """Folders of a run that hold several methods; empty if it is no such run."""
    return sorted(path.parent for path in [*run_dir.glob(METHODS_FILE), *run_dir.glob(f"*/{METHODS_FILE}")])


def read_commands(run_dir: Path) -> list[str]:
    """The commands that made a run, as far as they were written down."""
    path = run_dir / COMMAND_FILE
    return read_text(path, "a list of commands").splitlines() if path.is_file() else []


def _read_model(folder: Path) -> ModelRun | str:
    """A model's videos, or why there are none that all methods have made."""
    content = read_methods(folder)
    if not content["ways"]:
        return f"{folder / METHODS_FILE} names no method; run it again."
    first, *others = content["ways"]
    # the paper's methods before ours
    names = [first, *sorted(others, key=lambda m: m.startswith("flowcache") and ":paper-" not in m)]
    found = [_read_method(method, folder / folder_name(method)) for method in names]
    methods = [run for run in found if run.records]
    every = list(dict.fromkeys(name for run in methods for name in run.records))
    common = [name for name in every if all(name in run.records for run in methods)]
    if not common or not found[0].records:
        return f"{folder} has no video that was made by all of {', '.join(content['ways'])}; run it again."
    absent, shared = [run.method for run in found if not run.records], (content["model"], content["settings"])
    return ModelRun(*shared, folder, methods, absent, common, len(every) - len(common))


def _read_method(method: str, folder: Path) -> MethodRun:
    path = folder / "manifest.jsonl"
    records = Manifest(path).records()
    with reading(path, "a list of videos", "remove that line, and run it again"):
        for name, record in records.items():
            for key in ("prompt", "file", "trace", "started"):
                as_type(record.get(key), str, f"{key} of {name}")
            as_type(record.get("environment"), dict[str, str], f"environment of {name}")
    return MethodRun(method, folder, records)


def _read_report(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any] | None:
    """A report with keys of these types; None: there is no such file."""
    if not path.is_file():
        return None
    remedy = "remove it to have it made again"
    report = read_json(path, dict[str, Any], "a report", remedy)
    with reading(path, "a report", remedy):
        for key, kind in kinds.items():
            as_type(report[key], kind, key)
    return report


def compare_methods(run: ModelRun, device: str, again: bool = False) -> None:
    """Compare every method's videos with those of the references, if not done or ``again``."""
    for reference in run.references:
        for method in run.methods:
            if method is not reference and (again or not _is_compared(run, method, reference)):
                folders = (reference.folder / "videos", method.folder / "videos")
                report = measure(*folders, METRICS, device, compare=_compare)
                report.save(method.report_path(reference.method).with_suffix(""))


def _compare(original: Path, generated: Path, metrics: Mapping[str, Metric], device: str) -> Comparison:
    """Figures of a video; of a broken one, the reason."""
    try:
        return compare_files(original, generated, metrics, device)
    except ValueError as error:
        reason = str(error.__cause__ or error).rstrip(".")  # the cause names no argument
        return Comparison(missing=dict.fromkeys(METRICS, f"{reason}; remove it and sample again."))


def _is_compared(run: ModelRun, method: MethodRun, reference: MethodRun) -> bool:
    """Whether every video has a figure; a broken one may be whole by now."""
    report = method.comparison(reference.method)
    if report is None:
        return False
    videos = [report["videos"].get(method.video(name).name, {"mean": {}}) for name in run.names]
    return all(any(value is not None for value in video["mean"].values()) for video in videos)


def score_vbench(run: ModelRun, environment: Path, base: str, device: str, again: bool = False) -> None:
    """Score every method's videos with VBench, if some are newer than its scores or ``again``.

    ``environment`` has VBench; it is made with the Python ``base`` if need be.
    """
    for method in run.methods:
        report, names = method.vbench(), {method.video(name).name for name in run.names}
        if again or report is None or not names <= set(report.get("looked_at", ())):
            videos, results = method.folder / "videos", method.folder / "vbench_results"
            report = score((environment, base), videos, results, list(DIMENSIONS), device)
            report.save(method.folder / "vbench")
