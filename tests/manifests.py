"""What a benchmark's folder says of its videos."""

from pathlib import Path
from typing import Any

from flowcache.benchmark.sample_folder import Manifest

#: What the documentation says that a benchmark's folder holds.
FINISHED = ["manifest.jsonl", "settings.json", "traces", "videos"]


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Records in the order in which the videos were first made."""
    return list(Manifest(folder / "manifest.jsonl").read()[0].values())
