"""The program for one video, on a tiny checkpoint in the official layout with random weights."""

import json
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from programs import assert_refused, cases
from reference import FAULTS, ROOT

from flowcache.trace import Trace
from flowcache.video import VideoWriter, read_video
from magi1 import adapter, load_pipeline, model_source, resolve_model
from magi1.config import MagiConfig

FOLDER = ROOT / "FlowCache4MAGI-1"
COMPRESS = ["--compress_kv_cache", "true"]
QUICK = ["--model", "official", "--warmup_steps", 1, "--rel_l1_thresh", 0.2]


@pytest.fixture
def clip():
    """A video of seven seconds, each of another brightness."""
    with VideoWriter("in.mp4", 8) as writer:
        for second in range(7):
            writer.write(np.full((8, 32, 32, 3), 30 * second, np.uint8))
    return ["--mode", "v2v", "--prefix_video_path", "in.mp4"]


@pytest.mark.parametrize("method", ["vanilla", "teacache", "flowcache"])
def test_writes_video_trace_and_map(front, weights, tmp_path, capsys, method):
    flags = QUICK[:2] if method == "vanilla" else QUICK
    flags = ["--config_file", weights, "--prompt", "a red circle", "--method", method, *flags]
    assert front(*flags) == 0, capsys.readouterr().err
    (video,) = (tmp_path / "outputs" / "magi1").glob("*.mp4")
    chosen = "" if method == "vanilla" else "_rel_l1_thresh0.2"
    assert re.fullmatch(rf"a_red_circle_t2v_{method}{chosen}_seed1234_steps8_[0-9a-f]{{8}}", video.stem)
    assert read_video(video)[0].shape == (32, 32, 32, 3)
    assert Trace.load(video.with_suffix(".trace.json")).method == method
    assert Image.open(video.with_suffix(".reuse.png")).size[0] > 300
    assert "reuse ratio" in capsys.readouterr().out.splitlines()[-1]


def test_starts_from_an_image_or_a_video(front, weights, clip):
    Image.new("RGB", (40, 30), "red").save("first.png")
    common = ["--config_file", weights, "--prompt", "a", *QUICK]
    for flags in (["--mode", "i2v", "--image_path", "first.png"], clip):
        assert front(*common, *flags, "--output_path", "a.mp4") == 0
        assert len(read_video("a.mp4")[0]) == 32, "an image is among them, a video is not"


def test_a_preset_selects_the_steps_unless_an_option_does(prepared):
    assert prepared("--preset", "quality").sampler.config.policy.scale == 0.3
    given = prepared("--preset", "paper-fast", "--rel_l1_thresh", "1e-2").sampler.config
    assert (given.policy.threshold, given.forecast, given.clean_pass) == (0.01, "hold_displacement", False)
    chunkwise = prepared("--policy", "chunkwise", "--policy_option", "final_steps=3").sampler.config
    assert chunkwise.policy.final_steps == 3
    keys = ["--score_weighting_method", "upper_convex_polynomial", "--power", 2, "--preset", "paper-fast"]
    original = prepared("--method", "vanilla", *COMPRESS, *keys).sampler.config.compression.original
    assert (original.weighting, original.power, original.best_first) == ("upper_convex_polynomial", 2, True)
    sink = ["--scorer", "sink_window", "--scorer_option", "sinks=1"]
    with pytest.raises(ValueError, match="scorer"):
        prepared(*COMPRESS, *sink)


def test_keys_of_a_file_that_the_method_does_not_read_are_left_alone(prepared):
    content = (FOLDER / "yaml_config" / "single_run" / "config.yaml").read_text()
    Path("mine.yaml").write_text(content.replace("no_weight", "gaussian") + "warmup_steps: 5\nrel_l1_thresh: 0.1\n")
    configs = {
        m: prepared("--additional_config", "mine.yaml", "--method", m).sampler.config
        for m in ("vanilla", "teacache", "flowcache")
    }
    assert [config.compression for config in configs.values()] == [None] * 3
    assert configs["flowcache"].policy.threshold == 0.1
    assert configs["vanilla"].as_dict()["policy"] == "none"


