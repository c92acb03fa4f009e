"""The pipelines as users of diffusers call them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import SkyReelsV2DiffusionForcingPipeline
from diffusers.utils import export_to_video
from PIL import Image
from torch._dynamo.testing import CompileCounter

import flowcache
import magi1
from flowcache import FlowCacheConfig, KVCompressionConfig, VideoOutput
from flowcache.reuse import ChunkwiseReuse, Interval
from flowcache.video import probe_video, to_float, to_uint8
from flowcache.wan.codec import VideoCodec
from magi1 import MagiConfig, MagiPipeline
from magi1 import method_config as magi_config
from magi1.attention import TextBank
from magi1.captions import CaptionSwitches, SpecialTokens
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline, VideoSettings, method_config

#: Options of the method of MAGI-1 that compute some steps only.
DISTANCE = {"threshold": 0.2, "warmup_steps": 1}
CALL = {"num_frames": 9, "height": 32, "width": 32, "num_inference_steps": 4, "guidance_scale": 3.0}
#: Calls of both models in chunks of one latent frame.
CALLS = {"skyreels_v2": {**CALL, "ar_step": 1, "causal_block_size": 1}}
CALLS["magi1"] = {"num_frames": 17, "height": 32, "width": 48, "num_inference_steps": 8, "chunk_width": 1}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipe(checkpoint):
    return FlowCacheSkyReelsV2Pipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)


@pytest.fixture
def magi_pipe(pipelines):
    return pipelines["magi1"]


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


@pytest.mark.parametrize("model", CALLS)
def test_a_step_waits_for_the_device_once_at_most(pipelines, model, monkeypatch):
    """With the paper's rules, which measure a distance for each chunk; and once more when a chunk is clean."""
    reads, by_step = [], []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *a, own=own: (reads.append(1), own(*a))[1])

    def end_step(*_):
        by_step.append(len(reads))
        reads.clear()

    config = pipelines[model].flowcache_traits.configure(preset="paper-fast", warmup_steps=1)
    call = {**CALLS[model], "num_inference_steps": 16, "output_type": "latent", "callback_on_step_end": end_step}
    trace = pipelines[model]("a circle", **call, cache=config).trace
    measured = [sum(event.distance is not None for event in step.events) for step in trace.steps]
    assert max(measured) > 1 and max(by_step[1:]) <= 2
    assert by_step[1:].count(2) < sum(map(len, (window.chunk_frames for window in trace.windows)))


@pytest.mark.parametrize("model", CALLS)
def test_lists_of_prompts(pipelines, model):
    """Each video is the one that a call of its own makes; its trace names the seed."""
    pipe, call = pipelines[model], CALLS[model]
    given = {"prompt": ["a circle", "a red circle"]}
    if model == "skyreels_v2":
        given["negative_prompt"] = ["red", ""]
    second = {name: words[1] for name, words in given.items()}
    both = pipe(**given, **call, num_videos_per_prompt=2, generator=generator())
    assert both.frames.shape == (4, call["num_frames"], call["height"], call["width"], 3)
    assert [trace.settings["prompt"] for trace in both.traces] == ["a circle"] * 2 + ["a red circle"] * 2
    alone = pipe(**second, **call, seed=both.traces[2].settings["video"]["seed"])
    np.testing.assert_array_equal(alone.frames[0], both.frames[2])
    each = pipe(**given, **call, generator=[generator(1), generator()])
    single = pipe(**second, **call, generator=generator())
    np.testing.assert_array_equal(each.frames[1], single.frames[0])
    counted = [trace.settings["video"]["seed"] for trace in pipe(**given, **call, seed=3).traces]
    assert counted == [3, 4]


@torch.no_grad()
def test_embeddings_in_place_of_prompts(pipe, pipelines):
    expected = pipe("a red circle", "a", **CALL)
    embeds, negative = pipe.encode_prompt("a red circle", "a", max_sequence_length=pipe.text_length)
    for given in ({"negative_prompt_embeds": negative}, {"negative_prompt": "a"}):
        assert torch.equal(pipe(prompt_embeds=embeds, **given, **CALL).latents, expected.latents)
    magi, call = pipelines["magi1"], CALLS["magi1"]
    video = magi(prompt_embeds=magi.encode_prompt("a red circle"), **call)
    assert torch.equal(video.latents, magi("a red circle", **call).latents)


