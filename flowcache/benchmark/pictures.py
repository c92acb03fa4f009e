"""The pictures of a folder with traces, and their names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..fingerprint import prompt_words
from ..plots import Point, cache_over_time, distance_curves, reuse_map, step_distances, tradeoff
from ..plots.race import Runner, finished_parts, write_race
from ..trace import Trace
from ..video import Frames, contact_sheet, read_video
from .runs import ModelRun, find_model_folders, find_model_runs
from .sampling import folder_name
from .tables import build_table, method_title

#: Columns of a table that measure quality, and titles of their axes.
QUALITIES = {
    "psnr": "PSNR to vanilla, dB",
    "ssim": "SSIM to vanilla",
    "lpips": "LPIPS to vanilla",
    "st_lpips": "ST-LPIPS to vanilla",
    "vbench": "VBench",
    "psnr_to_causal": "PSNR to causal, dB",
}


@dataclass(frozen=True)
class Take:
    name: str  # of its pictures, without suffix
    trace: Trace
    video: Path


@dataclass(frozen=True)
class Album:
    """The pictures of one folder."""

    folder: str  # in the output folder; empty: that itself
    title: str
    takes: Mapping[str, Take]  # one video by several methods, by label
    others: Sequence[Take] = ()  # drawn alone
    quality: Mapping[str, Sequence[Point]] = field(default_factory=dict)  # of the trade-off, by measure

    def frames(self) -> dict[str, Frames]:
        found = {label: read_video(take.video)[0] for label, take in self.takes.items() if take.video.is_file()}
        if not found:
            raise ValueError("there is no video beside the traces.")
        return found

    def draw(self, output: Path) -> list[str]:
        """Draw everything that the traces and videos allow; returns paths, or why there is no picture."""
        folder, lines = output / self.folder, []
        folder.mkdir(parents=True, exist_ok=True)

        def draw(name: str, write: Callable[[Path], None]) -> None:
            try:
                write(folder / name)
                lines.append(str(folder / name))
            except ValueError as error:
                lines.append(f"no {name}: {error}")

        for take in [*self.takes.values(), *self.others]:
            plots = {"reuse": reuse_map}
            if take.trace.has_distances:
                plots |= {"distances": distance_curves, "by_step": step_distances}
            for kind, plot in plots.items():
                draw(f"{take.name}.{kind}.png", lambda path, plot=plot, take=take: plot(take.trace, path))
        traces = {label: take.trace for label, take in self.takes.items()}
        draw("cache.png", lambda path: cache_over_time(traces, path))
        draw("tradeoff.png", lambda path: tradeoff(self.quality, self.title.partition(":")[0], path))
        draw("frames.png", self.draw_frames)
        draw("race.mp4", self.write_race)
        return lines

    def draw_frames(self, path: Path) -> None:
        """Draw frames of all methods, one below the other, and their differences from the first."""
        videos = self.frames()
        widest = max(frames.shape[2] for frames in videos.values())
        contact_sheet(videos, path, columns=12, scale=112 / widest, differences=True)

    def write_race(self, path: Path) -> None:
        """Write an mp4 of all methods on one clock of denoising time."""
        videos = self.frames().items()
        runners = [Runner(name, frames, finished_parts(self.takes[name].trace)) for name, frames in videos]
        write_race(runners, self.title, path)


def find_albums(run_dir: Path, prompt: str | None = None) -> list[Album]:
    """An album for each model of a run; of another folder with traces, one.

    Methods are compared by a video of ``prompt``; None: the first, or the one with most traces.
    """
    if find_model_folders(run_dir):
        return [_read_run(run, prompt) for run in find_model_runs(run_dir)]
    paths = sorted(run_dir.rglob("*.trace.json"))
    if not paths:
        raise ValueError(f"run_dir: {run_dir} has no *.trace.json; give a folder that a run has written to.")
    return [_read_traces(paths, prompt)]


def _read_run(run: ModelRun, prompt: str | None) -> Album:
    prompts = {name: run.methods[0].records[name]["prompt"] for name in run.names}
    name = next((name for name in run.names if prompt in (None, prompts[name])), None)
    if name is None:
        raise ValueError(_unknown_prompt(prompt, prompts.values()))
    takes = {method_title(m.method): Take(folder_name(m.method), m.trace(name), m.video(name)) for m in run.methods}
    panels, rows = {}, build_table(run, ()).rows
    for key, title in QUALITIES.items():
        found = [(row.title, row.measured["speedup"], row.measured.get(key)) for row in rows]
        if points := [Point(*values) for values in found if None not in values]:
            panels[title] = points
    return Album(run.folder.name, f"{run.model}: {prompts[name]}", takes, quality=panels)


def _read_traces(paths: Sequence[Path], prompt: str | None) -> Album:
    """Methods are compared by the prompt and seed with most traces; the rest is drawn alone."""
    groups: dict[tuple[str, Any], dict[Path, Trace]] = {}
    for path in paths:
        trace = Trace.load(path)
        key = (trace.settings.get("prompt", ""), (trace.settings.get("video") or {}).get("seed"))
        groups.setdefault(key, {})[path] = trace
    wanted = [key for key in groups if prompt in (None, key[0])]
    if not wanted:
        raise ValueError(_unknown_prompt(prompt, [known for known, _ in groups]))
    chosen = max(wanted, key=lambda key: len(groups[key]))
    takes, others = {}, []
    methods = [trace.method for trace in groups[chosen].values()]
    for key, traces in groups.items():
        for path, trace in traces.items():
            name = path.name.removesuffix(".trace.json")
            places = (path.with_name(f"{name}.mp4"), path.parent.parent / "videos" / f"{name}.mp4")
            take = Take(name, trace, next((place for place in places if place.is_file()), places[0]))
            if key != chosen:
                others.append(take)
            elif methods.count(trace.method) == 1:
                takes[trace.method] = take
            else:
                takes[name.removeprefix(prompt_words(chosen[0])).strip("_")] = take
    return Album("", chosen[0] or "run", takes, others)


def _unknown_prompt(wanted: str | None, known: Any) -> str:
    return f"prompt: expected one of {', '.join(dict.fromkeys(known))}, got {wanted!r}."