def test_previous_weight_is_that_of_the_environment(prepared, monkeypatch):
    for text, weight in (("", 0.7), ("0.5", 0.5)):
        monkeypatch.setenv("prev_chunks_scale", text)
        assert prepared().sampler.model.extras["previous_weight"] == weight
    for text in ("1e38", "much"):
        monkeypatch.setenv("prev_chunks_scale", text)
        with pytest.raises(ValueError, match="prev_chunks_scale"):
            prepared()


def test_auto_takes_the_official_weights_only_where_they_fit(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(model_source, "SMALL", tmp_path)
    (tmp_path / "config.json").write_text(weights.read_text())
    load = json.loads(weights.read_text())["runtime_config"]["load"]
    assert "no CUDA device" in resolve_model(weights, device="cpu").reason
    assert "CUDA device: using the official" in resolve_model(weights, device="cuda").reason
    assert "load was given" in resolve_model(weights, {"load": load}, device="cpu").reason
    for model, name in (("auto", "vae_pretrained"), ("small", "t5_pretrained"), ("small", "load")):
        with pytest.raises(ValueError, match=f"^{name}: .*small checkpoint"):
            resolve_model(weights, {name: "mine"}, model, "cpu")


@pytest.mark.parametrize(("device", "expected"), [("cpu", "cpu"), ("cuda", "meta")])
def test_the_text_encoder_has_a_device_of_its_own(weights, device, expected, caplog):
    # the meta device stands for the one that the rest runs on
    keys = {"t5_device": device, "clean_chunk_kvrange": 1}
    pipeline = load_pipeline(resolve_model(weights, keys, "official"), "meta")
    assert pipeline.transformer.device.type == pipeline.vae.device.type == "meta"
    assert pipeline.text_encoder.device.type == expected
    assert "clean_chunk_kvrange 1" in caplog.text, "ignored without ranges of noisy chunks"


def test_a_target_is_searched_for(front, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "kept"))
    asked = ["--config_file", weights, "--model", "official", "--prompt", "a", "--output_path", "a.mp4"]
    assert front(*asked, "--num_frames", 16, "--target_speedup", 1.2) == 0
    assert list((tmp_path / "kept" / "profiles").glob("magi-32x32-8steps-window4-*.json"))
    reuse = Trace.load("a.trace.json").settings["reuse"]
    assert (reuse["policy"], reuse["clean_pass"]) == ("interval", True)


@pytest.mark.parametrize("name", sorted(path.name for path in (FOLDER / "config").rglob("*.json")))
def test_shipped_configurations_are_valid(name):
    (path,) = (FOLDER / "config").rglob(name)
    assert MagiConfig.from_file(path).model_config.hidden_size in (3072, 6144)


def levels(job):
    return (job.start.prefix.mean(dim=(0, 2, 3)) + 1) * 127.5


def test_a_prefix_is_the_end_of_the_video_at_the_rate_of_the_new_one(prepared, clip):
    expected = torch.arange(2, 7) * 30.0
    assert torch.allclose(levels(prepared(*clip, "--fps", 8)), expected.repeat_interleave(8), atol=3)
    assert torch.allclose(levels(prepared(*clip, "--fps", 24)), expected.repeat_interleave(24), atol=3)


