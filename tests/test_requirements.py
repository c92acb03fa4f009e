"""The requirements files install the project from the folder that they are in."""

from __future__ import annotations

import subprocess
import sys

import pytest
from reference import ROOT


@pytest.mark.parametrize("folder", ["FlowCache4MAGI-1", "FlowCache4SkyReels-V2"])
def test_requirements_install_the_project_from_their_own_folder(folder):
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index"]
    command = [*pip, "--no-build-isolation", "-r", "requirements.txt"]
    done = subprocess.run(command, cwd=ROOT / folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "flowcache" in done.stdout.splitlines()[-1]
