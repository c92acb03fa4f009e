"""Which pictures a folder with traces gives, and what they are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..naming import words_of
from ..plots import Point, cache_over_time, distance_curves, reuse_map, step_distances, tradeoff
from ..plots.race import Runner, finished_parts, write_race
from ..trace import Trace
from ..video import contact_sheet, read_video
from .run_folder import ModelRun, find_model_runs, model_folders
from .tables import TITLES, build_table
from .turns import folder_of

#: Measures of a table that quality is drawn by, and what the axis says.
QUALITIES = {
    "psnr": "PSNR to vanilla, dB",
    "ssim": "SSIM to vanilla",
    "lpips": "LPIPS to vanilla",
    "vbench": "VBench",
    "psnr_to_causal": "PSNR to causal, dB",
}


@dataclass(frozen=True)
class Take:
    """One video: its file name without suffix for pictures, its trace, and where it lies if it does."""

    name: str
    trace: Trace
    video: Path | None


@dataclass(frozen=True)
class Album:
    """What belongs into one folder of pictures.

    Attributes:
        folder: its name; empty: the output folder itself.
        title: what the methods made.
        takes: one video by several methods, by label.
        others: videos that are drawn alone.
        quality: points of the trade-off, by measure.
    """

    folder: str
    title: str
    takes: Mapping[str, Take]
    others: Sequence[Take] = ()
    quality: Mapping[str, Sequence[Point]] = field(default_factory=dict)


def find_albums(run_dir: Path, prompt: str | None = None) -> list[Album]:
    """What there is to draw: of a run of several ways, an album for each model; of other folders, one.

    Args:
        run_dir: a folder with traces at any depth.
        prompt: of the video to compare methods by; None: the first; in folders of other kinds, the one with
            most traces.

    Raises:
        ValueError: there is no trace, one is broken, or none of that prompt.
    """
    if not run_dir.is_dir():
        raise ValueError(f"run_dir {run_dir} is no folder.")
    if model_folders(run_dir):
        return [_album_of_ways(run, prompt) for run in find_model_runs(run_dir)]
    paths = sorted(run_dir.rglob("*.trace.json"))
    if not paths:
        raise ValueError(f"run_dir {run_dir} holds no *.trace.json; give a folder that a run has written to.")
    return [_album_of_files(paths, prompt)]


def draw_album(album: Album, output: Path) -> list[str]:
    """Draw everything that the traces and videos allow.

    Returns:
        A line for each picture, and one for each that there is none of, with the reason.
    """
    folder = output / album.folder
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []

    def draw(name: str, write: Callable[[Path], None]) -> None:
        try:
            write(folder / name)
            lines.append(str(folder / name))
        except ValueError as error:
            lines.append(f"no {name}: {error}")

    for take in [*album.takes.values(), *album.others]:
        draw(f"{take.name}.reuse.png", lambda path, take=take: reuse_map(take.trace, path))
        if take.trace.has_distances:
            draw(f"{take.name}.distances.png", lambda path, take=take: distance_curves(take.trace, path))
            draw(f"{take.name}.by_step.png", lambda path, take=take: step_distances(take.trace, path))
    traces = {label: take.trace for label, take in album.takes.items()}
    draw("cache.png", lambda path: cache_over_time(traces, path))
    draw("tradeoff.png", lambda path: tradeoff(album.quality, album.title.partition(":")[0], path))
    draw("frames.png", lambda path: _frames(album, path))
    draw("race.mp4", lambda path: _race(album, path))
    return lines


def _frames(album: Album, path: Path) -> None:
    videos = {label: read_video(video)[0] for label, video in _videos(album).items()}
    scale = 112 / max(frames.shape[2] for frames in videos.values())
    contact_sheet(videos, path, columns=12, scale=scale, differences=True)


def _race(album: Album, path: Path) -> None:
    runners = [
        Runner(label, read_video(video)[0], finished_parts(album.takes[label].trace))
        for label, video in _videos(album).items()
    ]
    write_race(runners, album.title, path)


def _videos(album: Album) -> dict[str, Path]:
    """Videos by label.

    Raises:
        ValueError: there is none.
    """
    videos = {label: take.video for label, take in album.takes.items() if take.video is not None}
    if not videos:
        raise ValueError("no video lies beside the traces.")
    return videos


def _album_of_ways(run: ModelRun, prompt: str | None) -> Album:
    prompts = {name: run.ways[0].records[name]["prompt"] for name in run.names}
    name = _choose(prompts, prompt)
    takes = {}
    for way in run.ways:
        video = way.video(name)
        take = Take(folder_of(way.way), way.trace(name), video if video.is_file() else None)
        takes[TITLES.get(way.way, way.way)] = take
    return Album(run.folder.name, f"{run.model}: {prompts[name]}", takes, quality=_quality(run))


def _choose(prompts: Mapping[str, str], wanted: str | None) -> str:
    """The first name, or the first whose prompt is wanted."""
    if wanted is None:
        return next(iter(prompts))
    if wanted not in prompts.values():
        raise ValueError(_no_such_prompt(wanted, list(prompts.values())))
    return next(name for name, prompt in prompts.items() if prompt == wanted)


def _quality(run: ModelRun) -> dict[str, list[Point]]:
    rows = build_table(run, ()).rows
    panels = {}
    for key, title in QUALITIES.items():
        found = [(row.title, row.measured["speedup"], row.measured.get(key)) for row in rows]
        points = [Point(*values) for values in found if None not in values]
        if points:
            panels[title] = points
    return panels


def _album_of_files(paths: Sequence[Path], prompt: str | None) -> Album:
    """Of one prompt and seed, the one with most traces, methods are compared; the rest is drawn alone."""
    groups: dict[tuple[str, Any], dict[Path, Trace]] = {}
    for path in paths:
        trace = Trace.load(path)
        settings = trace.settings
        key = (settings.get("prompt", ""), (settings.get("video") or {}).get("seed"))
        groups.setdefault(key, {})[path] = trace
    wanted = {key: traces for key, traces in groups.items() if prompt in (None, key[0])}
    if not wanted:
        raise ValueError(_no_such_prompt(prompt, [shown for shown, _ in groups]))
    chosen = max(wanted, key=lambda key: len(wanted[key]))
    takes = {}
    for path, trace in groups[chosen].items():
        alone = sum(other.method == trace.method for other in groups[chosen].values()) == 1
        take = _take(path, trace)
        takes[trace.method if alone else take.name.removeprefix(words_of(chosen[0])).strip("_")] = take
    others = [_take(*item) for key, traces in groups.items() if key != chosen for item in traces.items()]
    return Album("", chosen[0] or "run", takes, others)


def _no_such_prompt(wanted: str | None, there: Sequence[str]) -> str:
    return f"prompt: there is no video of {wanted!r}, but of {', '.join(dict.fromkeys(there))}."


def _take(path: Path, trace: Trace) -> Take:
    name = path.name.removesuffix(".trace.json")
    places = (path.with_name(f"{name}.mp4"), path.parent.parent / "videos" / f"{name}.mp4")
    return Take(name, trace, next((place for place in places if place.is_file()), None))
