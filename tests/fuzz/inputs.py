"""Draws inputs by number: command lines, damaged files and calls from Python."""

import contextlib
import inspect
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from reference import ROOT
from synthetic_run import make_run

import magi1.methods
import skyreels_v2.methods
from flowcache import FlowCacheConfig, StaircaseSchedule
from flowcache.config import KVCompressionConfig, KVStorageConfig
from flowcache.video import VideoWriter
from skyreels_v2 import VideoSettings

from .programs import MAGI, PROGRAMS, VARIABLES, Fault, draw_words, innermost, judge_outcome, run_program
from .programs import split_options as split
from .values import NUMBERS, OBJECTS, PLAIN_VALUES, damage_file

#: Python entry points with arguments that have no default.
CALLS: dict[Callable, dict[str, Any]] = {
    VideoSettings: {},
    FlowCacheConfig: {},
    KVCompressionConfig: {},
    KVStorageConfig: {"bits": 8},
    StaircaseSchedule: {"num_chunks": 3, "num_steps": 8, "stride": 2},
    magi1.methods.method_config: {"method": "flowcache"},
    skyreels_v2.methods.method_config: {"method": "flowcache"},
}
#: Good files and folders, and the program and option that read them; a file in a folder is damaged in a copy.
FILES = (
    ("image.png", "skyreels", "image", ""),
    ("image.png", "magi", "image_path", "--mode i2v"),
    ("in.mp4", "skyreels", "video_path", "--overlap_history 17"),
    ("in.mp4", "magi", "prefix_video_path", "--mode v2v"),
    ("in.mp4", "metrics", "generated_video", "--original_video GOOD/in.mp4"),
    ("options.yaml", "magi", "additional_config", ""),
    ("magi.json", "magi", "config_file", ""),
    ("samples.yaml", "magi_samples", "yaml_config", ""),
    ("prompts", "skyreels_samples", "vbench_prompt_dir", ""),
    ("skyreels", "skyreels", "model_id", ""),
    ("skyreels", "skyreels", "model_id", ""),
    ("magi", "magi", "config_file", "--model official"),
    ("run", "tables", "run_dir", ""),
    ("run", "plot", "run_dir", ""),
)


class Sandbox:
    """Good and bad files, and an empty working folder for each input."""

    def __init__(self, root: Path) -> None:
        self.root, self.good, self.bad = root, root / "good", root / "bad"
        for folder in (self.good, self.bad, root / "home"):
            folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (40, 30), (200, 30, 30, 128)).save(self.good / "image.png")
        for name in ("in.mp4", "original/a.mp4", "generated/a.mp4"):
            (self.good / name).parent.mkdir(exist_ok=True)
            frames = np.full((30 if name == "in.mp4" else 5, 64, 64, 3), 90, np.uint8)
            frames[:, 8:20, 8:40] = 220
            with VideoWriter(self.good / name, 24) as writer:
                writer.write(frames)
        (self.good / "prompts").mkdir()
        (self.good / "prompts" / "scene.txt").write_text("a red circle\na circle\n")
        (self.good / "notes.txt").write_text("of the user\n")
        (self.good / "empty").touch()
        shutil.copy(MAGI / "yaml_config/single_run/config.yaml", self.good / "options.yaml")
        shutil.copy(MAGI / "yaml_config/sample/flowcache_vbench.yaml", self.good / "samples.yaml")
        shutil.copy(MAGI / "config/single_run/4.5B_distill.json", self.good / "magi.json")
        for name, small in (("skyreels", "skyreels_v2_small"), ("magi", "magi1_small")):
            shutil.copytree(ROOT / "assets" / small, self.good / name)
        make_run(self.good / "run")
        os.mkfifo(self.bad / "fifo")
        (self.bad / "loop").symlink_to(self.bad / "loop")
        (self.bad / "dangling").symlink_to(self.bad / "nowhere" / "a.mp4")
        (self.bad / "folder.mp4").mkdir()

    def stamp(self) -> dict[str, tuple[int, int]]:
        """Sizes and times of the good files, except for the run that ``tables`` adds scores to."""
        run = self.good / "run"
        paths = [path for path in self.good.rglob("*") if path.is_file() and run not in path.parents]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def try_input(sandbox: Sandbox, seed: int, number: int) -> tuple[str, list[Fault]]:
    """Draw the input of a number and run it; return its description and the faults."""
    rng = Random(f"{seed} {number}")
    with TemporaryDirectory(dir=sandbox.root) as folder, contextlib.chdir(folder):
        return rng.choices((_try_command_line, _try_file, _try_call), (5, 3, 2))[0](rng, sandbox)


