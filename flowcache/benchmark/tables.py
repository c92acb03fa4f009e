"""The paper's tables from the files of a run: our figures beside the paper's, as Markdown, CSV and JSON."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import mean, median

from ..files import markdown_table, write_atomically, write_results
from ..metrics.compare import METRICS
from ..trace import Trace
from .paper_flops import PETA, PaperFlops
from .prompts import DIMENSIONS
from .runs import MethodRun, ModelRun

NOTE = (
    "Columns `paper:` hold the paper's figures (arXiv 2602.10825, tables 1 and 2), of the official weights on its own "
    "machine. Ours are medians over the videos, in brackets the lowest and the highest; FLOPs are means, peak memory "
    "is the maximum. Latency is that of denoising. LPIPS, ST-LPIPS, SSIM and PSNR compare with the videos of vanilla."
)
CPU_NOTE = (
    "On a CPU, latency and speed-up are of processor time, summed over threads, and peak memory is what the process "
    "holds, with the libraries and what earlier videos left."
)

#: Largest factor between speed-up and FLOPs ratio that goes without a note.
MAX_GAP = 1.3

NAMES = {"causal": "causal, no reuse", "teacache": "TeaCache", "flowcache": "FlowCache"}
UNITS = {"PFLOPs": 1.0, "TFLOPs": 1e3, "GFLOPs": 1e6}


@dataclass(frozen=True)
class Column:
    key: str  # in the files
    title: str
    form: str


COSTS = (
    Column("pflops", "PFLOPs", "{:#.3g}"),
    Column("flops_ratio", "FLOPs ratio", "{:.2f}"),
    Column("speedup", "speed-up", "{:.2f}"),
    Column("latency_seconds", "latency, s", "{:.4g}"),
    Column("peak_memory_gib", "peak memory, GiB", "{:.2f}"),
    Column("reuse_ratio", "reuse ratio", "{:.2f}"),
)
QUALITY = (
    Column("vbench", "VBench", "{:.2f}"),
    Column("lpips", "LPIPS", "{:.4f}"),
    Column("st_lpips", "ST-LPIPS", "{:.4f}"),
    Column("ssim", "SSIM", "{:.4f}"),
    Column("psnr", "PSNR, dB", "{:.2f}"),
)
#: Factors whose product is vanilla's FLOPs over a method's.
SPLIT = {"live_only": "live chunks only", "causal": "causal, with KV cache", "reuse": "reuse"}


@dataclass(frozen=True)
class Row:
    """The figures of ``METHOD:PRESET`` by column, and its factors by ``SPLIT``; None: there is no figure."""

    way: str
    title: str
    measured: Mapping[str, float | None]
    ranges: Mapping[str, tuple[float, float]]  # lowest and highest of the videos
    paper: Mapping[str, float]
    split: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A model's table, as ``tables.json`` has it."""

    model: str
    weights: str
    settings: str
    prompts: int  # that all methods have made videos of
    videos: int  # of each method
    rows: Sequence[Row]
    columns: Sequence[Column]
    missing: Mapping[str, Sequence[str]]  # why a column lacks figures, by title; each reason once
    notes: Sequence[str]
    commits: Sequence[str]
    hardware: Sequence[str]
    dates: Sequence[str]


def method_title(method: str) -> str:
    """A method's title in tables and pictures, such as ``FlowCache fast (ours)``."""
    name, _, preset = method.partition(":")
    ours = "(ours)" if name == "flowcache" and not preset.startswith("paper-") else ""
    return " ".join(filter(None, [NAMES.get(name, name), preset, ours]))


def build_table(run: ModelRun, papers: Iterable[PaperFlops]) -> Table:
    """A model's table, beside that of ``papers``; ValueError if a file of the run is missing or broken."""
    paper = next((paper for paper in papers if paper.model == run.model), None)
    first, *others = run.references
    columns = [*COSTS, *QUALITY]
    for name in (other.method for other in others):
        columns.append(Column(f"psnr_to_{name}", f"PSNR to {name}, dB", "{:.2f}"))
        columns.append(Column(f"ssim_to_{name}", f"SSIM to {name}", "{:.4f}"))
    base, rows, reasons = [first.trace(name) for name in run.names], [], {}
    for method in run.methods:
        traces = [method.trace(name) for name in run.names]
        measured, ranges = {}, {}
        for key, figure in _read_figures(run, method, traces, base).items():
            if isinstance(figure, str):
                reasons.setdefault(key, {})[figure.rstrip(".")] = None
                figure = None
            elif isinstance(figure, list):
                ranges[key] = min(figure), max(figure)
                figure = median(figure)
            measured[key] = figure
        stated, split = _read_paper(paper, method.method), _split_flops(traces)
        rows.append(Row(method.method, method_title(method.method), measured, ranges, stated, split))
    records = [method.records[name] for method in run.methods for name in run.names]
    machines = [record["environment"] for record in records]
    path = Path(base[0].settings.get("model") or "unknown")
    notes = [f"{method}: not run so far" for method in run.absent]
    notes += compare_gains((row.title, row.measured["speedup"], row.measured["flops_ratio"]) for row in rows)
    if run.unfinished:
        notes.append(f"{run.unfinished} videos that not all methods have made so far are left out")
    return Table(
        model=run.model,
        weights=path.name if path.is_absolute() else str(path),
        settings=run.settings,
        prompts=len({first.records[name]["prompt"] for name in run.names}),
        videos=len(run.names),
        rows=rows,
        columns=columns,
        missing={column.title: list(reasons[column.key]) for column in columns if column.key in reasons},
        notes=notes,
        commits=sorted({machine.get("commit", "unknown") for machine in machines}),
        hardware=sorted(set(map(_describe_machine, machines))),
        dates=sorted({record["started"][:10] for record in records}),
    )


