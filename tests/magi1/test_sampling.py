"""Sampling against tensors of the original code: plain, and with reuse."""

from __future__ import annotations

import pytest
import torch
from cases import chunk_model, magi_case, relative_error, reuse_table
from reference import Case, case_names

from flowcache import Denoiser, FlowCacheConfig, LoopOptions, StaircaseSchedule, Trace, Window, cut_window
from magi1.config import FlowCacheOptions
from magi1.methods import method_config
from magi1.schedule import Euler

RELATIVE = 1e-4


def denoise(case: Case, cache: FlowCacheConfig, nearly_clean: bool = True) -> tuple[Window, Trace]:
    runtime = case.info["config"]["runtime_config"]
    noise, prefix = case.tensors["noise"][0], case.tensors.get("prefix_video")
    window = cut_window(noise, runtime["chunk_width"], None if prefix is None else prefix[0])
    model = chunk_model(case, noise, nearly_clean)
    stride = runtime["num_steps"] // runtime["window_size"]
    schedule = StaircaseSchedule(len(window.chunks), runtime["num_steps"], stride, window.num_given)
    policy, options = cache.make_policy(runtime["num_steps"]), LoopOptions(clean_pass=cache.clean_pass)
    denoiser = Denoiser(model, policy, cache.make_forecast(), options)
    for chunk in denoiser.run(window, schedule, Euler(model.timetable)):
        assert chunk.latents.isfinite().all()
    return window, denoiser.trace


def assert_latents(case: Case, window: Window) -> None:
    """Equal wherever frames were not given; the original leaves something of its own in those."""
    expected = case.tensors["final_x"][0]
    made = [frame for frame in range(expected.shape[1]) if frame not in window.given_frames]
    assert relative_error(window.latents[:, made], expected[:, made]) < RELATIVE


@pytest.mark.parametrize("name", case_names("sample_vanilla_", "magi1"))
def test_vanilla(name):
    case = magi_case(name)
    window, _ = denoise(case, method_config("vanilla"))
    assert_latents(case, window)


@pytest.mark.parametrize("name", case_names("sample_flowcache_reuse_", "magi1"))
def test_flowcache_reuse(name):
    case = magi_case(name)
    settings = case.info["flowcache"]
    options = FlowCacheOptions(rel_l1_thresh=settings["rel_l1_thresh"], warmup_steps=settings["warmup_steps"])
    cache = method_config("flowcache", options, paper=True)
    discard = settings["discard_nearly_clean_chunk"]
    window, trace = denoise(case, cache, nearly_clean=not discard)
    table = torch.full_like(reuse_table(case), -1)
    for record in trace.steps:
        for event in record.events:
            table[record.step, event.chunk] = int(event.reused)
    assert torch.equal(table, reuse_table(case))
    assert_latents(case, window)
