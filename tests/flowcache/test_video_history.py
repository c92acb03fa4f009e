"""A video that begins with another one: packets are copied where that is the same, else encoded again."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from reference import FAULTS

from flowcache.video import VideoWriter, probe_video, read_video

SIZE = (64, 96)


def moving(count=20, start=0):
    """Noise that moves, ``[count, 64, 96, 3]``."""
    wide = np.random.default_rng(0).integers(0, 256, (64, 300, 3), dtype=np.uint8)
    return np.stack([wide[:, start + place :][:, :96] for place in range(count)])


def save(path, *parts, fps=24):
    with VideoWriter(path, fps) as writer:
        for part in parts:
            writer.write(part)
    return path


def continued(path, before, *parts, fps=24):
    with VideoWriter(path, fps, *SIZE) as writer:
        writer.write_video(before)
        for part in parts:
            writer.write(part)
    return path


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]


@pytest.mark.parametrize("fps", [24, 24000 / 1001, 0.5])
def test_packets_of_our_own_files_are_copied(tmp_path, fps):
    before = save(tmp_path / "before.mp4", moving(7), moving(9, start=7), fps=fps)
    path = continued(tmp_path / "a.mp4", before, moving(5, start=16), fps=fps)
    assert packets(path)[:16] == packets(before)
    frames, rate = read_video(path)
    assert len(frames) == 21
    assert rate == probe_video(before).fps
    assert np.array_equal(frames[:16], read_video(before)[0])
    with av.open(str(path)) as container:
        stamps = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert stamps == [place / rate for place in range(21)]


def test_ten_continuations_lose_nothing(tmp_path):
    path = save(tmp_path / "0.mp4", moving(4))
    first = packets(path)
    for generation in range(1, 11):
        path = continued(tmp_path / f"{generation}.mp4", path, moving(2, start=generation))
    assert packets(path)[:4] == first
    assert len(read_video(path)[0]) == 24


def test_a_copied_start_is_in_the_growing_file_and_resumes(tmp_path):
    before = save(tmp_path / "before.mp4", moving(6))
    whole = continued(tmp_path / "whole.mp4", before, moving(3), moving(4))
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 24, *SIZE) as writer:
        writer.write_video(before)
        assert len(read_video(writer.part_path)[0]) == 6
        writer.write(moving(3))
        state = writer.state_dict()
        writer.write(moving(2))
        raise KeyboardInterrupt
    with VideoWriter(path, 24, state=state) as writer:
        writer.write(moving(4))
    assert path.read_bytes() == whole.read_bytes()


def turned_over(path):
    """The same file, to be shown upside down."""
    content = path.read_bytes()
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", -(1 << 16), 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30)
    place = content.index(plain, content.index(b"tkhd"))
    path.write_bytes(content[:place] + turned + content[place + len(plain) :])
    return path


def test_a_turned_file_of_ours_is_encoded_again(tmp_path):
    before = turned_over(save(tmp_path / "before.mp4", moving(4)))
    frames, _ = read_video(continued(tmp_path / "a.mp4", before))
    assert np.abs(frames.astype(int) - read_video(before)[0]).mean() < 25, "noise, but the right side up"
    assert packets(tmp_path / "a.mp4") != packets(before)


@pytest.mark.parametrize(
    ("name", "fps", "count"), [("audio.mp4", 24, 48), ("rot90.mp4", 24, 48), ("vfr.mp4", 24, 117)]
)
def test_other_files_are_encoded_again_and_play_as_they_did(tmp_path, name, fps, count):
    path = continued(tmp_path / "a.mp4", FAULTS / name, moving(3), fps=fps)
    info = probe_video(path)
    assert (info.num_frames, info.fps) == (count + 3, fps)
    assert (info.height, info.width) == SIZE


@pytest.mark.parametrize("fps", [12, 48, Fraction(24000, 1001)])
def test_another_rate_keeps_the_time(tmp_path, fps):
    before = save(tmp_path / "before.mp4", moving(24))
    info = probe_video(continued(tmp_path / "a.mp4", before, fps=fps))
    assert info.num_frames == round(fps)
    assert info.fps == fps


def test_another_size_is_scaled(tmp_path):
    before = save(tmp_path / "before.mp4", moving(4)[:, :32])
    assert read_video(continued(tmp_path / "a.mp4", before))[0].shape == (4, *SIZE, 3)