def _try_command_line(rng: Random, sandbox: Sandbox) -> tuple[str, list[Fault]]:
    name = rng.choice(["skyreels", "magi", "skyreels_samples", "magi_samples", *PROGRAMS])
    program = PROGRAMS[name]
    typed = split(program.usual)
    for hostile in (False, True):
        for option in rng.sample(list(program.options), min(len(program.options), rng.choice((1, 1, 2, 3)))):
            if not hostile or rng.random() < 0.7:
                typed[option] = draw_words(rng, program.options[option], hostile)
    variables = {}
    if rng.random() < 0.1:
        variable = rng.choice(list(VARIABLES))
        variables = {variable: rng.choice((VARIABLES[variable], rng.choice(NUMBERS)))}
        variables |= {"PYTHONIOENCODING": "ascii"} if variable == "PYTHONIOENCODING" else {}
    return _run_line(sandbox, name, typed, variables, [])


def _try_file(rng: Random, sandbox: Sandbox) -> tuple[str, list[Fault]]:
    good, name, option, more = rng.choice(FILES)
    copied = shutil.copytree if (sandbox.good / good).is_dir() else shutil.copy
    copied(sandbox.good / good, good)
    suffixes = (".json", ".jsonl", ".yaml", ".txt", ".safetensors", ".png", ".mp4")
    files = [path for path in [Path(good), *sorted(Path(good).rglob("*"))] if path.is_file()]
    damaged = rng.choice([path for path in files if path.suffix in suffixes])
    what = damage_file(rng, damaged)
    word = "magi/config.json" if good == "magi" else good
    typed = split(f"{PROGRAMS[name].usual} --{option} {word} {more}")
    shown, faults = _run_line(sandbox, name, typed, {}, [damaged.name, damaged.parent.name])
    return f"{shown}  [{damaged}: {what}]", faults


def _run_line(
    sandbox: Sandbox, name: str, typed: dict[str, list[str]], variables: dict[str, str], named: list[str]
) -> tuple[str, list[Fault]]:
    program, before, good = PROGRAMS[name], _list_files(), sandbox.stamp()
    root = f"{sandbox.root}/"
    expanded = {
        option: [re.sub("^(GOOD|BAD)(?=/|$)", lambda place: root + place[0].lower(), word) for word in words]
        for option, words in typed.items()
    }
    outcome = run_program(program, expanded, **variables)
    faults = judge_outcome(program, outcome, expanded, [*named, *variables])
    new = sorted(_list_files() - before)
    if sandbox.stamp() != good:
        faults.append(Fault("files", f"{name}: files of the user changed", str(typed)))
    if outcome.code == 2 and new:
        faults.append(Fault("files", f"{name}: left behind by a refusal", ", ".join(new[:5])))
    typed_names = {Path(word).name for words in typed.values() for word in words}
    half = [Path(path).name for path in new if re.search(r"/\.[^/]*$|\.part\.mp4$", path)]
    half = [name for name in half if not any(word and word in name for word in typed_names)]
    if outcome.code == 0 and half:
        faults.append(Fault("files", f"{name}: half-written", ", ".join(half[:5])))
    return f"{variables or ''} {name} {' '.join(word[:80] for word in program.words(typed))}", faults


def _list_files() -> set[str]:
    return {os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names}


def _try_call(rng: Random, _: Sandbox) -> tuple[str, list[Fault]]:
    call = rng.choice(list(CALLS))
    names = [p.name for p in inspect.signature(call).parameters.values() if p.kind is not p.VAR_KEYWORD]
    values = (*PLAIN_VALUES, *PLAIN_VALUES, *OBJECTS)
    drawn = {name: rng.choice(values) for name in rng.sample(names, rng.choice((1, 2)))}
    arguments = CALLS[call] | drawn
    shown = f"{call.__module__}.{call.__name__}({', '.join(f'{k}={v!s:.60}' for k, v in arguments.items())})"
    try:
        call(**arguments)
    except (TypeError, AttributeError):
        pass
    except (ValueError, OSError) as error:
        if not str(error).strip() or "\n" in str(error).strip():
            return shown, [Fault("message", f"{call.__name__}: no sentence", str(error))]
    except Exception as error:
        return shown, [Fault("exception", innermost(error), f"{type(error).__name__}: {str(error)[:300]}")]
    return shown, []
