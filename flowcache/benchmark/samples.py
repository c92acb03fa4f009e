"""The videos that a benchmark asks for: options, prompts or scenes, and file names."""

import csv
import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..command_line import one_line
from ..files import shipped
from ..fingerprint import prompt_words
from ..typed import as_type
from ..user_files import expand_path, read_json, read_text, reading
from .prompts import SAMPLES, find_file, read_prompts

logger = logging.getLogger(__name__)

#: A file name holds at most 255 bytes, ``.mp4`` among them.
MAX_NAME_BYTES = 251
#: Sanity limit against typos; VBench wants 5 videos of a prompt, 25 of some.
MAX_SAMPLES = 10_000
#: Prompts that the small checkpoints know, in VBench's format.
SMALL_PROMPTS = shipped("assets/vbench_small")

PATHS = (
    "vbench_prompt_dir",
    "augmented_prompts",
    "physicsiq_data_dir",
    "descriptions_file",
    "data_path",
    "extended_prompt_path",
)
#: Benchmarks, and the options that not all of them read.
BENCHMARKS = {
    "vbench": ("dimension", "samples", *PATHS[:2]),
    "physicsiq": PATHS[2:4],
    "prompts": ("samples", *PATHS[4:]),
}
#: Captions of a folder of images, by their ratio.
CAPTIONS = "target_crop_info_{}.json"
#: A prompt of a list, the one for the model, and the first frame.
Entry = tuple[str, str, Path | None]
#: Letters of a prompt in the name of its video.
NAME_LETTERS = 100

_COLUMNS = ("scenario", "description", "generated_video_name")
_SCENARIO = re.compile(r"(?P<id>\d{4})_(?P<rest>perspective-[a-z]+_take-1_.+)\.mp4")


class SamplesFailed(ValueError):
    """Videos that cannot be made or scored: a line for each, then a report of the others."""

    has_lines = True

    def __init__(self, summary: str, reasons: Mapping[Any, str], report: str = "") -> None:
        lines = [summary, *(one_line(f"  {name}: {reason}") for name, reason in reasons.items())]
        super().__init__("\n".join([*lines, report] if report else lines))


def save_report(report: Any, stem: Path) -> str:
    """Write a report of videos and return its text; raises SamplesFailed if some of the videos are ``broken``."""
    text = "\n".join([report.text(), *map(str, report.save(stem))])
    if report.broken:
        raise SamplesFailed(f"{len(report.broken)} videos could not be scored:", report.broken, text)
    return text


@dataclass(frozen=True)
class Sample:
    """A video to make."""

    name: str  # of the file, without suffix
    prompt: str
    seed: int
    video: Path | None = None  # to continue
    original: str | None = None  # the benchmark's prompt if ``prompt`` is an augmented one
    image: Path | None = None  # first frame

    def __post_init__(self) -> None:
        if not is_file_name(self.name):
            raise ValueError(f"name: expected at most {MAX_NAME_BYTES} bytes without /, got {self.name!r}.")

    def as_dict(self) -> dict[str, Any]:
        """What identifies the sample in the manifest; plain values."""
        paths = {name: path and str(path) for name, path in (("video", self.video), ("image", self.image))}
        absent = {name for name in ("original", "image") if getattr(self, name) is None}
        return {name: value for name, value in {**vars(self), **paths}.items() if name not in absent}


def is_file_name(name: str, max_bytes: int = MAX_NAME_BYTES) -> bool:
    """Whether a video can have this name; control characters are refused, though file systems take them."""
    allowed = name not in (".", "..") and not any(c == "/" or ord(c) < 32 for c in name)
    return allowed and 0 < len(name.encode()) <= max_bytes


