"""Where the reference tensors lie, and how to skip, loudly, where they are absent."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
#: Small faulty inputs, as users have them.
FAULTS = ROOT / "tests" / "data" / "faults"


def reference_dir() -> Path:
    """FLOWCACHE_REFERENCE_DIR, else ``../shared/reference`` beside the project, else the few in ``tests/data``."""
    if named := os.environ.get("FLOWCACHE_REFERENCE_DIR"):
        if not Path(named).is_dir():
            raise NotADirectoryError(f"FLOWCACHE_REFERENCE_DIR names {named}, which is no folder.")
        return Path(named)
    beside = ROOT.parent / "shared" / "reference"
    return beside if beside.is_dir() else ROOT / "tests" / "data"


def present(path: Path) -> Path:
    """The path; skips the test where there is no such file or folder."""
    if not path.exists():
        pytest.skip(f"REFERENCE ABSENT: no {path}; set FLOWCACHE_REFERENCE_DIR to compare with the original")
    return path


@dataclass(frozen=True)
class Case:
    """One reference: its sidecar and its tensors."""

    folder: Path
    name: str

    @cached_property
    def info(self) -> dict[str, Any]:
        return json.loads(present(self.folder / f"{self.name}.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(present(self.folder / f"{self.name}.safetensors"))


def case_names(prefix: str, part: str = "skyreels_v2") -> list[str]:
    """Names of the cases that begin with ``prefix``; one that says so where there are none."""
    names = sorted(path.stem for path in (reference_dir() / part).glob(f"{prefix}*.json"))
    return names or [f"{prefix}absent"]
