"""What the program refuses before any weight is read, and failures, each in one sentence."""

from __future__ import annotations

import os
import re

import pytest
import torch
from reference import FAULTS

from magi1 import adapter, model_source

EMPTY = ["--cfg_t_range", "[]", "--prev_chunk_scales", "[]", "--text_scales", "[]"]
UNSORTED = ["--cfg_t_range", "[0.0, 0.3, 0.1, 0.5, 0.999]"]
COMPRESS = ["--compress_kv_cache", "true"]
#: A list of lists of the same lists: small to write, endless to show.
BOMB = f"[&a0 [1, 1], {', '.join(f'&a{i + 1} [*a{i}, *a{i}, *a{i}]' for i in range(60))}]"
PLAIN = ["--model", "official"]
BASE = ["--distill", "false", "--cfg_number", 3]
FRAMES = [*COMPRESS, "--compress_strategy", "frame"]


BAD = [
    ("there is no num_step; did you mean num_steps", ["--num_step", 8]),
    ("there is no rel_l1_tresh; did you mean rel_l1_thresh", ["--rel_l1_tresh", 0.1]),
    ("there is no warmup_step; did you mean warmup_steps", ["--warmup_step", 1]),
    ("there is no propmt; did you mean prompt", ["--propmt", "a"]),
    ("num_steps must be a multiple of 4", ["--num_steps", 10]),
    ("num_steps must be a multiple of 4", ["--num_steps=10"]),
    ("the command line: num_steps must be a whole number", ["--num_steps", "many"]),
    ("rel_l1_thresh must be", ["--rel_l1_thresh", ".nan"]),
    ("the command line: rel_l1_thresh must be a number", ["--rel_l1_thresh", "low"]),
    ("rel_l1_thresh and tolerance exclude each other", ["--rel_l1_thresh", 0.1, "--tolerance", 0.1]),
    ("interval and plan exclude each other", ["--interval", 3, "--plan", 0.5]),
    ("there is no num-steps; did you mean num_steps?", ["--num-steps", 8]),
    ("interval must be at least 1, got 0", ["--interval", 0]),
    ("interval has no effect: teacache takes rel_l1_thresh", ["--interval", 2, "--method", "teacache"]),
    ("interval has no effect: vanilla", ["--interval", 2, "--method", "vanilla"]),
    ("tolerance has no effect: vanilla", ["--tolerance", 0.1, "--method", "vanilla"]),
    ("plan has no effect: vanilla", ["--plan", 0.3, "--method", "vanilla"]),
    ("plan has no effect: teacache takes rel_l1_thresh", ["--plan", 0.3, "--method", "teacache"]),
    ("rel_l1_thresh has no effect: vanilla", ["--rel_l1_thresh=0.1", "--method", "vanilla"]),
    ("warmup_steps has no effect: vanilla", ["--warmup_steps", 2, "--method", "vanilla"]),
    ("forecast has no effect: vanilla", ["--forecast", "hold_velocity", "--method", "vanilla"]),
    ("preset has no effect: vanilla", ["--preset", "fast", "--method", "vanilla"]),
    ("preset has no effect: teacache reads", ["--preset", "fast", "--method", "teacache"]),
    ("preset has no effect: interval", ["--preset", "quality", "--interval", 3]),
    ("preset has no effect: interval", [*COMPRESS, "--preset", "quality", "--interval", 3]),
    ("preset has no effect: vanilla", [*COMPRESS, "--preset", "quality", "--method", "vanilla"]),
    ("preset has no effect: rel_l1_thresh", ["--preset", "quality", "--rel_l1_thresh", 0.1]),
    ("total_cache_chunk_nums has no effect", ["--total_cache_chunk_nums", 6]),
    ("compress_strategy has no effect", ["--compress_strategy", "frame"]),
    ("mix_lambda has no effect", ["--mix_lambda", 0.5]),
    ("query_granularity has no effect", ["--query_granularity=chunk"]),
    ("score_weighting_method has no effect", ["--score_weighting_method", "gaussian"]),
    ("score_weighting_method has no effect", [*FRAMES, "--score_weighting_method", "gaussian"]),
    ("power has no effect", ["--power", 2]),
    ("power has no effect", [*COMPRESS, "--power", 2]),
    ("power has no effect", [*COMPRESS, "--score_weighting_method", "gaussian", "--power", 2]),
    ("text_scales has no effect: it needs cfg_number 3", ["--text_scales", "[0, 0, 0, 0, 0]"]),
    ("shortcut_mode has no effect: it needs num_steps 12", ["--shortcut_mode", "16,16,8"]),
    ("plan needs plans beside the model for steps", ["--plan", 0.3]),
    ("video_size_h must be a positive multiple of 16, got 40", ["--video_size_h", 40]),
    ("video_size_w must be a positive multiple of 16, got 72", ["--video_size_w", 72]),
    ("video_size_h must be a positive multiple of 16, got 8", ["--video_size_h", 8]),
    ("video_size_h must be a positive multiple of 16, got 0", ["--video_size_h", 0]),
    ("noise2clean_kvrange must be at least 1", ["--noise2clean_kvrange", "[0]"]),
    ("--noise2clean_kvrange cannot be read as YAML", ["--noise2clean_kvrange", "[5,4,"]),
    ("clean_chunk_kvrange must be at least", ["--clean_chunk_kvrange", -5]),
    ("clean_chunk_kvrange must be at least 1, or -1", ["--clean_chunk_kvrange", 0]),
    ("device must be cpu or cuda, got 'foo'", ["--device", "foo"]),
    ("device must be cpu or cuda, got 'mps'", ["--device", "mps"]),
    ("output_path must name a file", ["--output_path", "."]),
    ("output_path must name a file", ["--output_path", ""]),
    ("output_path", ["--output_path", "/proc/nowhere/a.mp4"]),
    ("output_path must end in .mp4", ["--output_path", "a.avi"]),
    ("num_frames must be at most 1000000", ["--num_frames", 10**15]),
    ("chunk_width must be at most 1000", ["--chunk_width", 10**6]),
    ("video_size_w must be at most 16384", ["--video_size_w", 160000]),
    ("fps must be ", ["--fps", 2**31]),
    ("num_steps must be at most", ["--num_steps", 10**9]),
    ("window_size must be at most", ["--window_size", 10**9]),
    ("video_size_h must be at most", ["--video_size_h", 2**62]),
    (
        "num_frames x height x width",
        ["--num_frames", 10**6, "--video_size_h", 2**14, "--video_size_w", 2**14],
    ),
    ("num_layers must be at most", ["--num_layers", 10**9]),
    ("text_scales must be at most", ["--text_scales", "[1e38]"]),
    ("noise2clean_kvrange must be at most", ["--noise2clean_kvrange", "[1000000000]"]),
    ("rel_l1_thresh must be at most", ["--rel_l1_thresh", 1e300]),
    ("interval must be at most", ["--interval", 10**9]),
    ("warmup_steps must be at most", ["--warmup_steps", 10**9]),
    ("total_cache_chunk_nums must be at most", [*COMPRESS, "--total_cache_chunk_nums", 10**9]),
    ("power must be at most", ["--power", 1e300]),
    ("--num_steps cannot be read as YAML", ["--num_steps", '!!int ""']),
    ("--distill cannot be read as YAML", ["--distill", "!!bool x"]),
    ("--seed cannot be read as YAML", ["--seed", "!!timestamp x"]),
    ("--load cannot be read as YAML", ["--load", "!!python/object/apply:os.getcwd []"]),
    ("--text_scales cannot be read as YAML", ["--text_scales", "[" * 3000]),
    ("text_scales must be a number", ["--text_scales", BOMB]),
    ("num_steps must be a whole number", ["--num_steps", BOMB]),
    ("bomb.yaml: there is no a", ["--additional_config", "bomb.yaml"]),
    ("deep.yaml cannot be read as YAML", ["--additional_config", "deep.yaml"]),
    ("deep.json cannot be read as JSON", ["--config_file", "deep.json"]),
    ("latin.yaml cannot be read as YAML", ["--additional_config", "latin.yaml"]),
    ("/dev/zero cannot be read as YAML", ["--additional_config", "/dev/zero"]),
    ("argument --config_file", ["--config_file", "~nosuch_user/a.json"]),
    ("argument --output_path", ["--output_path", "x" * 300 + ".mp4"]),
    ("output_path", ["--output_path", "x" * 240 + ".mp4"]),
    ("load: expected a path", ["--load", "~nosuch_user/magi"]),
    ("vae_pretrained: expected a path", ["--vae_pretrained", '"a\\0b"']),
    ("expected UTF-8", ["--output_path", os.fsdecode(b"\xff.mp4")]),
    ("load must name a folder of weights, here or on the Hub", ["--load", ""]),
    ("clean_t must be a number", ["--clean_t", 10**400]),
    ("null_caption_embedding must have shape (60, 32)", ["--caption_channels", 32]),
    ("scale_factor must be", ["--scale_factor", 0]),
    ("clean_t must be above 0 and at most 1", ["--clean_t", ".nan"]),
    ("x_rescale_factor must be", ["--x_rescale_factor", 0]),
    ("params_dtype must be torch.bfloat16", ["--params_dtype", "torch.foo"]),
    ("kv_bits must be 8 or 4, got 2", ["--kv_bits", 2]),
    ("kv_offload must be true or false", ["--kv_offload", 1]),
    ("total_cache_chunk_nums must be at least 1", [*COMPRESS, "--total_cache_chunk_nums", 0]),
    ("score_weighting_method must be one of no_weight", ["--score_weighting_method", "nonsense"]),
    ("hidden_size must be at least 1", ["--hidden_size", -1]),
    ("seed must be at most", ["--seed", 10**30]),
    ("seed must be at least 0", ["--seed", -2]),
    ("temporal_downsample_factor must be 4", ["--temporal_downsample_factor", 0]),
    ("t_patch_size must be 1", ["--t_patch_size", 2]),
    ("cond_gating_ratio must be 1", ["--cond_gating_ratio", 0.5]),
    ("t5_device must be cpu or cuda", ["--t5_device", "tpu"]),
    ("cfg_t_range must hold times that rise from 0", [*BASE, *EMPTY]),
    ("cfg_t_range must hold times that rise from 0", [*BASE, *UNSORTED]),
    ("total_cache_chunk_nums must be above window_size (4)", [*COMPRESS, "--total_cache_chunk_nums", 4]),
    ("nothing.json cannot be read", ["--config_file", "nothing.json"]),
    ("list.yaml must hold named values, got list", ["--additional_config", "list.yaml"]),
    ("text.yaml must hold named values, got str", ["--additional_config", "text.yaml"]),
    ("mode i2v needs image_path", ["--mode", "i2v"]),
    ("mode t2v does not take image_path", ["--image_path", "a.png"]),
    ("image_path: a.png does not exist", ["--mode", "i2v", "--image_path", "a.png"]),
    ("num_steps has no value", ["--num_steps"]),
    ("num_steps has no value", ["--num_steps", "--fps", 3]),
    ("pairs of --key value, or --key=value, got '--'", ["--", "x"]),
    ("pairs of --key value, or --key=value, got 'x'", ["x"]),
    ("argument --method", ["--method", "magic"]),
    ("argument --preset", ["--preset", "quick"]),
    ("prompt must not be empty", ["--prompt", " "]),
    ("has no folder inference_weight.fp8.distill", ["--fp8_quant", "true"]),
    ("target_psnr and rel_l1_thresh exclude each other", ["--target_psnr", 30, "--rel_l1_thresh", 0.1]),
    ("target_psnr and interval exclude each other", ["--target_psnr", 30, "--interval", 2]),
    ("target_speedup and preset exclude each other", ["--target_speedup", 3, "--preset", "balanced"]),
    ("target_speedup needs method flowcache", ["--target_speedup", 3, "--method", "teacache"]),
    ("there is no folder", ["--model", "small"]),
]


