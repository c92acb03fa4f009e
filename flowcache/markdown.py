"""Tables in Markdown, CSV and JSON."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import write_csv, write_json


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a column for each title; cells are written as ``str`` writes them."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (titles, ["---"] * len(titles), *rows))


def write_results(
    stem: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], content: Mapping[str, Any]
) -> list[Path]:
    """Write rows to ``stem.csv`` and everything to ``stem.json``; returns both paths."""
    paths = [Path(f"{stem}{suffix}") for suffix in (".csv", ".json")]
    write_csv(paths[0], columns, rows)
    write_json(paths[1], content)
    return paths
