"""Faults by their cause, each with its shortest input."""

from __future__ import annotations

from collections import Counter, defaultdict

from .workers import Result


class Report:
    """What came of all inputs."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.faults: dict[tuple[str, str, str], list[tuple[Result, str]]] = defaultdict(list)
        self.seconds = 0.0

    def add(self, result: Result) -> None:
        """Take in a result."""
        self.kinds[result.kind] += 1
        self.seconds += result.seconds
        for fault in result.faults:
            self.faults[result.kind, fault.kind, fault.key].append((result, fault.detail))

    def text(self, in_full: bool = False) -> str:
        """A paragraph for each cause, the most frequent first."""
        paragraphs = []
        for (where, kind, key), found in sorted(self.faults.items(), key=lambda item: -len(item[1])):
            result, detail = min(found, key=lambda pair: len(pair[0].shown))
            numbers = ", ".join(str(result.number) for result, _ in found[:5])
            title = f"{kind} ({where}): {key}, {len(found)} times: {numbers}"
            paragraphs.append(f"{title}\n  {result.shown}\n  {detail if in_full else detail[-300:]}")
        counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(self.kinds.items()))
        total = f"{self.kinds.total()} inputs ({counts}) in {self.seconds:.0f} s"
        return "\n".join([*paragraphs, f"{total}: {len(self.faults)} causes of faults"])
