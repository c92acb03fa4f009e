"""VBench's dimensions and the prompts of each (github.com/Vchitect/VBench, VBench_full_info.json)."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..typed import as_type
from ..user_files import read_json, read_text, reading

#: Videos that VBench scores of each prompt, named ``{prompt}-{index}.mp4``.
SAMPLES = 5
FULL_INFO = "VBench_full_info.json"
#: All prompts, in the order of lists of augmented prompts of all dimensions.
ALL_PROMPTS = "all_dimension.txt"


class Dimension(NamedTuple):
    """List of prompts, and the scores that the leaderboard maps to 0 and 1, and its weight."""

    prompts: str
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


#: The first seven measure quality, the others semantics.
DIMENSIONS = {
    "subject_consistency": Dimension("subject_consistency", 0.1462),
    "background_consistency": Dimension("scene", 0.2615),
    "temporal_flickering": Dimension("temporal_flickering", 0.6293),
    "motion_smoothness": Dimension("subject_consistency", 0.706, 0.9975),
    "dynamic_degree": Dimension("subject_consistency", weight=0.5),
    "aesthetic_quality": Dimension("overall_consistency"),
    "imaging_quality": Dimension("overall_consistency"),
    "object_class": Dimension("object_class"),
    "multiple_objects": Dimension("multiple_objects"),
    "human_action": Dimension("human_action"),
    "color": Dimension("color"),
    "spatial_relationship": Dimension("spatial_relationship"),
    "scene": Dimension("scene", high=0.8222),
    "appearance_style": Dimension("appearance_style", 0.0009, 0.2855),
    "temporal_style": Dimension("temporal_style", high=0.364),
    "overall_consistency": Dimension("overall_consistency", high=0.364),
}


def read_prompts(folder: Path, dimension: str, augmented: Path | None = None) -> dict[str, str]:
    """Prompts of some dimensions, each once, in the benchmark's order, with the prompt for the model.

    ``folder`` is VBench's repository or package, or one of lists such as ``scene.txt``; ``augmented`` is one of lists
    such as ``scene_longer.txt``, line by line as the benchmark's, or the list of one dimension or of all.
    """
    if not folder.is_dir():
        raise ValueError(f"vbench_prompt_dir: {folder} is not a folder.")
    info = find_full_info(folder)
    lists = _read_lists(folder) if info is None else read_full_info(info)
    if not lists:
        raise ValueError(f"vbench_prompt_dir: {folder} has neither {FULL_INFO} nor lists such as scene.txt.")
    chosen = {name: lists[name] for name in choose_dimensions(dimension, lists)}
    prompts = {prompt: prompt for prompts in chosen.values() for prompt in prompts}
    if not prompts:
        raise ValueError(f"vbench_prompt_dir: {folder} has no prompts of {dimension}; choose another.")
    if augmented is None:
        return prompts
    longer = _read_augmented(augmented, folder, chosen)
    absent = next((prompt for prompt in prompts if prompt not in longer), None)
    if absent is not None:
        raise ValueError(f"augmented_prompts: {augmented} has no line for {absent!r}.")
    return {prompt: longer[prompt] for prompt in prompts}


def choose_dimensions(text: str, known: Iterable[str]) -> list[str]:
    """The dimensions among ``known`` that a text names: ``all``, or names separated by commas."""
    known = list(known)
    wanted = known if text.strip() == "all" else [word.strip() for word in text.split(",")]
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}."
            raise ValueError(f"dimension: {name!r} is unknown; {hint}")
    return wanted


def find_full_info(folder: Path) -> Path | None:
    """``VBench_full_info.json`` of a repository or package; None if it is missing."""
    return find_file((folder, folder / "vbench"), FULL_INFO)


def find_file(places: Sequence[Path], *names: str) -> Path | None:
    """The first of these files, place by place."""
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


def read_full_info(path: Path) -> dict[str, list[str]]:
    """Prompts by dimension, from a file in VBench's format."""
    lists: dict[str, list[str]] = {}
    for prompt, dimensions in _read_entries(path):
        for name in dimensions:
            lists.setdefault(name, []).append(prompt)
    return lists


def _read_entries(path: Path) -> list[tuple[str, list[str]]]:
    kind = f"a list in the format of {FULL_INFO}"
    entries = read_json(path, list[dict[str, Any]], kind)
    with reading(path, kind):
        found = [(e["prompt_en"], as_type(e["dimension"], list[str], "dimension")) for e in entries]
        "".join(prompt for prompt, _ in found).encode()  # raises if one is not text
    return found


def _read_lists(folder: Path) -> dict[str, list[str]]:
    places = (folder, folder / "prompts_per_dimension", folder / "prompts" / "prompts_per_dimension")
    paths = {name: find_file(places, f"{dimension.prompts}.txt") for name, dimension in DIMENSIONS.items()}
    return {name: _read_lines(path) for name, path in paths.items() if path is not None}


def _read_lines(path: Path) -> list[str]:
    """Lines that are not blank; unlike ``splitlines``, this leaves Unicode's own separators in a prompt."""
    lines = re.split(r"[\r\n]+", read_text(path, "a list of prompts"))
    return [line.strip() for line in lines if line.strip()]


def _read_augmented(path: Path, folder: Path, lists: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The augmented prompt of each prompt of the chosen dimensions' ``lists`` of ``folder``."""
    sources = {name: DIMENSIONS[name].prompts if name in DIMENSIONS else name for name in lists}
    if path.is_dir():
        found, places = [], (path, path / "prompts_per_dimension_longer")
        for name, source in sources.items():
            file = find_file(places, f"{source}_longer.txt", f"{source}.txt")
            if file is None:
                raise ValueError(f"augmented_prompts: {path} has no {source}_longer.txt.")
            found.append((lists[name], _read_lines(file), file))
    else:
        lines, whole = _read_lines(path), _read_whole_benchmark(folder)
        is_whole = len(whole) == len(lines) or len(set(sources.values())) > 1
        found = [(whole if is_whole else next(iter(lists.values())), lines, path)]
    for prompts, lines, file in found:
        if len(lines) != len(prompts):
            wanted = f"{len(prompts)} prompts, one for each of the benchmark's"
            raise ValueError(f"augmented_prompts: expected {wanted}, got {len(lines)} in {file}.")
    return {prompt: line for prompts, lines, _ in found for prompt, line in zip(prompts, lines, strict=True)}


def _read_whole_benchmark(folder: Path) -> list[str]:
    """All prompts, in the benchmark's order; empty if the folder does not say it."""
    if (path := find_full_info(folder)) is not None:
        return [prompt for prompt, _ in _read_entries(path)]
    path = find_file((folder, folder / "prompts", folder.parent), ALL_PROMPTS)
    return [] if path is None else _read_lines(path)