#: A list of lists of the same lists: small to write, endless to show.
BOMB = f"[&a0 [1, 1], {', '.join(f'&a{i + 1} [*a{i}, *a{i}, *a{i}]' for i in range(60))}]"
BAD = f"""
num_step num_steps?: --num_step 8
rel_l1_tresh rel_l1_thresh?: --rel_l1_tresh 0.1
num_steps multiple: --num_steps=10
num_steps whole: --num_steps many
rel_l1_thresh least: --rel_l1_thresh -1
rel_l1_thresh nan: --rel_l1_thresh .nan
rel_l1_thresh interval: --rel_l1_thresh 0.1 --interval 3
interval effect rel_l1_thresh: --interval 2 --method teacache
rel_l1_thresh effect vanilla: --rel_l1_thresh=0.1 --method vanilla
preset effect interval: --compress_kv_cache true --preset quality --interval 3
total_cache_chunk_nums effect compress_kv_cache: --total_cache_chunk_nums 6
score_weighting_method effect: --compress --compress_strategy frame --score_weighting_method gaussian
power effect: --compress_kv_cache true --power 2
text_scales effect cfg_number: --text_scales "[0, 0, 0, 0, 0]"
shortcut_mode effect num_steps: --shortcut_mode 16,16,8
video_size_h 16: --video_size_h 40
video_size_w 16384: --video_size_w 160000
noise2clean_kvrange YAML: --noise2clean_kvrange [5,4,
noise2clean_kvrange least: --noise2clean_kvrange [0]
clean_chunk_kvrange: --clean_chunk_kvrange 0
device: --device mps
output_path folder: --output_path .
output_path .mp4: --output_path a.avi
output_path written: --output_path /proc/nowhere/a.mp4
output_path: --output_path {"x" * 300}.mp4
num_frames most: --num_frames {10**15}
num_frames height width: --num_frames {10**6} --video_size_h {2**14} --video_size_w {2**14}
fps: --fps=-1
fps: --fps 1/0
num_steps most: --num_steps {10**9}
text_scales number: --text_scales "{BOMB}"
num_steps whole: --num_steps "{BOMB}"
bomb.yaml: --additional_config bomb.yaml
deep.json JSON: --config_file deep.json
latin.yaml YAML: --additional_config latin.yaml
/dev/zero YAML: --additional_config /dev/zero
config_file: --config_file ~nosuch_user/a.json
load path: --load ~nosuch_user/magi
load folder: --load ""
null_caption_embedding: --caption_channels 32
clean_t: --clean_t .nan
params_dtype: --params_dtype torch.foo
kv_bits: --kv_bits 2
score_weighting_method: --score_weighting_method nonsense
hidden_size: --hidden_size -1
seed: --seed -2
t_patch_size: --t_patch_size 2
cfg_t_range rise: --distill false --cfg_number 3 --cfg_t_range "[0.0, 0.3, 0.1, 0.5, 0.999]"
total_cache_chunk_nums window_size: --compress_kv_cache true --total_cache_chunk_nums 4
nothing.json read: --config_file nothing.json
i2v image_path: --mode i2v
t2v image_path: --mode t2v --image_path red.png
image_path exist: --mode i2v --image_path a.png
prefix_video_path: --mode v2v --prefix_video_path {FAULTS / "timestamps.avi"}
num_steps argument: --num_steps --fps 3
x.yaml read: x.yaml
method: --method magic
prompt empty: --prompt " "
inference_weight.fp8.distill: --fp8_quant true
target_psnr rel_l1_thresh: --target_psnr 30 --rel_l1_thresh 0.1
target_speedup flowcache: --target_speedup 3 --method teacache
folder: --model small
"""


@pytest.mark.parametrize(("named", "arguments"), cases(BAD))
def test_bad_input_is_refused_in_one_line(front, weights, capsys, monkeypatch, tmp_path, named, arguments):
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr(model_source, "SMALL", tmp_path / "nowhere")
    Image.new("RGB", (32, 32), "red").save("red.png")
    Path("bomb.yaml").write_text(f"a: {BOMB}")
    Path("deep.json").write_text("[" * 100_000)
    first = ["--config_file", weights, "--model", "official", "--prompt", "a"]
    arguments = [*arguments[:1], *first] if named == "x.yaml read" else [*first, *arguments]
    assert_refused(front(*arguments), named, capsys)


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has a total capacity")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate")


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()], ids=["CUDA", "CPU", "Python"])
def test_exhausted_memory_is_one_sentence(front, weights, capsys, monkeypatch, error):
    monkeypatch.setattr(adapter, "load_pipeline", Mock(side_effect=error))
    assert front("--config_file", weights, "--model", "official", "--prompt", "a") == 1
    assert re.match("error: .*out of memory", capsys.readouterr().err.splitlines()[-1])
