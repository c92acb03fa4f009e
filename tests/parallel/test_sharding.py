"""Weights that are spread over processes: the same videos, and half of the bytes in each of two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowcache.loading import LoadOptions
from flowcache.parallel.sharding import check_sharding

PROCESSES = 2


def test_spread_weights_make_the_same_videos():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
    program = [str(Path(__file__).with_name("sharding.py"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *program], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 3
    for name, case in found.items():
        assert case["same"], name
        assert 0.5 <= case["held"] / case["whole"] < 0.51, name


@pytest.mark.parametrize("other", [{"offload": True}, {"compile": True}, {"quantize": "int8"}])
def test_what_spread_weights_exclude_is_named(other):
    with pytest.raises(ValueError, match=f"shard_weights: expected no {min(other)} "):
        LoadOptions(shard_weights=True, **other)


def test_a_single_process_cannot_spread_weights():
    with pytest.raises(ValueError, match="shard_weights: expected several processes"):
        check_sharding(1)
