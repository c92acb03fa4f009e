"""Rates of the video to make and of the one that it continues."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import FAULTS

from flowcache.rates import exact_rate
from flowcache.trace import Trace
from flowcache.video import VideoWriter, probe_video, read_video

PLAIN = ["--model", "official"]
QUICK = [*PLAIN, "--warmup_steps", 1, "--rel_l1_thresh", 0.2]


def test_a_prefix_is_shown_at_the_rate_of_the_video(prepared):
    with VideoWriter("in.mp4", 8) as writer:
        for level in range(0, 240, 10):  # three seconds
            writer.write(np.full((1, 32, 32, 3), level, np.uint8))
    arguments = ["--mode", "v2v", "--prefix_video_path", "in.mp4"]
    prefix = prepared(*arguments, "--fps", 24).start.prefix
    assert prefix.shape[1] == 72
    levels = (prefix.mean(dim=(0, 2, 3)) + 1) * 127.5
    assert torch.allclose(levels, (torch.arange(72) // 3 * 10).float(), atol=3)
    assert prepared(*arguments, "--fps", 4).start.prefix.shape[1] == 12


@pytest.mark.parametrize(
    ("name", "fps", "frames"),
    [("vfr.mp4", 24, 96), ("slow.mp4", 0.5, 4), ("rot90.mp4", "23.976", 48), ("audio.mp4", "30000/1001", 60)],
)
def test_a_prefix_of_any_rate_plays_as_fast_as_it_did(prepared, name, fps, frames, caplog):
    job = prepared("--mode", "v2v", "--prefix_video_path", FAULTS / name, "--fps", fps)
    assert job.start.prefix.shape[1] == frames
    assert ("sound" in caplog.text) == (name == "audio.mp4")


def test_of_a_long_prefix_only_the_last_seconds_are_kept(prepared):
    with VideoWriter("in.mp4", 8) as writer:
        for second in range(7):
            writer.write(np.full((8, 32, 32, 3), 30 * second, np.uint8))
    prefix = prepared("--mode", "v2v", "--prefix_video_path", "in.mp4", "--fps", 8)
    levels = (prefix.start.prefix.mean(dim=(0, 2, 3)) + 1) * 127.5
    assert torch.allclose(levels, torch.arange(2, 7).repeat_interleave(8) * 30.0, atol=3)


def test_few_frames_a_second(front, weights):
    assert front("--config_file", weights, "--prompt", "a", "--fps", 6, "--output_path", "a.mp4", *QUICK) == 0
    assert len(read_video("a.mp4")[0]) == 32


@pytest.mark.parametrize("fps", ["23.976", "24000/1001", 29.97, 0.5])
def test_a_broken_rate_reaches_the_file(front, weights, fps):
    path = ["--output_path", "a.mp4"]
    assert front("--config_file", weights, "--prompt", "a", "--fps", fps, *path, *QUICK) == 0
    assert probe_video("a.mp4").fps == exact_rate(fps)
    assert Trace.load("a.trace.json").settings["video"]["fps"] == float(exact_rate(fps))
