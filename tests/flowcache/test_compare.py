"""``python -m flowcache.metrics`` on two files and on two folders."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from reference import ROOT

from flowcache.environment import Unavailable
from flowcache.metrics import __main__ as program
from flowcache.metrics import compare, psnr, ssim
from flowcache.video import VideoWriter, read_video


def save(path, seed=0, frames=5, size=(32, 48)):
    """A smooth random picture that slides; the same seed gives the same file."""
    path.parent.mkdir(exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    picture = coarse.repeat(size[0] // 4, axis=0).repeat(size[1] // 6, axis=1)
    with VideoWriter(path, 8) as writer:
        writer.write(np.stack([np.roll(picture, 2 * i, axis=1) for i in range(frames)]))
    return path


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """The program, in an empty folder and without LPIPS."""

    def load(device):
        raise Unavailable("LPIPS needs torchvision.")

    def run(original, generated, *more):
        arguments = ["--original_video", original, "--generated_video", generated, "--device", "cpu", *more]
        try:
            return program.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            return stop.code

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "load_lpips", load)
    return run


def read_report(stem):
    with open(f"{stem}.csv") as file:
        return json.loads(open(f"{stem}.json").read()), list(csv.DictReader(file))


def test_two_files(measure, tmp_path, capsys):
    original, generated = save(tmp_path / "a.mp4", 0), save(tmp_path / "b.mp4", 1)
    assert measure(original, generated) == 0
    videos = read_video(generated)[0], read_video(original)[0]
    content, table = read_report(tmp_path / "b.metrics")
    expected, (similar, _) = psnr(*videos), ssim(*videos)
    assert content["videos"]["b.mp4"]["frames"]["psnr"] == pytest.approx(expected[1].tolist())
    assert content["mean"] == pytest.approx({"psnr": expected[0], "ssim": similar, "lpips": None})
    assert content["missing"] == {"lpips": "LPIPS needs torchvision."} and content["environment"]["torch"]
    assert [row["frame"] for row in table] == ["0", "1", "2", "3", "4", "mean", "mean"]
    assert float(table[-1]["ssim"]) == pytest.approx(similar) and table[0]["lpips"] == ""
    out = capsys.readouterr().out
    assert all(word in out for word in (f"psnr: {expected[0]:.4f} dB\n", "torchvision", "b.metrics.csv"))


def test_two_folders_are_matched_by_name_and_broken_videos_are_named(measure, tmp_path, capsys):
    for folder, seed in (("original", 0), ("generated", 1)):
        save(tmp_path / folder / "different.mp4", seed)
        save(tmp_path / folder / "same.mp4")
        save(tmp_path / folder / "small.mp4", size=(8, 12))
        save(tmp_path / folder / "short.mp4", frames=5 - 2 * seed)
        save(tmp_path / folder / f"{folder}.mp4")
        save(tmp_path / folder / "broken.mp4")
    (tmp_path / "generated" / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "generated" / "x.trace.json").write_text("{}")
    assert measure("original", "generated", "--metrics", "psnr", "ssim", "--output", "out/table") == 1
    content, table = read_report("out/table")
    means = {name: video["mean"]["psnr"] for name, video in content["videos"].items()}
    assert means["same.mp4"] == means["small.mp4"] == 100 > means["different.mp4"]
    assert means["broken.mp4"] is means["short.mp4"] is None
    assert content["mean"]["psnr"] == pytest.approx((200 + means["different.mp4"]) / 3)
    assert content["only_in_original_video"] == ["original.mp4"]
    assert [row["video"] for row in table if row["frame"] == "mean"] == [*means, "all"]
    error = capsys.readouterr().err
    named = ("2 of 5", "broken.mp4: no psnr: ", "short.mp4 has 3 frames", "small.mp4: no ssim: ")
    assert all(words in error for words in (*named, "generated.mp4: only in generated_video"))


@pytest.mark.parametrize(
    ("named", "original", "generated", "more"),
    [
        ("original_video: nowhere.mp4", "nowhere.mp4", "good.mp4", []),
        ("generated_video: nowhere.mp4", "good.mp4", "nowhere.mp4", []),
        ("original_video, generated_video", "good.mp4", "empty", []),
        ("empty", "empty", "empty", []),
        ("generated_video: broken.mp4", "good.mp4", "broken.mp4", []),
        ("3 frames", "good.mp4", "short.mp4", []),
        ("24 columns", "good.mp4", "narrow.mp4", []),
        ("original_video", "x" * 300, "good.mp4", []),
        ("device", "good.mp4", "good.mp4", ["--device", "tpu"]),
        ("metrics", "good.mp4", "good.mp4", ["--metrics", "beauty"]),
        *(
            ("output", "good.mp4", "good.mp4", ["--output", output])
            for output in ("/proc/nowhere/a", "~nosuch_user/a", "x" * 240, ".")
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(measure, tmp_path, capsys, named, original, generated, more):
    save(tmp_path / "good.mp4")
    save(tmp_path / "short.mp4", frames=3)
    save(tmp_path / "narrow.mp4", size=(32, 24))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert measure(original, generated, *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error
    assert not list(tmp_path.glob("*.csv"))


def test_optional_packages_are_not_imported_at_the_start():
    code = "import sys, flowcache.metrics.__main__, flowcache.benchmark.__main__; "
    code += "print([name for name in ('torchvision', 'cv2') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_script_passes_its_arguments_on(tmp_path):
    variables = {"FLOWCACHE_NO_INSTALL": "1", "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(ROOT)}
    script = ROOT / "FlowCache4MAGI-1" / "scripts" / "metric.sh"
    command = ["bash", script, "--original_video", "nowhere.mp4", "--generated_video", "b.mp4"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 2 and "original_video: nowhere.mp4" in done.stderr
