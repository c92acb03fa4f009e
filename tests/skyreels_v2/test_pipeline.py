"""From a prompt to a video, on a tiny checkpoint with random weights."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from flowcache import FlowCacheConfig, Window
from flowcache.video import to_float
from skyreels_v2 import Condition, VideoSettings, load_pipeline, method_config, resolve_model
from skyreels_v2.chunk_model import SkyReelsV2ChunkModel
from skyreels_v2.codec import VideoCodec, VideoDecoder
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline

SMALL = {"height": 32, "width": 32, "inference_steps": 6, "ar_step": 2, "causal_block_size": 2}


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    pipeline = load_pipeline(str(checkpoint), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, cache: FlowCacheConfig | None = None, condition: Condition | None = None, **changes):
    settings = VideoSettings(**{**SMALL, "num_frames": 17, "base_num_frames": 17, **changes})
    return pipeline(
        "a red circle", settings=settings, cache=cache or method_config("causal"), condition=condition
    )


@pytest.mark.parametrize("num_frames", [1, 5, 13, 17, 21, 29, 37])
@pytest.mark.parametrize("method", ["vanilla", "flowcache"])
@pytest.mark.parametrize("block", [1, 3])
def test_every_legal_length_keeps_all_frames(pipeline, num_frames, method, block):
    block = min(block, (num_frames - 1) // 4 + 1)
    video = generate(
        pipeline, method_config(method), num_frames=num_frames, overlap_history=5, causal_block_size=block
    )
    assert video.frames.shape == (3, num_frames, 32, 32)
    assert video.latents.shape[1] == (num_frames - 1) // 4 + 1
    assert video.frames.isfinite().all()


@pytest.mark.parametrize("forecast", ["hold_residual", "hold_displacement", "hold_velocity"])
@pytest.mark.parametrize("family", [None, "1.3B", "14B"])
def test_threshold_zero_is_causal_bit_for_bit(pipeline, forecast, family):
    long = {"num_frames": 29, "overlap_history": 5, "addnoise_condition": 20}
    causal = generate(pipeline, method_config("causal"), **long)
    zero = generate(
        pipeline, method_config("flowcache", threshold=0.0, forecast=forecast, family=family), **long
    )
    assert torch.equal(causal.latents, zero.latents)
    assert zero.trace.reuse_ratio == 0


@pytest.mark.parametrize("forecast", ["hold_residual", "hold_displacement", "hold_velocity"])
def test_reused_chunks_cost_no_layer(pipeline, forecast):
    calls = []
    hook = pipeline.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    cache = method_config("flowcache", "paper-fast", threshold=1000, use_ret_steps=False, forecast=forecast)
    video = generate(pipeline, cache)
    hook.remove()
    steps = video.trace.steps
    computing = [step for step in steps if any(not event.reused for event in step.events)]
    assert len(calls) == len(computing) < len(steps), "one packed call a step, and none where all reuse"
    assert video.trace.reuse_ratio == pytest.approx(4 / 6)
    assert video.trace.flops["actual"] < video.trace.flops["causal"]


def test_same_seed_same_video(pipeline):
    assert torch.equal(generate(pipeline, seed=3).frames, generate(pipeline, seed=3).frames)
    assert not torch.equal(generate(pipeline, seed=3).frames, generate(pipeline, seed=4).frames)


def test_given_frames_stay_as_they_were(pipeline):
    image = torch.rand(3, 1, 32, 32) * 2 - 1
    last = torch.rand(3, 1, 32, 32) * 2 - 1
    video = generate(
        pipeline, condition=Condition(prefix=image, last=last), num_frames=21, base_num_frames=21
    )
    plain = generate(pipeline, num_frames=21, base_num_frames=21)
    assert torch.equal(video.latents[:, :1], VideoCodec(pipeline.vae).encode(image))
    assert video.frames.shape == plain.frames.shape, "the frame to arrive at is no frame of the video"
    assert not torch.equal(video.latents[:, -1], plain.latents[:, -1])


@pytest.fixture
def shown(monkeypatch):
    """What the model is shown, call by call."""
    inputs, plain = [], SkyReelsV2ChunkModel.embed
    monkeypatch.setattr(
        SkyReelsV2ChunkModel, "embed", lambda self, given: (inputs.extend(given), plain(self, given))[1]
    )
    return inputs


def test_a_clean_pass_shows_each_clean_block_once_more(pipeline, shown):
    plain, passed = (
        generate(pipeline, FlowCacheConfig(policy="none", clean_pass=passes)) for passes in (False, True)
    )
    assert [item.start_frame for item in shown if item.timesteps == (0, 0)] == [0, 2]
    assert not torch.equal(plain.latents, passed.latents)


@pytest.mark.parametrize("method", ["vanilla", "causal"])
def test_the_frame_to_arrive_at_is_shown_clean(pipeline, method, shown):
    """``addnoise_condition`` is for the prefix; the last frame has time 0, as in the original."""
    first, last = (torch.rand(3, 1, 32, 32) * 2 - 1 for _ in range(2))
    generate(pipeline, method_config(method), Condition(first, last), addnoise_condition=20)
    codec = VideoCodec(pipeline.vae)
    ends = [item for item in shown if item.start_frame == 5]
    assert ends
    for item in ends:
        assert item.timesteps == (0,)
        assert torch.equal(item.latents, codec.encode(last))
    for item in (item for item in shown if item.start_frame == 0):
        assert item.timesteps[0] == 20
        assert not torch.equal(item.latents[:, :1], codec.encode(first))


def test_extension_starts_with_the_prefix(pipeline):
    prefix = torch.rand(3, 9, 32, 32) * 2 - 1
    video = generate(pipeline, condition=Condition(prefix=prefix), num_frames=29, overlap_history=9)
    assert video.frames.shape[1] == 29
    assert torch.equal(video.latents[:, :3], VideoCodec(pipeline.vae).encode(prefix))
    with pytest.raises(ValueError, match="num_frames"):
        generate(pipeline, condition=Condition(prefix=prefix), num_frames=9)


def test_flops_split_is_ordered(pipeline):
    flops = generate(pipeline, method_config("vanilla")).trace.flops
    assert flops["vanilla"] == flops["actual"] > flops["live_only"] > flops["causal"] > 0


def test_offload_leaves_everything_on_the_host(checkpoint):
    pipeline = load_pipeline(str(checkpoint), "cpu", offload=True)
    pipeline.set_progress_bar_config(disable=True)
    moves = []
    for name in ("text_encoder", "transformer", "vae"):
        module = getattr(pipeline, name)
        plain = module.to
        module.to = lambda *args, name=name, plain=plain: (moves.append((name, str(args[0]))), plain(*args))[
            1
        ]
    pipeline.enable_stage_offload("cpu:0")
    assert generate(pipeline).frames.isfinite().all()
    arrivals = [name for name, device in moves if device == "cpu:0"]
    departures = [name for name, device in moves if device == "cpu"]
    assert arrivals == departures, "every part leaves when its stage is over"
    assert set(arrivals) == {"text_encoder", "transformer", "vae"}


def test_noise_of_a_window_does_not_depend_on_the_method(pipeline, monkeypatch):
    noises = {}
    for method in ("vanilla", "causal"):
        drawn = noises.setdefault(method, [])
        plain = type(pipeline)._new_window

        def watched(self, *args, drawn=drawn, plain=plain):
            window = plain(self, *args)
            noise = [window.latents(c) for c in range(window.num_given, len(window.chunks))]
            drawn.append(torch.cat(noise, dim=1).clone())
            return window

        with monkeypatch.context() as patch:
            patch.setattr(type(pipeline), "_new_window", watched)
            generate(pipeline, method_config(method), num_frames=37, overlap_history=5, addnoise_condition=20)
    assert len(noises["vanilla"]) > 2
    for theirs, ours in zip(noises["vanilla"], noises["causal"], strict=True):
        assert torch.equal(theirs[:, 2:], ours[:, 2:])


def test_conditions_that_do_not_fit_are_refused(pipeline):
    for prefix, message in (
        (torch.zeros(3, 1, 16, 16), r"prefix must be \[3, frames, 32, 32\]"),
        (torch.zeros(3, 4, 32, 32), "4 k . 1 frames, got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(pipeline, condition=Condition(prefix=prefix))


def test_whole_window_runs_hold_one_layer(pipeline):
    sizes = {m: generate(pipeline, method_config(m)).trace.windows[0].kv_bytes for m in ("vanilla", "causal")}
    assert sizes["causal"] == pipeline.transformer.config.num_layers * sizes["vanilla"]


@pytest.mark.parametrize("method", ["causal", "flowcache"])
def test_finished_blocks_in_host_memory_change_nothing(pipeline, method):
    long = {"num_frames": 41, "base_num_frames": 41, "ar_step": 3, "addnoise_condition": 20}
    image = Condition(prefix=torch.rand(3, 1, 32, 32) * 2 - 1)
    plain = generate(pipeline, method_config(method), image, **long)
    stored = generate(pipeline, method_config(method, kv_offload=True), image, **long)
    assert torch.equal(plain.latents, stored.latents)
    assert plain.trace.steps[-1].kv_tokens == stored.trace.steps[-1].kv_tokens


def test_settings_of_the_store_are_in_the_trace(pipeline, tmp_path):
    cache = method_config("causal", kv_bits=4)
    trace = generate(pipeline, cache, num_frames=41, base_num_frames=41, ar_step=6).trace
    trace.save(tmp_path / "trace.json")
    content = json.loads((tmp_path / "trace.json").read_text())
    assert content["settings"]["reuse"]["storage"] == {"bits": 4, "offload": False}
    events = [event for step in content["steps"] for event in step["quantizations"]]
    assert [event["chunks"] for event in events] == [[0], [1], [2], [3], [4]]
    assert all(0 < event["key_error"] < 0.2 for event in events)
    assert content["windows"][0]["kv_host_bytes"] == 0


def test_the_small_model_hardly_notices_eight_bits():
    """Blocks one after the other, so that all but one are stored."""
    source = resolve_model("small", "cpu")
    pipeline = load_pipeline(source, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    settings = source.video_settings(
        num_frames=17, base_num_frames=17, inference_steps=6, ar_step=6, causal_block_size=1
    )
    videos = {}
    for bits, budget in ((None, None), (8, None), (4, None), (None, 1), (8, 1)):
        cache = source.method_config("causal", kv_bits=bits, budget_block=budget)
        videos[bits, budget] = pipeline("a red circle", settings=settings, cache=cache)
    for budget, least in ((None, 45), (1, 30)):
        plain, stored = videos[None, budget], videos[8, budget]
        error = (plain.latents - stored.latents).square().mean()
        span = plain.latents.amax() - plain.latents.amin()
        assert 10 * torch.log10(span**2 / error) > least
    sizes = {key: video.trace.windows[0].kv_bytes for key, video in videos.items()}
    assert sizes[4, None] < sizes[8, None] < sizes[None, None]
    assert sizes[8, 1] < sizes[None, 1]


STREAMING = {"streaming": True, "base_num_frames": 17}


@pytest.mark.parametrize("limits", [{"budget_block": 9}, {"kvrange": 9}])
@pytest.mark.parametrize("method", ["causal", "flowcache"])
def test_streaming_is_the_window_if_one_would_do(pipeline, method, limits):
    cache = method_config(method, **limits)
    window = generate(pipeline, method_config(method))
    stream = generate(pipeline, cache, **STREAMING)
    assert torch.equal(stream.latents, window.latents)
    assert torch.equal(stream.frames, window.frames)


def test_streaming_begins_as_the_first_window(pipeline):
    """Until something is forgotten, what comes later makes no difference: the noise is the same, too."""
    cache = method_config("causal", kvrange=9)
    long = generate(pipeline, cache, **STREAMING, num_frames=41)
    windows = generate(pipeline, cache, num_frames=41, overlap_history=5)
    assert torch.equal(long.latents[:, :4], windows.latents[:, :4])
    assert not torch.equal(long.latents[:, 4:], windows.latents[:, 4:])


@pytest.mark.parametrize("limits", [{"budget_block": 1}, {"kvrange": 1}])
def test_streaming_needs_the_memory_of_a_short_video(pipeline, limits, monkeypatch):
    held = []
    plain = Window.latents

    def watched(window, chunk):
        latents = plain(window, chunk)
        held.append(len(window.held_chunks))
        return latents

    monkeypatch.setattr(Window, "latents", watched)
    sizes = []
    for num_frames in (73, 201):
        video = generate(pipeline, method_config("flowcache", **limits), **STREAMING, num_frames=num_frames)
        assert video.frames.shape[1] == num_frames
        assert video.frames.isfinite().all()
        sizes.append(video.trace.windows[0].kv_bytes)
    assert sizes[0] == sizes[1]
    assert max(held) <= 3 + 1, "of three live blocks, and the one that is handed over"


def test_streaming_gives_every_block_as_it_is_clean(pipeline):
    settings = VideoSettings(**{**SMALL, **STREAMING, "num_frames": 41})
    parts = pipeline.stream("a red circle", settings=settings, cache=method_config("causal", kvrange=1))
    assert [part.frames.shape[1] for part in parts] == [5, 8, 8, 8, 8, 4]


def test_streaming_goes_on_from_a_prefix(pipeline):
    prefix = torch.rand(3, 13, 32, 32) * 2 - 1
    cache = method_config("flowcache", budget_block=1)
    video = generate(pipeline, cache, Condition(prefix=prefix), **STREAMING, num_frames=57)
    assert video.frames.shape[1] == 57
    assert torch.equal(video.latents[:, :4], VideoCodec(pipeline.vae).encode(prefix))


def test_streaming_refuses_what_would_grow(pipeline):
    with pytest.raises(ValueError, match="streaming needs use_compress or use_kvrange"):
        generate(pipeline, **STREAMING)
    with pytest.raises(ValueError, match="streaming needs ar_step"):
        generate(pipeline, ar_step=0, **STREAMING)


@pytest.mark.parametrize("lengths", [[1, 1, 1, 4], [5, 2], [7]])
def test_decoding_piece_by_piece_is_decoding_the_whole(pipeline, lengths):
    codec = VideoCodec(pipeline.vae)
    latents = torch.randn(4, 7, 4, 4)
    whole = pipeline.vae.decode(latents.unsqueeze(0)).sample[0]
    decoder = VideoDecoder(codec)
    pieces = torch.cat([decoder.decode(piece) for piece in latents.split(lengths, dim=1)], dim=1)
    assert torch.equal(pieces, whole)
    assert torch.equal(codec.decode(latents), whole)


def test_tiles_are_refused(checkpoint):
    pipeline = load_pipeline(str(checkpoint), "cpu")
    pipeline.vae.enable_tiling()
    with pytest.raises(ValueError, match="vae cannot decode tiles"):
        generate(pipeline)


def test_reuse_may_watch_the_filtered_latent(pipeline):
    cache = FlowCacheConfig(threshold=1000, warmup_steps=1, indicator="filtered_latent")
    one, other = (
        [e.distance for s in generate(pipeline, cache, seed=seed).trace.steps for e in s.events if e.distance]
        for seed in (0, 1)
    )
    assert one
    assert one != other, "it sees the latents, and not the time alone"


@pytest.mark.parametrize("name", ["prefix", "last"])
def test_a_condition_may_be_an_image(pipeline, name):
    image = Image.new("RGB", (32, 32), "red")
    tensor = to_float(np.array(image)[None])
    given, same = ({"prefix": tensor, name: frames} for frames in ([image], tensor))
    videos = [generate(pipeline, condition=Condition(**condition)) for condition in (given, same)]
    assert torch.equal(videos[0].frames, videos[1].frames)


REFUSED = {
    "condition.prefix": {"condition": Condition(prefix=torch.zeros(3, 1, 32, 32, dtype=torch.uint8))},
    "condition.last": {"condition": Condition(last=torch.full((3, 1, 32, 32), torch.nan))},
    "condition": {"condition": Image.new("RGB", (32, 32))},
    "prompt": {"prompt": ["a", "red circle"]},
    "negative_prompt": {"negative_prompt": ["a"]},
    "settings": {"settings": {"height": 32}},
    "cache": {"cache": "fast"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_of_another_kind_are_named(pipeline, monkeypatch, name):
    monkeypatch.setattr(pipeline, "encode_prompt", None)  # nothing may have begun
    settings = VideoSettings(**SMALL, num_frames=17, base_num_frames=17)
    with pytest.raises((TypeError, ValueError), match=f"^{name}:"):
        pipeline(**{"prompt": "a", "settings": settings, **REFUSED[name]})


def test_what_is_saved_has_the_same_settings(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    own = {"height": 64, "width": 64, "guidance_scale": 3.0, "shift": 5.0, "negative_prompt": "a circle"}
    (copy / "defaults.json").write_text(json.dumps(own))
    load_pipeline(str(copy), "cpu").save_pretrained(tmp_path / "saved")
    assert resolve_model(str(tmp_path / "saved"), "cpu").defaults == resolve_model(str(copy), "cpu").defaults
    assert load_pipeline(str(tmp_path / "saved"), "cpu").default_negative_prompt == "a circle"
    again = FlowCacheSkyReelsV2Pipeline.from_pretrained(tmp_path / "saved")
    assert again.default_negative_prompt == "a circle"
    again.save_pretrained(tmp_path / "again")
    assert resolve_model(str(tmp_path / "again"), "cpu").defaults["shift"] == 5
