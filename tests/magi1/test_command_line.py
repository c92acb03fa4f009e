"""The command line from the outside, on a tiny checkpoint in the official layout with random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference import ROOT

from flowcache.config import PACES
from flowcache.trace import Trace
from flowcache.video import VideoWriter, read_video
from magi1 import model_source, sampler
from magi1.command_line import unread_options
from magi1.config import FlowCacheOptions, MagiConfig, RuntimeSection
from magi1.model_source import load_pipeline, resolve_model

FOLDER = ROOT / "FlowCache4MAGI-1"
COMPRESS = ["--compress_kv_cache", "true"]
PLAIN = ["--model", "official"]
QUICK = [*PLAIN, "--warmup_steps", 1, "--rel_l1_thresh", 0.2]


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


def test_a_preset_says_which_steps_are_skipped_unless_a_threshold_is_given(prepared):
    assert prepared("--preset", "quality").request.cache.pace == PACES["quality"]
    given = prepared("--preset", "paper-fast", "--rel_l1_thresh", "1e-2").request.cache
    assert (given.threshold, given.forecast, given.clean_pass) == (0.01, "hold_displacement", False)


def test_three_way_guidance_has_no_nearly_clean_chunk(front):
    words = ["--discard_nearly_clean_chunk", "true", "--text_scales", "[0]"]
    args, _ = front.module.build_parser().parse_known_args(words)
    base = MagiConfig(runtime_config=RuntimeSection(cfg_number=3))
    options = FlowCacheOptions(discard_nearly_clean_chunk=True)
    assert list(unread_options(args, options, base)) == ["discard_nearly_clean_chunk"]


def test_keys_of_a_file_that_the_method_does_not_read_are_left_alone(prepared):
    file = FOLDER / "yaml_config" / "single_run" / "config.yaml"
    content = file.read_text() + "warmup_steps: 5\nrel_l1_thresh: 0.01\n"
    Path("mine.yaml").write_text(content.replace("no_weight", "gaussian"))
    for method in ("vanilla", "teacache", "flowcache"):
        job = prepared("--additional_config", "mine.yaml", "--method", method)
        assert job.request.cache.compression is None


def test_keys_that_are_read_are_taken(prepared):
    keys = ["--score_weighting_method", "upper_convex_polynomial", "--power", 2, "--preset", "paper-fast"]
    kept = prepared("--method", "vanilla", *COMPRESS, *keys).request.cache.compression
    original = kept.original
    assert (original.weighting, original.power, original.best_first) == ("upper_convex_polynomial", 2, True)


def test_a_files_threshold_is_passed_over_by_vanilla(prepared, tmp_path):
    (tmp_path / "mine.yaml").write_text("rel_l1_thresh: 0.1")
    arguments = ["--additional_config", "mine.yaml", "--method"]
    assert prepared(*arguments, "vanilla").request.cache.policy == "none"
    assert prepared(*arguments, "flowcache").request.cache.threshold == 0.1
    with pytest.raises(ValueError, match="rel_l1_thresh has no effect: vanilla"):
        prepared(*arguments, "vanilla", "--rel_l1_thresh", 0.1)


def test_previous_weight_is_that_of_the_environment(prepared, monkeypatch):
    assert prepared().request.guidance.weight == 0.7
    monkeypatch.setenv("prev_chunks_scale", "0.5")
    assert prepared().request.guidance.weight == 0.5
    monkeypatch.setenv("prev_chunks_scale", "1e38")
    with pytest.raises(ValueError, match="prev_chunks_scale must be at most"):
        prepared()
    monkeypatch.setenv("prev_chunks_scale", "much")
    with pytest.raises(ValueError, match="prev_chunks_scale must be a number"):
        prepared()


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


def test_a_video_gets_its_suffix(prepared):
    assert prepared("--output_path", "new/a").output == Path("new/a.mp4")
    assert prepared("--output_path", "new/a.MP4").output == Path("new/a.MP4")


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


@pytest.mark.parametrize("name", sorted(path.name for path in (FOLDER / "config").rglob("*.json")))
def test_shipped_configurations_are_valid(name):
    (path,) = (FOLDER / "config").rglob(name)
    config = MagiConfig.from_file(path)
    assert config.model_config.hidden_size in (3072, 6144)
