"""PSNR, SSIM and LPIPS (with random weights in place of a download) against known answers, and their program."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from programs import assert_refused, script_words
from reference import ROOT
from torch import nn

from flowcache.environment import Unavailable
from flowcache.metrics import __main__ as program
from flowcache.metrics import compare, load_lpips, psnr, ssim
from flowcache.video import VideoWriter, read_video

FRAME = np.ones((1, 16, 20, 3), np.float32)
ABSENT = {"lpips": "LPIPS needs torchvision.", "st_lpips": "ST-LPIPS needs weights."}


def random_pair(frames=3):
    torch.manual_seed(0)
    reference = torch.rand(frames, 40, 44, 3)
    return (reference + 0.1 * torch.randn(reference.shape)).clamp(0, 1), reference


def alexnet_features(*_):
    """The convolutions of AlexNet in torchvision's order."""
    torch.manual_seed(0)
    sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1)]
    layers = [layer for size in [*sizes, (256, 256, 3, 1, 1)] for layer in (nn.Conv2d(*size), nn.ReLU())]
    return nn.Sequential(*layers[:2], nn.MaxPool2d(3, 2), *layers[2:4], nn.MaxPool2d(3, 2), *layers[4:])


@pytest.fixture
def lpips(monkeypatch):
    monkeypatch.setattr("flowcache.metrics.similarity.require", lambda *_: None)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", alexnet_features)
    return load_lpips()


def test_known_values(lpips):
    mean, per_frame = psnr(np.concatenate([0.5 * FRAME, 0.6 * FRAME]), 0.5 * FRAME.repeat(2, axis=0))
    assert [*per_frame.tolist(), mean] == pytest.approx([100, 20, 60], abs=1e-4), "identical frames: 100 dB"
    pixel = np.zeros((1, 400, 400, 3), np.uint8)
    pixel[0, 0, 0, 0] = 1
    assert psnr(pixel, 0 * pixel)[0] == 100, "never more than identical ones"
    low, high = (np.full_like(FRAME, value, np.uint8) for value in (3, 250))
    assert psnr(low, high)[0] == psnr(high, low)[0] == pytest.approx(20 * math.log10(255 / 247), abs=1e-3)

    noisy, reference = random_pair()
    assert ssim(reference, reference)[1].tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    flat = (2 * 0.3 * 0.8 + 1e-4) / (0.3**2 + 0.8**2 + 1e-4)
    assert ssim(0.3 * FRAME, 0.8 * FRAME)[0] == pytest.approx(flat, abs=3e-4), "rounding of variances"

    levels = torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1, 1)
    _, frames = lpips(reference + levels * (noisy - reference), reference)
    assert frames[0] == 0 < frames[1] < frames[2]


@pytest.mark.parametrize("name", ["psnr", "ssim", "lpips"])
def test_long_videos_are_measured_frame_by_frame_as_bytes_or_floats(name, lpips):
    metric = {"psnr": psnr, "ssim": ssim, "lpips": lpips}[name]
    generated, reference = ((255 * video).round().to(torch.uint8) for video in random_pair(frames=17))
    mean, per_frame = metric(generated.numpy(), reference)
    assert mean == pytest.approx(per_frame.mean().item(), rel=1e-5)
    generated, reference = generated.float() / 255, reference.float() / 255
    alone = [metric(generated[[i]].numpy(), reference[[i]])[0] for i in (0, 8, 16)]
    assert per_frame[[0, 8, 16]].tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("generated", "reference", "message"),
    [
        (FRAME.repeat(2, axis=0), FRAME.repeat(3, axis=0), r"\[2, .*\[3, "),
        *((wrong, wrong, "frames, height") for wrong in (FRAME[0], FRAME[:0], FRAME.transpose(0, 3, 1, 2))),
        (FRAME.astype(int), FRAME.astype(int), "floating point"),
        *((*pair, r"\[0, 1\]") for pair in ((-FRAME, FRAME), (FRAME, 128 * FRAME), (np.nan * FRAME, FRAME))),
    ],
)
def test_other_videos_are_refused(generated, reference, message):
    with pytest.raises(ValueError, match=message):
        ssim(generated, reference)


