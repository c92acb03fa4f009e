"""Videos out: growing files, resumption, failures, continued videos; conversions of frames."""

import random
import resource
import struct
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from reference import FAULTS

from flowcache.video import (
    VideoWriter,
    enlarge_video,
    probe_video,
    read_video,
    resize_and_crop,
    stream_video,
    to_float,
    to_uint8,
)
from flowcache.video.writing import BT601, BT709, FragmentEncoder

#: Far apart in hue, so that a wrong colour matrix shows.
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)], np.uint8)
SIZE = (64, 96)


def stripes(frames=6, height=32, width=64):
    row = np.repeat(COLOURS, width // 4, axis=0)
    return np.broadcast_to(row, (frames, height, *row.shape)).copy()


def moving(count=20, start=0):
    """Noise that moves, ``[count, 64, 96, 3]``."""
    wide = np.random.default_rng(0).integers(0, 256, (64, 300, 3), dtype=np.uint8)
    return np.stack([wide[:, start + place :][:, :96] for place in range(count)])


def save(path, *parts, fps=24, before=None):
    with VideoWriter(path, fps, *(SIZE if before else ())) as writer:
        if before:
            writer.write_video(before)
        for part in parts:
            writer.write(part)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]


def test_file_is_plain_h264_that_states_its_colours_and_reads_back(tmp_path):
    path = save(tmp_path / "a.mp4", stripes(), fps=16)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc) == (BT601, BT709, BT709)
    assert probe_video(path) == (6, 16, 32, 64, ())
    frames, fps = read_video(path)
    assert fps == 16 and np.abs(frames[:, :, 8::16].astype(int) - COLOURS).max() <= 4
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat") and b"moof" not in content
    enlarged, fps = read_video(enlarge_video(path, 4))
    assert names(tmp_path) == ["a.4x.mp4", "a.mp4"] and (enlarged.shape, fps) == ((6, 128, 256, 3), 16)
    assert np.abs(enlarged[:, 2::4, 2::4].astype(int) - frames).max() <= 12 and path.read_bytes() == content
    assert read_video(save(path, stripes()[:, :31, :63]))[0].shape[1:3] == (30, 62), "odd sizes"


def test_growing_file_plays_after_every_part_and_is_the_same_again(tmp_path):
    ends, contents = (0, 5, 5, 6, 20), {"a.mp4": [], "b.mp4": []}
    for name, parts in contents.items():
        with VideoWriter(tmp_path / name, 24) as writer:
            for start, end in pairwise(ends):
                writer.write(moving()[start:end])
                parts.append(writer.part_path.read_bytes())
    assert names(tmp_path) == ["a.mp4", "b.mp4"], "the part is gone when all is done"
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    whole, _ = read_video(tmp_path / "a.mp4")
    for content, end in zip(contents["a.mp4"], ends[1:], strict=True):
        (tmp_path / "cut.mp4").write_bytes(content)
        assert np.array_equal(read_video(tmp_path / "cut.mp4")[0], whole[:end])
    *_, before, last = contents["a.mp4"]
    for share in (0.0, 0.3, 0.9):  # cut within a part: it plays up to that
        (tmp_path / "cut.mp4").write_bytes(last[: len(before) + int(share * (len(last) - len(before)))])
        frames = []
        with suppress(ValueError):
            frames.extend(stream_video(tmp_path / "cut.mp4"))
        assert np.array_equal(np.stack(frames[:6]), whole[:6])


@pytest.mark.parametrize(("side", "grey", "count"), [(16, 90, 2), (32, 140, 8)])
def test_the_same_frames_give_the_same_bytes_in_any_state_of_the_heap(side, grey, count):
    """Small flat frames over memory that held bytes of 255, as numbers NaN: the worst case of x264."""
    numbers, held, found = random.Random(1), [], set()
    for _ in range(200):
        sizes = [int(2 ** numbers.uniform(4, 22)) for _ in range(numbers.randrange(6))]
        held += [np.full(size, 255, np.uint8) for size in sizes]
        while len(held) > 60:
            held.pop(numbers.randrange(len(held)))
        frames = np.full((count, side, side, 3), grey, np.uint8)
        found.add(FragmentEncoder("libx264", Fraction(24), side, side).encode(frames))
    assert len(found) == 1


@pytest.mark.parametrize("given", [False, True])
def test_a_writer_resumes_from_a_state(tmp_path, given):
    before = save(tmp_path / "before.mp4", moving(6)) if given else None
    frames = moving(20) if given else moving(20)[:, :63]  # of an odd height
    whole = save(tmp_path / "whole.mp4", frames[:5], frames[5:9], frames[9:], before=before)
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 24, *(SIZE if given else ())) as writer:
        if given:
            writer.write_video(before)
            assert len(read_video(writer.part_path)[0]) == 6
        writer.write(frames[:5])
        writer.write(frames[5:9])
        state = writer.state_dict()
        writer.write(frames[9:12])
        raise KeyboardInterrupt
    with VideoWriter(path, 24, state=state) as writer:
        writer.write(frames[9:])
    assert path.read_bytes() == whole.read_bytes()
    with pytest.raises(ValueError, match=r"a\.part\.mp4"), VideoWriter(path, 24, state=state):
        pass


