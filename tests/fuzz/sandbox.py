"""A folder with good files of every kind that the programs read, and with places that cannot be used."""

from __future__ import annotations

import csv
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from reference import ROOT
from synthetic_run import make_run
from tiny import write_tiny_checkpoint
from tiny_magi import write_tiny_magi

from flowcache.video import VideoWriter

SECONDS_OF_PHYSICS = {"conditioning": 3, "testing": 5}


class Sandbox:
    """What the inputs name; each of them runs in a folder of its own, which is removed afterwards.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.good, self.bad, self.home = root, root / "good", root / "bad", root / "home"
        self._pristine = root.with_name(f"{root.name}.pristine")
        for folder in (self.good, self.bad, self.home, root / "cases"):
            folder.mkdir(parents=True, exist_ok=True)
        _write_models(self.good)
        _write_pictures(self.good)
        _write_lists(self.good)
        _write_runs(self.good)
        self.bad_paths = [str(path) for path in _write_bad_places(self.bad, self.good)]

    def remember(self) -> None:
        """Keep a copy of the good files: ``changes`` compares with it."""
        shutil.copytree(self.good, self._pristine)
        self._stamps = self._stamp()

    def changes(self) -> tuple[list[str], list[str]]:
        """Good files that an input has changed or removed, and files that it added; restores them."""
        now, before = self._stamp(), self._stamps
        lost = sorted(name for name in before if now.get(name) != before[name])
        new = sorted(now.keys() - before.keys())
        if lost or new:
            shutil.rmtree(self.good)
            shutil.copytree(self._pristine, self.good)
        return lost, new

    @contextmanager
    def case(self) -> Iterator[Path]:
        """An empty working folder."""
        folder = self.root / "cases" / "one"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(self.root)
            shutil.rmtree(folder, ignore_errors=True)

    def shown(self, text: str) -> str:
        """A text that any terminal shows, without the folder's own name, which differs from run to run."""
        return text.replace(str(self.root), "SANDBOX").encode(errors="backslashreplace").decode()

    def _stamp(self) -> dict[str, tuple[int, int]]:
        found = {}
        for folder, _, files in os.walk(self.good):
            for name in files:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                found[os.path.relpath(path, self.good)] = (status.st_size, status.st_mtime_ns)
        return found


def _write_models(good: Path) -> None:
    write_tiny_checkpoint(good / "skyreels")
    write_tiny_magi(good / "magi1")
    folder = ROOT / "FlowCache4MAGI-1" / "yaml_config"
    shutil.copy(folder / "single_run" / "config.yaml", good / "options.yaml")
    for kind in ("vbench", "physicsiq"):
        shutil.copy(folder / "sample" / f"flowcache_{kind}.yaml", good / f"{kind}.yaml")


def _write_pictures(good: Path) -> None:
    for name, mode, size in (("image.png", "RGB", (40, 30)), ("tall.jpg", "RGB", (30, 60))):
        Image.new(mode, size, "red").save(good / name)
    Image.new("RGBA", (32, 32), (10, 200, 10, 0)).save(good / "clear.png")
    Image.new("I;16", (32, 32), 30000).save(good / "grey.png")
    for name, fps, frames, size in (("in.mp4", 8, 25, (32, 32)), ("tall.mp4", 24, 30, (64, 32))):
        save_slide(good / name, fps, frames, size)
    for folder, start in (("original", 30), ("generated", 34)):
        (good / folder).mkdir()
        for name in ("a.mp4", "b.mp4"):
            save_slide(good / folder / name, 8, 9, (32, 32), start)


def save_slide(path: Path, fps: int, frames: int, size: tuple[int, int], grey: int = 30) -> None:
    """A video of a square that slides to the right."""
    video = np.full((frames, *size, 3), grey, np.uint8)
    for index, frame in enumerate(video):
        frame[8:20, index % 20 : index % 20 + 12] = 220
    with VideoWriter(path, fps) as writer:
        writer.write(video)


def _write_lists(good: Path) -> None:
    (good / "notes.txt").write_text("of the user\n")
    (good / "empty").touch()
    (good / "prompts").mkdir()
    (good / "prompts" / "scene.txt").write_text("a red circle\na circle\n")
    (good / "prompts" / "color.txt").write_text("red circle\n")
    tables = {"other_tokens": 100, "caption_token": 1, "logo_token": 1}
    np.savez(good / "tokens.npz", **{name: np.ones((rows, 16), np.float32) for name, rows in tables.items()})
    (good / "full_info").mkdir()
    shutil.copy(ROOT / "assets" / "vbench_small" / "VBench_full_info.json", good / "full_info")
    split = good / "physics" / "split-videos"
    for kind, identity, take in (("conditioning", 1, 1), ("testing", 1, 1), ("testing", 199, 2)):
        folder = split / kind / "8FPS"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{identity:04}_{kind}-videos_8FPS_perspective-left_take-{take}_roll.mp4"
        save_slide(folder / name, 8, 8 * SECONDS_OF_PHYSICS[kind], (32, 64))
    with (good / "physics" / "descriptions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["scenario", "description", "category", "generated_video_name"])
        table.writerow(
            [
                "0001_perspective-left_take-1_roll.mp4",
                "a red circle",
                "Solid",
                "0001_perspective-left_roll.mp4",
            ]
        )
    (good / "continued").mkdir()
    save_slide(good / "continued" / "0001_perspective-left_roll.mp4", 8, 40, (32, 64))
    (good / "vbench_videos").mkdir()
    save_slide(good / "vbench_videos" / "a red circle-0.mp4", 8, 9, (32, 32))


def _write_runs(good: Path) -> None:
    make_run(good / "run")
    traces = good / "traces"
    traces.mkdir()
    found = sorted((good / "run").rglob("*.trace.json"))
    for index, path in enumerate(found[:2]):
        shutil.copy(path, traces / f"{index}.trace.json")


def _write_bad_places(bad: Path, good: Path) -> Iterator[Path]:
    """Places that are no files, or cannot be read or written."""
    os.mkfifo(bad / "fifo")
    yield bad / "fifo"
    (bad / "loop").symlink_to(bad / "loop")
    yield bad / "loop"
    (bad / "dangling").symlink_to(bad / "nowhere" / "a.mp4")
    yield bad / "dangling"
    (bad / "folder.mp4").mkdir()
    yield bad / "folder.mp4"
    yield good / "notes.txt" / "a.mp4"
    for name, minor in (("null", 3), ("full", 7)):
        if os.geteuid():
            yield Path("/dev") / name
        else:  # a program run by root could replace the machine's own
            os.mknod(bad / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            yield bad / name
    if os.geteuid():
        (bad / "locked").mkdir(mode=0)
        yield bad / "locked" / "a.mp4"
