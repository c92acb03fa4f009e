"""Draws command lines and damaged files by number; judges how the programs end."""

import argparse
import contextlib
import io
import json
import logging
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
from PIL import Image
from reference import ROOT
from synthetic_run import make_run

from flowcache.denoise import Denoiser
from flowcache.video import VideoWriter

from .values import NUMBERS, PATHS, TEXTS, damage_file

MAGI, SKYREELS = ROOT / "FlowCache4MAGI-1", ROOT / "FlowCache4SkyReels-V2"
CODES = (0, 1, 2, 130, 143)
#: Numbers that may be larger than a million.
UNBOUNDED = {"seed", "end", "distributed_timeout_minutes"}
#: Variables that the programs read.
VARIABLES = {"PAD_HQ": "yes", "PAD_DURATION": "1", "SPECIAL_TOKEN_PATH": "missing.npz", "DEVICES": "0,1"}
VARIABLES |= {"prev_chunks_scale": "0.7", "RANK": "1", "WORLD_SIZE": "2", "PYTHONIOENCODING": "ascii"}


class Stopped(BaseException):
    """The program has come to the denoising loop."""


class Fault(Exception):
    """Kind, key and detail of a fault; faults of one cause share kind and key."""


def require(holds: object, kind: str, key: str, detail: str) -> None:
    """Raise Fault unless a condition holds."""
    if not holds:
        raise Fault(kind, key, detail[-1500:])


@dataclass(frozen=True)
class Program:
    """A program: its file or module, and a usual command line; ``GOOD`` is the folder of good files."""

    place: Path | str
    usual: str
    command: str | None = None

    @cached_property
    def options(self) -> dict[str, argparse.Action]:
        """Every option by name, from the parser itself."""
        parsers: list[argparse.ArgumentParser] = []
        with mock.patch.object(argparse.ArgumentParser, "print_help", lambda self, *_: parsers.append(self)):
            run_program(self, {"help": []})
        return {
            (action.option_strings or [action.dest])[0].lstrip("-"): action
            for action in parsers[0]._actions
            if action.dest not in ("help", "command")
        }

    def words(self, typed: Mapping[str, Sequence[str]]) -> list[str]:
        """The words of a command line, positional ones first."""
        options = {} if "help" in typed else self.options
        positional = [name for name in typed if name in options and not options[name].option_strings]
        found = [self.command or "", *(word for name in positional for word in typed[name])]
        for name in (name for name in typed if name not in positional):
            found += [f"--{name}", *typed[name]]
        return found if self.command else found[1:]


_SKYREELS = "--model_id small --height 64 --width 64 --num_frames 17 --inference_steps 4 --ar_step 2"
_MAGI = "--num_steps 8 --num_frames 24"
_SAMPLES = " --gpus cpu --vbench_prompt_dir GOOD/prompts --samples 1 --base_save_path out"
_METRICS = "--original_video GOOD/original --generated_video GOOD/generated --metrics psnr --output s"
_PHYSICS = "--generated_videos GOOD/generated --reference_videos GOOD/original --output scores"
_BENCHMARK = "flowcache.benchmark"

