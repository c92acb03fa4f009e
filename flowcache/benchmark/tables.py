"""The paper's tables from the files of a run: our figures beside the paper's, as Markdown, CSV and JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from ..files import write_atomically, write_csv, write_json
from ..markdown import markdown_table
from ..trace import Trace
from .paper_flops import PETA, PaperFlops
from .prompts import DIMENSIONS
from .runs import MethodRun, ModelRun

NOTE = (
    "In brackets: the paper's figures (arXiv 2602.10825, tables 1 and 2), of the official weights on its own "
    "machine. Latency is that of denoising; it, speed-up and FLOPs ratio are medians over the videos, peak "
    "memory is the maximum, the rest are means. LPIPS, SSIM and PSNR compare with the videos of vanilla."
)
CPU_NOTE = "Peak memory on a CPU is what the process holds, with the libraries and what earlier videos left."

NAMES = {"causal": "causal, no reuse", "teacache": "TeaCache", "flowcache": "FlowCache"}
UNITS = {"PFLOPs": 1.0, "TFLOPs": 1e3, "GFLOPs": 1e6}


@dataclass(frozen=True)
class Column:
    """A column of the table: its key in the files, its title, and the format of its figures."""

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
COMPARED = ("lpips", "ssim", "psnr")
#: Factors whose product is vanilla's FLOPs over a method's.
SPLIT = {"live_only": "live chunks only", "causal": "causal, with KV cache", "reuse": "reuse"}


@dataclass(frozen=True)
class Row:
    """The figures of ``METHOD:PRESET`` by column, and its factors by ``SPLIT``; None: there is no figure."""

    method: str
    title: str
    measured: Mapping[str, float | None]
    paper: Mapping[str, float]
    split: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A model's table.

    Attributes:
        settings: what all videos share, in words.
        prompts: number of prompts that all methods have made videos of.
        videos: number of videos of each method.
        missing: why a column lacks figures, by title; each reason once.
        notes: what else the reader must know.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them; methods are named ``way`` in files."""
        content = asdict(self)
        content["rows"] = [{"way": row.pop("method"), **row} for row in content["rows"]]
        return content


def method_title(method: str) -> str:
    """A method's title in tables and pictures, such as ``FlowCache fast (ours)``."""
    name, _, preset = method.partition(":")
    ours = name == "flowcache" and not preset.startswith("paper-")
    return " ".join(filter(None, [NAMES.get(name, name), preset, "(ours)" if ours else ""]))


def build_table(run: ModelRun, papers: Iterable[PaperFlops]) -> Table:
    """A model's table; ``papers`` may have one of this model.

    Raises:
        ValueError: a file of the run is missing or broken.
    """
    paper = next((paper for paper in papers if paper.model == run.model), None)
    columns = [*COLUMNS]
    for other in run.references[1:]:
        columns.append(Column(f"psnr_to_{other.method}", f"PSNR to {other.method}, dB", "{:.2f}"))
        columns.append(Column(f"ssim_to_{other.method}", f"SSIM to {other.method}", "{:.4f}"))
    reasons: dict[str, dict[str, None]] = {}
    base = [run.methods[0].trace(name) for name in run.names]
    rows = [_build_row(run, method, base, paper, reasons) for method in run.methods]
    records = [method.records[name] for method in run.methods for name in run.names]
    machines = [record["environment"] for record in records]
    path = Path(base[0].settings.get("model") or "unknown")
    notes = [f"{method}: not run so far" for method in run.absent]
    if run.unfinished:
        notes.append(f"{run.unfinished} videos that not all methods have made so far are left out")
    return Table(
        model=run.model,
        weights=path.name if path.is_absolute() else str(path),
        settings=run.settings,
        prompts=len({run.methods[0].records[name]["prompt"] for name in run.names}),
        videos=len(run.names),
        rows=rows,
        columns=columns,
        missing={column.title: list(reasons[column.key]) for column in columns if column.key in reasons},
        notes=notes,
        commits=sorted({machine.get("commit", "unknown") for machine in machines}),
        hardware=sorted(set(map(_describe_machine, machines))),
        dates=sorted({record["started"][:10] for record in records}),
    )


