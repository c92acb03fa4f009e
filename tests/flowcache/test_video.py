"""Videos and images in and out."""

import errno
import os
import struct
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from PIL import Image

from flowcache import video
from flowcache.video import (
    VideoWriter,
    probe_video,
    read_image,
    read_video,
    resize_and_crop,
    stream_video,
    to_float,
    to_uint8,
)
from flowcache.video.writing import BT601, BT709

#: Far apart in hue, so that a wrong colour matrix shows.
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)], np.uint8)


def stripes(frames=6, height=32, width=64):
    """Four upright stripes that stand still, ``[frames, height, width, 3]``."""
    row = np.repeat(COLOURS, width // 4, axis=0)
    return np.broadcast_to(row, (frames, height, *row.shape)).copy()


def noise(frames=12, height=64, width=64):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def save(path, frames, fps=24):
    with VideoWriter(path, fps) as writer:
        writer.write(frames)
    return path


def test_written_video_reads_back(tmp_path):
    frames, fps = read_video(save(tmp_path / "a.mp4", stripes(), fps=16))
    assert fps == 16
    assert frames.shape == (6, 32, 64, 3)
    middles = frames[:, :, 8::16].astype(int)
    assert np.abs(middles - COLOURS).max() <= 4


def test_file_is_plain_h264_that_says_its_colours(tmp_path):
    with av.open(str(save(tmp_path / "a.mp4", stripes()))) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        stated = context.colorspace, context.color_primaries, context.color_trc
        assert stated == (BT601, BT709, BT709)


def test_same_frames_same_file(tmp_path):
    first, second = (save(tmp_path / name, noise()) for name in ("a.mp4", "b.mp4"))
    assert first.read_bytes() == second.read_bytes()


def write_parts(path, frames, *ends):
    """Write frames in parts that end there; the growing file's content after each."""
    contents = []
    with VideoWriter(path, 24) as writer:
        for start, end in pairwise((0, *ends)):
            writer.write(frames[start:end])
            contents.append(writer.part_path.read_bytes())
    return contents


def test_same_parts_same_file(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_parts(tmp_path / name, noise(), 5, 5, 12)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_growing_file_plays_after_every_part(tmp_path):
    ends = (5, 5, 6, 30, 41)
    contents = write_parts(tmp_path / "a.mp4", noise(41), *ends)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"], "the part is gone when all is done"
    whole, fps = read_video(tmp_path / "a.mp4")
    for content, end in zip(contents, ends, strict=True):
        (tmp_path / "cut.mp4").write_bytes(content)
        frames, rate = read_video(tmp_path / "cut.mp4")
        assert np.array_equal(frames, whole[:end])
        assert rate == fps == 24


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_file_cut_within_a_part_plays_up_to_it(tmp_path, share):
    first, second = write_parts(tmp_path / "a.mp4", noise(20), 8, 20)
    cut = len(first) + int(share * (len(second) - len(first)))
    (tmp_path / "cut.mp4").write_bytes(second[:cut])
    frames = []
    with suppress(ValueError):  # our own reader complains when it comes to the cut
        frames.extend(stream_video(tmp_path / "cut.mp4"))
    assert np.array_equal(np.stack(frames[:8]), read_video(tmp_path / "a.mp4")[0][:8])


KILLED = """
import os, signal, sys
import numpy as np
from flowcache.video import VideoWriter

with VideoWriter(sys.argv[1], 24) as writer:
    for _ in range(3):
        writer.write(np.full((7, 32, 32, 3), 90, np.uint8))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_what_a_killed_run_leaves_plays(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.mp4")]).returncode != 0
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert len(read_video(tmp_path / "a.part.mp4")[0]) == 21
    save(tmp_path / "a.mp4", stripes())
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"], "the next run clears it away"


def test_a_writer_goes_on_from_a_state(tmp_path):
    frames = noise(20)[:, :63]  # of an odd height
    write_parts(tmp_path / "whole.mp4", frames, 5, 9, 20)
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 24) as writer:
        writer.write(frames[:5])
        writer.write(frames[5:9])
        state = writer.state_dict()
        writer.write(frames[9:12])
        raise KeyboardInterrupt
    with VideoWriter(tmp_path / "a.mp4", 24, state=state) as writer:
        writer.write(frames[9:])
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    with (
        pytest.raises(ValueError, match=r"a\.part\.mp4 is missing"),
        VideoWriter(tmp_path / "a.mp4", 24, state=state),
    ):
        pass


def test_final_file_has_its_index_in_front(tmp_path):
    content = save(tmp_path / "a.mp4", noise()).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert b"moof" not in content
    assert probe_video(tmp_path / "a.mp4").num_frames == 12


def test_two_runs_of_one_name_do_not_mix(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 24) as first:
        first.write(stripes())
        with VideoWriter(tmp_path / "a.mp4", 24) as second:
            second.write(stripes(frames=3))
            first.write(stripes())
        assert len(read_video(tmp_path / "a.mp4")[0]) == 3
    assert len(read_video(tmp_path / "a.mp4")[0]) == 12


def test_odd_sizes_lose_a_row_and_a_column(tmp_path):
    frames, _ = read_video(save(tmp_path / "a.mp4", stripes()[:, :31, :63]))
    assert frames.shape[1:3] == (30, 62)


def test_broken_rates_survive(tmp_path):
    path = save(tmp_path / "a.mp4", stripes(), fps=24000 / 1001)
    assert read_video(path)[1] == pytest.approx(24000 / 1001, rel=1e-6)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_rate_must_be_positive(tmp_path, fps):
    with pytest.raises(ValueError, match="fps"):
        VideoWriter(tmp_path / "a.mp4", fps)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 32, 34, 3), np.uint8),
    ],
)
def test_other_frames_are_refused(tmp_path, frames):
    with (
        pytest.raises(ValueError, match="frames must"),
        VideoWriter(tmp_path / "a.mp4", 24, 32, 32) as writer,
    ):
        writer.write(frames)
    assert list(tmp_path.iterdir()) == []


def test_size_may_not_change(tmp_path):
    with pytest.raises(ValueError, match="height and width"), VideoWriter(tmp_path / "a.mp4", 24) as writer:
        writer.write(stripes())
        writer.write(stripes(height=48))


def test_video_without_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.mp4"), VideoWriter(tmp_path / "a.mp4", 24):
        pass
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 24) as writer:
        writer.write(noise())
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert len(read_video(tmp_path / "a.part.mp4")[0]) == 12, "what was finished can be looked at"


def test_failure_before_the_first_frame_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 24):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_folder_must_exist(tmp_path):
    with pytest.raises(OSError, match="No such file"), VideoWriter(tmp_path / "no" / "a.mp4", 24):
        pass


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from flowcache.video import VideoWriter, read_video

path, whole = Path(sys.argv[1]), int(sys.argv[2])
frames = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
for limit in (0, 1, 40, whole // 2, whole - 2000, whole - 1):
    part = path.with_name("a.part.mp4")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with VideoWriter(path, 24) as writer:
            for place in range(0, 12, 3):
                writer.write(frames[place : place + 3])
    except OSError:
        assert path.read_bytes() == b"old", limit
        assert set(path.parent.iterdir()) <= {path, part}, limit
        if part.exists():
            assert len(read_video(part)[0]) in (3, 6, 9, 12), limit
    else:
        raise AssertionError(limit)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_no_room_at_any_point_keeps_the_old_file(tmp_path):
    """A limit on file sizes fails where a full disk would: at a part or at the copy in the end."""
    whole = len(write_parts(tmp_path / "whole.mp4", noise(), 3, 6, 9, 12)[-1])
    folder = tmp_path / "limited"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"old")
    subprocess.run([sys.executable, "-c", LIMITED, str(folder / "a.mp4"), str(whole)], check=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk_names_its_reason(tmp_path, monkeypatch):
    opened = av.open
    monkeypatch.setattr(
        video.writing.av,
        "open",
        lambda file, **options: opened("/dev/full" if isinstance(file, str) else file, **options),
    )
    with pytest.raises(OSError) as caught, VideoWriter(tmp_path / "a.mp4", 24) as writer:
        writer.write(noise())
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["a.part.mp4"]


def test_next_encoder_where_x264_is_missing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(video.writing.av, "codecs_available", {"mpeg4"})
    frames, _ = read_video(save(tmp_path / "a.mp4", stripes()))
    assert np.abs(frames[:, :, 8::16].astype(int) - COLOURS).max() <= 16
    assert "mpeg4" in caplog.text


def test_probe(tmp_path):
    path = save(tmp_path / "a.mp4", stripes(), fps=16)
    assert probe_video(path) == (6, 16, 32, 64, ())


def test_rotated_video_stands_upright(tmp_path):
    """A phone held upright writes lying frames and a matrix that turns them."""
    path = save(tmp_path / "a.mp4", stripes())
    content = path.read_bytes()
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    place = content.index(plain, content.index(b"tkhd"))
    path.write_bytes(content[:place] + clockwise + content[place + len(plain) :])
    frames, _ = read_video(path)
    assert frames.shape == (6, 64, 32, 3)
    assert np.abs(frames[0, 8::16, 16].astype(int) - COLOURS).max() <= 4


@pytest.mark.parametrize("read", [read_video, probe_video, read_image])
def test_missing_and_unreadable_files_are_named(tmp_path, read):
    with pytest.raises(ValueError, match=r"^\S*none\.bin does not exist or is not a file\.$"):
        read(tmp_path / "none.bin")
    for content in (b"", b"neither a video nor an image" * 20):
        (tmp_path / "some.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"^\S*some\.bin cannot be read as an? (video|image): .*\.$"):
            read(tmp_path / "some.bin")


def test_cut_off_files_are_named(tmp_path):
    path = save(tmp_path / "a.mp4", noise())
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"a\.mp4"):
        read_video(path)
    Image.fromarray(noise()[0]).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:400])
    with pytest.raises(ValueError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_image_is_turned_as_its_camera_was(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(stripes()[0]).save(tmp_path / "a.png", exif=exif)
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (64, 32, 3)
    assert (pixels[8::16, 0] == COLOURS).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK"])
def test_images_of_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.fromarray(stripes()[0]).convert(mode).save(path)
    pixels = read_image(path)
    assert (pixels.shape, pixels.dtype) == ((32, 64, 3), np.uint8)


def test_float_round_trip_is_exact():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert (to_uint8(to_float(frames)) == frames).all()
    assert to_float(frames).min() == -1
    assert to_float(frames).max() == 1


def test_values_beyond_the_range_are_cut():
    beyond = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).expand(3, 1, 1, 5)
    assert to_uint8(beyond)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_crop_takes_the_middle():
    cropped = resize_and_crop(stripes(height=32, width=64), 32, 32)
    assert cropped.shape == (6, 32, 32, 3)
    assert (cropped[:, :, 4] == COLOURS[1]).all()
    assert (cropped[:, :, -4] == COLOURS[2]).all()


def test_resize_covers_without_ringing_through():
    frames = np.full((2, 50, 70, 3), 77, np.uint8)
    resized = resize_and_crop(frames, 96, 40)
    assert resized.shape == (2, 96, 40, 3)
    assert (resized == 77).all()
    assert resize_and_crop(frames, 50, 70) is frames


def test_shrinking_averages():
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * 255
    frames = checkers.astype(np.uint8)[None, :, :, None].repeat(3, axis=3)
    assert np.abs(resize_and_crop(frames, 16, 16)[:, 2:-2, 2:-2].astype(int) - 127).max() <= 8


def test_streamed_frames_are_those_that_are_read(tmp_path):
    path = save(tmp_path / "a.mp4", noise())
    streamed = list(stream_video(path))
    assert np.array_equal(np.stack(streamed), read_video(path)[0])
    assert np.array_equal(next(stream_video(path)), streamed[0]), "one can stop after the first"


def test_streaming_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        next(stream_video(tmp_path / "a.mp4"))


@pytest.mark.parametrize(("stored", "asked", "count"), [(8, 24, 36), (24, 24, 12), (24, 8, 4), (30, 24, 10)])
def test_frames_at_another_rate_are_those_shown_then(tmp_path, stored, asked, count):
    levels = np.arange(12, dtype=np.uint8) * 20
    path = save(tmp_path / "a.mp4", np.broadcast_to(levels[:, None, None, None], (12, 32, 32, 3)), stored)
    frames = np.stack(list(stream_video(path, asked)))
    expected = levels[np.floor(np.arange(count) / asked * stored + 1e-6).astype(int)]
    assert np.abs(frames.mean(axis=(1, 2, 3)) - expected).max() < 3
