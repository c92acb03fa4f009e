"""Videos that are continued, from the outside: what is shown before keeps its shape, speed and packets."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from reference import FAULTS

from flowcache.trace import Trace
from flowcache.video import VideoWriter, probe_video, read_video

SMALL = ["--height", 32, "--width", 48, "--num_frames", 9]
SMALL += ["--inference_steps", 2, "--ar_step", 1, "--causal_block_size", 2]


def arguments(checkpoint, video, *more):
    flags = ["--model_id", checkpoint, "--prompt", "a", "--video_path", video, "--overlap_history", 5]
    return [*flags, *SMALL, *more]


@pytest.fixture
def continued(front, checkpoint, tmp_path):
    """Continue a video; the path of the result."""

    def run(video, *more):
        assert front(*arguments(checkpoint, video, *more, "--outdir", "out")) == 0
        return max((tmp_path / "out" / "skyreels_v2").glob("*.mp4"), key=lambda path: path.stat().st_mtime_ns)

    return run


def prepared(front, checkpoint, video, *more):
    return front.prepare(*arguments(checkpoint, video, *more))


@pytest.mark.parametrize(("name", "upright"), [("rot90.mp4", True), ("vfr.mp4", False)])
def test_the_video_stands_as_it_is_shown(front, checkpoint, name, upright):
    flags = arguments(checkpoint, FAULTS / name, "--resolution", "540P", "--device", "cpu")
    flags = [str(flag) for flag in flags if flag not in ("--height", "--width", 32, 48)]
    job = front.prepare(*flags)
    size = job.sampler.model.video.height, job.sampler.model.video.width
    assert size == ((960, 544) if upright else (544, 960))
    assert job.start.prefix.shape == (3, 5, *size)


@pytest.mark.parametrize(
    ("name", "flags", "fps", "given"),
    [
        ("vfr.mp4", [], 24, 117),
        ("slow.mp4", [], Fraction(1, 2), 20),
        ("rot90.mp4", ["--fps", "12"], 12, 24),
        ("rot90.mp4", ["--fps", "23.976"], Fraction(24000, 1001), 48),
        ("rot90.mp4", ["--fps", "30000/1001"], Fraction(30000, 1001), 60),
    ],
)
def test_what_is_given_plays_as_fast_as_it_did(continued, name, flags, fps, given):
    path = continued(FAULTS / name, *flags)
    info = probe_video(path)
    assert (info.num_frames, info.fps) == (given + 9 - 5, fps)
    stated = Trace.load(path.with_suffix(".trace.json")).settings["video"]["fps"]
    assert stated == pytest.approx(float(fps))


def test_a_result_is_continued_without_loss(continued, tmp_path):
    with VideoWriter(tmp_path / "in.mp4", 24000 / 1001) as writer:
        writer.write(np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8))
    first = continued(tmp_path / "in.mp4")
    second = continued(first)
    contents = []
    for path in (tmp_path / "in.mp4", first, second):
        with av.open(str(path)) as container:
            contents.append([bytes(packet) for packet in container.demux(video=0) if packet.dts is not None])
    assert contents[1][:9] == contents[0]
    assert contents[2][:13] == contents[1]
    assert len(contents[2]) == 17


def test_lost_sound_is_said(front, checkpoint, caplog):
    prepared(front, checkpoint, FAULTS / "audio.mp4")
    assert "sound" in caplog.text


@pytest.mark.parametrize(
    "fps", ["0", "-1", "nan", "inf", "1e9", "2147483648", "1/0", "24/", "x", "1e999999999"]
)
def test_rates_out_of_range_are_refused(front, checkpoint, fps, capsys):
    assert front("--model_id", checkpoint, "--prompt", "a", *SMALL, f"--fps={fps}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "fps" in line


def test_damaged_time_stamps_are_refused(front, checkpoint, capsys):
    assert front(*arguments(checkpoint, FAULTS / "timestamps.avi")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: video_path: ")


def test_it_ends_with_the_frames_that_it_starts_from(front, checkpoint):
    """The prefix is the end of what is shown before, at the rate of the new video."""
    job = prepared(front, checkpoint, FAULTS / "vfr.mp4", "--height", 64, "--width", 96)
    shown = read_video(FAULTS / "vfr.mp4")[0][-2:]
    last = ((job.start.prefix.permute(1, 2, 3, 0) + 1) * 127.5).round().numpy()
    assert np.array_equal(last[-1], shown[1])
    assert np.array_equal(last[0], shown[0])


def test_what_an_image_hides_is_black_and_said_once(front, checkpoint, caplog):
    flags = ["--model_id", checkpoint, "--prompt", "a", *SMALL, "--image", FAULTS / "rgba_hidden_green.png"]
    job = front.prepare(*flags)
    red, green, _ = (job.start.prefix[:, 0] + 1) * 127.5
    assert (green - red).max() < 50
    assert caplog.text.count("black") == 1
