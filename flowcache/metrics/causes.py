"""Say why two videos differ: the settings of their runs in the order in which they act, and both, chunk by chunk.

    flowcache compare A.mp4 B.mp4

Reads the videos and the traces beside them, NAME.trace.json. Where attention differs and a folder of the two also
has the video by the method causal, its distances to both say which share is due to attention.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..command_line import Parser, one_line
from ..fingerprint import differences
from ..running import run_checked
from ..trace import Trace, find_trace
from .compare import pair_up
from .similarity import CEILING

_ROWS = 12  # at most, so that all fits a screen
_WIDTHS = (10, 12, 9, 8, 9, 9)  # of the columns
_FRAMES = 4  # of a latent frame; the first of a video may have fewer
#: Fields of a configuration that decide what a chunk attends to.
_ATTENTION = ("whole_window", "bidirectional", "clean_range", "refresh_given", "clean_pass")


@dataclass(frozen=True)
class Run:
    """A video and how it was made."""

    path: Path
    trace: Trace

    @classmethod
    def read(cls, name: str, path: Path) -> "Run":
        """Read a video's trace; ValueError names the argument."""
        trace = path.with_suffix(".trace.json")
        if not path.is_file() or path.suffix != ".mp4":
            raise ValueError(f"{name}: expected a video, NAME.mp4, got {path}.")
        if not trace.is_file():
            raise ValueError(f"{name}: expected {trace.name} beside {path}; compare with flowcache metrics instead.")
        try:
            run = cls(path, Trace.load(trace))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if not any(window.chunk_frames for window in run.trace.windows):
            raise ValueError(f"{name}: expected a trace of a run, got {trace}, which holds no chunk.")
        return run

    @property
    def causes(self) -> dict[str, Mapping[str, Any]]:
        """What decides about a video, by cause, those first that act first."""
        settings, environment = dict(self.trace.settings), self.trace.environment
        video, reuse = dict(settings.get("video") or {}), dict(settings.get("reuse") or {})
        model = {"model": settings.get("model"), "loading": settings.get("loading")}
        sizes = {name: value for name, value in video.items() if name not in ("seed", "noise")}
        separate = {name: {name: reuse.pop(name, None)} for name in ("compression", "storage")}
        attention = {name: reuse.pop(name, None) for name in _ATTENTION}
        versions = {name: environment.get(name) for name in ("python", "torch", "diffusers")}
        return {
            "model": _without_folders(model),
            "prompt": {name: settings.get(name) for name in ("prompt", "negative_prompt", "given")},
            "video": _without_folders(sizes),
            "seed": {"seed": video.get("seed")},
            "noise": {"noise": video.get("noise")},
            "attention": attention,
            "reuse": reuse,
            **separate,
            "versions": versions,
            "machine": {name: environment.get(name) for name in ("device", "hardware", "threads")},
        }

    @property
    def title(self) -> str:
        preset = self.trace.settings.get("preset")
        return f"{self.path} ({self.trace.method}{f', {preset}' if preset else ''})"

    @property
    def decisions(self) -> dict[tuple[int, int, int], bool]:
        """Whether a chunk skipped the model, by window, step and chunk."""
        steps = self.trace.steps
        return {(step.window, step.step, event.chunk): event.reused for step in steps for event in step.events}


def explain(first: Run, second: Run) -> str:
    """The text for two runs: settings that differ, and the distance of the videos, chunk by chunk."""
    theirs, ours = first.causes, second.causes
    lines, found = [f"A: {first.title}", f"B: {second.title}"], {}
    for cause, before in theirs.items():
        now = ours[cause]
        if cause == "reuse":  # another policy has other options
            before, now = ({name: each[name] for name in before if name in now} for each in (before, now))
        if changes := differences(before, now, "is {} in A, {} in B"):
            found[cause] = f"{cause}: {'; '.join(changes)}"
    if found:
        lines += ["", f"The first difference is {next(iter(found))}, in the order in which settings act:"]
        lines += [f"  {line}" for line in found.values()]
        lines.append(f"The same: {', '.join(cause for cause in theirs if cause not in found)}.")
    else:
        lines += ["", "No setting differs. Traces do not hold the content of weights, nor what a code change does."]
    lines += [*_compare_decisions(first.decisions, second.decisions), "", *_compare_frames(first, second)]
    if "attention" in found:
        lines += ["", _divide(first, second)]
    return "\n".join(map(one_line, lines))


