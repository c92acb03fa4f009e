"""The command line from the outside, on a tiny checkpoint in the official layout with random weights."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import Program
from reference import FAULTS, ROOT

from flowcache.config import PACES
from flowcache.rates import exact_rate
from flowcache.trace import Trace
from flowcache.video import VideoWriter, probe_video, read_video
from magi1 import model_source, sampler
from magi1.command_line import unread_options
from magi1.config import FlowCacheOptions, MagiConfig, RuntimeSection
from magi1.model_source import load_pipeline, resolve_model

FOLDER = ROOT / "FlowCache4MAGI-1"
EMPTY = ["--cfg_t_range", "[]", "--prev_chunk_scales", "[]", "--text_scales", "[]"]
UNSORTED = ["--cfg_t_range", "[0.0, 0.3, 0.1, 0.5, 0.999]"]
COMPRESS = ["--compress_kv_cache", "true"]
#: A list of lists of the same lists: small to write, endless to show.
BOMB = f"[&a0 [1, 1], {', '.join(f'&a{i + 1} [*a{i}, *a{i}, *a{i}]' for i in range(60))}]"
PLAIN = ["--model", "official"]
QUICK = [*PLAIN, "--warmup_steps", 1, "--rel_l1_thresh", 0.2]
BASE = ["--distill", "false", "--cfg_number", 3]
FRAMES = [*COMPRESS, "--compress_strategy", "frame"]


@pytest.fixture
def front(monkeypatch, tmp_path):
    """The program, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Program(FOLDER / "generate_video.py", monkeypatch)


@pytest.mark.parametrize("method", ["vanilla", "teacache", "flowcache"])
def test_writes_video_trace_and_map(front, weights, tmp_path, capsys, method):
    flags = PLAIN if method == "vanilla" else QUICK
    code = front("--config_file", weights, "--prompt", "a red circle", "--method", method, *flags)
    assert code == 0, capsys.readouterr().err
    (video,) = (tmp_path / "outputs" / "magi1").glob("*.mp4")
    chosen = "" if method == "vanilla" else "_rel_l1_thresh0.2"
    assert re.fullmatch(rf"a_red_circle_t2v_{method}{chosen}_seed1234_steps8_[0-9a-f]{{8}}", video.stem)
    assert read_video(video)[0].shape == (32, 32, 32, 3)
    assert Trace.load(video.with_suffix(".trace.json")).method == method
    assert Image.open(video.with_suffix(".reuse.png")).size[0] > 300
    assert "reuse ratio" in capsys.readouterr().out.splitlines()[-1]


def test_starts_from_an_image_or_a_video(front, weights, tmp_path):
    Image.new("RGB", (40, 30), "red").save("first.png")
    with VideoWriter("in.mp4", 8) as writer:
        writer.write(np.full((21, 32, 32, 3), 90, np.uint8))
    common = ["--config_file", weights, "--prompt", "a", *QUICK]
    assert front(*common, "--mode", "i2v", "--image_path", "first.png", "--output_path", "i.mp4") == 0
    assert len(read_video("i.mp4")[0]) == 32, "the given frame among them"
    assert front(*common, "--mode", "v2v", "--prefix_video_path", "in.mp4", "--output_path", "v.mp4") == 0
    assert len(read_video("v.mp4")[0]) == 32


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
    ("seed must be between 0 and 2^63 - 1", ["--seed", 10**30]),
    ("seed must be between 0 and 2^63 - 1", ["--seed", -2]),
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
    monkeypatch.setattr(sampler, "load_pipeline", lambda *_: pytest.fail("weights were read"))
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


def test_keys_that_nobody_reads_are_a_warning(front, weights, caplog):
    args, rest = front.module.build_parser().parse_known_args(
        ["--config_file", str(weights), "--model", "official", "--reuse_strategy", "x"]
    )
    assert front.module.prepare(args, rest).request.prompt
    assert "reuse_strategy has no effect" in caplog.text


def test_a_range_of_clean_chunks_that_is_ignored_is_a_warning(weights, caplog):
    source = resolve_model(weights, {"clean_chunk_kvrange": 1}, "official")
    load_pipeline(source, "meta")
    assert "clean_chunk_kvrange 1" in caplog.text


