"""From a prompt to a video, on a tiny model with random weights."""

from __future__ import annotations

import copy
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from cases import SIZES
from PIL import Image
from tiny import TEXT_SIZES, tiny_tokenizer
from torch._dynamo.testing import CompileCounter
from transformers import T5Config, T5EncoderModel

from flowcache.video import to_float
from magi1.attention import TextBank
from magi1.captions import CaptionSwitches, SpecialTokens
from magi1.config import EngineSection, MagiConfig, RuntimeSection
from magi1.methods import METHODS, method_config
from magi1.pipeline import MagiPipeline
from magi1.request import VideoRequest
from magi1.transformer import MagiTransformer3DModel
from magi1.vae import AutoencoderKLMagi


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
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(shared):
    """A copy, which a test may change."""
    return copy.deepcopy(shared)


def ask(method="vanilla", method_options=(), distill=True, video=(), **more) -> VideoRequest:
    wanted = {"video_size_h": 32, "video_size_w": 32, "num_frames": 32, "num_steps": 8, "chunk_width": 2}
    wanted |= {"cfg_number": 1 if distill else 3, "clean_t": 0.9999, **dict(video)}
    config = MagiConfig(runtime_config=RuntimeSection(**wanted), engine_config=EngineSection(distill=distill))
    given = {
        "prompt": "a red circle",
        "config": config,
        "cache": method_config(method, **dict(method_options)),
    }
    return VideoRequest(**{**given, **more})


def distance(threshold, **more) -> dict:
    return {"threshold": threshold, "warmup_steps": 1, **more}


def pixels(frames: int) -> torch.Tensor | None:
    return torch.rand(3, frames, 32, 32) * 2 - 1 if frames else None


@pytest.mark.parametrize("num_frames", [4, 30])
@pytest.mark.parametrize("method", METHODS)
def test_chunks_of_every_length_come_one_by_one(shared, num_frames, method):
    parts = list(shared.stream(ask(method, video={"num_frames": num_frames})))
    assert [part.frames.shape[1] for part in parts] == {4: [4], 30: [8, 8, 8, 6]}[num_frames]
    assert all(part.frames.isfinite().all() for part in parts)


@pytest.mark.parametrize("distill", [True, False])
@pytest.mark.parametrize(
    ("width", "given", "num_frames"),
    [(2, 4, 32), (2, 8, 32), (2, 12, 36), (6, 20, 28), (1, 8, 32), (1, 0, 32)],
)
def test_a_given_video_is_not_repeated(shared, distill, width, given, num_frames):
    """Also where a single latent frame is all that it leaves of a chunk."""
    video = {"chunk_width": width, "num_frames": num_frames}
    request = ask("flowcache", distance(0.2), distill, video, prefix=pixels(given))
    assert shared(request).frames.shape[1] == num_frames


@pytest.mark.parametrize("chunk_width", [1, 2, 6])
@pytest.mark.parametrize("num_frames", [1, 4, 32])
def test_a_video_begins_with_a_given_image(shared, chunk_width, num_frames):
    image, size = Image.new("RGB", (32, 32), "red"), {"chunk_width": chunk_width, "num_frames": num_frames}
    video = shared(ask("flowcache", video=size, prefix=image))
    assert video.frames.shape[1] == num_frames
    assert torch.equal(video.latents[:, :1], shared._encode(to_float(np.array(image)[None])))


def test_projections_of_a_caption_are_kept_no_longer_than_needed(shared, monkeypatch):
    held = []
    forget = TextBank.forget_before

    def watched(bank, caption):
        forget(bank, caption)
        held.append(len({text for _, text in bank.keys_values}))

    monkeypatch.setattr(TextBank, "forget_before", watched)
    tokens = SpecialTokens(torch.randn(100, 16), torch.randn(1, 16), torch.randn(1, 16))
    switches = CaptionSwitches(duration=True)
    shared(ask(video={"num_frames": 96}, switches=switches, special_tokens=tokens))
    assert max(held) <= 4 + 1, "those of a window's chunks, and the null caption"
    with pytest.raises(ValueError, match="special"):
        ask(switches=switches)


