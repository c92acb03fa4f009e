"""Programs of the model folders, run in the tests' own process."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reference import ROOT

from flowcache import cli

#: Variables that change what the programs do.
VARIABLES = "PAD_HQ PAD_DURATION SPECIAL_TOKEN_PATH prev_chunks_scale RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR DEVICES"
VARIABLES += " OFFLOAD_T5_CACHE OFFLOAD_VAE_CACHE"
MODELS = {"FlowCache4MAGI-1": "magi1", "FlowCache4SkyReels-V2": "skyreels_v2", "FlowCache4SelfForcing": "self_forcing"}
FOLDERS = {model: ROOT / folder for folder, model in MODELS.items()}


class Program:
    """The program in a file of a model folder; a call with arguments, after ``first``, gives its exit code."""

    def __init__(self, path: Path, monkeypatch, first: tuple = ()) -> None:
        self._path, self._monkeypatch, self.first = path, monkeypatch, first
        for name in VARIABLES.split():
            monkeypatch.delenv(name, raising=False)
        self.model, self._command = MODELS[path.parent.name], path.stem.partition("_")[0]

    def __reduce__(self) -> tuple:
        return _in_another_process, (self._path, self.first)

    def _words(self, arguments: tuple) -> list[str]:
        return [str(word) for word in (*self.first, *arguments)]

    def __call__(self, *arguments) -> int | str | None:
        words = self._words(arguments)
        self._monkeypatch.setattr(sys, "argv", [self._path.name, *words])
        try:
            return cli.main([self._command, "--model", self.model, *words])
        except SystemExit as stop:
            return stop.code

    def read(self, *arguments) -> Any:
        """Options that arguments come to."""
        return cli.read_options(cli.find_model(self.model), self._command, self._words(arguments))

    def prepare(self, *arguments) -> Any:
        """The checked job of some arguments."""
        prepare = {"generate": cli.prepare_video, "sample": cli.prepare_samples}[self._command]
        return prepare(cli.find_model(self.model), self._words(arguments))


def _in_another_process(path: Path, first: tuple) -> Program:
    return Program(path, pytest.MonkeyPatch(), first)


def script_words(script: Path, *typed, cwd: Path) -> list[str]:
    """The words that a shell script gives to Python, without the program in front of them."""
    python = cwd / "stub" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    environment = {**os.environ, "VIRTUAL_ENV": str(cwd / "stub"), "FLOWCACHE_NO_INSTALL": "1"}
    command = ["bash", str(script), *map(str, typed)]
    return subprocess.check_output(command, cwd=cwd, env=environment, text=True).splitlines()[1:]


def cases(text: str) -> list[tuple[str, list[str]]]:
    """Words of the error and arguments from lines such as ``num_steps: --num_steps 10``."""
    lines = [line.partition(":") for line in text.strip().splitlines()]
    return [(named.strip(), shlex.split(arguments)) for named, _, arguments in lines]


def assert_refused(code: int | str | None, named: str, capsys) -> None:
    """Bad input is one line on standard error that holds all words of ``named``."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert all(word in line for word in named.split()), line
