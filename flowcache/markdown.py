"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a column for each title; cells are written as ``str`` writes them."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (titles, ["---"] * len(titles), *rows))