def prepared(front, weights, *arguments):
    words = ["--config_file", weights, "--model", "official", *arguments]
    return front.module.prepare(*front.module.build_parser().parse_known_args([str(w) for w in words]))


def test_a_preset_says_which_steps_are_skipped_unless_a_threshold_is_given(front, weights):
    assert prepared(front, weights, "--preset", "quality").request.cache.pace == PACES["quality"]
    given = prepared(front, weights, "--preset", "paper-fast", "--rel_l1_thresh", "1e-2").request.cache
    assert (given.threshold, given.forecast, given.clean_pass) == (0.01, "hold_displacement", False)


def test_three_way_guidance_has_no_nearly_clean_chunk(front):
    words = ["--discard_nearly_clean_chunk", "true", "--text_scales", "[0]"]
    args, _ = front.module.build_parser().parse_known_args(words)
    base = MagiConfig(runtime_config=RuntimeSection(cfg_number=3))
    options = FlowCacheOptions(discard_nearly_clean_chunk=True)
    assert list(unread_options(args, options, base)) == ["discard_nearly_clean_chunk"]


def test_keys_of_a_file_that_the_method_does_not_read_are_left_alone(front, weights):
    file = FOLDER / "yaml_config" / "single_run" / "config.yaml"
    content = file.read_text() + "warmup_steps: 5\nrel_l1_thresh: 0.01\n"
    Path("mine.yaml").write_text(content.replace("no_weight", "gaussian"))
    for method in ("vanilla", "teacache", "flowcache"):
        job = prepared(front, weights, "--additional_config", "mine.yaml", "--method", method)
        assert job.request.cache.compression is None


def test_keys_that_are_read_are_taken(front, weights):
    keys = ["--score_weighting_method", "upper_convex_polynomial", "--power", 2, "--preset", "paper-fast"]
    kept = prepared(front, weights, "--method", "vanilla", *COMPRESS, *keys).request.cache.compression
    assert (kept.weighting, kept.power, kept.in_time) == ("upper_convex_polynomial", 2, False)


def test_a_files_threshold_is_passed_over_by_vanilla(front, weights, tmp_path):
    (tmp_path / "mine.yaml").write_text("rel_l1_thresh: 0.1")
    arguments = ["--additional_config", "mine.yaml", "--method"]
    assert prepared(front, weights, *arguments, "vanilla").request.cache.policy == "none"
    assert prepared(front, weights, *arguments, "flowcache").request.cache.threshold == 0.1
    with pytest.raises(ValueError, match="rel_l1_thresh has no effect: vanilla"):
        prepared(front, weights, *arguments, "vanilla", "--rel_l1_thresh", 0.1)


def test_previous_weight_is_that_of_the_environment(front, weights, monkeypatch):
    assert prepared(front, weights).request.guidance.weight == 0.7
    monkeypatch.setenv("prev_chunks_scale", "0.5")
    assert prepared(front, weights).request.guidance.weight == 0.5
    monkeypatch.setenv("prev_chunks_scale", "1e38")
    with pytest.raises(ValueError, match="prev_chunks_scale must be at most"):
        prepared(front, weights)
    monkeypatch.setenv("prev_chunks_scale", "much")
    with pytest.raises(ValueError, match="prev_chunks_scale must be a number"):
        prepared(front, weights)


