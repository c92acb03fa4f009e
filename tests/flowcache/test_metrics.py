"""PSNR, SSIM and LPIPS against known answers; LPIPS with random weights in place of a download."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from flowcache.environment import Unavailable
from flowcache.metrics import load_lpips, psnr, ssim


def constant(value, frames=1, dtype=np.float32):
    return np.full((frames, 16, 20, 3), value, dtype)


def random_pair(frames=3):
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(frames, 40, 44, 3, generator=generator)
    error = 0.1 * torch.randn(reference.shape, generator=generator)
    return (reference + error).clamp(0, 1), reference


def alexnet_features(*_):
    """The convolutions of AlexNet in torchvision's order."""
    torch.manual_seed(0)
    sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1)]
    layers = [layer for size in [*sizes, (256, 256, 3, 1, 1)] for layer in (nn.Conv2d(*size), nn.ReLU())]
    return nn.Sequential(*layers[:2], nn.MaxPool2d(3, 2), *layers[2:4], nn.MaxPool2d(3, 2), *layers[4:])


@pytest.fixture
def lpips(monkeypatch):
    monkeypatch.setattr("flowcache.metrics.similarity.require", lambda *_: None)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", alexnet_features)
    return load_lpips()


@pytest.fixture(params=["psnr", "ssim", "lpips"])
def metric(request, lpips):
    return {"psnr": psnr, "ssim": ssim, "lpips": lpips}[request.param]


def test_known_values(lpips):
    generated = constant(0.5, 2)
    generated[1] += 0.1
    mean, per_frame = psnr(generated, constant(0.5, 2))
    assert [*per_frame.tolist(), mean] == pytest.approx([100, 20, 60], abs=1e-4), "identical frames: 100 dB"
    pixel = np.zeros((1, 400, 400, 3), np.uint8)
    pixel[0, 0, 0, 0] = 1
    assert psnr(pixel, 0 * pixel)[0] == 100, "never more than identical ones"
    low, high = constant(3, dtype=np.uint8), constant(250, dtype=np.uint8)
    assert psnr(low, high)[0] == psnr(high, low)[0] == pytest.approx(20 * math.log10(255 / 247), abs=1e-3)

    noisy, reference = random_pair()
    assert ssim(reference, reference)[1].tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    flat = (2 * 0.3 * 0.8 + 1e-4) / (0.3**2 + 0.8**2 + 1e-4)
    assert ssim(constant(0.3), constant(0.8))[0] == pytest.approx(flat, abs=3e-4), "rounding of variances"

    levels = torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1, 1)
    _, frames = lpips(reference + levels * (noisy - reference), reference)
    assert frames[0] == 0 < frames[1] < frames[2]


def test_long_videos_are_measured_frame_by_frame_as_bytes_or_floats(metric):
    generated, reference = ((255 * video).round().to(torch.uint8) for video in random_pair(frames=17))
    mean, per_frame = metric(generated.numpy(), reference)
    assert mean == pytest.approx(per_frame.mean().item(), rel=1e-5)
    generated, reference = generated.float() / 255, reference.float() / 255
    alone = [metric(generated[[i]].numpy(), reference[[i]])[0] for i in (0, 8, 16)]
    assert per_frame[[0, 8, 16]].tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("generated", "reference", "message"),
    [
        (constant(0.5, 2), constant(0.5, 3), r"\[2, .*\[3, "),
        *((wrong, wrong, "frames, height") for wrong in (constant(0.5)[0], constant(0.5, 0))),
        (*[constant(0.5).transpose(0, 3, 1, 2)] * 2, "frames, height"),
        (constant(1, dtype=np.int64), constant(1, dtype=np.int64), "floating point"),
        (constant(-0.5), constant(0.5), r"\[0, 1\]"),
        (constant(0.5), constant(128.0), r"\[0, 1\]"),
        (constant(np.nan), constant(0.5), r"\[0, 1\]"),
    ],
)
def test_other_videos_are_refused(generated, reference, message):
    with pytest.raises(ValueError, match=message):
        ssim(generated, reference)


def test_smallest_frames(lpips):
    for metric, least in ((ssim, 11), (lpips, 31)):
        video = torch.rand(1, least, least, 3)
        metric(video, video)
        with pytest.raises(ValueError, match=f"{least} x {least}"):
            metric(video[:, 1:], video[:, 1:])


def test_lpips_names_what_it_lacks(lpips, monkeypatch):
    def download(*_):
        raise OSError("<urlopen error no route>\nmore")

    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", download)
    with pytest.raises(Unavailable, match=r"AlexNet.*: <urlopen error no route>$"):
        load_lpips()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(Unavailable, match=r"torchvision"):
        load_lpips()
