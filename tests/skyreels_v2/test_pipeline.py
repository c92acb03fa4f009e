"""From a prompt to a video, on a tiny checkpoint with random weights."""

import json
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from flowcache import FlowCacheConfig, Trace, Window
from flowcache.wan.chunk_model import WanChunkModel
from flowcache.wan.codec import VideoCodec
from flowcache.wan.solver import ChunkUniPC
from skyreels_v2 import VideoSettings, load_pipeline, method_config, resolve_model
from skyreels_v2.pipeline import FlowCacheSkyReelsV2Pipeline

SMALL = {"height": 32, "width": 32, "inference_steps": 6, "ar_step": 2, "causal_block_size": 2}
STREAMING = {"streaming": True, "base_num_frames": 17}


@dataclass
class Video:
    frames: Tensor
    latents: Tensor
    trace: Trace
    lengths: list[int]


def generate(pipeline, cache: FlowCacheConfig | None = None, prefix=None, last=None, **changes):
    settings = VideoSettings(**{**SMALL, "num_frames": 17, "base_num_frames": 17, **changes})
    trace, cache = Trace(), cache or method_config("causal")
    parts = list(pipeline.stream("a red circle", None, settings, cache, prefix, last, trace))
    frames, latents = (torch.cat([getattr(p, name) for p in parts], dim=1) for name in ("frames", "latents"))
    return Video(frames, latents, trace, [part.frames.shape[1] for part in parts])


