"""From a prompt to a video, on a tiny model with random weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TEXT_SIZES, tiny_tokenizer
from torch._dynamo.testing import CompileCounter
from transformers import T5Config, T5EncoderModel

from flowcache import FlowCacheConfig
from flowcache.video import to_float
from magi1.attention import TextBank
from magi1.captions import CaptionSwitches, SpecialTokens
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
@pytest.mark.parametrize("frames", [1, 4, 8, 12])
def test_prefixes(pipeline, distill, frames):
    prefix = torch.rand(3, frames, 32, 32) * 2 - 1
    options = FlowCacheOptions(rel_l1_thresh=0.2, warmup_steps=1)
    cache = method_config("flowcache", options)
    video = pipeline(ask(config(distill), cache, prefix=prefix))
    # a single frame is the first of those that were asked for, a video's frames are not shown again
    assert video.frames.shape[1] == 32


@pytest.mark.parametrize(
    ("chunk_width", "prefix_frames", "num_frames"), [(2, 12, 36), (6, 20, 28), (1, 8, 32), (1, 0, 32)]
)
def test_a_single_latent_frame_of_a_chunk_gives_all_its_frames(
    pipeline, chunk_width, prefix_frames, num_frames
):
    prefix = torch.rand(3, prefix_frames, 32, 32) * 2 - 1 if prefix_frames else None
    asked = config(chunk_width=chunk_width, num_frames=num_frames)
    video = pipeline(ask(asked, method_config("vanilla"), prefix=prefix))
    assert video.frames.shape[1] == num_frames


@pytest.mark.parametrize("chunk_width", [1, 2, 6])
@pytest.mark.parametrize("num_frames", [1, 4, 32])
def test_a_video_begins_with_the_image_it_was_given(pipeline, chunk_width, num_frames):
    image = torch.rand(3, 1, 32, 32) * 2 - 1
    asked = config(chunk_width=chunk_width, num_frames=num_frames)
    video = pipeline(ask(asked, method_config("flowcache"), prefix=image))
    assert video.frames.shape[1] == num_frames
    assert torch.equal(video.latents[:, :1], pipeline._encode(image))


def test_a_captions_projections_are_kept_no_longer_than_needed(pipeline, monkeypatch):
    held = []
    forget = TextBank.forget_before

    def watched(bank, caption):
        forget(bank, caption)
        held.append(len({text for _, text in bank.keys_values}))

    monkeypatch.setattr(TextBank, "forget_before", watched)
    tokens = SpecialTokens(torch.randn(100, 16), torch.randn(1, 16), torch.randn(1, 16))
    switches = CaptionSwitches(duration=True)
    asked = config(num_frames=96)
    pipeline(ask(asked, method_config("vanilla"), switches=switches, special_tokens=tokens))
    assert max(held) <= 4 + 1, "those of a window's chunks, and the null caption"


def test_a_saved_pipeline_gives_the_same_frames(pipeline, tmp_path):
    parts = ("tokenizer", "text_encoder", "transformer", "vae")
    tiled = MagiPipeline(*(copy.deepcopy(getattr(pipeline, part)) for part in parts), tile_frames=4)
    tiled.save_pretrained(tmp_path)
    videos = [
        each(ask(config(), method_config("vanilla")))
        for each in (tiled, MagiPipeline.from_pretrained(tmp_path))
    ]
    assert torch.equal(videos[0].frames, videos[1].frames)


def test_a_pipeline_may_be_cast(pipeline):
    pipeline = copy.deepcopy(pipeline)
    plain = pipeline(ask(config(), method_config("vanilla"))).latents
    bands = pipeline.transformer.rotary_bands.clone()
    pipeline.to(torch.bfloat16)
    assert pipeline.transformer.blocks[0].gates.weight.dtype == torch.bfloat16
    assert torch.equal(pipeline.transformer.rotary_bands, bands), "what must stay in fp32 is not rounded"
    cast = pipeline(ask(config(), method_config("vanilla"))).latents
    assert 0 < (cast - plain).norm() / plain.norm() < 0.1


def test_weights_may_be_stored_in_fp8(pipeline):
    pipeline = copy.deepcopy(pipeline)
    plain = pipeline(ask(config(), method_config("vanilla")))
    pipeline.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert pipeline.transformer.blocks[0].gates.weight.dtype == torch.float8_e4m3fn
    video = pipeline(ask(config(), method_config("vanilla")))
    assert video.frames.isfinite().all()
    assert not torch.equal(video.latents, plain.latents)


def test_offloaded_models_are_moved_for_all_that_runs_outside_of_forward(pipeline, monkeypatch):
    class Moved(Exception):
        pass

    class Hook:
        def pre_forward(self, module):
            raise Moved

    outside = {"transformer": ("embed", "head", "condition", "rotary", "embed_caption")}
    outside |= {"vae": ("encode", "decode")}
    for component, methods in outside.items():
        module = copy.deepcopy(getattr(pipeline, component))
        module._hf_hook = Hook()
        for method in methods:
            with pytest.raises(Moved):
                getattr(module, method)()


def test_offload_changes_nothing(pipeline, monkeypatch):
    pipeline = copy.deepcopy(pipeline)
    plain = pipeline(ask(config(), method_config("vanilla")))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.empty_device_cache", lambda *_: None)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert torch.equal(plain.latents, pipeline(ask(config(), method_config("vanilla"))).latents)


def test_a_compiled_block_is_not_compiled_for_every_layer_and_step(pipeline):
    pipeline = copy.deepcopy(pipeline)
    plain = pipeline(ask(config(), method_config("vanilla")))
    torch._dynamo.reset()
    counter = CompileCounter()
    pipeline.transformer.compile_repeated_blocks(backend=counter)
    video = pipeline(ask(config(), method_config("vanilla")))
    assert torch.allclose(video.latents, plain.latents, atol=1e-5)
    few = counter.frame_count
    pipeline(ask(config(num_frames=64), method_config("vanilla")))
    assert counter.frame_count == few, "more chunks, steps and layers ask for nothing new"
    torch._dynamo.reset()


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


@pytest.mark.parametrize("distill", [True, False])
@pytest.mark.parametrize("preset", ["fast", "paper-fast"])
@pytest.mark.parametrize("prefix_frames", [0, 16])
def test_finished_chunks_in_host_memory_change_nothing(pipeline, distill, preset, prefix_frames):
    prefix = torch.rand(3, prefix_frames, 32, 32) * 2 - 1 if prefix_frames else None
    asked = config(distill, num_frames=64, window_size=2, noise2clean_kvrange=(4, 3))
    options = FlowCacheOptions(rel_l1_thresh=0.2, warmup_steps=1)
    videos = {
        offload: pipeline(
            ask(
                asked,
                method_config("flowcache", options, preset=preset, kv_offload=offload),
                prefix=prefix,
            )
        )
        for offload in (False, True)
    }
    assert torch.equal(videos[False].latents, videos[True].latents)


@pytest.mark.parametrize("compress", [False, True])
def test_finished_chunks_in_fewer_bits(pipeline, compress):
    asked = config(num_frames=96, window_size=2)
    videos = {}
    for bits in (None, 8, 4):
        budget = {"compress_kv_cache": compress, "total_cache_chunk_nums": 6}
        options = FlowCacheOptions(kv_bits=bits, **budget)
        videos[bits] = pipeline(ask(asked, method_config("vanilla", options)))
    plain = videos[None].latents
    errors = {bits: (videos[bits].latents - plain).norm() / plain.norm() for bits in (8, 4)}
    assert 0 < errors[8] < 0.01
    assert errors[8] < errors[4] < 0.2
    events = [event for step in videos[8].trace.steps for event in step.quantizations]
    alone = [event.chunks for event in events if len(event.chunks) == 1]
    assert alone[:4] == [[chunk] for chunk in range(4)]
    assert all(event.key_error < 0.01 and event.value_error < 0.01 for event in events)


def test_prefixes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        ask(config(), prefix=torch.zeros(3, 6, 32, 32))
    with pytest.raises(ValueError, match="prefix must be"):
        ask(config(), prefix=torch.zeros(3, 8, 16, 32))


def test_reuse_may_watch_the_filtered_latent(pipeline):
    distances = []
    for indicator in ("embedded_latent", "filtered_latent"):
        cache = FlowCacheConfig(threshold=1000, warmup_steps=1, indicator=indicator, clean_pass=True)
        steps = pipeline(ask(config(), cache)).trace.steps
        distances.append([e.distance for step in steps for e in step.events if e.distance is not None])
    assert all(distances)
    assert distances[0] != distances[1]
    with pytest.raises(ValueError, match="indicator must be one of embedded_latent, filtered_latent"):
        pipeline(ask(config(), FlowCacheConfig(indicator="latent", clean_pass=True)))


def test_a_prefix_may_be_images(pipeline):
    image = Image.new("RGB", (32, 32), "red")
    tensor = to_float(np.array(image)[None])
    first, second = (pipeline(ask(config(), prefix=prefix)) for prefix in (image, tensor))
    assert torch.equal(first.frames, second.frames)
    assert ask(config(), prefix=[image] * 8).prefix.shape == (3, 8, 32, 32)


REFUSED = {
    "prefix": {"prefix": torch.zeros(3, 1, 32, 32, dtype=torch.uint8)},
    "prompt": {"prompt": ["a", "red circle"]},
    "config": {"config": None},
    "cache": {"cache": "fast"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_of_another_kind_are_named(name):
    with pytest.raises(TypeError, match=f"^{name}:"):
        VideoRequest(**{"prompt": "a", "config": config(), **REFUSED[name]})


def test_a_pipeline_takes_a_request(pipeline):
    with pytest.raises(TypeError, match=r"^request: expected VideoRequest, got str"):
        pipeline("a red circle")
