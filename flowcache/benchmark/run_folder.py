"""What a run of several ways left behind, read back: manifests, traces and reports, and nothing else.

A run's folder holds a folder for each model, or is one; ``turns`` says what lies in those.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..trace import Trace
from ..typed import as_type
from ..user_files import read_json, read_text, reading
from .sample_folder import Manifest
from .turns import WAYS_FILE, folder_of, read_ways

logger = logging.getLogger(__name__)

#: Written by who starts the run, for those who read its tables: a line for each command.
COMMAND_FILE = "command.txt"


#: Accountings of the FLOPs of a whole run.
TOTALS = ("actual", "vanilla", "live_only", "causal")


@dataclass(frozen=True)
class _Closeness:
    """One video in a comparison, as ``metrics.report`` writes it."""

    mean: dict[str, float | None]
    missing: dict[str, str]
    frames: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class WayRun:
    """One way's folder: the records of its manifest by name."""

    way: str
    folder: Path
    records: Mapping[str, dict[str, Any]]

    def trace(self, name: str) -> Trace:
        """What happened when a video was made.

        Raises:
            ValueError: the file is gone, or is no trace of a whole run.
        """
        path = self.folder / self.records[name]["trace"]
        trace = Trace.load(path)
        with reading(path, "the trace of a whole run"):
            amounts = [trace.seconds["denoise"], *(trace.flops[key] for key in TOTALS)]
            if min(amounts) <= 0:
                raise ValueError("seconds and flops must be above 0")
        return trace

    def video(self, name: str) -> Path:
        """Where a video lies."""
        return self.folder / self.records[name]["file"]

    def closeness_stem(self, reference: str) -> Path:
        """Where the comparison with another way's videos lies, without suffix."""
        return self.folder / f"closeness_to_{folder_of(reference)}"

    def closeness(self, reference: str) -> dict[str, Any] | None:
        """The comparison with another way's videos; None: not measured."""
        kinds = {"missing": dict[str, str], "videos": dict[str, _Closeness]}
        return _read_report(self.closeness_stem(reference).with_suffix(".json"), kinds)

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
        folder: of the ways.
        ways: those that made any video, in their order; ratios are to the first.
        absent: those that made none so far.
        names: samples that all ``ways`` have made.
        unfinished: how many samples only some of them have made.
    """

    model: str
    settings: str
    folder: Path
    ways: Sequence[WayRun]
    absent: Sequence[str]
    names: Sequence[str]
    unfinished: int

    @property
    def references(self) -> list[WayRun]:
        """Ways that closeness is measured to: the first, and causal attention without reuse."""
        return [self.ways[0], *(way for way in self.ways[1:] if way.way == "causal")]


class _Unfinished(ValueError):
    """No sample was made in all ways."""


def find_model_runs(run_dir: Path) -> list[ModelRun]:
    """The models of a run; one that has made no sample in all ways so far is left out, with a warning.

    Raises:
        ValueError: there is none.
    """
    if not run_dir.is_dir():
        raise ValueError(f"run_dir {run_dir} is no folder.")
    folders = model_folders(run_dir)
    if not folders:
        raise ValueError(
            f"run_dir {run_dir} holds no {WAYS_FILE}; give a folder that "
            "scripts/reproduce_tables.sh, or sample_video.py --ways, has written."
        )
    runs, reasons = [], []
    for folder in folders:
        try:
            runs.append(_read_model(folder))
        except _Unfinished as reason:
            reasons.append(str(reason))
    if not runs:
        raise ValueError(reasons[0])
    for reason in reasons:
        logger.warning(reason)
    return runs


def model_folders(run_dir: Path) -> list[Path]:
    """Folders of a run that hold several ways; none if it is no such run."""
    return sorted(path.parent for path in [*run_dir.glob(WAYS_FILE), *run_dir.glob(f"*/{WAYS_FILE}")])


def read_commands(run_dir: Path) -> list[str]:
    """The commands that made a run, as far as they were written down."""
    path = run_dir / COMMAND_FILE
    return read_text(path, "a list of commands").splitlines() if path.is_file() else []


def _read_model(folder: Path) -> ModelRun:
    content = read_ways(folder)
    model, settings, names = content["model"], content["settings"], content["ways"]
    if not names:
        raise _Unfinished(f"{folder / WAYS_FILE} names no way; run it again.")
    found = [_read_way(way, folder / folder_of(way)) for way in names]
    ways = [way for way in found if way.records]
    absent = [way.way for way in found if not way.records]
    all_names = list(dict.fromkeys(name for way in ways for name in way.records))
    common = [name for name in all_names if all(name in way.records for way in ways)]
    if not common or names[0] in absent:
        raise _Unfinished(
            f"{folder} holds no video that was made in all of {', '.join(names)}; run it again."
        )
    return ModelRun(model, settings, folder, ways, absent, common, len(all_names) - len(common))


def _read_way(way: str, folder: Path) -> WayRun:
    path = folder / "manifest.jsonl"
    records = Manifest(path).records()
    with reading(path, "a list of videos", "remove that line, and run it again"):
        for name, record in records.items():
            for key in ("prompt", "file", "trace", "started"):
                as_type(record.get(key), str, f"{key} of {name}")
            as_type(record.get("environment"), dict[str, str], f"environment of {name}")
    return WayRun(way, folder, records)


def _read_report(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any] | None:
    """A report that has these keys, each of its type; None: there is no such file."""
    if not path.is_file():
        return None
    remedy = "remove it to have it made again"
    report = read_json(path, dict[str, Any], "a report", remedy)
    with reading(path, "a report", remedy):
        for key, kind in kinds.items():
            as_type(report[key], kind, key)
    return report