def pixels(frames: int, seed: int = 0) -> Tensor:
    return torch.rand(3, frames, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


IMAGE, LAST = pixels(1), pixels(1, seed=1)


@pytest.mark.parametrize("num_frames", [1, 5, 13, 29, 37])
@pytest.mark.parametrize(("method", "block"), [("vanilla", 1), ("flowcache", 1), ("flowcache", 3)])
def test_every_legal_length_keeps_all_frames(pipeline, num_frames, method, block):
    block = min(block, (num_frames - 1) // 4 + 1)
    changes = {"num_frames": num_frames, "overlap_history": 5, "causal_block_size": block}
    video = generate(pipeline, method_config(method), **changes)
    assert video.frames.shape == (3, num_frames, 32, 32)
    assert video.latents.shape[1] == (num_frames - 1) // 4 + 1
    assert video.frames.isfinite().all()


@pytest.mark.parametrize("forecast", ["hold_residual", "hold_displacement", "hold_velocity"])
def test_threshold_zero_is_causal_bit_for_bit(pipeline, forecast):
    long = {"num_frames": 29, "overlap_history": 5, "addnoise_condition": 20}
    causal = generate(pipeline, method_config("causal"), **long)
    cache = method_config("flowcache", threshold=0.0, forecast=forecast, family="1.3B")
    zero = generate(pipeline, cache, **long)
    assert torch.equal(causal.latents, zero.latents)
    assert zero.trace.reuse_ratio == 0


@pytest.mark.parametrize("forecast", ["hold_residual", "hold_displacement", "hold_velocity"])
def test_reused_chunks_cost_no_layer(pipeline, forecast):
    calls = []
    hook = pipeline.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    cache = method_config("flowcache", "paper-fast", threshold=1000, use_ret_steps=False, forecast=forecast)
    trace = generate(pipeline, cache).trace
    hook.remove()
    computing = [step for step in trace.steps if any(not event.reused for event in step.events)]
    assert len(calls) == len(computing) < len(trace.steps), "one packed call a step, none where all reuse"
    assert trace.reuse_ratio == pytest.approx(4 / 6)
    flops = trace.flops
    assert flops["vanilla"] > flops["live_only"] > flops["causal"] > flops["actual"] > 0


@pytest.mark.parametrize(
    ("frames", "changes"),
    [
        (1, {"num_frames": 21, "base_num_frames": 21}),
        (9, {"num_frames": 29, "overlap_history": 9}),
        (13, {**STREAMING, "num_frames": 57}),
    ],
)
def test_given_frames_stay_as_they_were(pipeline, frames, changes):
    prefix, cache = pixels(frames), method_config("flowcache", budget_block=1)
    last = LAST if frames == 1 else None
    video = generate(pipeline, cache, prefix, last, **changes)
    assert video.frames.shape[1] == changes["num_frames"], "the frame to arrive at is none of the video"
    count = (frames - 1) // 4 + 1
    assert torch.equal(video.latents[:, :count], VideoCodec(pipeline.vae).encode(prefix))


@pytest.fixture
def shown(monkeypatch):
    """Inputs of the model, call by call, with latents as they were."""
    inputs, plain = [], WanChunkModel.embed

    def embed(self, given):
        inputs.extend(replace(item, latents=item.latents.clone()) for item in given)
        return plain(self, given)

    monkeypatch.setattr(WanChunkModel, "embed", embed)
    return inputs


@pytest.mark.parametrize("method", ["vanilla", "causal"])
def test_the_frame_to_arrive_at_is_shown_clean(pipeline, method, shown):
    """``addnoise_condition`` is for the prefix; the last frame has time 0, as in the original."""
    codec = VideoCodec(pipeline.vae)
    generate(pipeline, method_config(method), IMAGE, LAST, addnoise_condition=20)
    ends = [item for item in shown if item.start_frame == 5]
    assert ends and all(item.timesteps == (0,) for item in ends)
    assert all(torch.equal(item.latents, codec.encode(LAST)) for item in ends)
    for item in (item for item in shown if item.start_frame == 0):
        assert item.timesteps[0] == 20
        assert not torch.equal(item.latents[:, :1], codec.encode(IMAGE))


def test_noise_of_a_window_does_not_depend_on_the_method(pipeline, shown):
    long, noises = {"num_frames": 37, "overlap_history": 5, "addnoise_condition": 20}, []
    for method in ("vanilla", "causal"):
        shown.clear()
        generate(pipeline, method_config(method), **long)
        starts = [item.latents for item in shown if item.start_frame == 2 and item.timesteps[0] == 999]
        noises.append({latents.numpy().tobytes() for latents in starts})
    assert len(noises[1]) > 2 and noises[0] == noises[1]


def test_whole_window_runs_hold_one_layer(pipeline):
    sizes = {m: generate(pipeline, method_config(m)).trace.windows[0].kv_bytes for m in ("vanilla", "causal")}
    assert sizes["causal"] > pipeline.transformer.config.num_layers * sizes["vanilla"]


@pytest.mark.parametrize("method", ["causal", "flowcache"])
def test_clean_blocks_in_host_memory_change_nothing(pipeline, method):
    long = {"num_frames": 41, "base_num_frames": 41, "ar_step": 3, "addnoise_condition": 20}
    plain, stored = (generate(pipeline, method_config(method, kv_offload=on), IMAGE, **long) for on in (False, True))
    assert torch.equal(plain.latents, stored.latents)
    assert plain.trace.steps[-1].kv_tokens == stored.trace.steps[-1].kv_tokens


@pytest.mark.parametrize(("budget", "least"), [(None, 45), (1, 30)])
def test_the_small_model_hardly_notices_eight_bits(budget, least):
    """Blocks one after the other, so that all but one are stored."""
    source = resolve_model("small", "cpu")
    pipeline = load_pipeline(source, "cpu")
    changes = {"ar_step": 6, "causal_block_size": 1, "height": 64, "width": 64, "guidance_scale": 3.0}
    caches = [source.method_config("causal", kv_bits=bits, budget_block=budget) for bits in (None, 8)]
    plain, stored = (generate(pipeline, cache, **changes) for cache in caches)
    error = (plain.latents - stored.latents).square().mean()
    span = plain.latents.amax() - plain.latents.amin()
    assert 10 * torch.log10(span**2 / error) > least
    assert stored.trace.windows[0].kv_bytes < plain.trace.windows[0].kv_bytes
    assert stored.trace.settings["reuse"]["storage"] == {"bits": 8, "offload": False}


@pytest.mark.parametrize("limits", [{"budget_block": 9}, {"kvrange": 9}])
@pytest.mark.parametrize("method", ["causal", "flowcache"])
def test_streaming_within_one_window_equals_the_window(pipeline, method, limits):
    window = generate(pipeline, method_config(method))
    stream = generate(pipeline, method_config(method, **limits), **STREAMING)
    assert torch.equal(stream.latents, window.latents)
    assert torch.equal(stream.frames, window.frames)


def test_streaming_begins_as_the_first_window(pipeline):
    """Before eviction, later blocks make no difference; the noise is the same, too."""
    cache = method_config("causal", kvrange=9)
    long = generate(pipeline, cache, **STREAMING, num_frames=41)
    assert long.lengths == [5, 8, 8, 8, 8, 4], "every block is shown as soon as it is clean"
    windows = generate(pipeline, cache, num_frames=41, overlap_history=5)
    assert torch.equal(long.latents[:, :4], windows.latents[:, :4])
    assert not torch.equal(long.latents[:, 4:], windows.latents[:, 4:])


@pytest.mark.parametrize("limits", [{"budget_block": 1}, {"kvrange": 1}])
def test_streaming_needs_the_memory_of_a_short_video(pipeline, limits, monkeypatch):
    held, plain = [], Window.latents
    monkeypatch.setattr(
        Window, "latents", lambda self, chunk: (plain(self, chunk), held.append(len(self._latents)))[0]
    )
    sizes = []
    for num_frames in (73, 201):
        video = generate(pipeline, method_config("flowcache", **limits), **STREAMING, num_frames=num_frames)
        assert video.frames.shape[1] == num_frames
        assert video.frames.isfinite().all()
        sizes.append(video.trace.windows[0].kv_bytes)
    assert sizes[0] == sizes[1]
    assert max(held) <= 3 + 1, "three live blocks, and the one that is handed over"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_only_the_first_video_compiles(pipeline, checkpoint):
    """Two graphs for all layers, steps and numbers of live blocks; as close to the plain model as rounding."""
    compiled = load_pipeline(str(checkpoint), "cpu", compile=True)
    compiled.set_progress_bar_config(disable=True)
    cache, before = method_config("flowcache", "fast"), counters["stats"]["unique_graphs"]
    for changes in ({"num_frames": 33}, {"num_frames": 45, "seed": 1}):
        changes |= {"base_num_frames": 45, "causal_block_size": 3}
        video, plain = (generate(each, cache, **changes) for each in (compiled, pipeline))
        torch.testing.assert_close(video.latents, plain.latents, rtol=1e-5, atol=1e-5)
        assert {len(step.events) for step in video.trace.steps} == {1, 2, 3}
        assert counters["stats"]["unique_graphs"] - before == 2


def test_compile_without_a_compiler_is_refused_before_weights_are_read(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"^compile: expected a C\+\+ compiler"):
        load_pipeline("none", "cpu", compile=True)


@pytest.mark.parametrize("lengths", [[1, 1, 1, 4], [5, 2], [7]])
def test_decoding_piece_by_piece_is_decoding_the_whole(pipeline, lengths):
    latents, decoder = torch.randn(4, 7, 4, 4), VideoCodec(pipeline.vae)
    whole = pipeline.vae.decode(latents.unsqueeze(0)).sample[0]
    pieces = torch.cat([decoder.decode(piece) for piece in latents.split(lengths, dim=1)], dim=1)
    assert torch.equal(pieces, whole)


@pytest.mark.parametrize("lengths", [[1, 1, 1, 4], [7]])
def test_tiles_piece_by_piece_are_those_of_the_whole(checkpoint, lengths):
    vae = load_pipeline(str(checkpoint), "cpu").vae
    vae.enable_tiling(16, 24, 8, 16)
    latents, decoder, pieces = torch.randn(4, 7, 5, 7), VideoCodec(vae), []
    whole = vae.decode(latents.unsqueeze(0)).sample[0]
    for piece in latents.split(lengths, dim=1):
        pieces.append(decoder.decode(piece))
        state, decoder = decoder.state_dict(), VideoCodec(vae)
        decoder.load_state_dict(state)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-5)
    assert len(state["features"]) == 5 * 4


def test_saved_pipelines_keep_their_settings(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    own = {"height": 64, "width": 64, "guidance_scale": 3.0, "shift": 5.0, "negative_prompt": "a circle"}
    (copy / "defaults.json").write_text(json.dumps(own))
    FlowCacheSkyReelsV2Pipeline.from_pretrained(copy).save_pretrained(tmp_path / "saved")
    again = load_pipeline(str(tmp_path / "saved"), "cpu")
    assert again.default_negative_prompt == "a circle"
    again.save_pretrained(tmp_path / "again")
    assert resolve_model(str(tmp_path / "again"), "cpu").defaults == resolve_model(str(copy), "cpu").defaults


def test_blocks_that_move_together_attend_to_the_whole_window_and_are_reused(pipeline):
    """By the pipeline's own choice; without reuse, it is the original."""
    for changes in ({"ar_step": 0, "num_frames": 25, "overlap_history": 5}, {"causal_block_size": 5}):
        settings = VideoSettings(**{**SMALL, "num_frames": 17, "base_num_frames": 17, **changes})
        trace, cache = Trace(), pipeline.flowcache_together
        assert settings.moves_together
        parts = list(pipeline.stream("a red circle", None, settings, trace=trace))
        assert trace.settings["reuse"] == cache.as_dict(6) and cache.bidirectional
        assert [step.events[0].reused for step in trace.steps[:6]] == [False, True, False, True, False, True]
        assert trace.flops["vanilla"] == pytest.approx(2 * trace.flops["actual"])
        vanilla = generate(pipeline, method_config("vanilla"), **changes)
        everything = generate(pipeline, replace(cache, policy=replace(cache.policy, interval=1)), **changes)
        assert torch.equal(everything.latents, vanilla.latents)
        assert not torch.equal(torch.cat([part.latents for part in parts], dim=1), vanilla.latents)
    assert not any(VideoSettings(**SMALL, **lag).moves_together for lag in ({}, STREAMING))


def test_a_solver_returns_to_an_earlier_step():
    solver, latents = ChunkUniPC(6, 8.0), torch.randn(2, 3, 4, 4)
    for step in range(3):
        before, history = latents, solver.history(0)
        latents = solver.step(0, step, before, torch.full_like(before, step))
        assert (history is None) == (step == 0)
        again = ChunkUniPC(6, 8.0)
        for each in (solver, again):
            each.restore(0, history)
            assert torch.equal(each.step(0, step, before, torch.full_like(before, step)), latents)
