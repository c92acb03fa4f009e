"""Metrics against known answers."""

import math

import numpy as np
import pytest
import torch

from flowcache.metrics import psnr, ssim


def constant(value, frames=1, dtype=np.float32):
    return np.full((frames, 16, 20, 3), value, dtype)


def random_pair(frames=3, height=20, width=24):
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(frames, height, width, 3, generator=generator)
    error = 0.1 * torch.randn(reference.shape, generator=generator)
    return (reference + error).clamp(0, 1), reference


def direct_ssim(a, b):
    """SSIM of one frame by its definition, window by window, in double precision."""
    x = np.arange(-5, 6)
    kernel = np.exp(-(x**2) / (2 * 1.5**2))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2

    def smooth(image):
        padded = np.pad(image, ((5, 5), (5, 5), (0, 0)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 11), axis=(0, 1))
        return np.einsum("hwcij,ij->hwc", windows, kernel)

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * (2 * covariance + c2) / (var_a + var_b + c2)).mean()


def test_psnr_of_a_constant_error():
    mean, per_frame = psnr(constant(0.6, 2), constant(0.5, 2))
    assert per_frame.tolist() == pytest.approx([20, 20], abs=1e-4)
    assert mean == pytest.approx(20, abs=1e-4)


def test_psnr_of_bytes():
    mean, _ = psnr(constant(100, dtype=np.uint8), constant(103, dtype=np.uint8))
    assert mean == pytest.approx(20 * math.log10(255 / 3), abs=1e-3)


def test_psnr_knows_no_sign_when_bytes_would_wrap():
    ours, theirs = constant(3, dtype=np.uint8), constant(250, dtype=np.uint8)
    assert psnr(ours, theirs)[0] == psnr(theirs, ours)[0]


def test_identical_frames_count_100_db():
    reference = constant(0.5, 2)
    generated = reference.copy()
    generated[1] += 0.1
    mean, per_frame = psnr(generated, reference)
    assert per_frame.tolist() == pytest.approx([100, 20], abs=1e-4)
    assert mean == pytest.approx(60, abs=1e-4)


def test_nearly_identical_frames_are_not_above_identical_ones():
    generated = np.zeros((1, 400, 400, 3), np.uint8)
    reference = generated.copy()
    generated[0, 0, 0, 0] = 1
    assert psnr(generated, reference)[0] == 100


def test_ssim_of_identical_frames():
    _, reference = random_pair()
    mean, per_frame = ssim(reference, reference)
    assert per_frame.tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert mean == pytest.approx(1, abs=1e-6)


def test_ssim_of_constant_frames_is_their_luminance_term():
    a, b = 0.3, 0.8
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    # with nothing but rounding in the variances
    assert ssim(constant(a), constant(b))[0] == pytest.approx(expected, abs=3e-4)


def test_ssim_equals_its_definition():
    generated, reference = random_pair()
    expected = [
        direct_ssim(a.double().numpy(), b.double().numpy()) for a, b in zip(generated, reference, strict=True)
    ]
    assert ssim(generated, reference)[1].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bytes_and_floats_agree(metric):
    generated, reference = ((255 * video).round().to(torch.uint8) for video in random_pair())
    as_bytes = metric(generated.numpy(), reference)
    as_floats = metric(generated.float() / 255, (reference.float() / 255).numpy())
    assert as_bytes[0] == pytest.approx(as_floats[0])
    assert torch.allclose(as_bytes[1], as_floats[1])


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_long_videos_are_measured_frame_by_frame(metric):
    generated, reference = random_pair(frames=19)
    mean, per_frame = metric(generated, reference)
    alone = [metric(generated[[i]], reference[[i]])[0] for i in range(19)]
    assert per_frame.tolist() == pytest.approx(alone, rel=1e-5)
    assert mean == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("generated", "reference", "message"),
    [
        (constant(0.5, 2), constant(0.5, 3), r"one shape, got generated \[2, .* reference \[3, "),
        (constant(0.5)[0], constant(0.5)[0], r"\[frames, height, width, 3\]"),
        (constant(0.5).transpose(0, 3, 1, 2), constant(0.5).transpose(0, 3, 1, 2), r"\[frames, height"),
        (constant(0.5, 0), constant(0.5, 0), r"\[frames, height"),
        (constant(1, dtype=np.int64), constant(1, dtype=np.int64), "floating point"),
        (constant(-0.5), constant(0.5), r"\[0, 1\]"),
        (constant(0.5), constant(128.0), r"\[0, 1\]"),
        (constant(np.nan), constant(0.5), r"\[0, 1\]"),
    ],
)
def test_other_videos_are_refused(metric, generated, reference, message):
    with pytest.raises(ValueError, match=message):
        metric(generated, reference)


def test_ssim_needs_room_for_its_window():
    small = constant(0.5)[:, :10]
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(small, small)
