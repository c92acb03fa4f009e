"""Two files or two folders, from the command line."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from reference import ROOT

from flowcache.extras import Unavailable
from flowcache.metrics import __main__ as program
from flowcache.metrics import compare, psnr, ssim
from flowcache.video import VideoWriter, read_video

SIZE = (32, 48)


def save(path, seed=0, frames=5, size=SIZE):
    """A smooth random picture that slides; the same seed gives the same file."""
    path.parent.mkdir(exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    picture = coarse.repeat(size[0] // 4, axis=0).repeat(size[1] // 6, axis=1)
    with VideoWriter(path, 8) as writer:
        writer.write(np.stack([np.roll(picture, 2 * i, axis=1) for i in range(frames)]))
    return path


@pytest.fixture
def no_lpips(monkeypatch):
    def load(device):
        raise Unavailable("LPIPS needs torchvision.")

    monkeypatch.setattr(compare, "load_lpips", load)


@pytest.fixture
def front(monkeypatch, tmp_path):
    """The program, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            return program.main(["--device", "cpu", *map(str, arguments)])
        except SystemExit as stop:
            return stop.code

    return run


def compare_paths(front, original, generated, *more):
    return front("--original_video", original, "--generated_video", generated, *more)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_two_files(front, no_lpips, tmp_path, capsys):
    original, generated = save(tmp_path / "a.mp4", 0), save(tmp_path / "b.mp4", 1)
    assert compare_paths(front, original, generated) == 0
    videos = read_video(generated)[0], read_video(original)[0]
    content = json.loads((tmp_path / "b.metrics.json").read_text())
    assert content["videos"]["b.mp4"]["frames"]["psnr"] == pytest.approx(psnr(*videos)[1].tolist())
    assert content["mean"]["psnr"] == pytest.approx(psnr(*videos)[0])
    assert content["mean"]["ssim"] == pytest.approx(ssim(*videos)[0])
    assert content["environment"]["torch"]
    table = rows(tmp_path / "b.metrics.csv")
    assert [row["frame"] for row in table] == ["0", "1", "2", "3", "4", "mean", "mean"]
    assert float(table[-1]["ssim"]) == pytest.approx(ssim(*videos)[0])
    out = capsys.readouterr().out
    assert f"psnr: {psnr(*videos)[0]:.4f} dB\n" in out
    assert str(tmp_path / "b.metrics.csv") in out


def test_metric_that_cannot_be_had_says_why_and_fails_nothing(front, no_lpips, tmp_path, capsys):
    video = save(tmp_path / "a.mp4")
    assert compare_paths(front, video, video) == 0
    assert "lpips: none: LPIPS needs torchvision." in capsys.readouterr().out
    content = json.loads((tmp_path / "a.metrics.json").read_text())
    assert content["missing"] == {"lpips": "LPIPS needs torchvision."}
    assert content["mean"] == {"psnr": 100, "ssim": pytest.approx(1, abs=1e-5), "lpips": None}
    assert rows(tmp_path / "a.metrics.csv")[0]["lpips"] == ""


def test_metric_that_does_not_suit_a_video_says_why(front, tmp_path, capsys):
    video = save(tmp_path / "a.mp4", size=(8, 12))
    assert compare_paths(front, video, video, "--metrics", "psnr", "ssim") == 0
    out = capsys.readouterr().out
    assert "psnr: 100.0000 dB" in out and "a.mp4: no ssim: SSIM needs frames of at least 11 x 11" in out