def _build_row(
    run: ModelRun,
    method: MethodRun,
    base: Sequence[Trace],
    paper: PaperFlops | None,
    reasons: dict[str, dict[str, None]],
) -> Row:
    def explain(column: str, reason: str) -> None:
        reasons.setdefault(column, {})[reason.rstrip(".")] = None

    def compare_speed() -> float | None:
        """Median over the samples whose videos both were made on the same kind of machine."""
        first, ratios = run.methods[0], []
        for name, theirs, ours in zip(run.names, base, traces, strict=True):
            machines = {_describe_machine(m.records[name]["environment"]) for m in (first, method)}
            ratios += [theirs.seconds["denoise"] / ours.seconds["denoise"]] if len(machines) == 1 else []
        if not ratios:
            explain("speedup", f"no prompt was run by {method.method} and {first.method} on like machines")
        return median(ratios) if ratios else None

    def read_vbench() -> float | None:
        scores = method.vbench()
        if scores is None:
            explain("vbench", "no environment given")
            return None
        if scores["totals"]["total"] is None:
            there = sum(score is not None for score in scores["mean"].values())
            explain("vbench", f"the total needs all {len(DIMENSIONS)} dimensions, {there} are scored")
        return scores["totals"]["total"]

    def read_comparison(reference: MethodRun, metric: str, column: str) -> float | None:
        """Mean over the videos."""
        if method is reference:
            if len(run.methods) == 1:
                explain(column, f"only {method.method} was run")
            return None
        report = method.comparison(reference.method)
        if report is None:
            explain(column, "not measured")
            return None
        values = []
        for name in run.names:
            video = report["videos"].get(method.video(name).name, {"mean": {}, "missing": {}})
            values.append(video["mean"].get(metric))
            if values[-1] is None:
                explain(
                    column, report["missing"].get(metric) or video["missing"].get(metric) or "not measured"
                )
                return None
        return mean(values)

    traces = [method.trace(name) for name in run.names]
    measured = {
        "pflops": mean(trace.flops["actual"] for trace in traces) / PETA,
        "flops_ratio": median(
            theirs.flops["actual"] / ours.flops["actual"] for theirs, ours in zip(base, traces, strict=True)
        ),
        "speedup": compare_speed(),
        "latency_seconds": median(trace.seconds["denoise"] for trace in traces),
        "vbench": read_vbench(),
        "peak_memory_gib": max(trace.peak_memory_bytes for trace in traces) / 2**30,
        "reuse_ratio": mean(trace.reuse_ratio for trace in traces),
    }
    for reference in run.references:
        suffix = "" if reference is run.methods[0] else f"_to_{reference.method}"
        for metric in COMPARED:
            measured[metric + suffix] = read_comparison(reference, metric, metric + suffix)
    title = method_title(method.method)
    return Row(method.method, title, measured, _read_paper(paper, method.method), _split_flops(traces))


def _read_paper(paper: PaperFlops | None, method: str) -> dict[str, float]:
    """The paper's figures of a method, by column."""
    name, _, preset = method.partition(":")
    title = f"{NAMES.get(name)}-{preset.removeprefix('paper-')}" if preset.startswith("paper-") else method
    if paper is None or title not in paper.rows:
        return {}
    row, vanilla = paper.rows[title], paper.rows["vanilla"]
    figures = {"pflops": row.pflops, "flops_ratio": vanilla.pflops / row.pflops, **asdict(row)}
    return {key: value for key, value in figures.items() if value is not None}


def _split_flops(traces: Sequence[Trace]) -> dict[str, float]:
    """Factors by ``SPLIT``; a method that runs whole windows saves by reuse alone."""
    flops = {key: mean(trace.flops[key] for trace in traces) for key in traces[0].flops}
    if (traces[0].settings.get("reuse") or {}).get("whole_window"):
        return {"live_only": 1.0, "causal": 1.0, "reuse": flops["vanilla"] / flops["actual"]}
    steps = ("vanilla", "live_only", "causal", "actual")
    return {key: flops[a] / flops[b] for key, a, b in zip(SPLIT, steps[:-1], steps[1:], strict=True)}


def _describe_machine(machine: Mapping[str, str]) -> str:
    device, threads = machine.get("device", "").split(":")[0], machine.get("threads", "?")
    text = f"{machine.get('hardware', 'unknown')}, {device}"
    return f"{text}, {threads} thread{'' if threads == '1' else 's'}" if device == "cpu" else text


