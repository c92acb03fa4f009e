"""Physics-IQ of folders in the benchmark's own naming (github.com/google-deepmind/physics-IQ-benchmark).

Reference videos are those of its ``split-videos/testing/<rate>FPS``, with names such as ``EXAMPLE``. The name of a
generated video begins with the id of the first take that it continues, ``0001_``. Unlike the benchmark's program, this
writes no mask to a lossy video in between and rounds nothing before the end, so that scores can differ a little.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..files import write_results
from ..metrics.physics_iq import Measures, PhysicsIQ, compare_clips, make_clip, physics_iq
from ..video import probe_video, stream_video

#: Length of the part of a video that the benchmark measures.
SECONDS = 5
#: It measures at this part of the reference's height and width.
SCALE = 4
PARTS = ("first", "last")

EXAMPLE = "0001_testing-videos_30FPS_perspective-left_take-1_scenario.mp4"
_REFERENCE = re.compile(
    r"(?P<id>\d{4})_testing-videos_\d+FPS_(?P<view>perspective-[a-z]+)_take-(?P<take>[12])_(?P<scenario>.+)\.mp4"
)


@dataclass(frozen=True)
class View:
    """A scene from one perspective: the generated video, and the two filmed takes."""

    scenario: str
    perspective: str
    generated: Path
    takes: tuple[Path, Path]

    def check(self) -> None:
        """Raise ValueError if a video is unreadable or too short, or rates differ."""
        expected = None
        for take in (self.takes[0], self.generated, self.takes[1]):
            name = f"{'generated' if take is self.generated else 'reference'}_videos"
            try:
                info = probe_video(take)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if info.fps is None:
                raise ValueError(f"{name}: {take.name} does not state its frame rate.")
            expected, count = expected or info.fps, round(SECONDS * info.fps)
            if not math.isclose(info.fps, expected, rel_tol=0.01):  # 29.97 is as good as 30
                wanted = f"{float(expected):g} frames a second, as {self.takes[0].name}"
                raise ValueError(f"{name}: expected {wanted}, got {float(info.fps):g} of {take.name}.")
            if info.num_frames is not None and info.num_frames < count:
                raise ValueError(f"{name}: expected {count} frames, {SECONDS} s, {take.name} has {info.num_frames}.")


@dataclass
class PhysicsIQReport:
    """Generated videos and what was measured of them, in the order of their ids."""

    pending: list[View]  # to measure
    absent: list[str]  # first takes without a generated video
    broken: dict[str, str] = field(default_factory=dict)  # why not measured, by the generated video's name
    #: With generated video and second take against the first take.
    measured: list[tuple[View, Measures, Measures]] = field(default_factory=list)

    def check(self) -> None:
        """Check all videos by their headers; ValueError with the first reason if none can be measured."""
        self.pending = [view for view, _ in self._try_each(View.check)]
        if not self.pending:
            raise ValueError(next(iter(self.broken.values())))

    def measure(self, part: str) -> None:
        measured = self._try_each(lambda view: measure_view(view, part))
        self.measured = [(view, *measures) for view, measures in tqdm(measured, unit="view", total=len(self.pending))]

    def _try_each(self, work: Callable[[View], Any]) -> Iterator[tuple[View, Any]]:
        for view in self.pending:
            try:
                yield view, work(view)
            except ValueError as error:
                self.broken[view.generated.name] = str(error)

    def score(self) -> PhysicsIQ:
        return physics_iq([ours for _, ours, _ in self.measured], [takes for *_, takes in self.measured])

    def save(self, stem: Path) -> list[Path]:
        """Write ``stem.csv``, a row for each view, and ``stem.json``, the score; returns both."""
        rows = []
        for view, ours, takes in self.measured:
            physical = {f"physical_{name}": value for name, value in asdict(takes).items()}
            rows.append({"scenario": view.scenario, "perspective": view.perspective, **asdict(ours), **physical})
        counts = {"videos": len(rows), "absent": self.absent, "broken": self.broken}
        return write_results(stem, list(rows[0]), rows, {**asdict(self.score()), **counts})

    def text(self) -> str:
        score, absent = self.score(), self.absent
        lines = [f"Physics-IQ score: {score.score:.1f} of 100, {len(self.measured)} videos"]
        if absent:
            which = f"{len(absent)} first takes, such as {absent[0]}"
            lines.append(f"not comparable with published scores: {which}, have no generated video")
        for name, ours in asdict(score.generated).items():
            lines.append(f"{name}: {ours:.4f} (two takes: {getattr(score.physical, name):.4f})")
        return "\n".join(lines)


def find_views(generated: Path, reference: Path) -> PhysicsIQReport:
    """Match generated videos with the takes, which have their rate.

    Raises:
        ValueError: a folder is missing or empty, a name is not the benchmark's, or a second take is missing.
    """
    by_id: dict[str, Path] = {}
    for path in _list_videos("generated_videos", generated):
        identity = path.name.partition("_")[0]
        if identity in by_id:
            raise ValueError(f"generated_videos: {by_id[identity].name} and {path.name} have the same id.")
        by_id[identity] = path
    takes: list[dict[tuple[str, str], tuple[str, Path]]] = [{}, {}]
    for path in _list_videos("reference_videos", reference):
        match = _REFERENCE.fullmatch(path.name)
        if match is None:
            raise ValueError(f"reference_videos: expected names like {EXAMPLE}, got {path.name}.")
        takes[int(match["take"]) - 1][match["scenario"], match["view"]] = (match["id"], path)
    views, absent = [], []
    for scene, (identity, path) in sorted(takes[0].items(), key=lambda item: item[1]):
        if scene not in takes[1]:
            raise ValueError(f"reference_videos: there is no second take of {path.name}.")
        if identity in by_id:
            views.append(View(*scene, by_id.pop(identity), (path, takes[1][scene][1])))
        else:
            absent.append(path.name)
    if by_id:
        raise ValueError(f"generated_videos: {by_id[min(by_id)].name} does not begin with the id of a first take.")
    return PhysicsIQReport(views, absent)


def _list_videos(name: str, folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.mp4")) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{name}: {folder} is not a folder with mp4 files.")
    return paths


def measure_view(view: View, part: str = "first") -> tuple[Measures, Measures]:
    """The generated video against the first take, and the second take against the first.

    ``part`` says which five seconds of the generated video count: ``last`` if it begins with given frames.
    ValueError if a video cannot be read or is too short.
    """
    info = probe_video(view.takes[0])
    count = round(SECONDS * info.fps)
    size = (max(1, info.height // SCALE), max(1, info.width // SCALE))
    first, second = (make_clip(islice(stream_video(take), count), size) for take in view.takes)
    # for the last seconds, too, motion is sought from the beginning: it tells what rests
    frames = stream_video(view.generated)
    generated = make_clip(islice(frames, count) if part == "first" else frames, size).last(count)
    return compare_clips(generated, first), compare_clips(second, first)
