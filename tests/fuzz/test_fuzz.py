"""A few hostile inputs; ``python -m tests.fuzz`` tries more."""

import subprocess
import sys

from reference import ROOT


def test_hostile_inputs_show_no_fault():
    command = [sys.executable, "-m", "tests.fuzz", "--count", "80"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
