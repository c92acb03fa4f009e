"""Programs of the model folders, run in the tests' own process."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

#: What may be set outside, and would change what the programs do.
VARIABLES = ("PAD_HQ", "PAD_DURATION", "SPECIAL_TOKEN_PATH", "prev_chunks_scale")
VARIABLES += ("RANK", "WORLD_SIZE", "LOCAL_RANK", "DEVICES")


class Program:
    """A program; calling it with its arguments gives its exit code.

    Args:
        path: of the file.
        monkeypatch: undoes what this does to the process.
        first: arguments that stand before all others.
    """

    def __init__(self, path: Path, monkeypatch, first: tuple = ()) -> None:
        self._path, self._monkeypatch, self._first = path, monkeypatch, first
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        self.module = self._load()

    def __call__(self, *arguments) -> int | str | None:
        words = [self._path.name, *self._first, *arguments]
        self._monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        main: Callable[[], int] = self.module.main
        try:
            return main()
        except SystemExit as stop:
            return stop.code

    def _load(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location(self._path.stem, self._path)
        module = importlib.util.module_from_spec(spec)
        self._monkeypatch.setitem(sys.modules, self._path.stem, module)
        spec.loader.exec_module(module)
        return module
