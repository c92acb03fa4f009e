"""The command line from the outside: what it writes and what it refuses."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from reference import ROOT

from flowcache.trace import Trace
from flowcache.video import VideoWriter, read_video

FRONT = ROOT / "FlowCache4SkyReels-V2" / "generate_video_df.py"
QUICK = ["--height", 32, "--width", 32, "--num_frames", 9]
QUICK += ["--inference_steps", 4, "--ar_step", 1, "--causal_block_size", 2]


def run(*arguments, cwd):
    command = [sys.executable, str(FRONT), *map(str, arguments)]
    paths = f"{ROOT}:{ROOT / 'FlowCache4SkyReels-V2'}"
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_writes_video_trace_and_map(checkpoint, tmp_path):
    done = run("--model_id", checkpoint, *QUICK, "--prompt", "a red circle", "--outdir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stem = tmp_path / "out" / "skyreels_v2" / "a_red_circle_flowcache_fast_seed0_steps4"
    frames, fps = read_video(f"{stem}.mp4")
    assert frames.shape == (9, 32, 32, 3)
    assert fps == 24
    assert Trace.load(f"{stem}.trace.json").method == "flowcache"
    assert Image.open(f"{stem}.reuse.png").size[0] > 300
    assert "reuse ratio" in done.stdout.splitlines()[-1]


def test_continues_a_video(checkpoint, tmp_path):
    with VideoWriter(tmp_path / "in.mp4", 24) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (7, 40, 48, 3), dtype=np.uint8))
    flags = ["--video_path", "in.mp4", "--overlap_history", 5, "--outdir", "out", "--prompt", "a"]
    done = run("--model_id", checkpoint, *QUICK, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (video,) = (tmp_path / "out" / "skyreels_v2").glob("*.mp4")
    assert len(read_video(video)[0]) == 7 + 9 - 5


BAD = {
    "model_id": ["--model_id", "Skywork/Nothing"],
    "resolution": ["--resolution", "1080P"],
    "num_frames": ["--num_frames", 98],
    "overlap_history is needed": ["--num_frames", 177],
    "overlap_history must be smaller": ["--num_frames", 177, "--overlap_history", 97],
    "threshold must be a finite": ["--teacache_thresh", "-0.1"],
    "threshold must be finite|threshold must be a finite": ["--teacache_thresh", "nan"],
    "missing.png": ["--image", "missing.png"],
    "missing.mp4": ["--video_path", "missing.mp4", "--overlap_history", 17],
    "video_path needs overlap_history": ["--video_path", "missing.mp4"],
    "end_image needs image": ["--end_image", "missing.png"],
    "causal_block_size": ["--causal_block_size", 0],
    "causal_block_size must be at most": ["--num_frames", 9, "--causal_block_size", 5],
    "not available yet": ["--use_compress"],
    "outdir": ["--outdir", "/proc/nowhere"],
    "height must be": ["--height", 33],
    "prompt must not be empty": ["--prompt", " "],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(message, checkpoint, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("generate_video_df", FRONT)
    front = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "generate_video_df", front)
    spec.loader.exec_module(front)
    monkeypatch.setattr(front, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    monkeypatch.chdir(tmp_path)
    arguments = ["--model_id", checkpoint, "--height", 32, "--width", 32, *BAD[message]]
    monkeypatch.setattr(sys, "argv", ["generate_video_df.py", *map(str, arguments)])
    try:
        code = front.main()
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last)
    assert not list(tmp_path.rglob("*.mp4"))