def test_a_saved_pipeline_gives_the_same_frames(pipeline, tmp_path):
    parts = ("tokenizer", "text_encoder", "transformer", "vae")
    tiled = MagiPipeline(*(getattr(pipeline, part) for part in parts), tile_frames=4)
    tiled.save_pretrained(tmp_path)
    saved = MagiPipeline.from_pretrained(tmp_path)
    assert torch.equal(tiled(ask()).frames, saved(ask()).frames)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_weights_may_be_cast(pipeline, dtype):
    plain, transformer = pipeline(ask()).latents, pipeline.transformer
    bands = transformer.rotary_bands.clone()
    if dtype is torch.bfloat16:
        pipeline.to(dtype)
    else:
        transformer.enable_layerwise_casting(dtype, torch.float32)
    assert transformer.blocks[0].gates.weight.dtype == dtype
    assert torch.equal(transformer.rotary_bands, bands), "what must stay in fp32 is not rounded"
    assert 0 < (pipeline(ask()).latents - plain).norm() / plain.norm() < 0.3


def test_offload_moves_models_and_changes_nothing(pipeline, monkeypatch):
    plain = pipeline(ask())
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
    assert torch.equal(plain.latents, pipeline(ask()).latents)


def test_a_compiled_block_is_compiled_once(pipeline):
    plain = pipeline(ask())
    torch._dynamo.reset()
    counter = CompileCounter()
    pipeline.transformer.compile_repeated_blocks(backend=counter)
    assert torch.allclose(pipeline(ask()).latents, plain.latents, atol=1e-5)
    few = counter.frame_count
    pipeline(ask(video={"num_frames": 64}))
    assert counter.frame_count == few, "not again for more chunks, steps and layers"
    torch._dynamo.reset()


@pytest.mark.parametrize("distill", [True, False])
def test_threshold_zero_is_vanilla(shared, distill):
    vanilla, zero = shared(ask(distill=distill)), shared(ask("flowcache", distance(0), distill))
    assert torch.equal(vanilla.latents, zero.latents)
    assert zero.trace.reuse_ratio == 0
    assert vanilla.trace.flops["actual"] == pytest.approx(vanilla.trace.flops["vanilla"])


def test_teacache_takes_one_decision(shared):
    trace = shared(ask("teacache", distance(0.5), video={"num_steps": 16})).trace
    assert trace.reuse_ratio > 0 and trace.flops["actual"] < trace.flops["vanilla"]
    assert all(len({event.reused for event in step.events}) == 1 for step in trace.steps)


@pytest.mark.parametrize("distill", [True, False])
@pytest.mark.parametrize("preset", ["fast", "paper-fast"])
@pytest.mark.parametrize("prefix_frames", [0, 16])
def test_clean_chunks_in_host_memory_change_nothing(shared, distill, preset, prefix_frames):
    video = {"num_frames": 64, "window_size": 2, "noise2clean_kvrange": (4, 3)}
    prefix = pixels(prefix_frames)
    plain, offloaded = (
        shared(ask("flowcache", distance(0.2, preset=preset, kv_offload=on), distill, video, prefix=prefix))
        for on in (False, True)
    )
    assert torch.equal(plain.latents, offloaded.latents)


@pytest.mark.parametrize("compress", [False, True])
def test_clean_chunks_in_fewer_bits(shared, compress):
    options = {"compress": compress, "total": 6 if compress else None}
    videos = {
        bits: shared(ask("vanilla", {**options, "kv_bits": bits}, video={"num_frames": 96, "window_size": 2}))
        for bits in (None, 8, 4)
    }
    plain = videos[None].latents
    errors = {bits: (videos[bits].latents - plain).norm() / plain.norm() for bits in (8, 4)}
    assert 0 < errors[8] < 0.01
    assert errors[8] < errors[4] < 0.2
    events = [event for step in videos[8].trace.steps for event in step.quantizations]
    assert events and all(event.key_error < 0.01 and event.value_error < 0.01 for event in events)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("prefix", torch.zeros(3, 6, 32, 32), ValueError),
        ("prefix", torch.zeros(3, 8, 16, 32), ValueError),
        ("prefix", torch.zeros(3, 1, 32, 32, dtype=torch.uint8), TypeError),
        ("prompt", ["a", "red circle"], TypeError),
        ("config", None, TypeError),
        ("cache", "fast", TypeError),
    ],
)
def test_wrong_arguments_are_named(shared, name, value, error):
    with pytest.raises(error, match=f"^{name}"):
        ask(**{name: value})
    with pytest.raises(TypeError, match=r"^request: expected VideoRequest, got str"):
        shared("a red circle")