@pytest.mark.parametrize("model", CALLS)
def test_callback_sees_every_step(pipelines, model):
    pipe, seen = pipelines[model], []
    steps = pipe("a circle", **CALLS[model], callback_on_step_end=lambda *args: seen.append(args)).trace.steps
    assert [step for _, step, _, _ in seen] == list(range(len(steps)))
    assert all(made is pipe and 0 <= timestep < 1000 for made, _, timestep, _ in seen)
    assert [kwargs["latents"].shape[2] for *_, kwargs in seen] == [len(step.events) for step in steps]
    call = {**CALLS[model], "output_type": "latent", "return_dict": False}
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
    "skyreels_v2": {
        "prompt:": {"prompt": None},
        "prompt: expected one": {"prompt": []},
        "prompt: expected str": {"prompt": ["a", 5]},
        "prompt: expected words": {"prompt": "&nbsp;"},
        "negative_prompt:": {"negative_prompt": ["a", "b"]},
        "negative_prompt: expected guidance": {"negative_prompt": "a", "guidance_scale": 1},
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
        "image: expected \\[3": {"image": torch.zeros(3, 1, 16, 16)},
        "prefix: expected 4": {"image": PREFIX[:, :4]},
        "last: expected one": {"last_image": PREFIX},
        "last_image:": {"last_image": torch.full((3, 1, 32, 32), torch.nan)},
        "settings:": {"settings": {"height": 32}},
        "cache:": {"cache": "fast"},
        "streaming needs use_compress": {"streaming": True, "ar_step": 2, "cache": method_config("causal")},
        "streaming needs ar_step": {"streaming": True, "ar_step": 0},
        "num_frames": {"image": torch.zeros(3, 9, 32, 32)},
    },
    "magi1": {
        "video: expected at least 4": {"video": torch.zeros(3, 3, 32, 48)},
        "prompt_embeds:": {"prompt": None, "prompt_embeds": torch.zeros(1, 4, 9)},
        "cache:": {"cache": "fast"},
        "guidance_scale:": {"guidance_scale": 3.0},
        "special_tokens:": {"switches": CaptionSwitches(static=True)},
        "video_size_h": {"height": 33},
        ".*bogus": {"bogus": 5},
        ".*negative_prompt": {"negative_prompt": "a"},
    },
}


@pytest.mark.parametrize(("model", "match", "given"), [(m, *case) for m, of in REFUSED.items() for case in of.items()])
def test_wrong_arguments_are_named(pipelines, model, match, given):
    call = {"prompt": "a", **CALLS[model], **given}
    with pytest.raises((TypeError, ValueError), match=f"^({match})"):
        pipelines[model](**call)


ENABLED = {
    "kv_bitz; did you mean kv_bits": {"kv_bitz": 8},
    "^preset:": {"preset": "slowest"},
    "^config:": {"config": FlowCacheConfig(), "kv_budget": 1},
    "KV cache": {"method": "vanilla", "kv_budget": 1},
    "^pipe: .*from_pipe": {"pipe": None},
}


@pytest.mark.parametrize("match", ENABLED)
def test_enable_refuses_what_it_cannot_do(pipe, match):
    with pytest.raises((TypeError, ValueError), match=match):
        flowcache.enable(**{"pipe": pipe, **ENABLED[match]})


def test_lost_words_are_a_warning_and_in_the_trace(pipe, caplog):
    lost = {"prompt": {"unknown": ["zebra"]}, "negative_prompt": {"cut": "circle circle"}}
    for _ in range(2):  # an equal warning is not repeated
        assert pipe("a zebra", "a" + " circle" * 8, **CALL).trace.settings["prompt_losses"] == lost
    records = [record for record in caplog.records if record.name == "flowcache.prompts"]
    assert [record.levelname for record in records] == ["WARNING"] * 2


def make(pipe, method="vanilla", options=(), base=False, **changes) -> VideoOutput:
    """A video of MAGI-1 in four steps; ``base``: with the guidance of base models."""
    config, given = pipe.model_defaults, {"output_type": "latent", "num_steps": 4, **changes}
    if base:
        runtime, engine = replace(config.runtime_config, cfg_number=3), replace(config.engine_config)
        config = MagiConfig(runtime_config=runtime, engine_config=replace(engine, distill=False))
    return pipe("a red circle", config=config, cache=magi_config(method, **dict(options)), **given)


@pytest.mark.parametrize("num_frames", [4, 30])
@pytest.mark.parametrize("method", magi1.METHODS)
def test_chunks_of_every_length_come_one_by_one(magi_pipe, num_frames, method):
    parts = list(magi_pipe.stream("a circle", cache=magi_config(method), num_frames=num_frames))
    assert [part.frames.shape[1] for part in parts] == {4: [4], 30: [8, 8, 8, 6]}[num_frames]
    assert all(part.frames.isfinite().all() for part in parts)


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize(
    ("width", "given", "num_frames"), [(2, 4, 32), (2, 8, 32), (2, 15, 36), (6, 20, 28), (1, 8, 32), (1, 0, 32)]
)
def test_a_given_video_is_not_repeated(magi_pipe, base, width, given, num_frames):
    """Also where a single latent frame is all that it leaves of a chunk."""
    changes = {"chunk_width": width, "num_frames": num_frames, "output_type": "np"}
    if given:
        changes["video"] = torch.rand(3, given, 32, 32) * 2 - 1
    video = make(magi_pipe, "flowcache", DISTANCE, base, **changes)
    assert video.frames.shape == (1, num_frames, 32, 32, 3)


