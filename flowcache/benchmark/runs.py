"""The results of several methods, read back from a folder for each model (see ``sampling``), and measured."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..metrics.compare import pair_up
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


@dataclass(frozen=True)
class _VideoFigures:
    """One video in a comparison, as ``metrics.compare`` writes it."""

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
            totals = [trace.flops[key] for key in ("actual", "vanilla", "live_only", "causal")]
            if min(trace.seconds["denoise"], *totals) <= 0:
                raise ValueError("seconds, flops: expected numbers above 0")
        return trace

    def video(self, name: str) -> Path:
        return self.folder / self.records[name]["file"]

    def comparison(self, reference: str) -> dict[str, Any] | None:
        """The comparison with another method's videos; None: not measured."""
        kinds = {"missing": dict[str, str], "videos": dict[str, _VideoFigures]}
        return self._read(f"closeness_to_{folder_name(reference)}", kinds)

    def vbench(self) -> dict[str, Any] | None:
        """VBench's scores; None: not scored."""
        return self._read("vbench", dict.fromkeys(("mean", "totals"), dict[str, float | None]))

    def _read(self, name: str, kinds: Mapping[str, Any]) -> dict[str, Any] | None:
        path, remedy = self.folder / f"{name}.json", "remove it to have it made again"
        if not path.is_file():
            return None
        report = read_json(path, dict[str, Any], "a report", remedy)
        with reading(path, "a report", remedy):
            return {**report, **{key: as_type(report[key], kind, key) for key, kind in kinds.items()}}


@dataclass(frozen=True)
class ModelRun:
    """One model's videos."""

    model: str  # its name, as in the paper
    settings: str  # what all videos share
    folder: Path
    methods: Sequence[MethodRun]  # with any video, in their order; ratios are to the first
    absent: Sequence[str]  # methods without a video so far
    names: Sequence[str]  # samples that all ``methods`` have made
    unfinished: int  # samples that only some of them have made

    @property
    def references(self) -> list[MethodRun]:
        """Methods that others are compared with: the first, and causal attention without reuse."""
        return [self.methods[0], *(run for run in self.methods[1:] if run.method == "causal")]

    def measure(self, device: str, again: bool = False) -> None:
        """Compare every method's videos with those of the references, if not done or ``again``."""
        for reference in self.references:
            for method in self.methods:
                if method is not reference and (again or not self._is_compared(method, reference)):
                    report = pair_up(reference.folder / "videos", method.folder / "videos")
                    report.measure(device, keep_going=True)
                    report.save(method.folder / f"closeness_to_{folder_name(reference.method)}")

    def _is_compared(self, method: MethodRun, reference: MethodRun) -> bool:
        """Whether every video has a figure; a broken one may be whole by now."""
        videos = (method.comparison(reference.method) or {"videos": {}})["videos"]
        found = [videos.get(method.video(name).name) for name in self.names]
        return all(video and any(value is not None for value in video.mean.values()) for video in found)

    def score(self, environment: tuple[Path, str], device: str, again: bool = False) -> None:
        """Score every method's videos with VBench, if some are newer than its scores or ``again``."""
        for method in self.methods:
            report, names = method.vbench(), {method.video(name).name for name in self.names}
            if again or report is None or not names <= set(report.get("looked_at", ())):
                videos, results = method.folder / "videos", method.folder / "vbench_results"
                report = score(environment, videos, results, list(DIMENSIONS), device)
                report.save(method.folder / "vbench")


def find_model_runs(run_dir: Path) -> list[ModelRun]:
    """The models of a run; warns of one without a sample that all methods have made, and leaves it out."""
    found = [_read_model(folder) for folder in find_model_folders(run_dir)]
    reasons = [run for run in found if isinstance(run, str)]
    if len(reasons) == len(found):
        needed = f"run_dir: {run_dir} has no {METHODS_FILE}; give a folder that scripts/reproduce_tables.sh or "
        raise ValueError(reasons[0] if reasons else f"{needed}sample_video.py --methods has written.")
    for reason in reasons:
        logger.warning(reason)
    return [run for run in found if isinstance(run, ModelRun)]


def find_model_folders(run_dir: Path) -> list[Path]:
    """Folders of a run that hold several methods; empty if it is no such run."""
    if not run_dir.is_dir():
        raise ValueError(f"run_dir: {run_dir} is not a folder.")
    return sorted(path.parent for path in [*run_dir.glob(METHODS_FILE), *run_dir.glob(f"*/{METHODS_FILE}")])


def read_commands(run_dir: Path) -> list[str]:
    """The commands that made a run, as far as they were written down."""
    path = run_dir / COMMAND_FILE
    return read_text(path, "a list of commands").splitlines() if path.is_file() else []


def _read_model(folder: Path) -> ModelRun | str:
    """A model's videos, or why there are none that all methods have made."""
    content = read_methods(folder)
    if not content.ways:
        return f"{folder / METHODS_FILE} names no method; run it again."
    first, *others = content.ways
    # the paper's methods before ours
    names = [first, *sorted(others, key=lambda m: m.startswith("flowcache") and ":paper-" not in m)]
    found = [_read_method(method, folder / folder_name(method)) for method in names]
    methods, absent = [run for run in found if run.records], [run.method for run in found if not run.records]
    every = dict.fromkeys(name for run in methods for name in run.records)
    common = [name for name in every if all(name in run.records for run in methods)]
    if not common or first in absent:
        return f"{folder} has no video that was made by all of {', '.join(content.ways)}; run it again."
    named = content.model, content.settings, folder
    return ModelRun(*named, methods, absent, common, unfinished=len(every) - len(common))


def _read_method(method: str, folder: Path) -> MethodRun:
    path = folder / "manifest.jsonl"
    records = Manifest(path).read()[0]
    with reading(path, "a list of videos", "remove that line, and run it again"):
        for name, record in records.items():
            for key in ("prompt", "file", "trace", "started"):
                as_type(record.get(key), str, f"{key} of {name}")
            as_type(record.get("environment"), dict[str, str], f"environment of {name}")
    return MethodRun(method, folder, records)
