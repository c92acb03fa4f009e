"""What a benchmark's folder says of its videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowcache.benchmark.sample_folder import Manifest


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Records in the order in which the videos were first made."""
    return list(Manifest(folder / "manifest.jsonl").records().values())