def test_two_folders_are_matched_by_name(front, tmp_path, capsys):
    for name, seeds in {"x.mp4": (0, 1), "y.mp4": (2, 2)}.items():
        for folder, seed in zip(("original", "generated"), seeds, strict=True):
            save(tmp_path / folder / name, seed)
    save(tmp_path / "original" / "lonely.mp4")
    save(tmp_path / "generated" / "new.mp4")
    (tmp_path / "generated" / "x.trace.json").write_text("{}")
    code = compare_paths(
        front, tmp_path / "original", tmp_path / "generated", "--metrics", "psnr", "--output", "out/table"
    )
    assert code == 0
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    means = {name: video["mean"]["psnr"] for name, video in content["videos"].items()}
    assert means["y.mp4"] == 100 > means["x.mp4"]
    assert content["mean"]["psnr"] == pytest.approx((100 + means["x.mp4"]) / 2)
    assert content["only_in_original_video"] == ["lonely.mp4"]
    out = capsys.readouterr().out
    assert "lonely.mp4: only in original_video" in out and "new.mp4: only in generated_video" in out
    assert "mean of 2 videos" in out
    assert [row["video"] for row in rows(tmp_path / "out" / "table.csv")[::6]] == ["x.mp4", "y.mp4", "all"]


def test_a_broken_video_of_a_folder_is_named_and_the_others_are_measured(front, tmp_path, capsys):
    for name in ("x.mp4", "y.mp4", "z.mp4"):
        save(tmp_path / "original" / name)
        save(tmp_path / "generated" / name)
    (tmp_path / "generated" / "y.mp4").write_bytes(b"no video")
    save(tmp_path / "generated" / "z.mp4", frames=3)
    folders = (tmp_path / "original", tmp_path / "generated")
    assert compare_paths(front, *folders, "--metrics", "psnr", "--output", "out/table") == 1
    error = capsys.readouterr().err
    assert "2 of 3" in error and "y.mp4: no psnr: " in error and "z.mp4 has 3 frames" in error
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert content["mean"]["psnr"] == 100
    assert [bool(video["frames"]) for video in content["videos"].values()] == [True, False, False]


def bad_input(tmp_path):
    """Arguments of runs that must be refused, by a part of the message."""
    good = save(tmp_path / "good.mp4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    return {
        "original_video: nowhere.mp4 does not exist": ("nowhere.mp4", good),
        "generated_video: nowhere.mp4 does not exist": (good, "nowhere.mp4"),
        "two files or two folders": (good, "empty"),
        "hold no videos of the same file name": ("empty", "empty"),
        "generated_video: broken.mp4 cannot be read as a video": (good, "broken.mp4"),
        "has 3 frames, but original_video": (good, save(tmp_path / "short.mp4", frames=3)),
        "has 24 columns, but original_video": (good, save(tmp_path / "narrow.mp4", size=(32, 24))),
        "device must be cpu or cuda": (good, good, "--device", "tpu"),
        "output /proc/nowhere cannot be written to": (good, good, "--output", "/proc/nowhere/a"),
        "argument --output: ": (good, good, "--output", "~nosuch_user/a"),
        "File name too long": (good, good, "--output", "x" * 240),
        "argument --original_video: ": ("x" * 300, good),
        "argument --metrics": (good, good, "--metrics", "beauty"),
    }


def test_bad_input_is_refused_in_one_sentence(front, tmp_path, capsys):
    for message, arguments in bad_input(tmp_path).items():
        assert compare_paths(front, *arguments) == 2, message
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.csv"))


def test_missing_arguments_are_named(front, capsys):
    assert front() == 2
    assert "--original_video, --generated_video" in capsys.readouterr().err


def test_optional_packages_are_not_imported_at_the_start():
    code = "import sys, flowcache.metrics.__main__, flowcache.benchmark.__main__; "
    code += "print([name for name in ('torchvision', 'cv2') if name in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_script_passes_its_arguments_on(tmp_path):
    environment = {
        **os.environ,
        "FLOWCACHE_NO_INSTALL": "1",
        "VIRTUAL_ENV": sys.prefix,
        "PYTHONPATH": str(ROOT),
    }
    script = ROOT / "FlowCache4MAGI-1" / "scripts" / "metric.sh"
    arguments = ["--original_video", "nowhere.mp4", "--generated_video", "b.mp4"]
    result = subprocess.run(
        ["bash", script, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr == "error: original_video: nowhere.mp4 does not exist.\n"