PROGRAMS = {
    "skyreels": Program(SKYREELS / "generate_video_df.py", "--prompt a " + _SKYREELS),
    "magi": Program(MAGI / "generate_video.py", "--prompt a " + _MAGI),
    "skyreels_samples": Program(SKYREELS / "sample_video.py", _SKYREELS + _SAMPLES),
    "magi_samples": Program(MAGI / "sample_video.py", _MAGI + _SAMPLES),
    "metrics": Program("flowcache.metrics", _METRICS),
    "tables": Program(_BENCHMARK, "--run_dir GOOD/run --output tables --device cpu", "tables"),
    "plot": Program(_BENCHMARK, "--run_dir GOOD/run --output pictures", "plot"),
    "physics_iq": Program(_BENCHMARK, _PHYSICS, "physics_iq"),
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


def try_input(sandbox: Sandbox, seed: int, number: int) -> tuple[str, Fault | None]:
    """Draw the command line or damaged file of a number and run it; return its description and fault."""
    rng = Random(f"{seed} {number}")
    with TemporaryDirectory(dir=sandbox.root) as folder, contextlib.chdir(folder):
        return (_draw_file if rng.random() < 0.4 else _draw_command_line)(rng, sandbox)


def _draw_command_line(rng: Random, sandbox: Sandbox) -> tuple[str, Fault | None]:
    name = rng.choice(["skyreels", "magi", "skyreels_samples", "magi_samples", *PROGRAMS])
    program = PROGRAMS[name]
    typed = _split(program.usual)
    for hostile in (False, True):
        for option in rng.sample(list(program.options), min(len(program.options), rng.choice((1, 1, 2, 3)))):
            if not hostile or rng.random() < 0.7:
                typed[option] = _draw_words(rng, program.options[option], hostile)
    variables = {}
    if rng.random() < 0.1:
        variable = rng.choice(list(VARIABLES))
        variables = {variable: rng.choice((VARIABLES[variable], rng.choice(NUMBERS)))}
        variables |= {"PYTHONIOENCODING": "ascii"} if variable == "PYTHONIOENCODING" else {}
    return _run_line(sandbox, name, typed, variables)


def _draw_file(rng: Random, sandbox: Sandbox) -> tuple[str, Fault | None]:
    good, name, option, more = rng.choice(FILES)
    copied = shutil.copytree if (sandbox.good / good).is_dir() else shutil.copy
    copied(sandbox.good / good, good)
    suffixes = (".json", ".jsonl", ".yaml", ".txt", ".safetensors", ".png", ".mp4")
    files = [path for path in [Path(good), *sorted(Path(good).rglob("*"))] if path.is_file()]
    damaged = rng.choice([path for path in files if path.suffix in suffixes])
    what = damage_file(rng, damaged)
    word = "magi/config.json" if good == "magi" else good
    typed = _split(f"{PROGRAMS[name].usual} --{option} {word} {more}")
    shown, fault = _run_line(sandbox, name, typed, {}, damaged.name, damaged.parent.name)
    return f"{shown}  [{damaged}: {what}]", fault


def _run_line(
    sandbox: Sandbox, name: str, typed: dict[str, list[str]], variables: dict[str, str], *named: str
) -> tuple[str, Fault | None]:
    program, root = PROGRAMS[name], f"{sandbox.root}/"
    shown = f"{variables or ''} {name} {' '.join(word[:80] for word in program.words(typed))}"
    expanded = {
        option: [re.sub("^(GOOD|BAD)(?=/|$)", lambda place: root + place[0].lower(), word) for word in words]
        for option, words in typed.items()
    }
    before, good = _list_files(), sandbox.stamp()
    try:
        code, errors = run_program(program, expanded, **variables)
        _judge(program, code, errors, expanded, [*named, *variables])
        new = sorted(_list_files() - before)
        require(sandbox.stamp() == good, "files", f"{name}: files of the user changed", str(typed))
        require(code != 2 or not new, "files", f"{name}: left behind by a refusal", ", ".join(new[:5]))
        typed_names = {Path(word).name for words in typed.values() for word in words}
        half = [Path(path).name for path in new if re.search(r"/\.[^/]*$|\.part\.mp4$", path)]
        half = [file for file in half if not any(word and word in file for word in typed_names)]
        require(code != 0 or not half, "files", f"{name}: half-written", ", ".join(half[:5]))
    except Fault as fault:
        return shown, fault
    except Exception as error:
        return shown, Fault("exception", innermost(error), traceback.format_exc()[-1500:])
    return shown, None


def _list_files() -> set[str]:
    return {os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names}


def _split(line: str) -> dict[str, list[str]]:
    """Words of each option of a command line by name."""
    return {words[0]: words[1:] for part in line.split("--") if (words := part.split())}


def _draw_words(rng: Random, action: argparse.Action, hostile: bool) -> list[str]:
    """Draw words for an option: by its type and choices, or hostile ones."""
    if action.nargs == 0:
        return []
    count = rng.choice((0, 1, 3)) if hostile and action.nargs in ("+", "*") else 1
    kind = action.type if isinstance(action.type, type) else None
    if not hostile:
        default = () if action.default in (None, argparse.SUPPRESS) else (str(action.default),)
        usual = {int: ("1", "2", "3", "8"), float: ("0.1", "0.5", "1.0")}.get(kind, default or ("a",))
        return [str(rng.choice(list(action.choices or usual))) for _ in range(count)]
    likely = {int: NUMBERS, float: NUMBERS, Path: PATHS}.get(kind, TEXTS + PATHS)
    return [rng.choice(rng.choice((likely, likely, NUMBERS, TEXTS, PATHS))) for _ in range(count)]


def run_program(program: Program, typed: Mapping[str, Sequence[str]], **variables: str) -> tuple[int | None, str]:
    """Run a program as a shell would, without other processes; return exit code and standard error.

    The code is None where it came to the denoising loop.
    """
    code = None
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    output = io.TextIOWrapper(io.BytesIO(), encoding, "strict", write_through=True)
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    handlers, level = logging.root.handlers[:], logging.root.level
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "argv", [str(program.place), *program.words(typed)]),
        mock.patch.dict(os.environ, variables),
        mock.patch.object(Denoiser, "run", side_effect=Stopped),
        mock.patch.object(subprocess, "Popen", side_effect=FileNotFoundError),
    ):
        try:
            if isinstance(program.place, Path):
                runpy.run_path(str(program.place), run_name="__main__")
            else:
                runpy.run_module(program.place, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code or 0
        except Stopped:
            pass
    logging.root.handlers[:], logging.root.level = handlers, level
    return code, errors.buffer.getvalue().decode()


def innermost(error: BaseException) -> str:
    """Type of an exception and the innermost place in this project that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = re.compile(rf"{ROOT}/(?!tests|\.venv)")
    place = ([frame for frame in frames if ours.match(frame.filename)] or frames)[-1]
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.name}"


def _judge(
    program: Program, code: int | None, errors: str, typed: Mapping[str, Sequence[str]], named: Sequence[str]
) -> None:
    """Raise Fault for a traceback, another code, no or several sentences, no name, nonsense accepted."""
    require("Traceback (most" not in errors, "traceback", "printed", errors)
    require(code in (None, *CODES), "code", repr(code), errors)
    sentences = [line for line in re.split(r"[\r\n]", errors) if line.startswith("error: ")]
    require(code not in (1, 2) or len(sentences) == 1, "message", f"{len(sentences)} sentences", errors)
    if code == 2:
        words = [word for name, words in typed.items() for word in (name, *words)]
        words = [os.path.basename(word).lower() or word for word in [*words, *named, *program.options]]
        known = any(word and word in sentences[0].lower() for word in ["arguments", *words])
        key = re.sub(r"'[^']*'|\S*/\S*|[-\d.]+", "…", sentences[0])[:80]
        require(known, "message", f"names no argument: {key}", sentences[0])
    for name, words in typed.items() if code in (None, 0) else ():
        if name in program.options and program.options[name].type in (int, float):
            for word in words:
                require(not _is_nonsense(name, word), "nonsense", f"{name}: {word}", "was accepted")


def _is_nonsense(name: str, word: str) -> bool:
    try:
        value = float(json.loads(word))
    except (ValueError, TypeError, OverflowError):
        return word.strip(" .-+").lower() in ("nan", "inf")
    return not math.isfinite(value) or (abs(value) > 10**6 and name not in UNBOUNDED)