def test_smallest_frames(lpips):
    for metric, least in ((ssim, 11), (lpips, 31)):
        video = torch.rand(1, least, least, 3)
        metric(video, video)
        with pytest.raises(ValueError, match=f"{least} x {least}"):
            metric(video[:, 1:], video[:, 1:])


def test_lpips_names_what_it_lacks(lpips, monkeypatch):
    download = mock.Mock(side_effect=OSError("<urlopen error no route>\nmore"))
    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", download)
    with pytest.raises(Unavailable, match=r"AlexNet.*: <urlopen error no route>$"):
        load_lpips()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(Unavailable, match=r"LPIPS needs torchvision: pip install -e '\.\[metrics\]'"):
        load_lpips()


def save(path, seed=0, frames=5, size=(32, 48)):
    """A smooth random picture that slides; the same seed gives the same file."""
    path.parent.mkdir(exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    picture = coarse.repeat(size[0] // 4, axis=0).repeat(size[1] // 6, axis=1)
    with VideoWriter(path, 8) as writer:
        writer.write(np.stack([np.roll(picture, 2 * i, axis=1) for i in range(frames)]))
    return path


def read_report(stem):
    return json.loads(Path(f"{stem}.json").read_text()), [*csv.DictReader(open(f"{stem}.csv"))]


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """The program, in an empty folder, without LPIPS and ST-LPIPS."""

    def run(original, generated, *more):
        words = ["--original_video", original, "--generated_video", generated, "--device", "cpu", *more]
        return program.main([str(word) for word in words])

    monkeypatch.chdir(tmp_path)
    for name, reason in ABSENT.items():
        monkeypatch.setattr(compare, f"load_{name}", mock.Mock(side_effect=Unavailable(reason)))
    return run


def test_two_files(measure, tmp_path, capsys):
    original, generated = save(tmp_path / "a.mp4", 0), save(tmp_path / "b.mp4", 1)
    assert measure(original, generated) == 0
    videos = read_video(generated)[0], read_video(original)[0]
    content, table = read_report("b.metrics")
    expected, (similar, _) = psnr(*videos), ssim(*videos)
    assert content["videos"]["b.mp4"]["frames"]["psnr"] == pytest.approx(expected[1].tolist())
    assert content["mean"] == pytest.approx({"psnr": expected[0], "ssim": similar, "lpips": None, "st_lpips": None})
    assert content["missing"] == ABSENT and content["environment"]["torch"]
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
    named = ("2 videos", "broken.mp4: ", "short.mp4 has 3 frames", "small.mp4: no ssim: ")
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
        ("device", "good.mp4", "good.mp4", ["--device", "tpu"]),
        *(("output", "good.mp4", "good.mp4", ["--output", path]) for path in ("/proc/nowhere/a", "x" * 240, ".")),
    ],
)
def test_bad_input_is_refused_in_one_sentence(measure, tmp_path, capsys, named, original, generated, more):
    save(tmp_path / "good.mp4")
    save(tmp_path / "short.mp4", frames=3)
    save(tmp_path / "narrow.mp4", size=(32, 24))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert_refused(measure(original, generated, *more), named, capsys)
    assert not list(tmp_path.glob("*.csv"))


def test_optional_packages_are_not_imported_at_the_start():
    code = "import sys, flowcache.metrics.__main__, flowcache.benchmark.__main__; "
    code += "print([name for name in ('torchvision', 'cv2') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_script_passes_its_arguments_on(tmp_path):
    script, typed = ROOT / "FlowCache4MAGI-1" / "scripts" / "metric.sh", ["--original_video", "a b.mp4"]
    assert script_words(script, *typed, cwd=tmp_path) == ["flowcache.metrics", *typed]
