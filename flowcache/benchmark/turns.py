"""The same samples made in several ways, which take turns sample by sample; knows no model.

    WAY/           a folder of samples for each way, see ``sample_folder``
    ways.json      the model, and the ways in their order

A way is a method, with the preset behind it for one that reuses: ``vanilla``, ``flowcache:fast``.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_json
from ..typed import as_type
from ..user_files import read_json, reading
from .ranks import Rank
from .sample import Sample
from .sample_folder import SampleFolder
from .sampling import Sampler, SamplingJob, make_videos

WAYS_FILE = "ways.json"


def split_way(way: str) -> tuple[str, str | None]:
    """Method and preset of a way.

    Raises:
        ValueError: it is not of that form.
    """
    method, colon, preset = way.partition(":")
    if not method or (colon and not preset) or ":" in preset or "/" in way:
        raise ValueError(f"ways must be METHOD or METHOD:PRESET, such as flowcache:fast, got {way!r}.")
    return method, preset or None


def with_way(args: Namespace, way: str) -> Namespace:
    """A program's flags with a way's method and preset.

    Raises:
        ValueError: it is no way, or a method is typed beside it.
    """
    if "method" in args.typed:
        raise ValueError("ways and method exclude each other: leave one of them out.")
    method, preset = split_way(way)
    return Namespace(**{**vars(args), "method": method, "preset": preset or args.preset})


def folder_of(way: str) -> str:
    """Name of a way's folder."""
    return way.replace(":", "_")


def read_ways(folder: Path) -> dict[str, Any]:
    """``model``, ``settings`` and ``ways`` of a folder.

    Raises:
        ValueError: its list of ways is broken.
    """
    path, kinds = folder / WAYS_FILE, {"model": str, "settings": str, "ways": list[str]}
    with reading(path, "a list of ways"):
        content = read_json(path, dict[str, Any], "a list of ways")
        return {key: as_type(content[key], kind, key) for key, kind in kinds.items()}


@dataclass(frozen=True)
class Turns:
    """Samples to be made in several ways by one process among many.

    A slow spell of the machine then hits all ways, and none pays for every first run.

    Attributes:
        model: its name, as in the paper.
        settings: what all videos share, in words.
        folder: where all goes.
        jobs: by way; all of the same samples.
    """

    model: str
    settings: str
    folder: Path
    jobs: Mapping[str, SamplingJob]

    def check(self) -> None:
        """Refuse what cannot be done, before any weight is read, and write down the ways.

        Raises:
            ValueError: as for a ``SamplingJob``, or the folder holds another model's videos.
        """
        for job in self.jobs.values():
            job.check()
        content = {"model": self.model, "settings": self.settings, "ways": list(self.jobs)}
        path = self.folder / WAYS_FILE
        if path.is_file():
            there = read_ways(self.folder)
            if (there["model"], there["settings"]) != (self.model, self.settings):
                raise ValueError(
                    f"base_save_path {self.folder} holds videos of {there['model']}, {there['settings']}; "
                    "give another folder."
                )
            content["ways"] = list(dict.fromkeys([*there["ways"], *self.jobs]))
        write_json(path, content)

    def run(self) -> str:
        """Make this process's share and what others left; returns what to say of it."""
        return f"{make_videos(list(self.jobs.values()))}\nfolder: {self.folder}"


def new_work(
    model: str,
    settings: str,
    output: Path,
    samples: Sequence[Sample],
    samplers: Mapping[str, Sampler],
    rank: Rank,
    takes_turns: bool,
    keep_going: bool = False,
) -> SamplingJob | Turns:
    """What a process is to do: make samples in several ways, in a folder for each, or in one way.

    Raises:
        ValueError: ``output`` holds videos of other settings.
    """
    if not takes_turns:
        (sampler,) = samplers.values()
        return SamplingJob(samples, sampler, SampleFolder(output, sampler.settings), rank, keep_going)
    jobs = {}
    for way, sampler in samplers.items():
        folder = SampleFolder(output / folder_of(way), sampler.settings)
        jobs[way] = SamplingJob(samples, sampler, folder, rank, keep_going)
    return Turns(model, settings, output, jobs)
