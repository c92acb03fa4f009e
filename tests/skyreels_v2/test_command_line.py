"""The command line from the outside: what it writes and what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from programs import Program
from reference import ROOT

from flowcache.trace import Trace
from flowcache.video import VideoWriter, read_video
from skyreels_v2 import sampler

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
    (video,) = (tmp_path / "out" / "skyreels_v2").glob("*.mp4")
    assert re.fullmatch(r"a_red_circle_flowcache_fast_seed0_steps4_[0-9a-f]{6}", video.stem)
    stem = video.with_suffix("")
    frames, fps = read_video(video)
    assert frames.shape == (9, 32, 32, 3)
    assert fps == 24
    assert Trace.load(f"{stem}.trace.json").method == "flowcache"
    assert Image.open(f"{stem}.reuse.png").size[0] > 300
    assert "reuse ratio" in done.stdout.splitlines()[-1]


def test_continues_a_video(checkpoint, tmp_path):
    with VideoWriter(tmp_path / "in.mp4", 12) as writer:
        writer.write(np.full((7, 32, 32, 3), 200, dtype=np.uint8))
    flags = ["--video_path", "in.mp4", "--overlap_history", 5, "--outdir", "out", "--prompt", "a"]
    done = run("--model_id", checkpoint, *QUICK, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (video,) = (tmp_path / "out" / "skyreels_v2").glob("*.mp4")
    frames, fps = read_video(video)
    assert len(frames) == 7 + 9 - 5
    assert fps == 12, "it plays as fast as before"
    assert np.abs(frames[:7].astype(int) - 200).max() <= 3, "the video itself comes first, unchanged"
    assert np.abs(frames[7:].astype(int) - 200).mean() > 3


@pytest.fixture
def front(monkeypatch, tmp_path):
    """The program in this process, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Program(FRONT, monkeypatch)


def test_streams_a_long_video(front, checkpoint, tmp_path):
    flags = ["--streaming", "--use_compress", "--num_frames", 69, "--base_num_frames", 17, "--outdir", "out"]
    assert front("--model_id", checkpoint, *QUICK, *flags, "--prompt", "a") == 0
    (video,) = (tmp_path / "out" / "skyreels_v2").glob("*.mp4")
    assert len(read_video(video)[0]) == 69
    assert len(Trace.load(video.with_suffix(".trace.json")).windows) == 1


