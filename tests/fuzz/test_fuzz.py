"""A few hostile inputs; ``python -m tests.fuzz`` tries out more."""

from __future__ import annotations

import os
import subprocess
import sys

from reference import ROOT

COUNT = 150


def test_hostile_inputs_bring_no_fault_to_light():
    command = [sys.executable, "-m", "tests.fuzz", "--count", str(COUNT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
