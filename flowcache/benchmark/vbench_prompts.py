"""VBench's dimensions and the prompts of each (github.com/Vchitect/VBench, VBench_full_info.json)."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..user_files import read_text, reading

#: Videos that VBench looks at of each prompt, named ``{prompt}-{index}.mp4``.
SAMPLES = 5

FULL_INFO = "VBench_full_info.json"
#: All prompts, in the order in which lists of augmented ones of all dimensions have them.
ALL_PROMPTS = "all_dimension.txt"

#: Dimensions, and the list of prompts that each is measured on.
DIMENSIONS = {
    "subject_consistency": "subject_consistency",
    "background_consistency": "scene",
    "temporal_flickering": "temporal_flickering",
    "motion_smoothness": "subject_consistency",
    "dynamic_degree": "subject_consistency",
    "aesthetic_quality": "overall_consistency",
    "imaging_quality": "overall_consistency",
    "object_class": "object_class",
    "multiple_objects": "multiple_objects",
    "human_action": "human_action",
    "color": "color",
    "spatial_relationship": "spatial_relationship",
    "scene": "scene",
    "appearance_style": "appearance_style",
    "temporal_style": "temporal_style",
    "overall_consistency": "overall_consistency",
}


def read_prompts(folder: Path, dimension: str, augmented: Path | None = None) -> dict[str, str]:
    """Prompts of some dimensions, each once, in the benchmark's order, with what the model is given.

    Args:
        folder: VBench's repository or package, which hold ``VBench_full_info.json``, or a folder of lists,
            ``scene.txt`` and such.
        dimension: one, several with commas between them, or ``all`` that the folder has.
        augmented: longer prompts to give to the model, a line for each of the benchmark's: a folder of
            lists, ``scene_longer.txt`` and such, or the list of one dimension or of the whole benchmark;
            None: the benchmark's own.

    Raises:
        ValueError: the folder, a list or a dimension is missing, a file cannot be read, there is no prompt,
            or lists that belong together have different lengths.
    """
    if not folder.is_dir():
        raise ValueError(f"vbench_prompt_dir: there is no folder {folder}.")
    lists = _from_full_info(folder) or _from_texts(folder)
    if not lists:
        raise ValueError(
            f"vbench_prompt_dir: {folder} holds neither {FULL_INFO} nor lists such as scene.txt."
        )
    chosen = {name: lists[name] for name in choose_dimensions(dimension, lists)}
    prompts = {prompt: prompt for prompts in chosen.values() for prompt in prompts}
    if not prompts:
        raise ValueError(f"vbench_prompt_dir: {folder} holds no prompts of {dimension}; name another.")
    if augmented is None:
        return prompts
    longer = _read_augmented(augmented, folder, chosen)
    for prompt in prompts:
        if prompt not in longer:
            raise ValueError(f"augmented_prompts: {augmented} has no line for {prompt!r}.")
        prompts[prompt] = longer[prompt]
    return prompts


def choose_dimensions(text: str, known: Iterable[str]) -> list[str]:
    """The dimensions that a text names.

    Args:
        text: one, several with commas between them, or ``all``.
        known: dimensions to choose from.

    Raises:
        ValueError: one is not among them; the most alike is named.
    """
    known = list(known)
    wanted = known if text.strip() == "all" else [word.strip() for word in text.split(",")]
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
            raise ValueError(f"dimension: there is no {name!r}; {hint}")
    return wanted


def find_full_info(folder: Path) -> Path | None:
    """``VBench_full_info.json`` of a repository or package; None where it has none."""
    places = (folder / FULL_INFO, folder / "vbench" / FULL_INFO)
    return next((path for path in places if path.is_file()), None)


def read_full_info(path: Path) -> dict[str, list[str]]:
    """Prompts by dimension.

    Raises:
        ValueError: the file is not in VBench's format.
    """
    lists: dict[str, list[str]] = {}
    for prompt, dimensions in _read_entries(path):
        for name in dimensions:
            lists.setdefault(name, []).append(prompt)
    return lists


def _read_entries(path: Path) -> list[tuple[str, list[str]]]:
    """Each prompt with its dimensions."""
    with reading(path, f"a list in the format of {FULL_INFO}"):
        entries = [(entry["prompt_en"], entry["dimension"]) for entry in json.loads(read_text(path, "JSON"))]
        for prompt, dimensions in entries:
            if not isinstance(dimensions, list):
                raise TypeError(f"dimension: expected a list, got {dimensions!r}")
            "".join([prompt, *dimensions]).encode()  # raises where one is no text
    return entries


def _from_full_info(folder: Path) -> dict[str, list[str]]:
    path = find_full_info(folder)
    return {} if path is None else read_full_info(path)


def _from_texts(folder: Path) -> dict[str, list[str]]:
    """Dimensions of which a folder, or the one that VBench keeps its lists in, has a list."""
    found = {}
    for place in (folder, folder / "prompts_per_dimension", folder / "prompts" / "prompts_per_dimension"):
        for name, source in DIMENSIONS.items():
            path = place / f"{source}.txt"
            if name not in found and path.is_file():
                found[name] = _read_lines(path)
    return found


def _read_lines(path: Path) -> list[str]:
    """Lines that are not blank; unlike ``splitlines``, this leaves Unicode's own separators in a prompt."""
    lines = re.split(r"\r\n|\n|\r", read_text(path, "a list of prompts"))
    return [line.strip() for line in lines if line.strip()]


def _read_augmented(path: Path, folder: Path, lists: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The augmented prompt of each prompt; ``lists`` are those of the chosen dimensions, from ``folder``."""
    if path.is_dir():
        files = {name: _find_augmented(path, name) for name in lists}
        found = [(lists[name], _read_lines(file), file) for name, file in files.items()]
    else:
        lines, whole = _read_lines(path), _whole_benchmark(folder)
        sources = {DIMENSIONS.get(name, name) for name in lists}
        is_whole = len(whole) == len(lines) or len(sources) > 1
        found = [(whole if is_whole else next(iter(lists.values())), lines, path)]
    for prompts, lines, file in found:
        if len(lines) != len(prompts):
            raise ValueError(
                f"augmented_prompts: {file} has {len(lines)} prompts, expected one for each of the "
                f"benchmark's {len(prompts)}."
            )
    return {prompt: line for prompts, lines, _ in found for prompt, line in zip(prompts, lines, strict=True)}


def _find_augmented(folder: Path, dimension: str) -> Path:
    source = DIMENSIONS.get(dimension, dimension)
    places = [folder, folder / "prompts_per_dimension_longer"]
    paths = [place / name for place in places for name in (f"{source}_longer.txt", f"{source}.txt")]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise ValueError(f"augmented_prompts: {folder} holds no {source}_longer.txt.")
    return found


def _whole_benchmark(folder: Path) -> list[str]:
    """All prompts, in the benchmark's order; none where the folder does not say it."""
    path = find_full_info(folder)
    if path is not None:
        return [prompt for prompt, _ in _read_entries(path)]
    places = (folder, folder / "prompts", folder.parent)
    path = next((place / ALL_PROMPTS for place in places if (place / ALL_PROMPTS).is_file()), None)
    return [] if path is None else _read_lines(path)
