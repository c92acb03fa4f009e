"""The program for one video: what it writes and what it refuses."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import assert_refused, cases
from reference import FAULTS, ROOT

from flowcache.trace import Trace
from flowcache.video import VideoWriter, read_video
from skyreels_v2 import adapter

FRONT = ROOT / "FlowCache4SkyReels-V2" / "generate_video_df.py"
QUICK = ["--height", 32, "--width", 32, "--num_frames", 9]
QUICK += ["--inference_steps", 4, "--ar_step", 1, "--causal_block_size", 2]


@pytest.fixture
def prepare(front, checkpoint):
    return lambda *flags: front.prepare("--model_id", checkpoint, *QUICK, "--prompt", "a", *flags)


@pytest.fixture
def made(front, checkpoint, tmp_path):
    """Make a video; its path."""

    def make(*flags):
        assert front("--model_id", checkpoint, *QUICK, "--prompt", "a", *flags, "--outdir", "out") == 0
        return max(tmp_path.glob("out/skyreels_v2/*.mp4"), key=lambda path: path.stat().st_mtime_ns)

    return make


@pytest.mark.parametrize("start", [[FRONT], ["-m", "flowcache", "generate", "--model", "skyreels_v2"]])
def test_writes_video_trace_and_map(checkpoint, tmp_path, start):
    flags = ["--model_id", checkpoint, *QUICK, "--prompt", "a red circle", "--outdir", "out"]
    environment = {"PYTHONPATH": f"{ROOT}:{FRONT.parent}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, *map(str, start), *map(str, flags)]
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (video,) = (tmp_path / "out" / "skyreels_v2").glob("*.mp4")
    assert re.fullmatch(r"a_red_circle_t2v_flowcache_fast_seed0_steps4_[0-9a-f]{8}", video.stem)
    frames, fps = read_video(video)
    assert (frames.shape, fps) == ((9, 32, 32, 3), 24)
    assert Trace.load(video.with_suffix(".trace.json")).method == "flowcache"
    assert Image.open(video.with_suffix(".reuse.png")).size[0] > 300
    assert "reuse ratio" in done.stdout.splitlines()[-1]


def test_seed_minus_one_is_drawn_and_named(made, front, checkpoint, caplog, capsys):
    caplog.set_level("INFO")
    video = made("--seed", -1)
    seed = Trace.load(video.with_suffix(".trace.json")).settings["video"]["seed"]
    assert seed >= 0 and f"_seed{seed}_" in video.name and f"seed: {seed}" in caplog.text
    capsys.readouterr()
    assert_refused(front("--model_id", checkpoint, *QUICK, "--seed", -1, "--resume"), "seed", capsys)


def test_torchrun_of_a_single_video_is_refused(front, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(front(*QUICK), "WORLD_SIZE sample_video.py", capsys)


def test_streams_a_long_video_and_keeps_the_newest_blocks(made):
    video = made("--streaming", "--use_compress", "--num_frames", 69, "--base_num_frames", 17)
    assert len(read_video(video)[0]) == 69
    assert len(Trace.load(video.with_suffix(".trace.json")).windows) == 1
    made("--use_kvrange", "--kvrange", 1, "--kv_bits", 8, "--num_frames", 49, "--causal_block_size", 1)


NAMES = """
t2v_flowcache_fast:
i2v_flowcache: --image first.png --end_image first.png
v2v_flowcache_fast: --video_path in.mp4 --overlap_history 5
t2v_flowcache_teacache_thresh0.1: --teacache_thresh 0.1
t2v_flowcache_fast_budget2: --use_compress --budget_block 2
t2v_flowcache_fast_budget1_streaming: --use_compress --streaming --base_num_frames 5
t2v_flowcache_fast_kvrange0: --use_kvrange
t2v_flowcache: --negative_prompt "a circle"
t2v: --num_frames 13
"""


def test_other_settings_have_other_names(prepare):
    Image.new("RGB", (32, 32), "red").save("first.png")
    with VideoWriter("in.mp4", 24) as writer:
        writer.write(np.full((5, 32, 32, 3), 200, dtype=np.uint8))
    names = set()
    for start, flags in cases(NAMES):
        name = prepare(*flags).output.name
        assert name.startswith(f"a_{start}")
        names.add(name)
    assert len(names) == len(cases(NAMES))


def test_a_name_is_that_of_the_content_and_not_of_paths(prepare, checkpoint, tmp_path):
    def name(image, model=checkpoint):
        return prepare("--model_id", model, "--image", image).output.name

    Image.new("RGB", (32, 32), "red").save("first.png")
    red = name("first.png")
    Image.new("RGB", (32, 32), "red").save("other.png")
    assert name(tmp_path / "other.png") == name("first.png", shutil.copytree(checkpoint, "moved")) == red
    Image.new("RGB", (32, 32), "blue").save("first.png")
    assert name("first.png") != red
    weights = Path("moved") / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert name("other.png", "moved") != red


BAD = f"""
model_id: --model_id Skywork/Nothing
model_id: --model_id {"x" * 300}
resolution: --resolution 1080P
num_frames: --num_frames 98
overlap_history: --num_frames 177
overlap_history smaller: --num_frames 177 --overlap_history 97
overlap_history windows: --num_frames 9 --overlap_history 5
addnoise_condition image: --num_frames 9 --addnoise_condition 20
teacache_thresh least: --teacache_thresh=-0.1
teacache_thresh nan: --teacache_thresh nan
interval: --interval 0
interval teacache_thresh: --interval 3 --method teacache
interval vanilla: --interval 3 --method vanilla
teacache_thresh causal: --teacache_thresh 0.1 --method causal
policy chunkwise nonsense threshold: --policy chunkwise --policy_option nonsense=1
policy interval: --policy chunkwise --interval 3
image: missing.png: --image missing.png
image: read: --image {ROOT / "pyproject.toml"}
video_path overlap_history: --video_path {FAULTS / "rot90.mp4"}
video_path read: --video_path {ROOT / "pyproject.toml"} --overlap_history 17
end_image image: --end_image missing.png
device: --device foo
device cuda: --device cuda
shift most: --shift 1e9
shift least: --shift 1e-300
--teacash --teacache?: --teacash
teacache causal: --teacache --method causal
--use_usp sample_video.py: --use_usp
--prompt_enhance longer: --prompt_enhance
causal_block_size window: --num_frames 9 --causal_block_size 5
budget_block least: --use_compress --budget_block 0
budget_block use_compress: --budget_block 2
use_compress vanilla: --use_compress --method vanilla
use_kvrange teacache: --use_kvrange --method teacache
use_compress use_kvrange: --use_compress --use_kvrange
kvrange use_kvrange: --kvrange 0
kv_offload teacache: --kv_offload --method teacache
use_ret_steps teacache: --no-use_ret_steps
use_ret_steps paper-fast: --use_ret_steps --interval 3
use_ret_steps causal: --use_ret_steps --method causal
preset vanilla: --preset fast --method vanilla
preset paper-fast: --preset quality --method teacache
preset teacache_thresh: --preset quality --teacache_thresh 0.1
preset causal computes: --preset quality --method causal --use_compress
forecast causal: --forecast hold_velocity --method causal
negative_prompt guidance_scale: --negative_prompt a --guidance_scale 1
streaming ar_step: --streaming --use_compress
streaming use_compress: --streaming --ar_step 2
streaming cache method: --streaming --ar_step 2 --method teacache
streaming end_image: --streaming --ar_step 2 --use_compress --image first.png --end_image first.png
outdir: --outdir /proc/nowhere
outdir long: --expname {"x" * 300}
profile long: --target_psnr 30 --profile {"x" * 250}
profile target_psnr: --profile a.json
fps: --fps 24/
height: --height 33
num_frames windows: --num_frames {10**6 - 3} --base_num_frames 5 --overlap_history 1 --causal_block_size 1
num_frames x height: --num_frames {10**6 - 3} --overlap_history 17 --height {2**14} --width {2**14}
prompt empty: --prompt " "
target_speedup target_psnr: --target_speedup 3 --target_psnr 30
target_psnr teacache_thresh: --target_psnr 30 --teacache_thresh 0.1
target_psnr flowcache teacache: --teacache --target_psnr 30
"""


@pytest.mark.parametrize(
    ("named", "arguments"), cases(BAD.replace(": missing", " missing").replace("image: r", "image r"))
)
def test_bad_input_is_refused_in_one_line(front, named, arguments, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    Image.new("RGB", (32, 32)).save("first.png")
    assert_refused(front("--model_id", checkpoint, "--height", 32, "--width", 32, *arguments), named, capsys)
    assert not list(tmp_path.rglob("*.mp4"))


READ = {
    "--method teacache --preset paper-slow": {"threshold": 0.1},
    "--use_ret_steps --teacache_thresh 0.1": {"warmup_steps": 5, "policy": "chunkwise"},
    "--preset paper-fast --use_ret_steps --teacache_thresh 1": {"warmup_steps": 5, "threshold": 1},
    "--method teacache --forecast hold_velocity": {"forecast": "hold_velocity"},
    "--use_kvrange --kvrange 2": {"clean_range": 2, "compression": None},
}


@pytest.mark.parametrize("flags", READ)
def test_options_that_a_method_reads_are_taken(prepare, flags):
    config = prepare(*flags.split()).sampler.config.as_dict()
    assert {name: config[name] for name in READ[flags]} == READ[flags]


def test_the_papers_preset_compresses_as_the_original(prepare):
    flags = ["--use_compress", "--preset", "paper-fast"]
    compression = prepare("--method", "causal", *flags).sampler.config.compression
    assert (compression.query_granularity, compression.max_queries) == ("chunk", None)
    assert compression.original.within_step and compression.original.best_first
    scorer = prepare("--use_compress", "--scorer", "recency").sampler.config.compression.scorer
    assert type(scorer).__name__ == "Recency"


def test_a_target_is_searched_for_once(made, front, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "kept"))
    steps = ["--inference_steps", 6]
    video = made(*steps, "--target_speedup", 1.2, "--resume")
    (profile,) = (tmp_path / "kept" / "profiles").glob("tiny-32x32-6steps-shift8-*.json")
    written = profile.stat().st_mtime_ns
    expected, achieved = re.findall(r"([\d.]+x)(?: fewer FLOPs than| *$)", capsys.readouterr().out.splitlines()[-2])
    assert expected == achieved, "a video as short as the pilot comes to what was expected"
    assert video.name.startswith("a_t2v_flowcache_1.2x_seed0_steps6_")
    settings = Trace.load(video.with_suffix(".trace.json")).settings
    assert (settings["reuse"]["policy"], settings["tuning"]["target"]) == ("interval", "1.2x")
    made(*steps, "--target_psnr", 1, "--prompt", "a circle")
    assert profile.stat().st_mtime_ns == written, "the profile serves other targets and prompts"
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    flags = ["--model_id", checkpoint, *QUICK, *steps]
    capsys.readouterr()
    assert_refused(front(*flags, "--target_speedup", 99), "target_speedup", capsys)
    given = ["--profile", profile, "--shift", 3, "--target_psnr", 1]
    assert_refused(front(*flags, *given), "video.shift", capsys)
