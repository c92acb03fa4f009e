"""The model of several GPUs against what processes count."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowcache.benchmark.scaling import Video
from flowcache.cli import find_model
from flowcache.parallel.efficiency import predict

PROCESSES = 2
_SKYREELS = "--weights small --num_frames 33 --inference_steps 6 --ar_step 2 --causal_block_size 2"
_MAGI = "--weights small --num_frames 72 --num_steps 8"
#: Model, options, and parts of guidance.
CASES = {
    "tokens": ("skyreels_v2", f"{_SKYREELS} --method flowcache", 1),
    "whole window": ("skyreels_v2", f"{_SKYREELS} --method vanilla", 1),
    "guidance": ("skyreels_v2", f"{_SKYREELS} --method flowcache", 2),
    "MAGI-1": ("magi1", f"{_MAGI} --method flowcache", 1),
}


@pytest.fixture(scope="module")
def counted():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
    program = [str(Path(__file__).with_name("traffic.py")), json.dumps(CASES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *program], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_predicted_bytes_are_those_of_a_run(counted, name):
    """Only the text, and a few numbers for each clean chunk, are not in the model."""
    model, options, cfg_size = CASES[name]
    video = Video(find_model(model), options, "cpu")
    denoising, decoding = predict(video.work, PROCESSES, cfg_size=cfg_size).sent, video.plan_decoding(PROCESSES)[1]
    nbytes, collectives = counted[name]
    assert 0 <= nbytes - denoising.nbytes - decoding.nbytes < 0.01 * nbytes
    assert 0 <= collectives - denoising.collectives - decoding.collectives < 15
