"""The scenes of Physics-IQ as videos to continue (github.com/google-deepmind/physics-IQ-benchmark)."""

from __future__ import annotations

import csv
import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ..user_files import read_text, reading

logger = logging.getLogger(__name__)

_TABLES = ("descriptions.csv", "descriptions_original.csv")
_COLUMNS = ("scenario", "description", "generated_video_name")
_SCENARIO = re.compile(r"(?P<id>\d{4})_(?P<rest>perspective-[a-z]+_take-1_.+)\.mp4")


@dataclass(frozen=True)
class Scene:
    """A first take: what its continuation is called, what it shows, and its first three seconds."""

    name: str
    description: str
    video: Path


def find_scenes(folder: Path, table: Path | None, fps: float) -> list[Scene]:
    """All first takes, by their ids.

    Args:
        folder: with ``split-videos/``, in which the videos to continue lie by rate, or with
            ``physics-IQ-benchmark/`` in it, as the original code has it.
        table: CSV with scenario, description and the name of the video to generate; None: it lies in
            ``folder``, or beside it.
        fps: the rate to take, if it is there; else the highest.

    Raises:
        ValueError: a folder or the table is missing, or the table is another one.
    """
    if not folder.is_dir():
        raise ValueError(f"physicsiq_data_dir: there is no folder {folder}.")
    # the original code takes the folder that holds the benchmark's own
    inner = folder / "physics-IQ-benchmark"
    folder = inner if inner.is_dir() else folder
    videos = _conditioning_folder(folder, fps)
    rate = videos.name.removesuffix("FPS")
    scenes = {}
    for row in _read_table(table or _find_table(folder)):
        match = _SCENARIO.fullmatch(row["scenario"])
        if match is None:  # a second take, which only serves for comparison
            continue
        name, identity = row["generated_video_name"].removesuffix(".mp4"), match["id"]
        if not name.startswith(f"{identity}_"):
            raise ValueError(f"descriptions_file: {name} does not begin with its scenario's id, {identity}.")
        video = videos / f"{identity}_conditioning-videos_{rate}FPS_{match['rest']}.mp4"
        scenes[identity] = Scene(name, row["description"], video)
    if not scenes:
        raise ValueError(
            "descriptions_file: it names no first take, such as 0001_perspective-left_take-1_x.mp4."
        )
    return [scenes[identity] for identity in sorted(scenes)]


def _conditioning_folder(folder: Path, fps: float) -> Path:
    """The folder of the videos to continue, at the rate if there is one."""
    names = ("conditioning", "conditioning-videos")
    found = [
        path for name in names for path in (folder / "split-videos" / name).glob("*FPS") if path.is_dir()
    ]
    rates = {int(path.name[:-3]): path for path in found if path.name[:-3].isdecimal()}
    if not rates:
        raise ValueError(f"physicsiq_data_dir: {folder} holds no split-videos/conditioning/{fps:g}FPS.")
    rate = round(fps) if round(fps) in rates else max(rates)
    if rate != round(fps):
        logger.warning("Physics-IQ: there are no videos of %g FPS; those of %d are resampled.", fps, rate)
    return rates[rate]


def _find_table(folder: Path) -> Path:
    places = (folder, folder / "descriptions", folder.parent, folder.parent / "descriptions")
    for path in (place / name for place in places for name in _TABLES):
        if path.is_file():
            return path
    raise ValueError(f"physicsiq_data_dir: {folder} holds no descriptions.csv; name it as descriptions_file.")


def _read_table(path: Path) -> list[dict[str, str]]:
    with reading(f"descriptions_file: {path}", "CSV"):
        rows = list(csv.DictReader(io.StringIO(read_text(path, "CSV"), newline=""), strict=True))
    if not rows or any(row.get(name) is None for row in rows for name in _COLUMNS):
        raise ValueError(f"descriptions_file: {path} must have the columns {', '.join(_COLUMNS)}.")
    return rows
