"""Videos of so many chunks, by the small checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import load_script

from flowcache import Trace
from flowcache.metrics import psnr
from flowcache.output import VideoOutput
from flowcache.video import to_uint8


@pytest.fixture
def models(monkeypatch):
    return load_script("chunk_videos", monkeypatch).MODELS


@pytest.mark.parametrize("model", ["skyreels", "magi"])
def test_last_frames_are_those_of_the_video(models, model):
    videos = models[model](chunks=5, steps=4, device="cpu")
    cache, trace = videos.cache("fast", budget=1), Trace()
    last = videos.last_frames(cache, Trace(), "a red circle", seed=3)
    whole = VideoOutput.join(videos.stream(cache, trace, "a red circle", seed=3), trace)
    frames = to_uint8(whole.frames)[-len(last) :]
    assert len(last) == 4 * (20 if model == "skyreels" else 24)
    assert psnr(last, frames)[0] > 50 and torch.isfinite(whole.frames).all()
    assert not np.array_equal(frames[0], frames[-1])