def test_two_runs_of_one_name_do_not_mix(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 24) as first:
        first.write(stripes())
        save(tmp_path / "a.mp4", stripes(frames=3))
        first.write(stripes())
        assert len(read_video(tmp_path / "a.mp4")[0]) == 3
    assert len(read_video(tmp_path / "a.mp4")[0]) == 12


def test_other_rates_and_frames_are_refused_and_leave_nothing(tmp_path):
    frames = stripes()
    wrong = [(frames, fps) for fps in (0, -1, float("nan"), float("inf"))]
    wrong += [(other, 24) for other in (frames.astype(float), frames.transpose(0, 3, 1, 2), frames[0], frames[:0])]
    for given, fps in wrong:
        with pytest.raises(ValueError):
            save(tmp_path / "a.mp4", given, fps=fps)
    assert names(tmp_path) == []


def test_failure_keeps_the_old_file_and_the_part(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="height and width"):
        save(path, stripes(), stripes(height=48))
    assert path.read_bytes() == b"old" and len(read_video(tmp_path / "a.part.mp4")[0]) == 6
    with pytest.raises(OSError, match="No such file"), VideoWriter(tmp_path / "no" / "a.mp4", 24):
        pass
    save(path, stripes())
    assert names(tmp_path) == ["a.mp4"], "the next run clears the part away"


@pytest.mark.parametrize("room", [0, 40, 9000, -2000, -1])
def test_no_room_at_any_point_keeps_the_old_file(tmp_path, room):
    """A limit on file sizes, in bytes, fails where a full disk would: at a part or at the copy in the end."""
    path, parts = tmp_path / "a.mp4", np.split(moving(12), 4)
    with VideoWriter(path, 24) as writer:
        for part in parts:
            writer.write(part)
        whole = writer.part_path.stat().st_size
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room if room >= 0 else whole + room, hard))
    try:
        with pytest.raises(OSError):
            save(path, *parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) in (["a.mp4"], ["a.mp4", "a.part.mp4"])
    if (part := tmp_path / "a.part.mp4").exists():
        assert len(read_video(part)[0]) in (3, 6, 9, 12)


def test_next_encoder_where_x264_is_missing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    frames, _ = read_video(save(tmp_path / "a.mp4", stripes()))
    assert np.abs(frames[:, :, 8::16].astype(int) - COLOURS).max() <= 16
    assert "mpeg4" in caplog.text


@pytest.mark.parametrize("fps", [24, 24000 / 1001, 0.5])
def test_packets_of_our_own_files_are_copied(tmp_path, fps):
    before = save(tmp_path / "before.mp4", moving(7), moving(9, start=7), fps=fps)
    path = save(tmp_path / "a.mp4", moving(5, start=16), fps=fps, before=before)
    assert packets(path)[:16] == packets(before)
    frames, rate = read_video(path)
    assert len(frames) == 21 and rate == probe_video(before).fps
    assert np.array_equal(frames[:16], read_video(before)[0])
    with av.open(str(path)) as container:
        stamps = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert stamps == [place / rate for place in range(21)]


def test_a_turned_file_of_ours_is_encoded_again(tmp_path):
    before = save(tmp_path / "before.mp4", moving(4))
    plain, turned = (struct.pack(">9i", s << 16, 0, 0, 0, s << 16, 0, 0, 0, 1 << 30) for s in (1, -1))
    content = before.read_bytes()
    assert content.count(plain) == 2
    before.write_bytes(turned.join(content.rsplit(plain, 1)))
    frames, _ = read_video(save(tmp_path / "a.mp4", before=before))
    assert np.abs(frames.astype(int) - read_video(before)[0]).mean() < 25, "noise, but the right side up"
    assert packets(tmp_path / "a.mp4") != packets(before)


def test_other_files_are_encoded_again_at_the_new_rate_and_size(tmp_path):
    others = {("audio.mp4", 12): 24, ("audio.mp4", Fraction(24000, 1001)): 48, ("rot90.mp4", 24): 48}
    for (name, fps), count in {**others, ("vfr.mp4", 24): 117}.items():
        info = probe_video(save(tmp_path / "a.mp4", moving(3), fps=fps, before=FAULTS / name))
        assert (info.num_frames, info.fps, info.height, info.width) == (count + 3, fps, *SIZE)


def test_pixels_are_converted_clamped_scaled_and_cropped():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert (to_uint8(to_float(frames)) == frames).all()
    beyond = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).expand(3, 1, 1, 5)
    assert to_uint8(beyond)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    cropped = resize_and_crop(stripes(), 32, 32)
    assert (cropped[:, :, 4] == COLOURS[1]).all() and (cropped[:, :, -4] == COLOURS[2]).all()
    assert resize_and_crop(frames, 16, 16) is frames
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    shrunk = resize_and_crop(checkers[None, :, :, None].repeat(3, axis=3), 16, 16)
    assert np.abs(shrunk[:, 2:-2, 2:-2].astype(int) - 127).max() <= 8
