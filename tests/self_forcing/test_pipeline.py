"""Whole videos of a tiny model: steps, chunks, resuming, given frames, bounded caches."""

import io

import pytest
import torch

import flowcache
from flowcache import Denoiser, FlowCacheConfig, PromptSchedule, Trace, cut_window
from flowcache.kv.manager import CacheManager
from flowcache.prompt_schedule import PromptTrack
from flowcache.state import on_host
from flowcache.wan.attention import rotate
from flowcache.wan.chunk_model import FrameRotary, WanChunkModel
from self_forcing import VideoSettings, load_pipeline, method_config, resolve_model
from self_forcing.windows import plan

SMALL = {"height": 32, "width": 32, "num_output_frames": 9}
TWO_STEPS = {"denoising_step_list": [1000, 500], "denoising_step_list_first_chunk": [1000, 750, 500, 250]}
FRAMEWISE = {**TWO_STEPS, "num_frame_per_block": 1, "num_output_frames": 5}
#: Settings, and the steps that each chunk takes.
VIDEOS = {
    "few steps": ({}, [4, 4, 4]),
    "first frame alone": ({"independent_first_frame": True, "num_output_frames": 7}, [4, 4, 4]),
    "first chunk with more steps": (FRAMEWISE, [4, 2, 2, 2, 2]),
    "multi-step": ({"denoising_step_list": [], "sampling_steps": 6}, [6, 6, 6]),
    "original noise": ({"noise": "original"}, [4, 4, 4]),
    "rolling window": ({"local_attn_size": 7, "sink_size": 1, "retime_sink": True, "num_output_frames": 15}, [4] * 5),
}