@torch.no_grad()
@pytest.mark.parametrize("chunk_width", [1, 2, 6])
@pytest.mark.parametrize("num_frames", [1, 4, 32])
def test_a_video_begins_with_a_given_image(magi_pipe, chunk_width, num_frames):
    image, size = Image.new("RGB", (32, 32), "red"), {"chunk_width": chunk_width, "num_frames": num_frames}
    video = make(magi_pipe, "flowcache", image=image, output_type="np", **size)
    assert video.frames.shape[1] == num_frames
    assert torch.equal(video.latents[0, :, :1], magi_pipe._encode(to_float(np.array(image)[None])))


def test_projections_of_a_caption_are_kept_no_longer_than_needed(magi_pipe, monkeypatch):
    held, keep = [], TextBank.keep

    def watched(bank, captions):
        keep(bank, captions)
        held.append(len({text for _, text in bank.keys_values}))

    monkeypatch.setattr(TextBank, "keep", watched)
    tokens = SpecialTokens(torch.randn(100, 16), torch.randn(1, 16), torch.randn(1, 16))
    make(magi_pipe, num_frames=96, switches=CaptionSwitches(duration=True), special_tokens=tokens)
    assert max(held) <= 4 + 1, "those of a window's chunks, and the null caption"


@pytest.mark.parametrize("change", ["save", "bf16", "fp8", "compile", "compile blocks"])
def test_what_diffusers_does_with_models(magi_pipe, change, tmp_path, monkeypatch):
    pipeline = copy.deepcopy(magi_pipe)
    plain, transformer, most = make(pipeline).latents, pipeline.transformer, 0.3
    bands = transformer.rotary_bands.clone()
    if change == "save":
        pipeline.save_pretrained(tmp_path)
        pipeline, most = MagiPipeline.from_pretrained(tmp_path), 0
        assert pipeline.model_defaults.runtime_config.num_steps == 8
    elif change == "bf16":
        pipeline.to(torch.bfloat16)
    elif change == "fp8":
        transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    else:
        if change == "compile blocks":
            monkeypatch.setattr("flowcache.blockwise.MAX_TOKENS", 5)
        torch._dynamo.reset()
        transformer.compile_repeated_blocks(backend=(counter := CompileCounter()))
        make(pipeline)
        few, most = counter.frame_count, 1e-5
        make(pipeline, num_frames=64)
        assert counter.frame_count == few, "not again for more chunks, steps and layers"
    error = (make(pipeline).latents - plain).norm() / plain.norm()
    assert (change in ("bf16", "fp8")) <= (error > 0) and error <= most
    assert torch.equal(pipeline.transformer.rotary_bands, bands), "what must stay in fp32 is not rounded"


@pytest.mark.parametrize("base", [False, True])
def test_threshold_zero_is_vanilla(magi_pipe, base):
    vanilla, zero = make(magi_pipe, base=base), make(magi_pipe, "flowcache", {**DISTANCE, "threshold": 0}, base)
    assert torch.equal(vanilla.latents, zero.latents)
    if base:
        assert not torch.equal(make(magi_pipe, base=True, guidance_scale=1).latents, vanilla.latents)
    assert zero.trace.reuse_ratio == 0
    assert vanilla.trace.flops["actual"] == pytest.approx(vanilla.trace.flops["vanilla"])


def test_weights_are_loaded_as_the_caller_says(weights):
    offloading = MagiPipeline.from_config_file(weights, "cpu", kv_offload=True, num_frames=8)
    trace = offloading("a circle", cache=magi_config(kv_bits=8)).trace
    assert trace.settings["reuse"]["storage"] == {"bits": 8, "offload": True}
    flowcache.enable(offloading, preset="turbo", kv_budget=1)
    trace = offloading("a circle", num_frames=32).trace
    assert trace.settings["reuse"]["compression"]["budget"] == 1 and trace.reuse_ratio > 0
    with pytest.raises(ValueError, match="prefix"):
        next(offloading.stream("a", prefix=torch.zeros(3, 6, 32, 32)))
    with pytest.raises(ValueError, match="bogus"):
        MagiPipeline.from_config_file("config/single_run/4.5B_distill.json", bogus=1)