def compare_gains(gains: Iterable[tuple[str, float | None, float]]) -> list[str]:
    """A sentence that names methods whose speed-up and FLOPs ratio differ by more than ``MAX_GAP``, if any do.

    ``gains``: method, speed-up, FLOPs ratio.
    """
    shares = [(method, speedup / ratio) for method, speedup, ratio in gains if speedup is not None]
    far = [f"{method} {share:.2f}" for method, share in shares if not 1 / MAX_GAP <= share <= MAX_GAP]
    return [f"speed-up over FLOPs ratio is far from 1: {', '.join(far)}"] if far else []


#: A figure, those of the videos, or why a method has none in a column; None: none is expected.
Figure = float | list[float] | str | None


def _read_figures(
    run: ModelRun, method: MethodRun, traces: Sequence[Trace], base: Sequence[Trace]
) -> dict[str, Figure]:
    first, pairs = run.methods[0], list(zip(base, traces, strict=True))
    figures: dict[str, Figure] = {
        "pflops": mean(trace.flops["actual"] for trace in traces) / PETA,
        "flops_ratio": [theirs.flops["actual"] / ours.flops["actual"] for theirs, ours in pairs],
        "latency_seconds": median(trace.denoising_seconds for trace in traces),
        "peak_memory_gib": max(trace.peak_memory_bytes for trace in traces) / 2**30,
        "reuse_ratio": [trace.reuse_ratio for trace in traces],
        "speedup": f"no prompt was run by {method.method} and {first.method} on like machines",
        "vbench": "no environment given",
    }
    ratios = []
    for name, (theirs, ours) in zip(run.names, pairs, strict=True):
        one, other = (_describe_machine(m.records[name]["environment"]) for m in (first, method))
        ratios += [theirs.denoising_seconds / ours.denoising_seconds] if one == other else []
    if ratios:
        figures["speedup"] = ratios
    if (scores := method.vbench()) is not None:
        there = sum(score is not None for score in scores["mean"].values())
        missing = f"the total needs all {len(DIMENSIONS)} dimensions, {there} are scored"
        total = scores["totals"].get("total")
        figures["vbench"] = missing if total is None else total
    for reference in run.references:
        suffix = "" if reference is first else f"_to_{reference.method}"
        for metric in METRICS:
            figures[metric + suffix] = _read_comparison(run, method, reference, metric)
    return figures


def _read_comparison(run: ModelRun, method: MethodRun, reference: MethodRun, metric: str) -> Figure:
    if method is reference:
        return f"only {method.method} was run" if len(run.methods) == 1 else None
    report, values = method.comparison(reference.method), []
    for name in run.names:
        video = report and report["videos"].get(method.video(name).name)
        values.append(video and video.mean.get(metric))
        if values[-1] is None:
            places = (report and report["missing"], video and video.missing)
            reasons = [reasons.get(metric) for reasons in places if reasons]
            return next(filter(None, reasons), "not measured")
    return values


