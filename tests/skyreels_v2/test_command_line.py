"""The command line from the outside: what it writes and what it refuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference import ROOT

from flowcache.config import KVCompressionConfig
from flowcache.kv.original import OriginalCompression
from flowcache.trace import Trace
from flowcache.video import VideoWriter, read_video
from skyreels_v2 import sampler
from skyreels_v2.methods import METHODS

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
    assert re.fullmatch(r"a_red_circle_t2v_flowcache_fast_seed0_steps4_[0-9a-f]{8}", video.stem)
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


def test_seed_minus_one_is_drawn_and_named(front, checkpoint, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    flags = ["--model_id", checkpoint, *QUICK, "--seed", -1, "--outdir", "out", "--prompt", "a"]
    assert front(*flags) == 0
    (video,) = (tmp_path / "out" / "skyreels_v2").glob("*.mp4")
    seed = Trace.load(video.with_suffix(".trace.json")).settings["video"]["seed"]
    assert seed >= 0
    assert f"_seed{seed}_" in video.name
    assert f"seed: {seed}" in caplog.text
    assert front(*flags, "--resume") == 2
    assert "seed" in capsys.readouterr().err


def test_torchrun_of_a_single_video_is_refused(front, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(sampler, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert front("--model_id", checkpoint, *QUICK) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "WORLD_SIZE" in line and "sample_video.py" in line


def test_streams_a_long_video(front, checkpoint, tmp_path):
    flags = ["--streaming", "--use_compress", "--num_frames", 69, "--base_num_frames", 17, "--outdir", "out"]
    assert front("--model_id", checkpoint, *QUICK, *flags, "--prompt", "a") == 0
    (video,) = (tmp_path / "out" / "skyreels_v2").glob("*.mp4")
    assert len(read_video(video)[0]) == 69
    assert len(Trace.load(video.with_suffix(".trace.json")).windows) == 1


def test_sees_the_newest_blocks_alone(front, checkpoint):
    flags = ["--use_kvrange", "--kvrange", 1, "--kv_bits", 8, "--num_frames", 49, "--causal_block_size", 1]
    assert front("--model_id", checkpoint, *QUICK, *flags, "--prompt", "a") == 0


def prepared(front, *arguments):
    return front.module.prepare(front.module.build_parser().parse_args([str(word) for word in arguments]))


NAMES = {
    "t2v_flowcache_fast": [],
    "t2v_flowcache_fast_seed0_steps5": ["--inference_steps", 5],
    "i2v_flowcache_fast": ["--image", "first.png"],
    "i2v_flowcache": ["--image", "first.png", "--end_image", "first.png"],
    "v2v_flowcache_fast": ["--video_path", "in.mp4", "--overlap_history", 5],
    "t2v_flowcache_turbo": ["--preset", "turbo"],
    "t2v_flowcache_interval3": ["--interval", 3],
    "t2v_flowcache_teacache_thresh0.1": ["--teacache_thresh", 0.1],
    "t2v_flowcache_fast_budget2": ["--use_compress", "--budget_block", 2],
    "t2v_flowcache_fast_budget1_streaming": ["--use_compress", "--streaming", "--base_num_frames", 5],
    "t2v_flowcache_fast_kvrange0": ["--use_kvrange"],
    "t2v_flowcache_fast_kv8bits": ["--kv_bits", 8],
    "t2v_flowcache_fast_kvoffload": ["--kv_offload"],
    "t2v_flowcache_fast_seed7": ["--seed", 7],
    "t2v_causal": ["--method", "causal"],
    "t2v_vanilla": ["--method", "vanilla"],
    "t2v_flowcache": ["--negative_prompt", "a circle"],
    "t2v_flowcache_": ["--shift", 3],
    "t2v": ["--num_frames", 13],
}


def test_other_settings_have_other_names(front, checkpoint, tmp_path):
    Image.new("RGB", (32, 32), "red").save("first.png")
    with VideoWriter("in.mp4", 24) as writer:
        writer.write(np.full((5, 32, 32, 3), 200, dtype=np.uint8))
    names = set()
    for start, flags in NAMES.items():
        name = prepared(front, "--model_id", checkpoint, *QUICK, "--prompt", "a", *flags).output.name
        assert name.startswith(f"a_{start}")
        names.add(name)
    assert len(names) == len(NAMES)


def test_a_name_is_that_of_the_content_and_not_of_paths(front, checkpoint, tmp_path):
    def name(image, model=checkpoint):
        return prepared(front, "--model_id", model, *QUICK, "--image", image).output.name

    Image.new("RGB", (32, 32), "red").save("first.png")
    red = name("first.png")
    Image.new("RGB", (32, 32), "red").save("other.png")
    assert name(tmp_path / "other.png") == red
    assert name("first.png", shutil.copytree(checkpoint, "moved")) == red
    Image.new("RGB", (32, 32), "blue").save("first.png")
    assert name("first.png") != red
    weights = Path("moved") / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert name("other.png", "moved") != red


BAD = {
    "model_id": ["--model_id", "Skywork/Nothing"],
    "resolution": ["--resolution", "1080P"],
    "num_frames": ["--num_frames", 98],
    "overlap_history is needed": ["--num_frames", 177],
    "overlap_history must be smaller": ["--num_frames", 177, "--overlap_history", 97],
    "teacache_thresh must be at least 0, got -0.1": ["--teacache_thresh=-0.1"],
    "teacache_thresh must be .* got nan": ["--teacache_thresh", "nan"],
    "teacache_thresh must be .* got inf": ["--teacache_thresh", "inf"],
    "interval must be at least 1, got 0": ["--interval", 0],
    "tolerance must be .* got nan": ["--tolerance", "nan"],
    "interval and tolerance exclude each other": ["--interval", 3, "--tolerance", 0.01],
    "interval .* teacache takes teacache_thresh": ["--interval", 3, "--method", "teacache"],
    "interval .* vanilla computes every": ["--interval", 3, "--method", "vanilla"],
    "teacache_thresh and plan exclude each other": ["--teacache_thresh", 0.1, "--plan", 0.5],
    "plan .* vanilla computes every": ["--plan", 0.3, "--method", "vanilla"],
    "plan .* teacache takes teacache_thresh": ["--plan", 0.3, "--method", "teacache"],
    "teacache_thresh .* causal computes": ["--teacache_thresh", 0.1, "--method", "causal"],
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
    "unrecognized arguments: --teacash": ["--teacash"],
    "teacache and method causal exclude": ["--teacache", "--method", "causal"],
    "target_psnr needs method flowcache, got teacache": ["--teacache", "--target_psnr", 30],
    "--use_usp: .*sample_video.py": ["--use_usp"],
    "--prompt_enhancer: .*longer prompt": ["--prompt_enhancer"],
    "--prompt_enhance: .*longer prompt": ["--prompt_enhance"],
    "method": ["--method", "foo"],
    "video_path needs overlap_history": ["--video_path", "missing.mp4"],
    "end_image needs image": ["--end_image", "missing.png"],
    "causal_block_size": ["--causal_block_size", 0],
    "causal_block_size must be at most the window": ["--num_frames", 9, "--causal_block_size", 5],
    "budget_block must be at least 1": ["--use_compress", "--budget_block", 0],
    "use_compress .* vanilla": ["--use_compress", "--method", "vanilla"],
    "use_kvrange .* teacache": ["--use_kvrange", "--method", "teacache"],
    "use_compress and use_kvrange": ["--use_compress", "--use_kvrange"],
    "budget_block .* use_compress": ["--budget_block", 2],
    "overlap_history .* windows": ["--num_frames", 9, "--overlap_history", 5],
    "addnoise_condition .* image": ["--num_frames", 9, "--addnoise_condition", 20],
    "kvrange .* use_kvrange": ["--kvrange", 0],
    "use_ret_steps .* method teacache": ["--no-use_ret_steps"],
    "use_ret_steps .* paper-fast": ["--use_ret_steps", "--preset", "paper-fast", "--interval", 3],
    "use_ret_steps .* causal": ["--use_ret_steps", "--method", "causal"],
    "preset .* vanilla": ["--preset", "fast", "--method", "vanilla"],
    "preset .* causal": ["--preset", "fast", "--method", "causal"],
    "preset .* paper-fast": ["--preset", "quality", "--method", "teacache"],
    "preset .* interval": ["--preset", "quality", "--interval", 3],
    "preset .* tolerance": ["--preset", "quality", "--tolerance", 0.1, "--use_compress"],
    "preset .* teacache_thresh": ["--preset", "quality", "--teacache_thresh", 0.1],
    "preset .* causal computes": ["--preset", "quality", "--method", "causal", "--use_compress"],
    "forecast .* vanilla": ["--forecast", "hold_velocity", "--method", "vanilla"],
    "forecast .* causal": ["--forecast", "hold_velocity", "--method", "causal"],
    "negative_prompt: .* guidance_scale": ["--negative_prompt", "a", "--guidance_scale", 1],
    "guidance_scale must be at least 1": ["--guidance_scale", 0.5],
    "kv_bits: invalid choice: 3": ["--kv_bits", 3],
    "kv_offload .* teacache": ["--kv_offload", "--method", "teacache"],
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
    "fps must be ": ["--fps", 2**31],
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


CAUSAL = ["--method", "causal", "--use_compress"]
PAPER = KVCompressionConfig(
    query_granularity="chunk", max_queries=None, original=OriginalCompression(within_step=True)
)
#: Flags that are read, and what they come to.
READ = {
    "paper-slow": (["--method", "teacache", "--preset", "paper-slow"], {"threshold": 0.1}),
    "as the original's scripts": (["--use_ret_steps", "--teacache_thresh", 0.1], {"warmup_steps": 5}),
    "no retention": (["--preset", "paper-fast", "--no-use_ret_steps"], {"warmup_steps": 1}),
    "retention": (
        ["--preset", "paper-fast", "--use_ret_steps", "--teacache_thresh", 1],
        {"warmup_steps": 5},
    ),
    "compression": (
        ["--method", "causal", "--use_compress", "--preset", "paper-fast"],
        {"compression": PAPER},
    ),
    "forecast": (["--method", "teacache", "--forecast", "hold_velocity"], {"forecast": "hold_velocity"}),
    "kvrange": (["--use_kvrange", "--kvrange", 2], {"clean_range": 2, "compression": None}),
}


@pytest.mark.parametrize("name", READ)
def test_flags_that_a_method_reads_are_taken(front, checkpoint, name):
    flags, fields = READ[name]
    cache = prepared(front, "--model_id", checkpoint, *QUICK, "--prompt", "a", *flags).sampler.cache
    assert {field: getattr(cache, field) for field in fields} == fields


SCRIPT = ["--defaults", "--method", "flowcache", "--preset", "fast", "--use_compress", "--budget_block", 4]


@pytest.mark.parametrize(
    "typed",
    [
        *([["--method", method] for method in METHODS]),
        ["--use_kvrange", "--kvrange", 2],
        ["--interval", 3],
        ["--teacache_thresh", 0.1],
        ["--target_speedup", 2],
    ],
)
def test_flags_of_a_script_that_nothing_reads_are_dropped(front, checkpoint, typed):
    job = prepared(front, "--model_id", checkpoint, *QUICK, "--prompt", "a", *typed, *SCRIPT)
    cache = job.sampler.cache
    assert (cache.compression is None) == (typed[0] == "--use_kvrange" or cache.whole_window)
    assert "--method" not in typed or job.sampler.method == typed[1]


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
    (video,) = (tmp_path / "out" / "skyreels_v2").glob("a_t2v_flowcache_1.2x_seed0_steps6_*.mp4")
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
