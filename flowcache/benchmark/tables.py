"""The paper's tables from a run: our figures beside the paper's, from files that the run left behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from ..trace import Trace
from .paper_flops import PETA, PaperFlops
from .run_folder import ModelRun, WayRun
from .vbench import SCALES

TITLES = {
    "causal": "causal, no reuse",
    "teacache:paper-slow": "TeaCache slow",
    "teacache:paper-fast": "TeaCache fast",
    "flowcache:paper-slow": "FlowCache slow, paper's",
    "flowcache:paper-fast": "FlowCache fast, paper's",
    "flowcache:quality": "FlowCache quality, ours",
    "flowcache:balanced": "FlowCache balanced, ours",
    "flowcache:fast": "FlowCache fast, ours",
    "flowcache:turbo": "FlowCache turbo, ours",
}
#: Rows of the paper that a way does again.
IN_THE_PAPER = {
    "vanilla": "vanilla",
    "teacache:paper-slow": "TeaCache-slow",
    "teacache:paper-fast": "TeaCache-fast",
    "flowcache:paper-slow": "FlowCache-slow",
    "flowcache:paper-fast": "FlowCache-fast",
}


@dataclass(frozen=True)
class Column:
    """A column of the table: its key in the files, its title, and how its figures are written."""

    key: str
    title: str
    form: str


COLUMNS = (
    Column("pflops", "PFLOPs", "{:#.3g}"),
    Column("flops_ratio", "FLOPs ratio", "{:.2f}"),
    Column("speedup", "speed-up", "{:.2f}"),
    Column("latency_seconds", "latency, s", "{:.4g}"),
    Column("vbench", "VBench", "{:.2f}"),
    Column("lpips", "LPIPS", "{:.4f}"),
    Column("ssim", "SSIM", "{:.4f}"),
    Column("psnr", "PSNR, dB", "{:.2f}"),
    Column("peak_memory_gib", "peak memory, GiB", "{:.2f}"),
    Column("reuse_ratio", "reuse ratio", "{:.2f}"),
)
CLOSENESS = ("lpips", "ssim", "psnr")


@dataclass(frozen=True)
class Row:
    """One way's figures, by column; None: none, and ``Table.missing`` says why if one could be.

    ``split`` says by how much fewer FLOPs each part of a method saves: ``live_only``, ``causal``, ``reuse``.
    """

    way: str
    title: str
    measured: Mapping[str, float | None]
    paper: Mapping[str, float]
    split: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A model's table.

    Attributes:
        model: its name, as in the paper.
        weights: what was loaded.
        settings: what all videos share, in words.
        prompts: that all ways have made videos of.
        videos: of each way.
        rows: a way each.
        columns: those of ``COLUMNS``, and closeness to other references.
        missing: why a column has no figure, by title; each reason once.
        notes: what else is to be known.
        commits, hardware, dates: of the videos.
    """

    model: str
    weights: str
    settings: str
    prompts: int
    videos: int
    rows: Sequence[Row]
    columns: Sequence[Column]
    missing: Mapping[str, Sequence[str]]
    notes: Sequence[str]
    commits: Sequence[str]
    hardware: Sequence[str]
    dates: Sequence[str]

    @property
    def has_split(self) -> bool:
        """Whether running live chunks only, or the cache, saves anything on this model."""
        return any(row.split["live_only"] > 1 or row.split["causal"] > 1 for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return asdict(self)


@dataclass
class _Reasons:
    """Why columns have no figure."""

    of_columns: dict[str, list[str]] = field(default_factory=dict)

    def add(self, column: str, reason: str) -> None:
        reasons = self.of_columns.setdefault(column, [])
        if reason not in reasons:
            reasons.append(reason)


def build_table(run: ModelRun, papers: Iterable[PaperFlops]) -> Table:
    """A model's table.

    Args:
        run: what the run left behind.
        papers: the paper's tables; one may be of this model.

    Raises:
        ValueError: a file of the run is gone or broken; it is named.
    """
    paper = next((paper for paper in papers if paper.model == run.model), None)
    reasons, columns = _Reasons(), [*COLUMNS]
    for other in run.references[1:]:
        columns += [
            Column(f"psnr_to_{other.way}", f"PSNR to {other.way}, dB", "{:.2f}"),
            Column(f"ssim_to_{other.way}", f"SSIM to {other.way}", "{:.4f}"),
        ]
    base = [run.ways[0].trace(name) for name in run.names]
    rows = [_row(run, way, base, paper, reasons) for way in run.ways]
    records = [way.records[name] for way in run.ways for name in run.names]
    machines = [record["environment"] for record in records]
    return Table(
        model=run.model,
        weights=_weights(base[0]),
        settings=run.settings,
        prompts=len({run.ways[0].records[name]["prompt"] for name in run.names}),
        videos=len(run.names),
        rows=rows,
        columns=columns,
        missing={
            column.title: reasons.of_columns[column.key]
            for column in columns
            if column.key in reasons.of_columns
        },
        notes=_notes(run),
        commits=_distinct(machine.get("commit", "unknown") for machine in machines),
        hardware=_distinct(map(_hardware, machines)),
        dates=_distinct(record["started"][:10] for record in records),
    )


def _row(
    run: ModelRun, way: WayRun, base: Sequence[Trace], paper: PaperFlops | None, reasons: _Reasons
) -> Row:
    traces = [way.trace(name) for name in run.names]
    measured: dict[str, float | None] = {
        "pflops": mean(trace.flops["actual"] for trace in traces) / PETA,
        "flops_ratio": _ratio(base, traces, lambda trace: trace.flops["actual"]),
        "speedup": _speedup(run, way, base, traces, reasons),
        "latency_seconds": median(trace.seconds["denoise"] for trace in traces),
        "vbench": _vbench(way, reasons),
        "peak_memory_gib": max(trace.peak_memory_bytes for trace in traces) / 2**30,
        "reuse_ratio": mean(trace.reuse_ratio for trace in traces),
    }
    for reference in run.references:
        suffix = "" if reference is run.ways[0] else f"_to_{reference.way}"
        for metric in CLOSENESS:
            measured[metric + suffix] = _closeness(run, way, reference, metric, suffix, reasons)
    stated = _stated(paper, way.way)
    return Row(way.way, TITLES.get(way.way, way.way), measured, stated, _split(traces))


def _ratio(base: Sequence[Trace], traces: Sequence[Trace], amount: Any) -> float:
    return median(amount(theirs) / amount(ours) for theirs, ours in zip(base, traces, strict=True))


def _speedup(
    run: ModelRun, way: WayRun, base: Sequence[Trace], traces: Sequence[Trace], reasons: _Reasons
) -> float | None:
    """Median over the samples whose videos both were made on the same kind of machine."""
    like = [
        index
        for index, name in enumerate(run.names)
        if _hardware(run.ways[0].records[name]["environment"]) == _hardware(way.records[name]["environment"])
    ]
    if not like:
        reasons.add("speedup", f"no prompt was run by {way.way} and {run.ways[0].way} on like machines")
        return None
    return median(base[i].seconds["denoise"] / traces[i].seconds["denoise"] for i in like)


def _closeness(
    run: ModelRun, way: WayRun, reference: WayRun, metric: str, suffix: str, reasons: _Reasons
) -> float | None:
    """Mean over the videos."""
    column = metric + suffix
    if way is reference:
        if len(run.ways) == 1:
            reasons.add(column, f"only {way.way} was run")
        return None
    report = way.closeness(reference.way)
    if report is None:
        reasons.add(column, "not measured")
        return None
    values = []
    for name in run.names:
        video = report["videos"].get(way.video(name).name, {"mean": {}, "missing": {}})
        value = video["mean"].get(metric)
        if value is None:
            why = report["missing"].get(metric) or video["missing"].get(metric) or "not measured"
            reasons.add(column, why.rstrip("."))
            return None
        values.append(value)
    return mean(values)


def _vbench(way: WayRun, reasons: _Reasons) -> float | None:
    scores = way.vbench()
    if scores is None:
        reasons.add("vbench", "no environment given")
        return None
    total = scores["totals"]["total"]
    if total is None:
        there = sum(score is not None for score in scores["mean"].values())
        reasons.add("vbench", f"the total needs all {len(SCALES)} dimensions, {there} are scored")
    return total


def _stated(paper: PaperFlops | None, way: str) -> dict[str, float]:
    """The paper's figures of a way, by column."""
    method = IN_THE_PAPER.get(way)
    if paper is None or method not in paper.stated:
        return {}
    pflops = paper.stated[method]
    figures = {"pflops": pflops, "flops_ratio": paper.stated["vanilla"] / pflops}
    row = paper.rows.get(method)
    figures |= {} if row is None else asdict(row)
    return {key: value for key, value in figures.items() if value is not None}


def _split(traces: Sequence[Trace]) -> dict[str, float]:
    """Factors whose product is vanilla's FLOPs over a method's; one that runs whole windows only reuses."""
    flops = {key: mean(trace.flops[key] for trace in traces) for key in traces[0].flops}
    vanilla, actual = flops["vanilla"], flops["actual"]
    if (traces[0].settings.get("reuse") or {}).get("whole_window"):
        return {"live_only": 1.0, "causal": 1.0, "reuse": vanilla / actual}
    return {
        "live_only": vanilla / flops["live_only"],
        "causal": flops["live_only"] / flops["causal"],
        "reuse": flops["causal"] / actual,
    }


def _notes(run: ModelRun) -> list[str]:
    notes = [f"{way}: not run so far" for way in run.absent]
    if run.unfinished:
        notes.append(f"{run.unfinished} videos that not all ways have made so far are left out")
    return notes


def _weights(trace: Trace) -> str:
    """Name of the folder or Hub id that was loaded."""
    path = Path(trace.settings.get("model") or "unknown")
    return path.name if path.is_absolute() else str(path)


def _hardware(machine: Mapping[str, str]) -> str:
    device = machine.get("device", "").split(":")[0]
    threads = machine.get("threads", "?")
    return f"{machine.get('hardware', 'unknown')}, {device}" + (
        f", {threads} thread{'' if threads == '1' else 's'}" if device == "cpu" else ""
    )


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