def test_auto_takes_the_official_weights_only_where_they_fit(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(model_source, "SMALL", tmp_path)
    (tmp_path / "config.json").write_text(weights.read_text())
    assert "no CUDA device" in resolve_model(weights, device="cpu").reason
    assert "CUDA device: using the official" in resolve_model(weights, device="cuda").reason
    load = json.loads(weights.read_text())["runtime_config"]["load"]
    assert "load was given" in resolve_model(weights, {"load": load}, device="cpu").reason
    gone = {"load": str(tmp_path / "gone")}
    with pytest.raises(ValueError, match="has no folder"):
        resolve_model(weights, gone, device="cuda")


@pytest.mark.parametrize("model", ["auto", "small"])
def test_folders_beside_the_small_checkpoint_are_refused(weights, model):
    for name in ("vae_pretrained", "t5_pretrained", *(["load"] if model == "small" else [])):
        with pytest.raises(ValueError, match=f"^{name}: .*small checkpoint"):
            resolve_model(weights, {name: "mine"}, model, "cpu")


@pytest.mark.parametrize(("told", "stays"), [("cpu", "cpu"), ("cuda", "meta")])
def test_the_text_encoder_stays_where_it_was_told(weights, told, stays):
    # the meta device stands for the one that the rest runs on
    pipeline = load_pipeline(resolve_model(weights, {"t5_device": told}, "official"), "meta")
    assert pipeline.transformer.device.type == pipeline.vae.device.type == "meta"
    assert pipeline.text_encoder.device.type == stays


def test_a_video_gets_its_suffix(front, weights):
    assert prepared(front, weights, "--output_path", "new/a").output == Path("new/a.mp4")
    assert prepared(front, weights, "--output_path", "new/a.MP4").output == Path("new/a.MP4")


OUT_OF_MEMORY = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has a total capacity"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_memory_that_gives_out_is_one_sentence(front, weights, capsys, monkeypatch, kind):
    def load(*_):
        raise OUT_OF_MEMORY[kind]

    monkeypatch.setattr(sampler, "load_pipeline", load)
    assert front("--config_file", weights, "--model", "official", "--prompt", "a") == 1
    assert re.match("error: .*out of memory", capsys.readouterr().err.splitlines()[-1])


def test_few_frames_a_second(front, weights):
    assert front("--config_file", weights, "--prompt", "a", "--fps", 6, "--output_path", "a.mp4", *QUICK) == 0
    assert len(read_video("a.mp4")[0]) == 32


def test_a_target_is_searched_for_once_and_said(front, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "kept"))
    asked = ["--config_file", weights, "--model", "official", "--prompt", "a", "--output_path", "a.mp4"]
    asked += ["--num_frames", 16]
    assert front(*asked, "--target_speedup", 1.2) == 0
    (profile,) = (tmp_path / "kept" / "profiles").glob("magi-32x32-8steps-window4-*.json")
    made = profile.stat().st_mtime_ns
    *_, expected, _ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"1\.2x asked for, .* interval \d.*; expected are \S+x fewer .* dB .*; \S+x fewer came", expected
    )
    reuse = Trace.load("a.trace.json").settings["reuse"]
    assert (reuse["policy"], reuse["clean_pass"]) == ("fixed_interval", True)
    assert front(*asked, "--seed", 5, "--target_psnr", 1) == 0
    assert profile.stat().st_mtime_ns == made, "the profile serves other targets and seeds"
    monkeypatch.setattr(sampler, "load_pipeline", lambda *_: pytest.fail("weights were read"))
    assert front(*asked, "--target_speedup", 99) == 2
    assert "target_speedup 99 is out of reach: the nearest comes to" in capsys.readouterr().err


def save_tokens(path, rows=100, channels=16, **changes):
    tables = {"other_tokens": np.ones((rows, channels))}
    tables |= {name: np.ones((1, channels)) for name in ("caption_token", "logo_token")}
    np.savez(path, **(tables | changes))


