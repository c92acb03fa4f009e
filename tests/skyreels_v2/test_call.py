"""The pipeline as users of diffusers call it."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import SkyReelsV2DiffusionForcingPipeline
from diffusers.utils import export_to_video
from PIL import Image

import flowcache
from flowcache import FlowCacheConfig, KVCompressionConfig, VideoOutput
from flowcache.reuse import ChunkwiseReuse, Interval
from flowcache.video import probe_video, to_uint8
from skyreels_v2 import (
    FlowCacheSkyReelsV2Pipeline,
    VideoSettings,
    method_config,
)
from skyreels_v2.codec import VideoCodec

CALL = {"num_frames": 9, "height": 32, "width": 32, "num_inference_steps": 4, "guidance_scale": 3.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipe(checkpoint):
    return FlowCacheSkyReelsV2Pipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)


def test_output_types_agree(pipe, tmp_path):
    videos = {kind: pipe("a circle", **CALL, output_type=kind) for kind in ("np", "pt", "pil", "latent")}
    parts = list(pipe.stream("a circle", **CALL))
    expected = np.concatenate([to_uint8(part.frames) for part in parts])
    np.testing.assert_array_equal((255 * videos["np"].frames[0]).round(), expected)
    np.testing.assert_array_equal(videos["pt"].frames.permute(0, 1, 3, 4, 2), videos["np"].frames)
    np.testing.assert_array_equal(np.stack(videos["pil"].frames[0]), expected)
    assert torch.equal(videos["latent"].frames, videos["np"].latents)
    for kind in ("np", "pt", "pil"):
        videos[kind].save(tmp_path / f"{kind}.mp4", fps=8)
    assert len({path.read_bytes() for path in tmp_path.glob("*.mp4")}) == 1
    export_to_video(videos["np"].frames[0], str(tmp_path / "theirs.mp4"), fps=24)
    assert probe_video(tmp_path / "theirs.mp4").num_frames == 9
    with pytest.raises(ValueError, match="output_type"):
        videos["latent"].save(tmp_path / "a.mp4")


def test_lists_of_prompts(pipe):
    """Each video is the one that a call of its own makes; its trace names the seed."""
    prompts, negative = ["a circle", "a red circle"], ["red", ""]
    both = pipe(prompts, negative, **CALL, num_videos_per_prompt=2, generator=generator())
    assert both.frames.shape[0] == len(both.traces) == 4
    assert [trace.settings["prompt"] for trace in both.traces] == [prompts[0]] * 2 + [prompts[1]] * 2
    seed = both.traces[2].settings["video"]["seed"]
    alone = pipe(prompts[1], "", **CALL, seed=seed)
    np.testing.assert_array_equal(alone.frames[0], both.frames[2])
    each = pipe(prompts, negative, **CALL, generator=[generator(1), generator()])
    single = pipe(prompts[1], "", **CALL, generator=generator())
    np.testing.assert_array_equal(each.frames[1], single.frames[0])
    counted = [trace.settings["video"]["seed"] for trace in pipe(prompts, **CALL).traces]
    assert counted == [0, 1]


def test_embeddings_in_place_of_prompts(pipe):
    expected = pipe("a red circle", "a", **CALL)
    embeds, negative = pipe.encode_prompt("a red circle", "a", max_sequence_length=pipe.text_length)
    video = pipe(prompt_embeds=embeds, negative_prompt_embeds=negative, **CALL)
    assert torch.equal(video.latents, expected.latents)
    half = pipe(prompt_embeds=embeds, negative_prompt="a", **CALL)
    assert torch.equal(half.latents, expected.latents)


def test_callback_sees_every_step(pipe):
    seen, blocks = [], {"ar_step": 1, "causal_block_size": 1}
    pipe("a circle", **CALL, **blocks, callback_on_step_end=lambda *args: seen.append(args))
    assert [step for _, step, _, _ in seen] == list(range(6))
    assert all(made is pipe and 0 < timestep < 1000 for made, _, timestep, _ in seen)
    assert [kwargs["latents"].shape[2] for *_, kwargs in seen] == [1, 2, 3, 3, 2, 1]
    call = {**CALL, "output_type": "latent", "return_dict": False}
    (latents,) = pipe("a circle", **call, callback_on_step_end=lambda *args: {"latents": 0 * args[3]["latents"]})
    assert not latents.any(), "as in diffusers, a callback may replace the latents"


def test_images_and_videos(pipe):
    image, codec = Image.new("RGB", (32, 32), "red"), VideoCodec(pipe.vae)
    pixel = torch.tensor([1.0, -1, -1]).view(3, 1, 1, 1).expand(3, 1, 32, 32)
    video = pipe("a circle", image=image, last_image=image, **CALL)
    assert torch.equal(video.latents[0, :, :1], codec.encode(pixel))
    given = torch.rand(3, 11, 32, 32) * 2 - 1
    for count, changes in ((9, {}), (5, {"overlap_history": 5})):
        longer = pipe("a circle", video=given, **{**CALL, **changes, "num_frames": 13})
        prefix = codec.encode(given[:, -count:])
        assert torch.equal(longer.latents[0, :, : prefix.shape[1]], prefix)


def test_enable_and_disable(pipe):
    assert isinstance(pipe.flowcache_config.policy, Interval)
    config = flowcache.enable(pipe, "paper-fast", kv_bits=8, forecast="hold_velocity")
    assert isinstance(config.policy, ChunkwiseReuse) and config is pipe.flowcache_config
    assert (config.storage.bits, config.forecast) == (8, "hold_velocity")
    own = FlowCacheConfig(policy="none", compression=KVCompressionConfig(budget=2))
    assert flowcache.enable(pipe, config=own) is own is pipe.flowcache_config
    assert flowcache.enable(pipe, method="teacache").whole_window
    flowcache.disable(pipe)
    assert pipe.flowcache_config == method_config("vanilla")
    assert pipe("a circle", **CALL).trace.method == "vanilla"
    settings = VideoSettings(height=32, width=32, num_frames=9, inference_steps=4, causal_block_size=1)
    trace = pipe("a circle", settings=settings, cache=method_config("causal")).trace
    assert not trace.settings["reuse"]["whole_window"], "the call's own configuration goes first"


def test_from_pipe_shares_components(checkpoint):
    theirs = SkyReelsV2DiffusionForcingPipeline.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
    ours = FlowCacheSkyReelsV2Pipeline.from_pipe(theirs)
    assert ours.transformer is theirs.transformer and ours.transformer.dtype == torch.bfloat16
    assert isinstance(ours("a circle", **CALL), VideoOutput)
    assert FlowCacheSkyReelsV2Pipeline.from_pipe(ours).model_defaults == ours.model_defaults
    assert theirs("a circle", **CALL).frames.shape[1] == 9, "diffusers' own call still works"
    cpu_offload_with_hook(theirs.transformer, "cpu")
    with pytest.raises(ValueError, match="enable_stage_offload"):
        FlowCacheSkyReelsV2Pipeline.from_pipe(theirs)


IMAGE, PREFIX = Image.new("RGB", (32, 32)), torch.zeros(3, 5, 32, 32)
REFUSED = {
    "prompt:": {"prompt": None},
    "prompt: expected one": {"prompt": []},
    "prompt: expected str": {"prompt": ["a", 5]},
    "prompt: expected words": {"prompt": "&nbsp;"},
    "negative_prompt:": {"negative_prompt": ["a", "b"]},
    "negative_prompt: expected guidance": {"negative_prompt": "a", "guidance_scale": 1},
    "negative_prompt: expected words": {"negative_prompt": "&nbsp;"},
    "prompt_embeds:": {"prompt": None, "prompt_embeds": torch.zeros(3, 4)},
    "prompt_embeds: expected \\[4, 16": {"prompt": None, "prompt_embeds": torch.zeros(1, 4, 9)},
    "generator:": {"generator": [generator(), generator()]},
    "generator: expected Generator": {"generator": 5},
    "num_videos_per_prompt:": {"num_videos_per_prompt": 0},
    "num_videos_per_prompt: expected int": {"num_videos_per_prompt": 1.5},
    "output_type:": {"output_type": "gif"},
    "image:": {"image": 5},
    "image: expected no video": {"image": IMAGE, "video": PREFIX},
    "video: expected overlap_history": {"video": PREFIX, "overlap_history": 9},
    "trace:": {"num_videos_per_prompt": 2, "trace": flowcache.Trace()},
    ".*bogus": {"bogus": 5},
    "height": {"height": 33},
    "image: expected a float": {"image": PREFIX.to(torch.uint8)},
    "image must": {"image": torch.zeros(3, 1, 16, 16)},
    "prefix must have 4": {"image": PREFIX[:, :4]},
    "last must be one": {"last_image": PREFIX},
    "last_image:": {"last_image": torch.full((3, 1, 32, 32), torch.nan)},
    "settings:": {"settings": {"height": 32}},
    "cache:": {"cache": "fast"},
    "streaming needs use_compress": {"streaming": True, "ar_step": 2, "cache": method_config("causal")},
    "streaming needs ar_step": {"streaming": True, "ar_step": 0},
    "num_frames": {"image": torch.zeros(3, 9, 32, 32)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_named(pipe, monkeypatch, name):
    monkeypatch.setattr(pipe, "encode_prompt", None)  # nothing may have begun
    with pytest.raises((TypeError, ValueError), match=f"^{name}"):
        pipe(**{"prompt": "a", **CALL, **REFUSED[name]})


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("kv_bitz; did you mean kv_bits", {"kv_bitz": 8}),
        ("^preset:", {"preset": "slowest"}),
        ("^config:", {"config": FlowCacheConfig(), "kv_budget": 1}),
        ("KV cache", {"method": "vanilla", "kv_budget": 1}),
        ("^pipe: .*from_pipe", {"pipe": None}),
    ],
)
def test_enable_refuses_what_it_cannot_do(pipe, match, options):
    with pytest.raises((TypeError, ValueError), match=match):
        flowcache.enable(**{"pipe": pipe, **options})


def test_lost_words_are_a_warning_and_in_the_trace(pipe, caplog):
    lost = {"prompt": {"unknown": ["zebra"]}, "negative_prompt": {"cut": "circle circle"}}
    for _ in range(2):  # an equal warning is not repeated
        assert pipe("a zebra", "a" + " circle" * 8, **CALL).trace.settings["prompt_losses"] == lost
    records = [record for record in caplog.records if record.name == "flowcache.prompts"]
    assert [record.levelname for record in records] == ["WARNING"] * 2