BAD = {
    "model_id": ["--model_id", "Skywork/Nothing"],
    "resolution": ["--resolution", "1080P"],
    "num_frames": ["--num_frames", 98],
    "overlap_history is needed": ["--num_frames", 177],
    "overlap_history must be smaller": ["--num_frames", 177, "--overlap_history", 97],
    "teacache_thresh must be at least 0, got -0.1": ["--teacache_thresh=-0.1"],
    "teacache_thresh must be .* got nan": ["--teacache_thresh", "nan"],
    "teacache_thresh must be .* got inf": ["--teacache_thresh", "inf", "--method", "causal"],
    "interval must be at least 1, got 0": ["--interval", 0],
    "tolerance must be .* got nan": ["--tolerance", "nan"],
    "interval and tolerance exclude each other": ["--interval", 3, "--tolerance", 0.01],
    "interval is for flowcache; teacache takes teacache_thresh": ["--interval", 3, "--method", "teacache"],
    "interval is for flowcache; vanilla computes every": ["--interval", 3, "--method", "vanilla"],
    "teacache_thresh and plan exclude each other": ["--teacache_thresh", 0.1, "--plan", 0.5],
    "plan is for flowcache; vanilla computes every": ["--plan", 0.3, "--method", "vanilla"],
    "plan is for flowcache; teacache takes teacache_thresh": ["--plan", 0.3, "--method", "teacache"],
    "teacache_thresh is for flowcache; causal computes": ["--teacache_thresh", 0.1, "--method", "causal"],
    "plan must be a share of the steps": ["--plan", 2],
    "plan needs plans beside the model for steps 30, stride 0, shift 8, guidance": ["--plan", 0.3],
    "image: missing.png": ["--image", "missing.png"],
    "image: .*/pyproject.toml cannot be read as an image": ["--image", ROOT / "pyproject.toml"],
    "image: .*x{300}": ["--image", "x" * 300],
    "video_path: missing.mp4": ["--video_path", "missing.mp4", "--overlap_history", 17],
    "video_path: .* cannot be read as a video": [
        *("--video_path", ROOT / "pyproject.toml", "--overlap_history", 17),
    ],
    "model_id must be auto": ["--model_id", "x" * 300],
    "device must be": ["--device", "foo"],
    "device cuda asks": ["--device", "cuda"],
    "shift must be at most": ["--shift", "1e9"],
    "unrecognized arguments: --teacache": ["--teacache"],
    "method": ["--method", "foo"],
    "video_path needs overlap_history": ["--video_path", "missing.mp4"],
    "end_image needs image": ["--end_image", "missing.png"],
    "causal_block_size": ["--causal_block_size", 0],
    "causal_block_size must be at most the window": ["--num_frames", 9, "--causal_block_size", 5],
    "budget_block must be at least 1": ["--use_compress", "--budget_block", 0],
    "use_compress and use_kvrange need a cache": ["--use_compress", "--method", "vanilla"],
    "kv_bits: invalid choice: 3": ["--kv_bits", 3],
    "kv_bits and kv_offload need a cache, which teacache lacks": ["--kv_offload", "--method", "teacache"],
    "streaming needs ar_step of at least 1": ["--streaming", "--use_compress"],
    "streaming needs use_compress or use_kvrange": ["--streaming", "--ar_step", 2],
    "streaming needs a KV cache: use method": ["--streaming", "--ar_step", 2, "--method", "teacache"],
    "streaming has no window": [
        *("--streaming", "--ar_step", 2, "--use_compress"),
        *("--image", "first.png", "--end_image", "first.png"),
    ],
    "outdir": ["--outdir", "/proc/nowhere"],
    "outdir .* too long": ["--expname", "x" * 300],
    "argument --outdir: .*nosuch_user": ["--outdir", "~nosuch_user/out"],
    "argument --profile: .*x{300}": ["--target_psnr", 30, "--profile", "x" * 300],
    "profile .*x{250} .* too long": ["--target_psnr", 30, "--profile", "x" * 250],
    "expected UTF-8": ["--prompt", os.fsdecode(b"\xff")],
    "num_frames must be at most": ["--num_frames", 10**9 + 1],
    "base_num_frames must be at most": ["--base_num_frames", 10**9 + 1],
    "fps must be at most": ["--fps", 2**31],
    "height must be at most": ["--height", 2**62],
    "num_frames .* windows": [
        *("--num_frames", 10**6 - 3, "--base_num_frames", 5, "--overlap_history", 1),
        *("--causal_block_size", 1),
    ],
    "num_frames x height x width": [
        *("--num_frames", 10**6 - 3, "--overlap_history", 17, "--height", 2**14, "--width", 2**14),
    ],
    "inference_steps must be at most": ["--inference_steps", 10**9],
    "ar_step must be at most": ["--ar_step", 10**9],
    "shift must be at least": ["--shift", 1e-300],
    "guidance_scale must be at most": ["--guidance_scale", 1e38],
    "budget_block must be at most": ["--use_compress", "--budget_block", 10**9],
    "kvrange must be at most": ["--use_kvrange", "--kvrange", 10**9],
    "overlap_history must be .* got 4000000001": ["--overlap_history", 4 * 10**9 + 1],
    "causal_block_size must be at most": ["--causal_block_size", 10**9],
    "teacache_thresh must be at most": ["--teacache_thresh", 1e300],
    "interval must be at most": ["--interval", 10**9],
    "tolerance must be at most": ["--tolerance", 1e300],
    "target_speedup must be at most": ["--target_speedup", 1e300],
    "height must be a positive multiple of 16, got 33": ["--height", 33],
    "height must be a positive multiple of 16, got 0": ["--height", 0],
    "prompt must not be empty": ["--prompt", " "],
    "target_speedup and target_psnr exclude each other": ["--target_speedup", 3, "--target_psnr", 30],
    "target_speedup and preset exclude": ["--target_speedup", 3, "--preset", "fast"],
    "target_psnr and teacache_thresh exclude": ["--target_psnr", 30, "--teacache_thresh", 0.1],
    "target_psnr needs method flowcache": ["--target_psnr", 30, "--method", "causal"],
    "profile /proc/nowhere cannot be written": ["--target_psnr", 30, "--profile", "/proc/nowhere/a.json"],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(front, message, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampler, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    Image.new("RGB", (32, 32)).save("first.png")
    assert front("--model_id", checkpoint, "--height", 32, "--width", 32, *BAD[message]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)
    assert not list(tmp_path.rglob("*.mp4"))


def test_a_target_is_searched_for_once_and_said(front, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "kept"))
    flags = ["--model_id", checkpoint, *QUICK, "--inference_steps", 6, "--outdir", "out"]
    assert front(*flags, "--target_speedup", 1.2, "--prompt", "a", "--resume") == 0
    (profile,) = (tmp_path / "kept" / "profiles").glob("tiny-32x32-6steps-shift8-*.json")
    made = profile.stat().st_mtime_ns
    *_, expected, _ = capsys.readouterr().out.splitlines()
    came = re.fullmatch(
        r"1\.2x asked for, .* interval \d.*; expected are (\S+)x fewer .* dB .*; (\S+)x fewer came", expected
    )
    assert came, expected
    assert came[1] == came[2], "a video as short as the pilot comes to what was expected"
    (video,) = (tmp_path / "out" / "skyreels_v2").glob("a_flowcache_1.2x_seed0_steps6_*.mp4")
    settings = Trace.load(video.with_suffix(".trace.json")).settings
    assert settings["reuse"]["policy"] == "fixed_interval"
    assert settings["tuning"]["target"] == "1.2x"
    assert front(*flags, "--target_psnr", 1, "--prompt", "a circle") == 0
    assert profile.stat().st_mtime_ns == made, "the profile serves other targets and prompts"
    monkeypatch.setattr(sampler, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    assert front(*flags, "--target_speedup", 99) == 2
    assert "target_speedup 99 is out of reach: the nearest comes to" in capsys.readouterr().err
    assert front(*flags, "--profile", profile, "--shift", 3, "--target_psnr", 1) == 2
    assert "video.shift was 8.0 and is 3.0 now" in capsys.readouterr().err
