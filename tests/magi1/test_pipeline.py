"""From a prompt to a video, on a tiny model with random weights."""

from __future__ import annotations

import pytest
import torch
from tiny import TEXT_SIZES, tiny_tokenizer
from transformers import T5Config, T5EncoderModel

from magi1.config import EngineSection, FlowCacheOptions, MagiConfig, RuntimeSection
from magi1.methods import METHODS, method_config
from magi1.pipeline import MagiPipeline
from magi1.request import VideoRequest
from magi1.transformer import MagiTransformer3DModel
from magi1.vae import AutoencoderKLMagi


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = T5Config(vocab_size=len(tokenizer), **TEXT_SIZES)
    transformer = MagiTransformer3DModel(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=2,
        num_query_groups=1,
        kv_channels=16,
        in_channels=4,
        out_channels=4,
        caption_channels=16,
        caption_max_length=20,
    )
    for parameter in transformer.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(transformer.caption_embed.null_caption)
    vae = AutoencoderKLMagi(video_size=32, z_chans=4, embed_dim=256, depth=1, num_heads=2, mlp_ratio=1)
    pipeline = MagiPipeline(tokenizer, T5EncoderModel(text).eval(), transformer, vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def config(distill=True, **runtime) -> MagiConfig:
    wanted = {"video_size_h": 32, "video_size_w": 32, "num_frames": 32, "num_steps": 8, "chunk_width": 2}
    wanted |= {"cfg_number": 1 if distill else 3, "clean_t": 0.9999, **runtime}
    return MagiConfig(runtime_config=RuntimeSection(**wanted), engine_config=EngineSection(distill=distill))


def ask(config, cache=None, prompt="a red circle", **more) -> VideoRequest:
    return VideoRequest(prompt=prompt, config=config, **({"cache": cache} if cache else {}), **more)


@pytest.mark.parametrize("num_frames", [4, 8, 30, 32])
@pytest.mark.parametrize("method", METHODS)
def test_every_length(pipeline, num_frames, method):
    video = pipeline(ask(config(num_frames=num_frames), method_config(method)))
    assert video.frames.shape == (3, num_frames, 32, 32)
    assert video.frames.isfinite().all()


@pytest.mark.parametrize("distill", [True, False])
@pytest.mark.parametrize("frames", [1, 8, 12])
def test_prefixes(pipeline, distill, frames):
    prefix = torch.rand(3, frames, 32, 32) * 2 - 1
    options = FlowCacheOptions(rel_l1_thresh=0.2, warmup_steps=1)
    cache = method_config("flowcache", options)
    video = pipeline(ask(config(distill), cache, prefix=prefix))
    # a single frame is the first of those that were asked for, a video's frames are not shown again
    assert video.frames.shape[1] == 32


@pytest.mark.parametrize("distill", [True, False])
def test_threshold_zero_is_vanilla(pipeline, distill):
    vanilla = pipeline(ask(config(distill), method_config("vanilla")))
    zero = pipeline(ask(config(distill), method_config("flowcache", FlowCacheOptions(rel_l1_thresh=0))))
    assert torch.equal(vanilla.latents, zero.latents)
    assert zero.trace.reuse_ratio == 0


def test_teacache_takes_one_decision(pipeline):
    options = FlowCacheOptions(rel_l1_thresh=0.5, warmup_steps=1)
    trace = pipeline(ask(config(num_steps=16), method_config("teacache", options))).trace
    assert trace.reuse_ratio > 0
    for step in trace.steps:
        assert len({event.reused for event in step.events}) == 1


def test_chunks_come_one_by_one(pipeline):
    parts = pipeline.stream(ask(config(), method_config("vanilla")))
    first = next(parts)
    assert first.frames.shape[1] == 8
    assert sum(part.frames.shape[1] for part in parts) == 24


def test_flops_agree_with_what_was_run(pipeline):
    options = FlowCacheOptions(rel_l1_thresh=0.3, warmup_steps=1)
    flops = pipeline(ask(config(), method_config("flowcache", options))).trace.flops
    assert flops["actual"] < flops["vanilla"]
    flops = pipeline(ask(config(), method_config("vanilla"))).trace.flops
    assert flops["actual"] == pytest.approx(flops["vanilla"])


def test_prefixes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        ask(config(), prefix=torch.zeros(3, 6, 32, 32))
    with pytest.raises(ValueError, match="prefix must be"):
        ask(config(), prefix=torch.zeros(3, 8, 16, 32))