def safe_name(text: str) -> str:
    """A short file name for any text: its first words and a digest."""
    return f"{prompt_words(text)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _option(default: Any, text: str, shown: str = "") -> Any:
    """A field that is also a flag: ``text`` is its help, ``shown`` its default in words."""
    return field(default=default, metadata={"help": f"{text} (default: {shown or default})"})


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """What to sample: flags, and keys of a sampling file; most names are the original's."""

    benchmark: str = _option("vbench", f"benchmark to sample, one of {', '.join(BENCHMARKS)}")
    gpus: str = _option("", "numbers of GPUs (0,1,3), a process each, or cpu; DEVICES overrides it", "all")
    base_save_path: str = _option("", "folder for the results", "outputs/MODEL/BENCHMARK_METHOD")
    vbench_prompt_dir: str = _option(
        "", "VBench's repository, its prompts folder, or its installed package", "the small checkpoint's list"
    )
    dimension: str = _option("all", "dimensions of VBench, separated by commas")
    physicsiq_data_dir: str = _option("", "folder of Physics-IQ's videos", "none")
    start: int = _option(0, "first prompt or scene to sample")
    end: int | None = _option(None, "prompt or scene to stop before", "all")
    samples: int | None = _option(None, "videos of each prompt", f"{SAMPLES} of VBench, otherwise 1")
    descriptions_file: str = _option("", "Physics-IQ's CSV", "beside the videos")
    augmented_prompts: str = _option(
        "", "VBench's longer prompts for the model, a folder of lists or one list", "none"
    )
    data_path: str = _option(
        "", "file of benchmark prompts, one a line; of a model with i2v, a folder of images", "none"
    )
    extended_prompt_path: str = _option("", "longer prompts for the model, line by line of data_path", "none")
    keep_going: bool = _option(False, "make the other samples if some cannot be made", "refuse, with a list")

    def __post_init__(self) -> None:
        if self.benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark: expected one of {', '.join(BENCHMARKS)}, got {self.benchmark!r}.")
        for benchmark, keys in BENCHMARKS.items():
            others = [key for key in keys if key not in BENCHMARKS[self.benchmark]]
            if given := [key for key in others if getattr(self, key) != getattr(type(self), key)]:
                raise ValueError(f"{given[0]}: only benchmark {benchmark} reads it; leave it out.")
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise ValueError(f"start: expected at least 0 and below end, got {self.start} and {self.end}.")
        if self.samples is not None and not 1 <= self.samples <= MAX_SAMPLES:
            raise ValueError(f"samples: expected 1 to {MAX_SAMPLES}, got {self.samples}.")
        for name in ("base_save_path", *PATHS):
            expand_path(getattr(self, name), name)

    def list_samples(self, seed: int, fps: float, small: bool, images: bool = False) -> list[Sample]:
        """The samples, in the benchmark's order and naming; a small checkpoint has its own list of prompts.

        ``seed`` is that of all Physics-IQ videos and of a prompt's first video, whose next ones count up. ``images``:
        ``data_path`` is a folder of ``read_captions``.
        """
        if self.benchmark == "vbench":
            return self._list_prompts(seed, small)
        if self.benchmark == "prompts":
            return self._list_entries(seed, images)
        folder = self._path("physicsiq_data_dir")
        if folder is None:
            raise ValueError("physicsiq_data_dir: expected the folder of Physics-IQ's videos, got none.")
        return self._part("scenes", find_scenes(folder, self._path("descriptions_file"), fps, seed))

    def _list_prompts(self, seed: int, small: bool) -> list[Sample]:
        folder, augmented = self._path("vbench_prompt_dir"), self._path("augmented_prompts")
        if folder is None and not small:
            raise ValueError("vbench_prompt_dir: expected VBench's repository, prompts or package, got none.")
        found = read_prompts(folder or SMALL_PROMPTS, self.dimension, augmented)
        prompts = dict(self._part("prompts", list(found.items())))
        count = self.samples or SAMPLES
        longest = f"-{count - 1}"
        names = {p: p if is_file_name(p + longest) else safe_name(p) for p in prompts}
        if renamed := [f"{name}-0.mp4 of {prompt!r}" for prompt, name in names.items() if name != prompt]:
            what = f"{len(renamed)} prompts that cannot be file names, such as {renamed[0]}"
            logger.warning("VBench does not find the videos of %s; manifest.jsonl has the prompt of each.", what)
        return [
            Sample(f"{names[prompt]}-{i}", given, seed + i, original=None if augmented is None else prompt)
            for prompt, given in prompts.items()
            for i in range(count)
        ]

    def _list_entries(self, seed: int, images: bool) -> list[Sample]:
        """Samples of a file of prompts or of a folder of images, each once."""
        if (path := self._path("data_path")) is None:
            raise ValueError(f"data_path: expected a {'folder of images' if images else 'file of prompts'}, got none.")
        longer, count, samples = self._path("extended_prompt_path"), self.samples or 1, []
        if images and longer is not None:
            raise ValueError("extended_prompt_path: expected none with images, which have captions; leave it out.")
        entries = self._part("prompts", read_captions(path) if images else read_lines(path, longer))
        entries = list(dict.fromkeys(entries))
        short = Counter(prompt[:NAME_LETTERS] for prompt, *_ in entries)
        for prompt, given, image in entries:
            name = prompt[:NAME_LETTERS]
            if short[name] > 1 or not is_file_name(f"{name}-{count - 1}"):
                name = safe_name(prompt if image is None else f"{prompt} {image.name}")
            more = {"original": None if longer is None else prompt, "image": image}
            samples += [Sample(f"{name}-{i}", given, seed + i, **more) for i in range(count)]
        return samples

    def _path(self, name: str) -> Path | None:
        return Path(text).expanduser() if (text := getattr(self, name)) else None

    def _part(self, kind: str, items: Sequence[Any]) -> Sequence[Any]:
        if self.start >= len(items):
            raise ValueError(f"start: expected less than {len(items)} {kind}, got {self.start}.")
        return items[self.start : self.end]


