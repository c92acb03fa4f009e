"""The programs, run in this process until the model would denoise, and the judgement of how they end."""

import argparse
import io
import json
import logging
import math
import os
import re
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import NamedTuple
from unittest import mock

from reference import ROOT

from flowcache.denoise import Denoiser

from .values import NUMBERS, PATHS, TEXTS

MAGI, SKYREELS = ROOT / "FlowCache4MAGI-1", ROOT / "FlowCache4SkyReels-V2"
CODES = (0, 1, 2, 130, 143)
#: Numbers that may be larger than a million.
UNBOUNDED = {"seed", "end", "distributed_timeout_minutes"}
#: Variables that the programs read.
VARIABLES = {"PAD_HQ": "yes", "PAD_DURATION": "1", "SPECIAL_TOKEN_PATH": "missing.npz", "DEVICES": "0,1"}
VARIABLES |= {"prev_chunks_scale": "0.7", "RANK": "1", "WORLD_SIZE": "2", "PYTHONIOENCODING": "ascii"}


class Stopped(BaseException):
    """The program has come to the denoising loop."""


class Fault(NamedTuple):
    """A fault of one input; faults of one cause share kind and key."""

    kind: str
    key: str
    detail: str


@dataclass
class Outcome:
    """Exit code (None: stopped at denoising), standard error, and a traceback with its innermost place."""

    code: int | None = None
    errors: str = ""
    broke: str = ""
    place: str = ""


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


def split_options(line: str) -> dict[str, list[str]]:
    """Words of each option of a command line by name."""
    return {words[0]: words[1:] for part in line.split("--") if (words := part.split())}


def draw_words(rng: Random, action: argparse.Action, hostile: bool) -> list[str]:
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


def run_program(program: Program, typed: Mapping[str, Sequence[str]], **variables: str) -> Outcome:
    """Run a program as a shell would, up to the denoising loop, and without other processes."""
    outcome = Outcome()
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    output = io.TextIOWrapper(io.BytesIO(), encoding, "strict", write_through=True)
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    handlers, level = logging.root.handlers[:], logging.root.level
    with (
        redirect_stdout(output),
        redirect_stderr(errors),
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
            outcome.code = ended.code or 0
        except Stopped:
            pass
        except Exception as error:
            outcome.broke, outcome.place = "".join(traceback.format_exception(error)), innermost(error)
    logging.root.handlers[:], logging.root.level = handlers, level
    outcome.errors = errors.buffer.getvalue().decode()
    return outcome


def innermost(error: BaseException) -> str:
    """Type of an exception and the innermost place in this project that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = re.compile(rf"{ROOT}/(?!tests|\.venv)")
    place = ([frame for frame in frames if ours.match(frame.filename)] or frames)[-1]
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.name}"


def judge_outcome(
    program: Program, outcome: Outcome, typed: Mapping[str, Sequence[str]], named: Sequence[str]
) -> list[Fault]:
    """Faults of an exit: a traceback, another code, no or several sentences, no name, nonsense accepted."""
    if outcome.broke or "Traceback (most" in outcome.errors:
        return [Fault("traceback", outcome.place, (outcome.broke or outcome.errors)[-1500:])]
    if outcome.code not in (None, *CODES):
        return [Fault("code", repr(outcome.code), outcome.errors[-500:])]
    lines = [line for line in re.split(r"[\r\n]", outcome.errors) if line.strip()]
    sentences = [line for line in lines if line.startswith("error: ")]
    if outcome.code in (1, 2) and len(sentences) != 1:
        return [Fault("message", f"{len(sentences)} sentences", outcome.errors[-500:])]
    if outcome.code == 2:
        words = [word for name, words in typed.items() for word in (name, *words)]
        words = [os.path.basename(word).lower() or word for word in [*words, *named, *program.options]]
        if not any(word and word in sentences[0].lower() for word in ["arguments", *words]):
            key = re.sub(r"'[^']*'|\S*/\S*|[-\d.]+", "…", sentences[0])[:80]
            return [Fault("message", f"names no argument: {key}", sentences[0][:500])]
    if outcome.code in (1, 2):
        return []
    return [
        Fault("nonsense", f"{name}: {word}", f"--{name} {word} was accepted")
        for name, words in typed.items()
        for word in words
        if name in program.options and program.options[name].type in (int, float) and _is_nonsense(name, word)
    ]


def _is_nonsense(name: str, word: str) -> bool:
    try:
        value = float(json.loads(word))
    except (ValueError, TypeError, OverflowError):
        return word.strip(" .-+").lower() in ("nan", "inf")
    return not math.isfinite(value) or (abs(value) > 10**6 and name not in UNBOUNDED)
