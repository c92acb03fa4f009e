"""LPIPS with a network of random weights in place of AlexNet's, which would have to be downloaded."""

import sys

import pytest
import torch
from torch import nn

from flowcache.extras import Unavailable
from flowcache.metrics import load_lpips


def alexnet_features():
    """The convolutions of AlexNet in torchvision's order."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


@pytest.fixture
def lpips(monkeypatch):
    monkeypatch.setattr("flowcache.metrics.lpips.require", lambda *_: None)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(
        "torchmetrics.functional.image.lpips._get_tv_model_features", lambda *_: alexnet_features()
    )
    return load_lpips()


def random_video(frames=3, side=40, seed=0):
    return torch.rand(frames, side, side, 3, generator=torch.Generator().manual_seed(seed))


def test_identical_videos_are_at_no_distance(lpips):
    mean, frames = lpips(random_video(), random_video())
    assert mean == 0 and frames.tolist() == [0, 0, 0]


def test_more_noise_is_farther_and_frames_stay_apart(lpips):
    reference = random_video()
    noise = random_video(seed=1) - 0.5
    levels = torch.tensor([0.0, 0.1, 0.5]).view(3, 1, 1, 1)
    mean, frames = lpips((reference + levels * noise).clamp(0, 1), reference)
    assert frames[0] == 0 < frames[1] < frames[2]
    assert mean == pytest.approx(frames.mean().item())


def test_long_videos_are_measured_frame_by_frame(lpips):
    generated, reference = random_video(17), random_video(17, seed=1)
    alone = [lpips(generated[[i]], reference[[i]])[0] for i in (0, 8, 16)]
    assert lpips(generated, reference)[1][[0, 8, 16]].tolist() == pytest.approx(alone, rel=1e-5)


def test_bytes_and_floats_agree(lpips):
    generated, reference = (
        (255 * random_video(seed=seed)).round().to(torch.uint8).numpy() for seed in (0, 1)
    )
    assert lpips(generated, reference)[0] == pytest.approx(lpips(generated / 255, reference / 255)[0])


def test_smallest_frame_that_it_takes(lpips):
    assert lpips(random_video(side=31), random_video(side=31, seed=1))[0] > 0
    with pytest.raises(ValueError, match="31 x 31"):
        lpips(random_video(side=30), random_video(side=30))


def test_without_torchvision_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(Unavailable, match=r"^LPIPS needs torchvision: pip install -e '\.\[metrics\]'"):
        load_lpips()


def test_without_a_network_it_says_that_weights_cannot_be_had(lpips, monkeypatch):
    def download(*_):
        raise OSError("<urlopen error no route>\nmore")

    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", download)
    with pytest.raises(Unavailable, match=r"^LPIPS needs AlexNet's weights, .*: <urlopen error no route>$"):
        load_lpips()
