"""Sampling against tensors of the original code: plain, and with reuse."""

from __future__ import annotations

import pytest
import torch
from cases import chunk_model, magi_case, relative_error, reuse_table
from reference import Case, case_names

from flowcache import Denoiser, LoopOptions, StaircaseSchedule, Trace, Window, cut_window
from flowcache.reuse.chunkwise import ChunkwiseReuse
from flowcache.reuse.forecast import HoldDisplacement, HoldVelocity
from flowcache.reuse.policy import NoReuse, ReusePolicy
from magi1.schedule import Euler

RELATIVE = 1e-4


def denoise(
    case: Case, policy: ReusePolicy, clean_pass: bool, nearly_clean: bool = True, forecast=HoldVelocity
) -> tuple[Window, Trace]:
    runtime = case.info["config"]["runtime_config"]
    noise, prefix = case.tensors["noise"][0], case.tensors.get("prefix_video")
    window = cut_window(noise, runtime["chunk_width"], None if prefix is None else prefix[0])
    model = chunk_model(case, noise, nearly_clean)
    stride = runtime["num_steps"] // runtime["window_size"]
    schedule = StaircaseSchedule(len(window.chunks), runtime["num_steps"], stride, window.num_given)
    denoiser = Denoiser(model, policy, forecast(), LoopOptions(clean_pass=clean_pass))
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
    window, _ = denoise(case, NoReuse(), clean_pass=True)
    assert_latents(case, window)


@pytest.mark.parametrize("name", case_names("sample_flowcache_reuse_", "magi1"))
def test_flowcache_reuse(name):
    case = magi_case(name)
    settings, runtime = case.info["flowcache"], case.info["config"]["runtime_config"]
    policy = ChunkwiseReuse(
        settings["rel_l1_thresh"],
        runtime["num_steps"],
        settings["warmup_steps"],
        final_steps=0,
        final_window_steps=1,
    )
    discard = settings["discard_nearly_clean_chunk"]
    window, trace = denoise(case, policy, False, nearly_clean=not discard, forecast=HoldDisplacement)
    table = torch.full_like(reuse_table(case), -1)
    for record in trace.steps:
        for event in record.events:
            table[record.step, event.chunk] = int(event.reused)
    assert torch.equal(table, reuse_table(case))
    assert_latents(case, window)
