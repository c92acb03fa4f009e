"""Videos that are continued, from the outside: the given part keeps its shape, speed and packets."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from reference import FAULTS

from flowcache.trace import Trace
from flowcache.video import VideoWriter, probe_video, read_video


@pytest.fixture
def front(skyreels):
    """The program with flags of a short video of 48 columns that continues another."""
    skyreels.first += ("--width", 48, "--inference_steps", 2, "--overlap_history", 5)
    return skyreels


@pytest.fixture
def continued(front):
    """Continue a video; the path of the result."""

    def run(video, *more):
        assert front("--video_path", video, *more, "--outdir", "out") == 0
        return max(Path("out/skyreels_v2").glob("*.mp4"), key=lambda path: path.stat().st_mtime_ns)

    return run


@pytest.mark.parametrize(("name", "upright"), [("rot90.mp4", True), ("vfr.mp4", False)])
def test_the_video_keeps_its_orientation(skyreels, checkpoint, name, upright):
    skyreels.first = ("--model_id", checkpoint, "--prompt", "a", "--num_frames", 9, "--causal_block_size", 2)
    video = ["--video_path", FAULTS / name, "--overlap_history", 5]
    job = skyreels.prepare(*video, "--resolution", "540P", "--device", "cpu")
    size = (960, 544) if upright else (544, 960)
    assert job.sampler.model.size == size
    assert job.start.prefix.shape == (3, 5, *size)


@pytest.mark.parametrize(
    ("name", "flags", "fps", "given"),
    [
        ("vfr.mp4", [], 24, 117),
        ("slow.mp4", [], Fraction(1, 2), 20),
        ("rot90.mp4", ["--fps", "12"], 12, 24),
        ("rot90.mp4", ["--fps", "30000/1001"], Fraction(30000, 1001), 60),
    ],
)
def test_the_given_part_plays_as_fast_as_before(continued, name, flags, fps, given):
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


def test_the_prefix_is_the_end_of_the_given_part(front, caplog):
    job = front.prepare("--video_path", FAULTS / "vfr.mp4", "--height", 64, "--width", 96)
    shown = read_video(FAULTS / "vfr.mp4")[0][-2:]
    last = ((job.start.prefix.permute(1, 2, 3, 0) + 1) * 127.5).round().numpy()
    assert np.array_equal(last[-1], shown[1])
    assert np.array_equal(last[0], shown[0])
    assert "sound" not in caplog.text
    front.prepare("--video_path", FAULTS / "audio.mp4")
    assert "sound" in caplog.text, "sound is lost"


def test_transparent_parts_of_an_image_are_black_with_one_warning(skyreels, caplog):
    job = skyreels.prepare("--image", FAULTS / "rgba_hidden_green.png")
    red, green, _ = (job.start.prefix[:, 0] + 1) * 127.5
    assert (green - red).max() < 50
    assert caplog.text.count("black") == 1
