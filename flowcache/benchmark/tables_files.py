"""The paper's tables as Markdown, CSV and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_atomically, write_csv, write_json
from ..markdown import markdown_table
from .tables import Column, Row, Table

NOTE = (
    "In brackets: the paper's figures (arXiv 2602.10825, tables 1 and 2), of the official weights on its own "
    "machine. Latency is that of denoising; it, speed-up and FLOPs ratio are medians over the videos, peak "
    "memory is the greatest, the rest are means. LPIPS, SSIM and PSNR are to the videos of vanilla."
)
CPU_NOTE = "Peak memory on a CPU is what the process holds, with the libraries and what earlier videos left."


def save_tables(tables: Sequence[Table], stem: Path, commands: Sequence[str]) -> list[Path]:
    """Write ``stem.md``, ``stem.csv`` and ``stem.json``; returns them.

    Args:
        tables: of the models.
        commands: that made the run, as far as they are known.
    """
    paths = [Path(f"{stem}{suffix}") for suffix in (".md", ".csv", ".json")]
    write_atomically(paths[0], f"{markdown(tables, commands)}\n".encode())
    columns = {column.key: None for table in tables for column in table.columns}
    paper = [f"paper_{key}" for key in columns]
    split = ["split_live_only", "split_causal", "split_reuse"]
    names = ["model", "weights", "prompts", "videos", "way", *columns, *paper, *split]
    write_csv(paths[1], names, [_flat(table, row) for table in tables for row in table.rows])
    write_json(paths[2], {"commands": list(commands), "tables": [table.as_dict() for table in tables]})
    return paths


def markdown(tables: Sequence[Table], commands: Sequence[str]) -> str:
    """All tables, with what is to be known of them."""
    parts = [f"`{command}`" for command in commands]
    parts += [_section(table) for table in tables]
    on_cpu = any(", cpu" in hardware for table in tables for hardware in table.hardware)
    return "\n\n".join([*parts, NOTE, *([CPU_NOTE] if on_cpu else [])])


def _section(table: Table) -> str:
    count = "1 prompt" if table.prompts == 1 else f"{table.prompts} prompts"
    count += "" if table.videos == table.prompts else f", {table.videos} videos"
    lines = [
        f"### {table.model}",
        "",
        f"{table.weights}; {table.settings}; {count}. {'; '.join(table.hardware)}; commit "
        f"{', '.join(map(_short, table.commits))}; {', '.join(table.dates)}.",
        "",
    ]
    shown = [column for column in table.columns if _is_known(table, column)]
    rows = [[row.title, *(_cell(row, column) for column in shown)] for row in table.rows]
    lines.append(markdown_table(["method", *(column.title for column in shown)], rows))
    lines += ["", *(f"- {note}" for note in table.notes)]
    lines += _missing(table.missing)
    if table.has_split:
        lines += ["", "Fewer FLOPs, by what saves them:", "", _split_table(table)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip()


def _missing(reasons_of: Mapping[str, Sequence[str]]) -> list[str]:
    """Columns that lack figures, and why; those that lack them for the same reasons share a line."""
    titles: dict[str, list[str]] = {}
    for title, reasons in reasons_of.items():
        titles.setdefault("; ".join(reasons), []).append(title.partition(",")[0])
    columns = {why: ", ".join(shared) for why, shared in titles.items()}
    return [f"- {why}" if why.startswith(shared) else f"- {shared}: {why}" for why, shared in columns.items()]


def _split_table(table: Table) -> str:
    """Where the FLOPs that a method saves come from."""
    rows = []
    for row in table.rows[1:]:
        parts = [row.split[key] for key in ("live_only", "causal", "reuse")]
        cells = [f"{part:.2f}x" for part in (*parts, parts[0] * parts[1] * parts[2])]
        rows.append([row.title, *cells])
    titles = ["method", "live chunks only", "causal, with KV cache", "reuse", "together"]
    return markdown_table(titles, rows)


def _is_known(table: Table, column: Column) -> bool:
    return any(row.measured.get(column.key) is not None or column.key in row.paper for row in table.rows)


def _cell(row: Row, column: Column) -> str:
    ours, theirs = row.measured.get(column.key), row.paper.get(column.key)
    words = [] if ours is None else [_plain(column.form.format(ours))]
    words += [] if theirs is None else [f"({_plain(column.form.format(theirs))})"]
    return " ".join(words)


def _plain(figure: str) -> str:
    """A number without an exponent, and without a point that nothing follows."""
    if "e-" not in figure:
        return figure.rstrip(".")
    return f"{float(figure):.{int(figure.split('e-')[1]) + 2}f}"


def _flat(table: Table, row: Row) -> dict[str, Any]:
    """A row of the CSV."""
    first = {"model": table.model, "weights": table.weights, "prompts": table.prompts}
    first |= {"videos": table.videos, "way": row.way}
    paper = {f"paper_{key}": value for key, value in row.paper.items()}
    keys = [column.key for column in table.columns]
    split = {f"split_{key}": value for key, value in row.split.items()}
    return {**first, **{key: row.measured.get(key) for key in keys}, **paper, **split}


def _short(commit: str) -> str:
    name, dash, dirty = commit.partition("-")
    return name[:7] + dash + dirty if len(name) == 40 else commit
