"""From a prompt to a video, on a tiny model with random weights."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from cases import SIZES
from PIL import Image
from tiny import TEXT_SIZES, tiny_tokenizer
from torch._dynamo.testing import CompileCounter
from transformers import T5Config, T5EncoderModel

import flowcache
from flowcache import FlowCacheConfig, VideoOutput
from flowcache.video import probe_video, to_float
from magi1 import METHODS, MagiConfig, MagiPipeline, method_config
from magi1.attention import TextBank
from magi1.captions import CaptionSwitches, SpecialTokens
from magi1.config import EngineSection, RuntimeSection
from magi1.transformer import MagiTransformer3DModel
from magi1.vae import AutoencoderKLMagi

VIDEO = {"video_size_h": 32, "video_size_w": 32, "num_frames": 32, "num_steps": 8, "chunk_width": 2}
DISTILLED, BASE = (
    MagiConfig(
        runtime_config=RuntimeSection(**VIDEO, cfg_number=1 if distill else 3, clean_t=0.9999),
        engine_config=EngineSection(distill=distill),
    )
    for distill in (True, False)
)


@pytest.fixture(scope="module")
def shared():
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = T5Config(vocab_size=len(tokenizer), **TEXT_SIZES)
    transformer = MagiTransformer3DModel(**{**SIZES, "num_layers": 2})
    for parameter in transformer.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(transformer.caption_embed.null_caption)
    vae = AutoencoderKLMagi(video_size=32, z_chans=4, embed_dim=256, depth=1, num_heads=2, mlp_ratio=1)
    pipeline = MagiPipeline(tokenizer, T5EncoderModel(text).eval(), transformer, vae)
    pipeline.model_defaults = DISTILLED
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(shared):
    """A copy, which a test may change."""
    return copy.deepcopy(shared)


def make(pipe, method="vanilla", options=(), config=DISTILLED, **changes) -> VideoOutput:
    """A video of a method with options."""
    given = {"output_type": "latent", **changes}
    return pipe("a red circle", config, method_config(method, **dict(options)), **given)


def distance(threshold, **more) -> dict:
    return {"threshold": threshold, "warmup_steps": 1, **more}


def pixels(frames: int) -> torch.Tensor | None:
    return torch.rand(3, frames, 32, 32) * 2 - 1 if frames else None


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num_frames", [4, 30])
@pytest.mark.parametrize("method", METHODS)
def test_chunks_of_every_length_come_one_by_one(shared, num_frames, method):
    parts = list(shared.stream("a circle", cache=method_config(method), num_frames=num_frames))
    assert [part.frames.shape[1] for part in parts] == {4: [4], 30: [8, 8, 8, 6]}[num_frames]
    assert all(part.frames.isfinite().all() for part in parts)


@pytest.mark.parametrize("config", [DISTILLED, BASE])
@pytest.mark.parametrize(
    ("width", "given", "num_frames"),
    [(2, 4, 32), (2, 8, 32), (2, 15, 36), (6, 20, 28), (1, 8, 32), (1, 0, 32)],
)
def test_a_given_video_is_not_repeated(shared, config, width, given, num_frames):
    """Also where a single latent frame is all that it leaves of a chunk."""
    size = {"chunk_width": width, "num_frames": num_frames, "output_type": "np"}
    video = make(shared, "flowcache", distance(0.2), config, video=pixels(given), **size)
    assert video.frames.shape == (1, num_frames, 32, 32, 3)


@pytest.mark.parametrize("chunk_width", [1, 2, 6])
@pytest.mark.parametrize("num_frames", [1, 4, 32])
def test_a_video_begins_with_a_given_image(shared, chunk_width, num_frames):
    image, size = Image.new("RGB", (32, 32), "red"), {"chunk_width": chunk_width, "num_frames": num_frames}
    video = make(shared, "flowcache", image=image, output_type="np", **size)
    assert video.frames.shape[1] == num_frames
    assert torch.equal(video.latents[0, :, :1], shared._encode(to_float(np.array(image)[None])))


def test_projections_of_a_caption_are_kept_no_longer_than_needed(shared, monkeypatch):
    held = []
    forget = TextBank.forget_before

    def watched(bank, caption):
        forget(bank, caption)
        held.append(len({text for _, text in bank.keys_values}))

    monkeypatch.setattr(TextBank, "forget_before", watched)
    tokens = SpecialTokens(torch.randn(100, 16), torch.randn(1, 16), torch.randn(1, 16))
    make(shared, num_frames=96, switches=CaptionSwitches(duration=True), special_tokens=tokens)
    assert max(held) <= 4 + 1, "those of a window's chunks, and the null caption"


def test_a_saved_pipeline_gives_the_same_frames(pipeline, tmp_path):
    parts = ("tokenizer", "text_encoder", "transformer", "vae")
    tiled = MagiPipeline(*(getattr(pipeline, part) for part in parts), tile_frames=4)
    tiled.model_defaults = DISTILLED
    tiled.save_pretrained(tmp_path)
    saved = MagiPipeline.from_pretrained(tmp_path)
    assert saved.model_defaults == DISTILLED
    assert np.array_equal(tiled("a circle").frames, saved("a circle").frames)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_weights_may_be_cast(pipeline, dtype):
    plain, transformer = make(pipeline).latents, pipeline.transformer
    bands = transformer.rotary_bands.clone()
    if dtype is torch.bfloat16:
        pipeline.to(dtype)
    else:
        transformer.enable_layerwise_casting(dtype, torch.float32)
    assert transformer.blocks[0].gates.weight.dtype == dtype
    assert torch.equal(transformer.rotary_bands, bands), "what must stay in fp32 is not rounded"
    assert 0 < (make(pipeline).latents - plain).norm() / plain.norm() < 0.3


def test_offload_moves_models_and_changes_nothing(pipeline, monkeypatch):
    plain = make(pipeline).latents
    outside = {"transformer": ("embed", "head", "condition", "rotary", "embed_caption")}
    outside |= {"vae": ("encode", "decode")}
    for component, methods in outside.items():
        moved = copy.deepcopy(getattr(pipeline, component))
        moved._hf_hook = Mock(pre_forward=Mock(side_effect=InterruptedError))
        for method in methods:
            with pytest.raises(InterruptedError):
                getattr(moved, method)()
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.empty_device_cache", lambda *_: None)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert torch.equal(plain, make(pipeline).latents)


def test_a_compiled_block_is_compiled_once(pipeline):
    plain = make(pipeline).latents
    torch._dynamo.reset()
    counter = CompileCounter()
    pipeline.transformer.compile_repeated_blocks(backend=counter)
    assert torch.allclose(make(pipeline).latents, plain, atol=1e-5)
    few = counter.frame_count
    make(pipeline, num_frames=64)
    assert counter.frame_count == few, "not again for more chunks, steps and layers"
    torch._dynamo.reset()


@pytest.mark.parametrize("config", [DISTILLED, BASE])
def test_threshold_zero_is_vanilla(shared, config):
    vanilla, zero = make(shared, config=config), make(shared, "flowcache", distance(0), config)
    assert torch.equal(vanilla.latents, zero.latents)
    assert zero.trace.reuse_ratio == 0
    assert vanilla.trace.flops["actual"] == pytest.approx(vanilla.trace.flops["vanilla"])


def test_teacache_takes_one_decision(shared):
    trace = make(shared, "teacache", distance(0.5), num_inference_steps=16).trace
    assert trace.reuse_ratio > 0 and trace.flops["actual"] < trace.flops["vanilla"]
    assert all(len({event.reused for event in step.events}) == 1 for step in trace.steps)


@pytest.mark.parametrize("config", [DISTILLED, BASE])
@pytest.mark.parametrize("preset", ["fast", "paper-fast"])
@pytest.mark.parametrize("prefix_frames", [0, 16])
def test_clean_chunks_in_host_memory_change_nothing(shared, config, preset, prefix_frames):
    offloading = replace(config, engine_config=replace(config.engine_config, kv_offload=True))
    video = {
        "num_frames": 64,
        "window_size": 2,
        "noise2clean_kvrange": [4, 3],
        "video": pixels(prefix_frames),
    }
    options = distance(0.2, preset=preset)
    plain, offloaded = (make(shared, "flowcache", options, own, **video) for own in (config, offloading))
    assert torch.equal(plain.latents, offloaded.latents)
    assert offloaded.trace.settings["reuse"]["storage"]["offload"]


@pytest.mark.parametrize("compress", [False, True])
def test_clean_chunks_in_fewer_bits(shared, compress):
    options, video = {"compress": compress, "total": 6 if compress else None}, {"num_frames": 96}
    videos = {
        bits: make(shared, "vanilla", {**options, "kv_bits": bits}, window_size=2, **video)
        for bits in (None, 8, 4)
    }
    plain = videos[None].latents
    errors = {bits: (videos[bits].latents - plain).norm() / plain.norm() for bits in (8, 4)}
    assert 0 < errors[8] < 0.01
    assert errors[8] < errors[4] < 0.2
    events = [event for step in videos[8].trace.steps for event in step.quantizations]
    assert events and all(event.key_error < 0.01 and event.value_error < 0.01 for event in events)


def test_arguments_of_diffusers(pipeline, tmp_path):
    """Each video of a list is the one that a call of its own makes."""
    flowcache.enable(pipeline, preset="turbo", kv_budget=1)
    seen, prompts = [], ["a circle", "a red circle"]
    call = {"num_inference_steps": 4, "height": 32, "width": 48, "num_frames": 9, "fps": 8}
    both = pipeline(prompts, **call, generator=generator(), callback_on_step_end=lambda *a: seen.append(a))
    assert both.frames.shape == (2, 9, 32, 48, 3) and len(seen) == 2 * len(both.trace.steps)
    assert all(made is pipeline and kwargs["latents"].shape[1] == 4 for made, *_, kwargs in seen)
    assert [trace.settings["prompt"] for trace in both.traces] == prompts and both.trace.method == "flowcache"
    assert both.trace.settings["reuse"]["compression"]["budget"] == 1 and both.trace.reuse_ratio > 0
    seed = both.traces[1].settings["video"]["seed"]
    again = pipeline(prompts[1], **call, seed=seed, output_type="latent")
    assert torch.equal(again.frames, again.latents) and torch.equal(again.latents[0], both.latents[1])
    tokens = pipeline.tokenizer(prompts[1], return_tensors="pt").input_ids
    embeds = pipeline.text_encoder(tokens).last_hidden_state
    assert torch.equal(pipeline(prompt_embeds=embeds, **call, seed=seed).latents, again.latents)
    both.save(tmp_path / "a.mp4")
    assert probe_video(tmp_path / "a.mp4").fps == 8
    weak, strong = (make(pipeline, config=BASE, guidance_scale=scale).latents for scale in (1, 5))
    assert not torch.equal(weak, strong)


def test_official_and_small_weights(weights):
    pipe = MagiPipeline.from_config_file(weights, "cpu", num_frames=8)
    assert pipe.model_defaults.runtime_config.num_frames == 8 and pipe.config.tile_frames == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        small = MagiPipeline.from_pretrained("small", torch_dtype=torch.bfloat16)
    assert small.vae.dtype == torch.bfloat16 and small.transformer.rotary_bands.dtype == torch.float32
    with pytest.raises(ValueError, match="bogus"):
        MagiPipeline.from_config_file("config/single_run/4.5B_distill.json", bogus=1)


REFUSED = {
    "image:": {"image": 5},
    "image: expected no video": {"image": Image.new("RGB", (8, 8)), "video": pixels(8)},
    "video: expected at least 4": {"video": pixels(3)},
    "video must be": {"video": torch.zeros(3, 8, 16, 32)},
    "video: expected a float": {"video": torch.zeros(3, 8, 32, 32, dtype=torch.uint8)},
    "prompt: expected str": {"prompt": 5},
    "prompt_embeds:": {"prompt": None, "prompt_embeds": torch.zeros(1, 4, 9)},
    "config:": {"config": "fast"},
    "cache:": {"cache": "fast"},
    "cache.bidirectional|cache.whole_window": {"cache": FlowCacheConfig(whole_window=True)},
    "guidance_scale:": {"guidance_scale": 3.0},
    "special_tokens:": {"switches": CaptionSwitches(static=True)},
    "video_size_h": {"height": 33},
    ".*bogus": {"bogus": 5},
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_named(shared, name):
    with pytest.raises((TypeError, ValueError), match=f"^({name})"):
        shared(**{"prompt": "a", **REFUSED[name]})
    with pytest.raises(ValueError, match="^prefix must"):
        next(shared.stream("a", prefix=pixels(6)))