def split_method(text: str) -> tuple[str, str | None]:
    """Method and preset of ``METHOD`` or ``METHOD:PRESET``."""
    method, colon, preset = text.partition(":")
    if not method or (colon and not preset) or ":" in preset or "/" in text:
        raise ValueError(f"methods: expected METHOD or METHOD:PRESET, such as flowcache:fast, got {text!r}.")
    return method, preset or None


def read_lines(path: Path, longer: Path | None = None) -> list[Entry]:
    """Read prompts, one a line, and longer ones for the model, line by line; empty lines are left out."""
    lists = [[line.strip() for line in read_text(path, "a list of prompts").splitlines()]]
    if longer is not None:
        lists.append([line.strip() for line in read_text(longer, "a list of prompts").splitlines()])
        if len(lists[0]) != len(lists[1]):
            got = f"got {len(lists[1])}"
            raise ValueError(f"extended_prompt_path: expected {len(lists[0])} lines as data_path has, {got}.")
    return [(*pair, None) for pair in zip(lists[0], lists[-1], strict=True) if pair[0]]


def read_captions(folder: Path) -> list[Entry]:
    """Read a folder of images as Self-Forcing's ``--i2v`` takes it.

    ``target_crop_info_RATIO.json`` lists ``file_name`` and ``caption`` of each image in the subfolder ``RATIO``. As in
    the original, its boxes are not read.
    """
    if not folder.is_dir():
        raise ValueError(f"data_path: expected a folder of images, got {folder}.")
    found = sorted(folder.glob(CAPTIONS.format("*")))
    if len(found) != 1:
        raise ValueError(f"data_path: expected one {CAPTIONS.format('RATIO')} in {folder}, got {len(found)}.")
    (table,), images = found, folder / found[0].stem.rpartition("_")[2]
    if not images.is_dir():
        raise ValueError(f"data_path: expected the images of {table.name} in {images}, got no folder.")
    rows, entries = read_json(table, list[dict[str, Any]], "a list of images"), []
    with reading(table, "a list of images"):
        for row in rows:
            name, caption = (as_type(row.get(key), str, key) for key in ("file_name", "caption"))
            if not caption.strip():
                raise ValueError(f"caption of {name}: expected text, got none")
            entries.append((caption.strip(), caption.strip(), images / expand_path(name, "file_name")))
        if not entries:
            raise ValueError("there is no image in it")
    return entries


def find_scenes(folder: Path, table: Path | None, fps: float, seed: int) -> list[Sample]:
    """The first takes of Physics-IQ (github.com/google-deepmind/physics-IQ-benchmark), in the order of ids.

    ``folder`` holds ``split-videos/``, or is the parent of such a ``physics-IQ-benchmark/``; ``table``, the CSV of
    scenarios, is by default in or beside it. Without videos at ``fps``, those at the highest rate are taken.
    """
    if not folder.is_dir():
        raise ValueError(f"physicsiq_data_dir: {folder} is not a folder.")
    inner = folder / "physics-IQ-benchmark"
    folder = inner if inner.is_dir() else folder
    found = folder.glob("split-videos/conditioning*/*FPS")
    rates = {int(p.name[:-3]): p for p in found if p.name[:-3].isdecimal() and p.is_dir()}
    if not rates:
        raise ValueError(f"physicsiq_data_dir: {folder} has no split-videos/conditioning/{fps:g}FPS.")
    rate = round(fps) if round(fps) in rates else max(rates)
    if rate != round(fps):
        logger.warning("Physics-IQ: there are no videos of %g FPS; those of %d are resampled.", fps, rate)
    if table is None:
        places = (folder, folder / "descriptions", folder.parent, folder.parent / "descriptions")
        table = find_file(places, "descriptions.csv", "descriptions_original.csv")
    if table is None:
        raise ValueError(f"physicsiq_data_dir: {folder} has no descriptions.csv; give descriptions_file.")
    scenes = {}
    for row in _read_table(table):
        match = _SCENARIO.fullmatch(row["scenario"])
        if match is None:  # a second take, which serves for comparison only
            continue
        name, identity = row["generated_video_name"].removesuffix(".mp4"), match["id"]
        if not name.startswith(f"{identity}_"):
            raise ValueError(f"descriptions_file: expected a name with scenario id {identity}, got {name}.")
        video = rates[rate] / f"{identity}_conditioning-videos_{rate}FPS_{match['rest']}.mp4"
        scenes[identity] = Sample(name, row["description"], seed, video=video)
    if not scenes:
        raise ValueError("descriptions_file: expected takes as 0001_perspective-left_take-1_x.mp4, got none.")
    return [scenes[identity] for identity in sorted(scenes)]


def _read_table(path: Path) -> list[dict[str, str]]:
    with reading(f"descriptions_file: {path}", "CSV"):
        rows = list(csv.DictReader(io.StringIO(read_text(path, "CSV"), newline=""), strict=True))
    if not rows or any(row.get(name) is None for row in rows for name in _COLUMNS):
        raise ValueError(f"descriptions_file: {path} lacks one of the columns {', '.join(_COLUMNS)}.")
    return rows
