"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of so many columns as there are titles; cells are written as ``str`` writes them."""
    return "\n".join(map(_line, (titles, ["---"] * len(titles), *rows)))


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
