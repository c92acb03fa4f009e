"""The programs for one video: what they write, and how they continue another video."""

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from programs import FOLDERS, assert_refused
from reference import FAULTS, ROOT

from flowcache.trace import Trace
from flowcache.video import VideoWriter, probe_video, read_video

MEASURED = ["--warmup_steps", 1, "--rel_l1_thresh", 0.2]
FRONT = FOLDERS["skyreels_v2"] / "generate_video_df.py"
#: Model, flags, how the video is called, its frames.
WRITTEN = [
    ("magi1", ["--method", "vanilla"], "t2v_vanilla_seed1234_steps8", 32),
    ("magi1", ["--method", "teacache", *MEASURED], "t2v_teacache_rel_l1_thresh0.2_seed1234_steps8", 32),
    ("magi1", MEASURED, "t2v_flowcache_rel_l1_thresh0.2_seed1234_steps8", 32),
    ("skyreels_v2", [], "t2v_flowcache_fast_seed0_steps4", 9),
]


def newest(model: str) -> Path:
    """The video that a program of this model wrote last."""
    return max(Path().rglob(f"{model}/*.mp4"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize(("model", "flags", "name", "frames"), WRITTEN)
def test_writes_video_trace_and_map(program, capsys, model, flags, name, frames):
    assert program(model)("--prompt", "a red circle", *flags) == 0, capsys.readouterr().err
    video = newest(model)
    assert video.parts[0] == "outputs" and re.fullmatch(f"a_red_circle_{name}_[0-9a-f]{{8}}", video.stem)
    written, fps = read_video(video)
    assert (written.shape, fps) == ((frames, 32, 32, 3), 24)
    assert Trace.load(video.with_suffix(".trace.json")).method == name.split("_")[1]
    assert Image.open(video.with_suffix(".reuse.png")).size[0] > 300
    *_, compute, memory, time = capsys.readouterr().out.splitlines()
    assert "reuse ratio" in compute and "peak memory" in memory and "denoising" in time


@pytest.mark.parametrize("start", [[FRONT], ["-m", "flowcache", "generate", "--model", "skyreels_v2"]])
def test_the_file_and_the_command_start_from_any_folder(skyreels, tmp_path, start):
    environment = {"PYTHONPATH": f"{ROOT}:{FRONT.parent}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, *map(str, (*start, *skyreels.first, "--outdir", "out"))]
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("out/skyreels_v2/a_t2v_*.mp4"))) == 1


def test_starts_from_an_image_or_a_video(magi, clip):
    Image.new("RGB", (40, 30), "red").save("first.png")
    for flags in (["--mode", "i2v", "--image_path", "first.png"], clip):
        assert magi(*MEASURED, *flags, "--output_path", "a.mp4") == 0
        assert len(read_video("a.mp4")[0]) == 32, "an image is among them, a video is not"


def test_seed_minus_one_is_drawn_and_named(skyreels, caplog):
    caplog.set_level("INFO")
    assert skyreels("--seed", -1) == 0
    video = newest("skyreels_v2")
    seed = Trace.load(video.with_suffix(".trace.json")).settings["video"]["seed"]
    assert seed >= 0 and f"_seed{seed}_" in video.name and f"seed: {seed}" in caplog.text


def test_streams_a_long_video_and_keeps_the_newest_blocks(skyreels):
    assert skyreels("--streaming", "--use_compress", "--num_frames", 69, "--base_num_frames", 17) == 0
    video = newest("skyreels_v2")
    assert len(read_video(video)[0]) == 69
    assert len(Trace.load(video.with_suffix(".trace.json")).windows) == 1
    newest_block = ["--use_kvrange", "--kvrange", 1, "--kv_bits", 8]
    assert skyreels(*newest_block, "--num_frames", 49, "--causal_block_size", 1) == 0


def test_a_target_is_searched_for(magi, tmp_path):
    assert magi("--output_path", "a.mp4", "--num_frames", 16, "--target_speedup", 1.2) == 0
    assert list((tmp_path / "kept" / "profiles").glob("magi-32x32-8steps-window4-*.json"))
    reuse = Trace.load("a.trace.json").settings["reuse"]
    assert (reuse["policy"], reuse["clean_pass"]) == ("interval", True)


def test_a_target_is_searched_for_once(skyreels, tmp_path, request, capsys):
    steps = ["--inference_steps", 6]
    assert skyreels(*steps, "--target_speedup", 1.2, "--resume") == 0
    (profile,) = (tmp_path / "kept" / "profiles").glob("tiny-32x32-6steps-shift8-*.json")
    written, video = profile.stat().st_mtime_ns, newest("skyreels_v2")
    expected, achieved = re.findall(r"([\d.]+x)(?: fewer FLOPs than| *$)", capsys.readouterr().out.splitlines()[-4])
    assert expected == achieved, "a video as short as the pilot comes to what was expected"
    assert video.name.startswith("a_t2v_flowcache_1.2x_seed0_steps6_")
    settings = Trace.load(video.with_suffix(".trace.json")).settings
    assert (settings["reuse"]["policy"], settings["tuning"]["target"]) == ("interval", "1.2x")
    assert skyreels(*steps, "--target_psnr", 1, "--prompt", "a circle") == 0
    assert profile.stat().st_mtime_ns == written, "the profile serves other targets and prompts"
    request.getfixturevalue("unread")
    capsys.readouterr()
    assert_refused(skyreels(*steps, "--target_speedup", 99), "target_speedup", capsys)
    given = ["--profile", profile, "--shift", 3, "--target_psnr", 1]
    assert_refused(skyreels(*steps, *given), "video.shift", capsys)


@pytest.mark.parametrize("how", ["none", "flag", "variable", "official code"])
def test_the_usual_special_tokens_are_on_with_their_table(magi, monkeypatch, caplog, how):
    caplog.set_level("INFO")
    table = Path("example/assets/special_tokens.npz")  # its place in the official code
    table.parent.mkdir(parents=True)
    rows = {"other_tokens": 100, "caption_token": 1, "logo_token": 1}
    np.savez(table, **{name: np.ones((size, 16)) for name, size in rows.items()})
    words = ["--special_tokens", table.rename("t.npz")] if how == "flag" else []
    if how == "variable":
        monkeypatch.setenv("SPECIAL_TOKEN_PATH", str(table.rename("t.npz")))
    if how == "none":
        table.unlink()
    else:
        monkeypatch.setenv("PAD_STATIC", "y")
    assert magi(*words, "--num_frames", 16, "--output_path", "a.mp4") == 0
    if how == "none":
        assert "special tokens: none" in caplog.text and "--special_tokens" in caplog.text
    else:
        assert Trace.load("a.trace.json").settings["special_tokens"] == "static, high_quality, duration"


@pytest.fixture
def front(skyreels):
    """The program with flags of a short video of 48 columns that continues another."""
    skyreels.first += ("--width", 48, "--inference_steps", 2, "--overlap_history", 5)
    return skyreels


@pytest.fixture
def continued(front):
    """Continue a video; the path of the result."""

    def run(video, *more):
        assert front("--video_path", video, *more) == 0
        return newest("skyreels_v2")

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