def _read_paper(paper: PaperFlops | None, method: str) -> dict[str, float]:
    name, _, preset = method.partition(":")
    title = f"{NAMES.get(name)}-{preset.removeprefix('paper-')}" if preset.startswith("paper-") else method
    if paper is None or title not in paper.rows:
        return {}
    row, vanilla = paper.rows[title], paper.rows["vanilla"]
    figures = {**asdict(row), "flops_ratio": vanilla.pflops / row.pflops}
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
    text = Path(f"{stem}.md")
    write_atomically(text, f"{format_tables(tables, commands)}\n".encode())
    columns = list(dict.fromkeys(column.key for table in tables for column in table.columns))
    names = ["model", "weights", "prompts", "videos", "way", *columns]
    names += [f"{key}_{end}" for key in columns for end in ("low", "high")]
    names += [*(f"paper_{key}" for key in columns), *(f"split_{key}" for key in SPLIT)]
    rows = []
    for table in tables:
        shared = {key: getattr(table, key) for key in ("model", "weights", "prompts", "videos")}
        for row in table.rows:
            figures = {column.key: row.measured.get(column.key) for column in table.columns}
            for key in figures.keys() & row.ranges.keys():
                figures |= dict(zip((f"{key}_low", f"{key}_high"), row.ranges[key], strict=True))
            for prefix, more in (("paper", row.paper), ("split", row.split)):
                figures |= {f"{prefix}_{key}": value for key, value in more.items()}
            rows.append({**shared, "way": row.way, **figures})
    content = {"commands": list(commands), "tables": list(map(asdict, tables))}
    return [text, *write_results(stem, names, rows, content)]


def format_tables(tables: Sequence[Table], commands: Sequence[str]) -> str:
    """All tables in Markdown, with what the reader must know."""
    on_cpu = any(", cpu" in hardware for table in tables for hardware in table.hardware)
    notes = [NOTE, CPU_NOTE] if on_cpu else [NOTE]
    return "\n\n".join([*(f"`{command}`" for command in commands), *map(_format_table, tables), *notes])


def _format_table(table: Table) -> str:
    count = "1 prompt" if table.prompts == 1 else f"{table.prompts} prompts"
    count += "" if table.videos == table.prompts else f", {table.videos} videos"
    short = [re.sub(r"^(\w{7})\w{33}\b", r"\1", commit) for commit in table.commits]
    head = f"{table.weights}; {table.settings}; {count}. {'; '.join(table.hardware)}; "
    head += f"commit {', '.join(short)}; {', '.join(table.dates)}."
    smallest = min(row.measured["pflops"] for row in table.rows)
    unit = next((unit for unit, factor in UNITS.items() if smallest * factor >= 1), "GFLOPs")
    costs, quality = table.columns[: len(COSTS)], table.columns[len(COSTS) :]
    parts = [_format_columns(table.rows, columns, unit) for columns in (costs, quality)]
    sections = [f"### {table.model}", head, *filter(None, parts)]
    notes = [f"- {note}" for note in [*table.notes, *_explain_gaps(table.missing)]]
    sections += ["\n".join(notes)] if notes else []
    # of a model that gains nothing by live chunks or the cache, the split says nothing new
    if any(row.split["live_only"] > 1 or row.split["causal"] > 1 for row in table.rows):
        rows = []
        for row in table.rows[1:]:
            factors = [row.split[key] for key in SPLIT]
            texts = ("-" if abs(f - 1) < 0.005 else f"{f:.2f}x" for f in (*factors, prod(factors)))
            rows.append([row.title, *texts])
        sections += ["Reduction of FLOPs by each part of a method:"]
        sections += [markdown_table(["method", *SPLIT.values(), "together"], rows)]
    return "\n\n".join(sections)


def _format_columns(rows: Sequence[Row], columns: Sequence[Column], unit: str) -> str:
    """Markdown: our figures, with the range of the videos where they differ, and the paper's; empty without any."""
    titles, cells = ["method"], [[row.title for row in rows]]
    for column in columns:
        title, scale = (unit, UNITS[unit]) if column.key == "pflops" else (column.title, 1)
        ours, theirs = [], []
        for row in rows:
            ends = [_format(column.form, end) for end in row.ranges.get(column.key, ())]
            spread = [f"({' to '.join(ends)})"] if len(set(ends)) > 1 else []
            value, stated = row.measured.get(column.key), row.paper.get(column.key)
            ours.append("" if value is None else " ".join([_format(column.form, value * scale), *spread]))
            theirs.append("" if stated is None else _format(column.form, stated))
        for name, made in ((title, ours), (f"paper: {column.title}", theirs)):
            if any(made):
                titles.append(name)
                cells.append(made)
    return markdown_table(titles, zip(*cells, strict=True)) if len(titles) > 1 else ""


def _explain_gaps(missing: Mapping[str, Sequence[str]]) -> list[str]:
    """Columns that lack figures, and why; those with the same reasons share a line."""
    titles: dict[str, list[str]] = {}
    for title, reasons in missing.items():
        titles.setdefault("; ".join(reasons), []).append(title.partition(",")[0])
    columns = {why: ", ".join(shared) for why, shared in titles.items()}
    return [why if why.startswith(shared) else f"{shared}: {why}" for why, shared in columns.items()]


def _format(form: str, value: float) -> str:
    """A number without an exponent or a trailing point."""
    text = form.format(value)
    if "e" in text:
        return f"{float(text):.{max(0, 2 - int(text.split('e')[1]))}f}"
    return text.rstrip(".")
