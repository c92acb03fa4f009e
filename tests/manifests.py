"""What a benchmark's folder says of its videos, and failures to be noted there."""

from pathlib import Path
from typing import Any

from flowcache import sampler
from flowcache.benchmark.sample_folder import Manifest

#: What the documentation says that a benchmark's folder holds.
FINISHED = ["manifest.jsonl", "settings.json", "traces", "videos"]


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Records in the order in which the videos were first made."""
    return list(Manifest(folder / "manifest.jsonl").read()[0].values())


def fail_first(monkeypatch) -> None:
    """Let the first video of a sampler fail after its first part."""
    write, failed = sampler.write_parts, []

    def write_parts(parts, *arguments, **options):
        if not failed:
            failed.append(next(iter(parts)))
            raise ValueError("not finite")
        write(parts, *arguments, **options)

    monkeypatch.setattr(sampler, "write_parts", write_parts)
