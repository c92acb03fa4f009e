"""What good runs leave behind: profiles, sampled folders, and states of runs that were stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from flowcache.resume import ResumeFile

from .command_lines import usual_line
from .file_inputs import STOPPED, TARGETED
from .programs import Stopped
from .sandbox import Sandbox


def make_runs(sandbox: Sandbox) -> None:
    """Run the programs with good command lines and keep what they write among the good files."""
    for name in ("skyreels", "magi1"):
        profile = sandbox.good / f"{name}_profile.json"
        _run(sandbox, name, **TARGETED[name], profile=str(profile))
        _run(sandbox, f"{name}_samples", base_save_path=str(sandbox.good / f"{name}_sampled"))
        whole = _run(sandbox, name, **STOPPED[name])
        shutil.move(whole, sandbox.good / f"{name}_whole.mp4")
        with mock.patch.object(ResumeFile, "save", _save_and_stop(ResumeFile.save)):
            _run(sandbox, name, None, **STOPPED[name], resume=[])
        stopped = sandbox.good / f"{name}_stopped"
        shutil.copytree(sandbox.root / "made" / "outputs", stopped / "outputs")


def _save_and_stop(plain):
    def save(self: ResumeFile, *arguments) -> None:
        plain(self, *arguments)
        raise Stopped

    return save


def _run(sandbox: Sandbox, name: str, code: int | None = 0, **typed: str | Sequence[str]) -> Path | None:
    """Run to the end in an emptied folder ``made``; returns the video. None as code: it is stopped."""
    folder = sandbox.root / "made"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chdir(folder)
    line = usual_line(name, "made", depth="run", **typed)
    outcome, _ = line.outcome_in(sandbox)
    if outcome.code != code or outcome.broke:
        raise RuntimeError(f"{line.describe()}: {outcome.code} {outcome.errors} {outcome.broke}")
    return next(folder.glob("outputs/**/*.mp4"), None)
