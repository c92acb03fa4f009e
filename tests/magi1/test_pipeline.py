"""From a prompt to a video, on a tiny model with random weights, as users of diffusers call it."""

import copy
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter

import flowcache
from flowcache import VideoOutput
from flowcache.video import to_float
from magi1 import METHODS, MagiConfig, MagiPipeline, method_config
from magi1.attention import TextBank
from magi1.captions import CaptionSwitches, SpecialTokens

#: Options of the method that compute some steps only.
DISTANCE = {"threshold": 0.2, "warmup_steps": 1}


@pytest.fixture(scope="module")
def shared(weights):
    pipeline = MagiPipeline.from_config_file(weights, "cpu", num_steps=4)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(shared):
    return copy.deepcopy(shared)


def make(pipe, method="vanilla", options=(), base=False, **changes) -> VideoOutput:
    """A video of a method with options; ``base``: with the guidance of base models."""
    config, given = pipe.model_defaults, {"output_type": "latent", **changes}
    if base:
        runtime, engine = replace(config.runtime_config, cfg_number=3), replace(config.engine_config)
        config = MagiConfig(runtime_config=runtime, engine_config=replace(engine, distill=False))
    return pipe("a red circle", config=config, cache=method_config(method, **dict(options)), **given)


def pixels(frames: int) -> torch.Tensor | None:
    return torch.rand(3, frames, 32, 32) * 2 - 1 if frames else None


@pytest.mark.parametrize("num_frames", [4, 30])
@pytest.mark.parametrize("method", METHODS)
def test_chunks_of_every_length_come_one_by_one(shared, num_frames, method):
    parts = list(shared.stream("a circle", cache=method_config(method), num_frames=num_frames))
    assert [part.frames.shape[1] for part in parts] == {4: [4], 30: [8, 8, 8, 6]}[num_frames]
    assert all(part.frames.isfinite().all() for part in parts)


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize(
    ("width", "given", "num_frames"), [(2, 4, 32), (2, 8, 32), (2, 15, 36), (6, 20, 28), (1, 8, 32), (1, 0, 32)]
)
def test_a_given_video_is_not_repeated(shared, base, width, given, num_frames):
    """Also where a single latent frame is all that it leaves of a chunk."""
    size = {"chunk_width": width, "num_frames": num_frames, "output_type": "np"}
    video = make(shared, "flowcache", DISTANCE, base, video=pixels(given), **size)
    assert video.frames.shape == (1, num_frames, 32, 32, 3)


@pytest.mark.parametrize("chunk_width", [1, 2, 6])
@pytest.mark.parametrize("num_frames", [1, 4, 32])
def test_a_video_begins_with_a_given_image(shared, chunk_width, num_frames):
    image, size = Image.new("RGB", (32, 32), "red"), {"chunk_width": chunk_width, "num_frames": num_frames}
    video = make(shared, "flowcache", image=image, output_type="np", **size)
    assert video.frames.shape[1] == num_frames
    assert torch.equal(video.latents[0, :, :1], shared._encode(to_float(np.array(image)[None])))


def test_projections_of_a_caption_are_kept_no_longer_than_needed(shared, monkeypatch):
    held, forget = [], TextBank.forget_before

    def watched(bank, caption):
        forget(bank, caption)
        held.append(len({text for _, text in bank.keys_values}))

    monkeypatch.setattr(TextBank, "forget_before", watched)
    tokens = SpecialTokens(torch.randn(100, 16), torch.randn(1, 16), torch.randn(1, 16))
    make(shared, num_frames=96, switches=CaptionSwitches(duration=True), special_tokens=tokens)
    assert max(held) <= 4 + 1, "those of a window's chunks, and the null caption"


@pytest.mark.parametrize("change", ["save", "bf16", "fp8", "offload", "stages", "compile"])
def test_what_diffusers_does_with_models(pipeline, change, tmp_path, monkeypatch):
    plain, transformer, most = make(pipeline).latents, pipeline.transformer, 0.3
    bands = transformer.rotary_bands.clone()
    if change == "save":
        pipeline.save_pretrained(tmp_path)
        pipeline, most = MagiPipeline.from_pretrained(tmp_path), 0
        assert pipeline.model_defaults.runtime_config.num_steps == 4
    elif change == "bf16":
        pipeline.to(torch.bfloat16)
    elif change == "fp8":
        transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    elif change == "offload":
        monkeypatch.setattr("diffusers.pipelines.pipeline_utils.empty_device_cache", lambda *_: None)
        pipeline.enable_model_cpu_offload(device="cpu")
        most = 0
    elif change == "stages":
        pipeline.enable_stage_offload("cpu:0")
        most = 0
    else:
        torch._dynamo.reset()
        transformer.compile_repeated_blocks(backend=(counter := CompileCounter()))
        make(pipeline)
        few, most = counter.frame_count, 1e-5
        make(pipeline, num_frames=64)
        assert counter.frame_count == few, "not again for more chunks, steps and layers"
    error = (make(pipeline).latents - plain).norm() / plain.norm()
    assert (change in ("bf16", "fp8")) <= (error > 0) and error <= most
    assert torch.equal(pipeline.transformer.rotary_bands, bands), "what must stay in fp32 is not rounded"


@pytest.mark.parametrize("name", ["embed", "head", "condition", "rotary", "embed_caption", "encode", "decode"])
def test_offload_moves_models_for_every_call(pipeline, name):
    part = pipeline.vae if name in ("encode", "decode") else pipeline.transformer
    part._hf_hook = Mock(pre_forward=Mock(side_effect=InterruptedError))
    with pytest.raises(InterruptedError):
        getattr(part, name)()


@pytest.mark.parametrize("base", [False, True])
def test_threshold_zero_is_vanilla(shared, base):
    vanilla, zero = make(shared, base=base), make(shared, "flowcache", {**DISTANCE, "threshold": 0}, base)
    assert torch.equal(vanilla.latents, zero.latents)
    if base:
        assert not torch.equal(make(shared, base=True, guidance_scale=1).latents, vanilla.latents)
    assert zero.trace.reuse_ratio == 0
    assert vanilla.trace.flops["actual"] == pytest.approx(vanilla.trace.flops["vanilla"])


def test_weights_are_loaded_as_the_caller_says(weights):
    offloading = MagiPipeline.from_config_file(weights, "cpu", kv_offload=True, num_frames=8)
    trace = offloading("a circle", cache=method_config(kv_bits=8)).trace
    assert trace.settings["reuse"]["storage"] == {"bits": 8, "offload": True}
    flowcache.enable(offloading, preset="turbo", kv_budget=1, kv_bits=8)
    trace = offloading("a circle", num_frames=32).trace
    assert trace.settings["reuse"]["compression"]["budget"] == 1 and trace.reuse_ratio > 0
    with pytest.raises(ValueError, match="prefix"):
        next(offloading.stream("a", prefix=pixels(6)))
    with pytest.raises(ValueError, match="bogus"):
        MagiPipeline.from_config_file("config/single_run/4.5B_distill.json", bogus=1)