@pytest.fixture(scope="module")
def pipeline(base, trained):
    pipeline = load_pipeline(resolve_model(str(base), "cpu", {"transformer": trained}), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_resumes_exactly(pipeline, name):
    changes, steps = VIDEOS[name]

    def stream(**more):
        return pipeline.stream("a red circle", **{**SMALL, **changes}, **more)

    whole = list(stream())
    frames = {**SMALL, **changes}["num_output_frames"]
    assert sum(part.latents.shape[1] for part in whole) == frames
    assert sum(part.frames.shape[1] for part in whole) == 4 * frames - 3
    for place, part in enumerate(stream()):
        if place == 1:
            saved = io.BytesIO()
            torch.save(on_host(part.state()), saved)
            break
    saved.seek(0)
    rest = list(stream(state=torch.load(saved, weights_only=True)))
    assert len(rest) == len(whole) - 2
    for resumed, part in zip(rest, whole[2:], strict=True):
        assert torch.equal(resumed.latents, part.latents) and torch.equal(resumed.frames, part.frames)
    out = pipeline("a red circle", **{**SMALL, **changes}, output_type="latent")
    made = [event.chunk for record in out.trace.steps for event in record.events]
    assert [made.count(chunk) for chunk in range(len(steps))] == steps


#: Videos whose prompt changes: settings, and options of the method.
CHANGING = {
    "few steps": ({"num_output_frames": 12}, {}),
    "sink": ({"num_output_frames": 15, "local_attn_size": 6, "sink_size": 3}, {"prompt_switch": "recompute"}),
    "compressed": ({"num_output_frames": 15}, {"prompt_switch": "recompute", "budget_block": 1}),
    "compressed by heads": (
        {"num_output_frames": 15},
        {"prompt_switch": "recompute", "budget_block": 1, "scorer": "static_dynamic"},
    ),
}


@pytest.mark.parametrize("name", CHANGING)
def test_a_prompt_changes_the_chunks_that_start_later(pipeline, name):
    changes, options = CHANGING[name]
    arguments = {**SMALL, **changes, "cache": method_config("flowcache", **options), "decode": False}

    def latents(parts):
        return [part.latents for part in parts]

    # Chunks start with frames 0, 9, 21 and 33, of 16 a second.
    schedule, trace = PromptSchedule.parse("0: a red circle; 2: a circle"), Trace()
    parts = list(pipeline.stream(schedule, trace=trace, **arguments))
    plain = latents(pipeline.stream("a red circle", **arguments))
    assert [torch.equal(*each) for each in zip(latents(parts), plain, strict=True)] == [
        i < 3 for i in range(len(parts))
    ]
    assert trace.settings["prompt_switches"] == [{"window": 0, "chunk": 3, "prompt": "a circle"}]
    same = latents(pipeline.stream(PromptSchedule.parse("0: a red circle; 2: a red circle"), **arguments))
    assert all(map(torch.equal, same, plain))
    running, saved = pipeline.stream("a red circle", **arguments), io.BytesIO()
    sent = [*(next(running) for _ in range(3)), running.send("a circle")]
    if name != "few steps":  # whose fourth chunk is the last
        torch.save(on_host(sent[-1].state()), saved)
    sent += running
    assert all(map(torch.equal, latents(sent), latents(parts)))
    if name != "few steps":
        saved.seek(0)
        rest = pipeline.stream("a red circle", **arguments, state=torch.load(saved, weights_only=True))
        assert all(map(torch.equal, latents(rest), latents(parts[4:])))


@pytest.mark.parametrize(("scorer", "kept"), [("spread", 0), ("static_dynamic", 1), ("participative", 2)])
def test_the_chunks_of_a_sink_are_recomputed(pipeline, scorer, kept):
    config = method_config("flowcache", prompt_switch="recompute", budget_block=3, scorer=scorer)
    settings = VideoSettings(**{**SMALL, "num_output_frames": 30})
    schedule, _ = plan(settings, 10, 0, torch.Generator(), torch.float32)
    text = torch.zeros(1, 8, pipeline.transformer.config.text_dim)
    model = WanChunkModel(pipeline.transformer, text, (4, 4), 30, runs_whole_window=False)
    manager = CacheManager(model, schedule, [12] * 10, config)
    starts = next(step for step in range(len(schedule)) if schedule.local_step(8, step) == 0)
    assert manager.recomputed(starts) == [*range(kept), 4, 5, 6], "the clean pass of the one before runs with it"


def test_recomputed_keys_are_those_of_given_chunks(pipeline):
    """Behind a change that recomputes, the cache is that of a video whose clean chunks were given."""
    noise, texts = torch.randn(4, 12, 4, 4), torch.randn(2, 2, 8, pipeline.transformer.config.text_dim)
    settings = VideoSettings(**{**SMALL, "num_output_frames": 12}, denoising_step_list=[], sampling_steps=4)
    cache = FlowCacheConfig(policy="none", clean_pass=True, prompt_switch="recompute")

    def run(window, first, track):
        model = WanChunkModel(pipeline.transformer, first, (4, 4), 12, guidance_scale=3.0, runs_whole_window=False)
        model.add_text(texts[1])
        denoiser = Denoiser(model, cache, prompts=track)
        schedule, solver = plan(settings, 4, window.num_given, torch.Generator(), torch.float32)
        with torch.inference_mode():
            return [chunk.latents.clone() for chunk in denoiser.run(window, schedule, solver)]

    changing = run(cut_window(noise, 3), texts[0], PromptTrack(PromptSchedule(((0, "a"), (6, "b"))), 1))
    given = run(cut_window(noise, 3, torch.cat(changing[:2], dim=1)), texts[1], PromptTrack("b"))
    for ours, expected in zip(changing[2:], given, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("given", [0, 3])
def test_original_noise_comes_from_one_generator(pipeline, given):
    """The start noise of all frames to generate, then that of the steps, as the original program on one prompt."""
    settings = VideoSettings(**SMALL, denoising_step_list=[1000, 500], noise="original", seed=5)
    noise, generator, dtype = pipeline._draw_noise(settings, (16, 9, 4, 4), given)
    _, solver = plan(settings, 3, given // 3, generator, dtype)
    drawn = [noise.frames(given, 9), solver.draw((3, 16, 4, 4)), solver.draw((3, 16, 4, 4))]
    torch.manual_seed(5)
    start = torch.randn([1, 9 - given, 16, 4, 4], dtype=torch.bfloat16)
    assert torch.equal(drawn[0], start[0].transpose(0, 1).float())
    for fresh in drawn[1:]:
        assert torch.equal(fresh, torch.randn_like(start[0, :3]))


def test_given_frames_are_chunks_of_their_own(pipeline):
    image = torch.rand(3, 1, 32, 32) * 2 - 1
    out = pipeline("a red circle", image=image, height=32, width=32, output_type="latent")
    assert out.latents.shape[2] == 22, "one frame, then chunks of three"
    parts = list(pipeline.stream("a red", prefix=image, **{**SMALL, "num_output_frames": 7}))
    assert [part.latents.shape[1] for part in parts] == [1, 3, 3]
    video = torch.rand(3, 17, 32, 32) * 2 - 1
    parts = list(pipeline.stream("a red", prefix=video, **{**SMALL, "num_output_frames": 8}))
    assert [part.latents.shape[1] for part in parts] == [2, 3, 3], "five given ones"
    with pytest.raises(ValueError, match=r"num_output_frames.*try 7"):
        next(pipeline.stream("a red", prefix=image, **{**SMALL, "num_output_frames": 8}))


def test_reuse_is_for_many_steps_alone(pipeline):
    method = method_config("flowcache", "fast")
    for changes, reused in (({"denoising_step_list": [], "sampling_steps": 8}, True), (TWO_STEPS, False)):
        out = pipeline("a", cache=method, **SMALL, **changes, output_type="latent")
        assert (out.trace.reuse_ratio > 0) == reused
    with pytest.raises(ValueError, match="local_attn_size"):
        next(pipeline.stream("a", cache=FlowCacheConfig(clean_range=1), **SMALL, local_attn_size=7))


def test_context_noise_changes_few_steps(pipeline):
    video = {**SMALL, "denoising_step_list": [1000, 500], "output_type": "latent"}
    assert not torch.equal(*(pipeline("a", **video, context_noise=time).latents for time in (0, 300)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("num_inference_steps", {"num_inference_steps": 50}),
        ("sampling_steps", {"sampling_steps": 50}),
        ("guidance_scale", {"guidance_scale": 3.0}),
        ("context_noise", {"denoising_step_list": [], "context_noise": 300}),
    ],
)
def test_settings_without_effect_are_refused(pipeline, name, changes):
    with pytest.raises(ValueError, match=f"^{name}: no effect, as .*denoising_step_list.*leave it out"):
        pipeline.prepare(**SMALL, **changes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("preset", {"preset": "fast"}),
        ("interval", {"interval": 2}),
        ("forecast", {"forecast": "hold_velocity"}),
        ("method", {"method": "teacache"}),
    ],
)
def test_few_steps_refuse_enabled_reuse(base, trained, name, options):
    pipe = load_pipeline(resolve_model(str(base), "cpu", {"transformer": trained}), "cpu")
    flowcache.enable(pipe, **options)
    with pytest.raises(ValueError, match=f"^{name}: .*denoising_step_list"):
        pipe("a", **SMALL)
    pipe("a", **SMALL, denoising_step_list=[], sampling_steps=8, output_type="latent")
    flowcache.enable(pipe, kv_budget=1)
    assert pipe("a", **SMALL, output_type="latent").trace.reuse_ratio == 0


@pytest.mark.parametrize(("frames", "given", "fitting"), [(97, 0, 93), (17, 1, 13), (33, 33, 45)])
def test_num_frames_are_refused_in_pixel_frames(pipeline, frames, given, fitting):
    shown = {0: {}, 1: {"image": torch.zeros(3, 1, 32, 32)}, 33: {"video": torch.zeros(3, 33, 32, 32)}}[given]
    with pytest.raises(ValueError, match=f"^num_frames: .*got {frames}; try {fitting}"):
        pipeline.prepare(height=32, width=32, num_frames=frames, **shown)
    assert pipeline.prepare(height=32, width=32, num_frames=fitting, **shown)


def test_a_bounded_cache_stays_flat(pipeline):
    held, window = [], {"local_attn_size": 7, "sink_size": 2, "retime_sink": True}
    for frames in (15, 30):
        out = pipeline("a", **{**SMALL, "num_output_frames": frames}, **window, output_type="latent")
        held.append((out.trace.windows[0].kv_bytes, max(step.kv_tokens for step in out.trace.steps)))
    assert held[0] == held[1]


def test_turned_keys_are_those_of_later_frames(pipeline):
    """In fp32, to 1e-5."""
    rope = pipeline.transformer.rope
    rotary, keys = FrameRotary(rope, (2, 3), 900), torch.randn(1, 10, 6, 2, rope.attention_head_dim)

    def place(start):
        return rotate(keys.clone(), rotary.frames(start, start + 10)[None, :, :, None]).flatten(1, 2)

    for frames in (0, 1, 880):
        turned = rotary.retime(place(5), torch.full((1, 60, 2), frames))
        assert torch.allclose(turned, place(5 + frames), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("height", {"height": 30}),
        ("denoising_step_list", {"denoising_step_list": [250, 500]}),
        ("denoising_step_list_first_chunk", {"denoising_step_list_first_chunk": [1000]}),
        ("sink_size", {"sink_size": 3}),
        ("retime_sink", {"local_attn_size": 7, "retime_sink": True}),
        ("local_attn_size", {"local_attn_size": 3}),
        ("local_attn_size", {"local_attn_size": 4, "sink_size": 2}),
        ("overlap_history", {"overlap_history": 4}),
    ],
)
def test_wrong_settings_are_named(name, changes):
    with pytest.raises(ValueError, match=f"^{name}"):
        VideoSettings(**{"denoising_step_list": [1000, 750, 500, 250], **changes})