def save_tables(tables: Sequence[Table], stem: Path, commands: Sequence[str]) -> list[Path]:
    """Write ``stem.md``, ``stem.csv`` and ``stem.json``; ``commands`` made the run."""
    paths = [Path(f"{stem}{suffix}") for suffix in (".md", ".csv", ".json")]
    write_atomically(paths[0], f"{format_tables(tables, commands)}\n".encode())
    columns = list(dict.fromkeys(column.key for table in tables for column in table.columns))
    names = ["model", "weights", "prompts", "videos", "way", *columns]
    names += [*(f"paper_{key}" for key in columns), *(f"split_{key}" for key in SPLIT)]
    rows = []
    for table in tables:
        shared = {key: getattr(table, key) for key in ("model", "weights", "prompts", "videos")}
        for row in table.rows:
            figures = {column.key: row.measured.get(column.key) for column in table.columns}
            for prefix, more in (("paper", row.paper), ("split", row.split)):
                figures |= {f"{prefix}_{key}": value for key, value in more.items()}
            rows.append({**shared, "way": row.method, **figures})
    write_csv(paths[1], names, rows)
    write_json(paths[2], {"commands": list(commands), "tables": [table.as_dict() for table in tables]})
    return paths


def format_tables(tables: Sequence[Table], commands: Sequence[str]) -> str:
    """All tables in Markdown, with what the reader must know."""
    parts = [*(f"`{command}`" for command in commands), *map(_format_table, tables), NOTE]
    on_cpu = any(", cpu" in hardware for table in tables for hardware in table.hardware)
    return "\n\n".join([*parts, *([CPU_NOTE] if on_cpu else [])])


def _format_table(table: Table) -> str:
    count = "1 prompt" if table.prompts == 1 else f"{table.prompts} prompts"
    count += "" if table.videos == table.prompts else f", {table.videos} videos"
    short = [re.sub(r"^(\w{7})\w{33}\b", r"\1", commit) for commit in table.commits]
    head = f"{table.weights}; {table.settings}; {count}. {'; '.join(table.hardware)}; "
    head += f"commit {', '.join(short)}; {', '.join(table.dates)}."
    smallest = min(row.measured["pflops"] for row in table.rows)
    unit = next((unit for unit, factor in UNITS.items() if smallest * factor >= 1), "GFLOPs")

    def cell(row: Row, column: Column) -> str:
        ours, theirs = row.measured.get(column.key), row.paper.get(column.key)
        if column.key == "pflops":
            ours *= UNITS[unit]
        words = [] if ours is None else [_format(column.form, ours)]
        return " ".join([*words, *([] if theirs is None else [f"({_format(column.form, theirs)})"])])

    def known(column: Column) -> bool:
        return any(row.measured.get(column.key) is not None or column.key in row.paper for row in table.rows)

    shown = [column for column in table.columns if known(column)]
    of_paper = " (paper: PFLOPs)" if unit != "PFLOPs" and any(row.paper for row in table.rows) else ""
    titles = [unit + of_paper if column.key == "pflops" else column.title for column in shown]
    rows = [[row.title, *(cell(row, column) for column in shown)] for row in table.rows]
    sections = [f"### {table.model}", head, markdown_table(["method", *titles], rows)]
    notes = [f"- {note}" for note in [*table.notes, *_explain_gaps(table.missing)]]
    sections += ["\n".join(notes)] if notes else []
    # of a model that gains nothing by live chunks or the cache, the split says nothing new
    if any(row.split["live_only"] > 1 or row.split["causal"] > 1 for row in table.rows):
        sections += ["Reduction of FLOPs by each part of a method:", _format_split(table)]
    return "\n\n".join(sections)


def _explain_gaps(missing: Mapping[str, Sequence[str]]) -> list[str]:
    """Columns that lack figures, and why; those with the same reasons share a line."""
    titles: dict[str, list[str]] = {}
    for title, reasons in missing.items():
        titles.setdefault("; ".join(reasons), []).append(title.partition(",")[0])
    columns = {why: ", ".join(shared) for why, shared in titles.items()}
    return [why if why.startswith(shared) else f"{shared}: {why}" for why, shared in columns.items()]


def _format_split(table: Table) -> str:
    def factor(value: float) -> str:
        return "-" if abs(value - 1) < 0.005 else f"{value:.2f}x"

    rows = []
    for row in table.rows[1:]:
        parts = [row.split[key] for key in SPLIT]
        rows.append([row.title, *map(factor, (*parts, parts[0] * parts[1] * parts[2]))])
    return markdown_table(["method", *SPLIT.values(), "together"], rows)


def _format(form: str, value: float) -> str:
    """A number without an exponent or a trailing point."""
    text = form.format(value)
    if "e" in text:
        return f"{float(text):.{max(0, 2 - int(text.split('e')[1]))}f}"
    return text.rstrip(".")