def _compare_decisions(before: Mapping[tuple, bool], now: Mapping[tuple, bool]) -> Iterator[str]:
    if before.keys() != now.keys():
        yield "Chunks and steps are not the same."
    elif changed := sorted(place for place in now if before[place] != now[place]):
        window, step, chunk = changed[0]
        share = f"{len(changed)} of {len(now)} steps of chunks"
        yield f"Reuse differs at {share}, first at step {step} of window {window}, in chunk {chunk}."


def _compare_frames(first: Run, second: Run) -> Iterator[str]:
    """Yield a table of PSNR, SSIM and reuse over the video, or why there is none."""
    try:
        frames = _measure(first.path, second.path)
    except ValueError as error:
        yield f"Not compared frame by frame: {error}"
        return
    spans = _chunk_frames(second.trace, len(frames["psnr"]))
    groups = np.array_split(np.arange(len(spans)), min(_ROWS, len(spans)))
    rows = [("chunks", "frames", "PSNR dB", "SSIM", "reuse A", "reuse B")]
    for chunks in [*groups, np.arange(len(spans))]:
        start, stop = spans[chunks[0]][1].start, spans[chunks[-1]][1].stop
        if start < stop:
            psnr, ssim = (frames[name][start:stop] if name in frames else [np.nan] for name in ("psnr", "ssim"))
            shares = [_reused(run.trace, len(frames["psnr"]), start, stop) for run in (first, second)]
            names = [f"{chunks[0]}-{chunks[-1]}" if len(chunks) > 1 else f"{chunks[0]}", f"{start}-{stop - 1}"]
            rows.append((*names, f"{np.mean(psnr):.1f}", f"{np.mean(ssim):.3f}", *shares))
    for row in rows:
        yield "".join(f"{cell:>{width}}" for cell, width in zip(row, _WIDTHS, strict=True))
    if min(frames["psnr"]) >= CEILING:
        yield "The frames are identical."


def _divide(first: Run, second: Run) -> str:
    """How much of the distance is due to attention, by the video of causal attention without reuse, if it exists."""
    for folder in (first.path.parent, second.path.parent):
        if (found := find_trace(folder, "causal", second.trace)) is None:
            continue
        middle = found[0].with_name(f"{found[0].name.removesuffix('.trace.json')}.mp4")
        if middle.is_file() and middle not in (first.path, second.path):
            try:
                values = [np.array(_measure(middle, run.path)["psnr"]) for run in (first, second)]
            except ValueError as error:
                return f"The share of attention was not measured: {str(error).partition(': ')[2]}"
            one, other = (np.mean(10 ** (-each / 10)) for each in values)
            whole = first.causes["attention"]["whole_window"]
            share = (one if whole else other) / (one + other)
            return f"Attention alone accounts for {share:.0%} of the squared error, measured through {middle}."
    return "The same video by --method causal in this folder would show the share of attention."


def _measure(one: Path, other: Path) -> Mapping[str, Sequence[float]]:
    """PSNR and SSIM of all frames of two videos; ValueError where their sizes differ."""
    report = pair_up(one, other, ("psnr", "ssim"))
    report.check()
    report.measure("cpu")
    (video,) = report.videos.values()
    return video["frames"]


def _chunk_frames(trace: Trace, count: int) -> list[tuple[tuple[int, int], range]]:
    """Each chunk by window and number, and its frames among all of the video, counted from the end."""
    chunks = [
        ((index, chunk), frames)
        for index, window in enumerate(trace.windows)
        for chunk, frames in enumerate(window.chunk_frames)
        if not index or chunk >= window.first_chunk
    ]
    ends = list(accumulate(frames for _, frames in chunks))
    places = [0, *(max(0, count - _FRAMES * (ends[-1] - end)) for end in ends)]
    return [(key, range(*places[n : n + 2])) for n, (key, _) in enumerate(chunks)]


def _reused(trace: Trace, count: int, start: int, stop: int) -> str:
    """Share of reused steps of the chunks that frames ``start`` to ``stop`` of ``count`` are in."""
    chunks = {key for key, frames in _chunk_frames(trace, count) if frames.start < stop and frames.stop > start}
    events = [event for step in trace.steps for event in step.events if (step.window, event.chunk) in chunks]
    return f"{np.mean([event.reused for event in events]):.0%}" if events else ""


def _without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with names for absolute paths, as the same files may lie elsewhere."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in settings.items()
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, prog="flowcache compare")
    parser.add_argument("original_video", type=Path, help="the video A")
    parser.add_argument("generated_video", type=Path, help="the video B, to compare with A")
    args = parser.parse_args(words)
    return run_checked(
        lambda: [Run.read(name, path) for name, path in vars(args).items()], lambda runs: explain(*runs)
    )