@pytest.mark.parametrize(("message", "arguments"), BAD)
def test_bad_input_is_refused_in_one_sentence(
    front, weights, capsys, monkeypatch, tmp_path, message, arguments
):
    monkeypatch.setattr(adapter, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr(model_source, "SMALL", tmp_path / "nowhere")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "text.yaml").write_text("rel_l1_thresh 0.1")
    (tmp_path / "latin.yaml").write_bytes(b"log: \xe9")
    (tmp_path / "bomb.yaml").write_text(f"a: {BOMB}")
    for name in ("deep.json", "deep.yaml"):
        (tmp_path / name).write_text("[" * 100_000)
    code = front("--config_file", weights, "--model", "official", "--prompt", "a", *arguments)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert message in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_needs_a_cuda_device(front, weights, capsys):
    assert front("--config_file", weights, "--prompt", "a", "--device", "cuda") == 2
    assert "PyTorch finds none" in capsys.readouterr().err


@pytest.mark.parametrize("fps", [0, -1, ".nan", ".inf", "1/0", "x", 10**10])
def test_rates_out_of_range_are_refused(front, weights, capsys, fps):
    assert front("--config_file", weights, "--prompt", "a", *PLAIN, f"--fps={fps}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "fps" in line


OUT_OF_MEMORY = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has a total capacity"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_memory_that_gives_out_is_one_sentence(front, weights, capsys, monkeypatch, kind):
    def load(*_):
        raise OUT_OF_MEMORY[kind]

    monkeypatch.setattr(adapter, "load_pipeline", load)
    assert front("--config_file", weights, "--model", "official", "--prompt", "a") == 1
    assert re.match("error: .*out of memory", capsys.readouterr().err.splitlines()[-1])


def test_damaged_time_stamps_are_refused(front, weights, capsys):
    flags = ["--mode", "v2v", "--prefix_video_path", FAULTS / "timestamps.avi"]
    assert front("--config_file", weights, "--prompt", "a", *PLAIN, *flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: prefix_video_path: ")
