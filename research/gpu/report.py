"""The page and the record of a run."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowcache.files import markdown_table, write_atomically, write_json

from .bench import Outcome, Section

_MARKS = {"pass": "pass", "fail": "**fail**", "skipped": "skipped"}


def write_report(
    page: Path, record: Path, facts: Mapping[str, str], sections: Sequence[Section], outcomes: Sequence[Outcome]
) -> None:
    """Write a Markdown page, and the same as JSON."""
    write_atomically(page, make_page(facts, sections, outcomes).encode())
    rows = [asdict(each) | {"row": {name: _plain(value) for name, value in each.row.items()}} for each in outcomes]
    write_json(record, {"facts": dict(facts), "outcomes": rows})


def make_page(facts: Mapping[str, str], sections: Sequence[Section], outcomes: Sequence[Outcome]) -> str:
    found = {section.name: [each for each in outcomes if each.section == section.name] for section in sections}
    parts = [f"# Checks on {facts['device']}", summarise(outcomes), markdown_table(["", ""], facts.items())]
    if failed := [each for each in outcomes if each.result == "fail"]:
        parts.append("\n".join(f"- **fail** {each.section}: {each.check}: {each.note}" for each in failed))
    for section in sections:
        table = make_table(found[section.name]) if found[section.name] else "Not run."
        parts += [f"## {section.title}", section.intro, table]
    return "\n\n".join(parts) + "\n"


def summarise(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(each.result for each in outcomes)
    return f"{counts['pass']} passed, {counts['fail']} failed, {counts['skipped']} skipped."


def make_table(outcomes: Sequence[Outcome]) -> str:
    """A row for each outcome, with the columns of all of them."""
    columns = dict.fromkeys(column for each in outcomes for column in each.row)
    rows = [
        [each.check, _MARKS[each.result], *(_show(each.row.get(column)) for column in columns), each.note]
        for each in outcomes
    ]
    keep = [any(row[i] for row in rows) for i in range(len(columns) + 3)]
    titles = ["check", "result", *columns, "note"]
    picked = [[cell for cell, kept in zip(row, keep, strict=True) if kept] for row in (titles, *rows)]
    return markdown_table(picked[0], picked[1:])


def _plain(value: Any) -> Any:
    """The value as JSON has it: text for NaN and infinity, which a failed check may have measured."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)