def test_special_tokens_need_their_table(front, weights, capsys, monkeypatch):
    asked = ["--config_file", weights, "--model", "official", "--prompt", "a"]
    monkeypatch.setenv("PAD_HQ", "1")
    assert front(*asked) == 2
    assert "SPECIAL_TOKEN_PATH" in capsys.readouterr().err
    save_tokens("t.npz")
    monkeypatch.setenv("SPECIAL_TOKEN_PATH", "t.npz")
    assert prepared(front, weights).request.special_tokens.others.shape == (100, 16)
    monkeypatch.setenv("PAD_HQ", "maybe")
    assert front(*asked) == 2
    assert "PAD_HQ must be 1 or 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: save_tokens(path, rows=5), "other_tokens must have at least 17 rows"),
        (lambda path: save_tokens(path, channels=8), "the text encoder's 16 channels"),
        (lambda path: save_tokens(path, logo_token=np.ones(16)), "logo_token must have at least 1 rows"),
        (lambda path: save_tokens(path, logo_token=np.array(["x"])), "cannot be used"),
        (lambda path: np.save(path.open("wb"), np.ones((100, 16))), "no npz archive"),
        (lambda path: path.write_text("words"), "no npz archive"),
        (lambda path: path.write_bytes(b""), "cannot be used"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no zip"), "cannot be used"),
    ],
)
def test_wrong_tables_of_special_tokens_are_refused(
    front, weights, capsys, monkeypatch, tmp_path, save, message
):
    monkeypatch.setenv("PAD_DURATION", "1")
    save(tmp_path / "t.npz")
    asked = ["--model", "official", "--special_tokens", "t.npz"]
    assert front("--config_file", weights, "--prompt", "a", *asked) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_prefix_is_shown_at_the_rate_of_the_video(front, weights):
    with VideoWriter("in.mp4", 8) as writer:
        for level in range(0, 240, 10):  # three seconds
            writer.write(np.full((1, 32, 32, 3), level, np.uint8))
    arguments = ["--mode", "v2v", "--prefix_video_path", "in.mp4"]
    prefix = prepared(front, weights, *arguments, "--fps", 24).request.prefix
    assert prefix.shape[1] == 72
    levels = (prefix.mean(dim=(0, 2, 3)) + 1) * 127.5
    assert torch.allclose(levels, (torch.arange(72) // 3 * 10).float(), atol=3)
    assert prepared(front, weights, *arguments, "--fps", 4).request.prefix.shape[1] == 12


@pytest.mark.parametrize(
    ("name", "fps", "frames"),
    [("vfr.mp4", 24, 96), ("slow.mp4", 0.5, 4), ("rot90.mp4", "23.976", 48), ("audio.mp4", "30000/1001", 60)],
)
def test_a_prefix_of_any_rate_plays_as_fast_as_it_did(front, weights, name, fps, frames, caplog):
    job = prepared(front, weights, "--mode", "v2v", "--prefix_video_path", FAULTS / name, "--fps", fps)
    assert job.request.prefix.shape[1] == frames
    assert ("sound" in caplog.text) == (name == "audio.mp4")


@pytest.mark.parametrize("fps", ["23.976", "24000/1001", 29.97, 0.5])
def test_a_broken_rate_reaches_the_file(front, weights, fps):
    path = ["--output_path", "a.mp4"]
    assert front("--config_file", weights, "--prompt", "a", "--fps", fps, *path, *QUICK) == 0
    assert probe_video("a.mp4").fps == exact_rate(fps)
    assert Trace.load("a.trace.json").settings["video"]["fps"] == float(exact_rate(fps))


@pytest.mark.parametrize("fps", [0, -1, ".nan", ".inf", "1/0", "x", 10**10])
def test_rates_out_of_range_are_refused(front, weights, capsys, fps):
    assert front("--config_file", weights, "--prompt", "a", *PLAIN, f"--fps={fps}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "fps" in line


def test_damaged_time_stamps_are_refused(front, weights, capsys):
    flags = ["--mode", "v2v", "--prefix_video_path", FAULTS / "timestamps.avi"]
    assert front("--config_file", weights, "--prompt", "a", *PLAIN, *flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: prefix_video_path: ")


def test_of_a_long_prefix_only_the_last_seconds_are_kept(front, weights):
    with VideoWriter("in.mp4", 8) as writer:
        for second in range(7):
            writer.write(np.full((8, 32, 32, 3), 30 * second, np.uint8))
    prefix = prepared(front, weights, "--mode", "v2v", "--prefix_video_path", "in.mp4", "--fps", 8)
    levels = (prefix.request.prefix.mean(dim=(0, 2, 3)) + 1) * 127.5
    assert torch.allclose(levels, torch.arange(2, 7).repeat_interleave(8) * 30.0, atol=3)


@pytest.mark.parametrize("name", sorted(path.name for path in (FOLDER / "config").rglob("*.json")))
def test_shipped_configurations_are_valid(name):
    (path,) = (FOLDER / "config").rglob(name)
    config = MagiConfig.from_file(path)
    assert config.model_config.hidden_size in (3072, 6144)
