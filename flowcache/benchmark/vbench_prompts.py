"""VBench's dimensions and the prompts of each (github.com/Vchitect/VBench, VBench_full_info.json)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..typed import as_type
from ..user_files import read_json, reading

#: Videos that VBench looks at of each prompt, named ``{prompt}-{index}.mp4``.
SAMPLES = 5

FULL_INFO = "VBench_full_info.json"

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


def read_prompts(folder: Path, dimension: str) -> list[str]:
    """Prompts of some dimensions, each once, in the benchmark's order.

    Args:
        folder: VBench's repository or package, which hold ``VBench_full_info.json``, or a folder of lists,
            ``scene.txt`` and such.
        dimension: one, several with commas between them, or ``all`` that the folder has.

    Raises:
        ValueError: the folder, a list or a dimension is missing, or a file cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"vbench_prompt_dir: there is no folder {folder}.")
    lists = _from_full_info(folder) or _from_texts(folder)
    if not lists:
        raise ValueError(
            f"vbench_prompt_dir: {folder} holds neither {FULL_INFO} nor lists such as scene.txt."
        )
    prompts = [prompt for name in choose_dimensions(dimension, lists) for prompt in lists[name]]
    return list(dict.fromkeys(prompts))


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
    with reading(path, f"a list of prompts such as {FULL_INFO}"):
        for entry in read_json(path, list[dict[str, Any]], "a list of prompts"):
            prompt = as_type(entry["prompt_en"], str, "prompt_en")
            for name in as_type(entry["dimension"], list[str], "dimension"):
                lists.setdefault(name, []).append(prompt)
    return lists


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
                found[name] = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    return found
