"""Autoencoders over processes: the same bits as with one."""

import os
import subprocess
import sys
from pathlib import Path

from flowcache.parallel.tiles import deal

CASES = Path(__file__).with_name("decoding.py")


def test_decoding_is_that_of_one_process():
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launch, str(CASES)], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    verdicts = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert verdicts
    assert [name for verdict, name in verdicts if verdict != "same"] == []


def test_tiles_are_dealt_evenly():
    assert deal([4, 1, 1, 1, 1], 2) == [0, 1, 1, 1, 1]
    assert deal([2, 2], 3) == [0, 1]
