"""What to sample for a benchmark, under the original's names, and the samples that this comes to."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..user_files import expand_path
from .physics_iq_samples import find_scenes
from .sample import Sample, is_file_name, safe_name
from .vbench_prompts import SAMPLES, read_prompts

logger = logging.getLogger(__name__)

#: Benchmarks, and the keys that only one of them reads.
BENCHMARKS = {
    "vbench": ("vbench_prompt_dir", "dimension", "samples", "augmented_prompts"),
    "physicsiq": ("physicsiq_data_dir", "descriptions_file"),
}

#: A limit against typing errors; VBench wants 5, and 25 of some prompts.
MAX_SAMPLES = 10_000

PATHS = (
    "base_save_path",
    "vbench_prompt_dir",
    "augmented_prompts",
    "physicsiq_data_dir",
    "descriptions_file",
)

#: A list in VBench's format, of what the small checkpoints know.
SMALL_PROMPTS = Path(__file__).resolve().parents[2] / "assets" / "vbench_small"


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """The keys of a sampling file that are about the benchmark; the original's, and some of ours.

    Attributes:
        benchmark: ``vbench`` or ``physicsiq``.
        gpus: numbers of GPUs, ``0,1,3``, a process for each; ``cpu``; empty: all GPUs. The environment's
            ``DEVICES`` goes before it.
        base_save_path: folder for the results; empty: a default one.
        vbench_prompt_dir: VBench's repository, its ``prompts`` folder, or its installed package.
        dimension: of VBench: one, several with commas between them, or ``all``.
        physicsiq_data_dir: folder of the benchmark's videos.
        start, end: the part of the prompts or scenes to sample; ``end`` is not among them, None: all.
        samples: ours; videos of a VBench prompt, 5 in the benchmark.
        descriptions_file: ours; Physics-IQ's CSV, where it does not lie with the videos.
        augmented_prompts: ours; VBench's longer prompts for the model, a folder of lists or one list.
        keep_going: ours; make the other samples where some cannot be made.

    Raises:
        ValueError: one sentence that names the key and what it must be.
    """

    benchmark: str = "vbench"
    gpus: str = ""
    base_save_path: str = ""
    vbench_prompt_dir: str = ""
    dimension: str = "all"
    physicsiq_data_dir: str = ""
    start: int = 0
    end: int | None = None
    samples: int = SAMPLES
    descriptions_file: str = ""
    augmented_prompts: str = ""
    keep_going: bool = False

    def __post_init__(self) -> None:
        if self.benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {self.benchmark!r}.")
        defaults = {f.name: f.default for f in fields(self)}
        for benchmark, keys in BENCHMARKS.items():
            given = [key for key in keys if getattr(self, key) != defaults[key]]
            if given and benchmark != self.benchmark:
                raise ValueError(f"{given[0]} is for {benchmark}, got {self.benchmark}; leave it out.")
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise ValueError(f"start must be at least 0 and below end, got {self.start} and {self.end}.")
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise ValueError(f"samples must be at least 1 and at most {MAX_SAMPLES}, got {self.samples}.")
        for name in PATHS:
            expand_path(getattr(self, name), name)

    def devices_text(self, environment: Mapping[str, str]) -> tuple[str, str]:
        """Which devices are asked for, and the name under which they are."""
        told = environment.get("DEVICES", "")
        return ("DEVICES", told) if told.strip() else ("gpus", self.gpus)

    def list_samples(self, seed: int, fps: float, small: bool) -> list[Sample]:
        """The samples, in the benchmark's order and naming.

        Args:
            seed: of VBench's first video of a prompt, the next ones counting up; of all of Physics-IQ's.
            fps: at which Physics-IQ's videos are continued.
            small: whether the model is a small checkpoint, which has a list of prompts of its own.

        Raises:
            ValueError: a folder, file or dimension is missing; the key is named.
        """
        if self.benchmark == "physicsiq":
            return self._physics_iq(seed, fps)
        return self._vbench(seed, small)

    def _vbench(self, seed: int, small: bool) -> list[Sample]:
        folder = Path(self.vbench_prompt_dir).expanduser() if self.vbench_prompt_dir else None
        if folder is None and not small:
            raise ValueError(
                "vbench_prompt_dir is missing: give VBench's repository, its prompts folder, or its package."
            )
        augmented = Path(self.augmented_prompts).expanduser() if self.augmented_prompts else None
        found = read_prompts(folder or SMALL_PROMPTS, self.dimension, augmented)
        prompts = dict(self._part("prompts", list(found.items())))
        longest = f"-{self.samples - 1}"
        names = {p: p if is_file_name(p + longest) else safe_name(p) for p in prompts}
        renamed = [prompt for prompt, name in names.items() if name != prompt]
        if renamed:
            logger.warning(
                "VBench does not find the videos of %d prompts that cannot be file names, such as %s-0.mp4 "
                "of %r; manifest.jsonl has the prompt of each.",
                *(len(renamed), names[renamed[0]], renamed[0]),
            )
        return [
            Sample(
                f"{names[prompt]}-{index}",
                given,
                seed + index,
                original=None if augmented is None else prompt,
            )
            for prompt, given in prompts.items()
            for index in range(self.samples)
        ]

    def _physics_iq(self, seed: int, fps: float) -> list[Sample]:
        if not self.physicsiq_data_dir:
            raise ValueError("physicsiq_data_dir is missing: give the folder of Physics-IQ's videos.")
        table = Path(self.descriptions_file).expanduser() if self.descriptions_file else None
        scenes = find_scenes(Path(self.physicsiq_data_dir).expanduser(), table, fps)
        return [
            Sample(scene.name, scene.description, seed, video=scene.video)
            for scene in self._part("scenes", scenes)
        ]

    def _part(self, kind: str, items: Sequence[Any]) -> Sequence[Any]:
        if self.start >= len(items):
            raise ValueError(f"start is {self.start}, but there are only {len(items)} {kind}.")
        return items[self.start : self.end]


def given_flags(args: Namespace) -> dict[str, Any]:
    """Keys that the command line says something of."""
    told = {f.name: getattr(args, f.name) for f in fields(BenchmarkOptions)}
    return {key: value for key, value in told.items() if value is not None}


def add_benchmark_flags(parser: ArgumentParser) -> None:
    """A flag for each key; what is not given is None."""
    add = parser.add_argument_group("benchmark").add_argument
    add("--benchmark", choices=BENCHMARKS)
    add("--gpus", help="0,1,3, or cpu; the environment's DEVICES goes before it (default: all)")
    add("--base_save_path", help="folder for the results")
    add("--vbench_prompt_dir", help="VBench's repository, its prompts folder, or its installed package")
    add("--dimension", help="of VBench; several with commas between them, or all (default)")
    add("--physicsiq_data_dir", help="folder of Physics-IQ's videos")
    add("--descriptions_file", help="Physics-IQ's CSV, where it does not lie with the videos")
    add("--start", type=int, help="first prompt or scene (default: 0)")
    add("--end", type=int, help="the one after the last (default: all)")
    add(
        "--ways",
        nargs="+",
        metavar="WAY",
        help="METHOD[:PRESET] instead of --method and --preset; they take turns",
    )
    add("--samples", type=int, help=f"videos of a VBench prompt (default: {SAMPLES})")
    add("--augmented_prompts", help="VBench's longer prompts for the model: a folder of lists, or one list")
    add(
        "--keep_going",
        action="store_true",
        default=None,
        help="make the other samples where some cannot be made (default: refuse, with a list)",
    )
