"""Videos in and out."""

import errno

import numpy as np
import pytest
import torch
from PIL import Image

from flowcache.metrics import psnr, ssim
from flowcache.video import (
    VideoWriter,
    contact_sheet,
    read_image,
    read_video,
    resize_and_crop,
    to_float,
    to_uint8,
)


def moving_square(frames=9, size=64):
    video = np.full((frames, size, size, 3), 30, np.uint8)
    for index in range(frames):
        video[index, 20:40, 4 + index : 24 + index] = (220, 60, 40)
    return video


def as_unit(video):
    return torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255


def test_write_and_read(tmp_path):
    video = moving_square()
    with VideoWriter(tmp_path / "a.mp4", fps=24) as writer:
        writer.write(video[:4])
        writer.write(video[4:])
    back, fps = read_video(tmp_path / "a.mp4")
    assert back.shape == video.shape
    assert fps == 24
    assert psnr(as_unit(back), as_unit(video)).mean() > 30
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), VideoWriter(path, fps=24) as writer:
        writer.write(moving_square())
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_floats_and_bytes():
    video = moving_square(2, 8)
    assert np.array_equal(to_uint8(to_float(video)), video)
    assert to_uint8(torch.full((3, 1, 2, 2), 7.0)).max() == 255


@pytest.mark.parametrize("reader, name", [(read_video, "x.mp4"), (read_image, "x.png")])
def test_unreadable_files_are_named(tmp_path, reader, name):
    with pytest.raises(ValueError, match=name):
        reader(tmp_path / name)
    (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=name):
        reader(tmp_path / name)


def test_crop_covers():
    frames = np.zeros((1, 20, 40, 3), np.uint8)
    frames[:, :, 20:] = 255
    fitted = resize_and_crop(frames, 10, 10)
    assert fitted.shape == (1, 10, 10, 3)
    assert fitted[0, 5, 1, 0] < 10
    assert fitted[0, 5, 8, 0] > 245


def test_contact_sheet(tmp_path):
    contact_sheet({"a": moving_square(), "b": moving_square()}, tmp_path / "sheet.png", columns=3, scale=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 66 - 2, 2 * 80)


def test_psnr_and_ssim_of_known_videos():
    black, grey = torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.1)
    assert psnr(black, grey) == pytest.approx([20.0, 20.0])
    assert psnr(black, black).tolist() == [100.0, 100.0]
    assert ssim(grey, grey) == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="shape"):
        psnr(black, grey[:1])
